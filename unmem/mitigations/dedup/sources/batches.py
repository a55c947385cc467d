"""Parquet and Arrow stream files alike: groups of rows, read some columns and some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq


class Groups(Protocol):
    """An open table; a group is parquet's row group or Arrow's record batch."""

    layout: Literal["parquet", "arrow"]
    schema: pa.Schema

    def counts(self) -> list[int]:
        """The number of rows of each group; 0 for the one at which a damaged file breaks off."""

    def batches(self, group: int, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        """A group's rows in order, about ``rows`` in memory at a time; groups are asked for in ascending order."""


class Parquet:
    """A parquet file."""

    layout: Literal["parquet", "arrow"] = "parquet"

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file
        self.schema = file.schema_arrow

    def counts(self) -> list[int]:
        """The number of rows of each row group."""
        return [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]

    def batches(self, group: int, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        """A row group's rows, so many at a time."""
        yield from self._file.iter_batches(batch_size=rows, row_groups=[group], columns=columns, use_threads=False)


class Arrow:
    """A file in Arrow's stream format, memory-mapped: rows take memory when they are touched."""

    layout: Literal["parquet", "arrow"] = "arrow"

    def __init__(self, file: pa.MemoryMappedFile) -> None:
        self._file = file
        self._stream = pa.ipc.open_stream(file)
        self._next = 0
        self.schema = self._stream.schema

    def counts(self) -> list[int]:
        """The number of rows of each batch; where the stream breaks off, a last 0."""
        counts: list[int] = []
        self._rewind()
        try:
            counts.extend(batch.num_rows for batch in self._stream)
        except (OSError, ValueError):
            counts.append(0)
        self._rewind()
        return counts

    def batches(self, group: int, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        """The whole record batch: it is mapped, not read."""
        assert group >= self._next, "a stream is read forwards"
        while self._next < group:
            self._stream.read_next_batch()
            self._next += 1
        self._next += 1
        yield self._stream.read_next_batch().select(columns)

    def _rewind(self) -> None:
        """Go back to the first batch."""
        self._file.seek(0)
        self._stream = pa.ipc.open_stream(self._file)
        self._next = 0


@contextmanager
def opened(path: Path) -> Iterator[Groups]:
    """An open table.

    Raises:
        OSError, ValueError: Arrow's own, when the file is damaged.
    """
    if path.suffix.lower() == ".arrow":
        with pa.memory_map(str(path)) as file:
            yield Arrow(file)
    else:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield Parquet(file)
