"""All shards' signatures together: a row for each image, columns as arrays, captions only where they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unmem.mitigations.dedup.distinct import first_equal, number

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

LIKENESS = ("bytes_key", "pixels_key", "code")  # the columns that every search needs


@dataclass(frozen=True)
class Signatures:
    """The rows of several signature tables, one after the other.

    Attributes:
        paths: the tables.
        lengths: rows of each.
    """

    paths: tuple[Path, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Signatures:
        """The tables at these paths, in this order."""
        return cls(tuple(paths), tuple(pq.read_metadata(path).num_rows for path in paths))

    @classmethod
    def joined(cls, parts: Sequence[Signatures]) -> Signatures:
        """The tables of several, one after the other."""
        return cls(tuple(chain(*(part.paths for part in parts))), tuple(chain(*(part.lengths for part in parts))))

    def __len__(self) -> int:
        return sum(self.lengths)

    @cached_property
    def starts(self) -> Numbers:
        """int64 [tables + 1]: the first row of each table, and the number of rows."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    def words(self, column: str) -> tuple[Words, npt.NDArray[np.bool_]]:
        """A binary column as big-endian words, uint64 [n, w], and which rows have it; the others hold zeros."""
        parts, present = [], []
        for table in self._tables([column]):
            cells = table[column].combine_chunks().cast(pa.binary())
            present.append(np.asarray(pc.is_valid(cells)))
            joined = b"".join(value for value in cells.drop_null().to_pylist())
            parts.append(np.frombuffer(joined, ">u8").astype(np.uint64))
        there = np.concatenate([np.zeros(0, bool), *present])
        flat = np.concatenate([np.empty(0, np.uint64), *parts])
        width = len(flat) // max(1, int(there.sum()))
        words = np.zeros((len(there), max(width, 1)), np.uint64)
        if width:
            words[there] = flat.reshape(-1, width)
        return words, there

    def count(self, column: str) -> int:
        """How many rows a boolean column is true for."""
        return sum(int(pc.sum(table[column]).as_py() or 0) for table in self._tables([column]))

    def rows(self, wanted: Numbers, columns: Sequence[str]) -> pa.Table:
        """The given rows (ascending), the given columns."""
        parts = []
        for position, path in enumerate(self.paths):
            low, high = np.searchsorted(wanted, self.starts[position : position + 2])
            if low < high:
                inside = pa.array(wanted[low:high] - self.starts[position])
                parts.append(pq.read_table(path, columns=list(columns)).take(inside))
        if not parts:
            return pq.read_schema(self.paths[0]).empty_table().select(list(columns)) if self.paths else pa.table({})
        return pa.concat_tables(parts)

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column."""
        return pa.chunked_array([chunk for table in self._tables([name]) for chunk in table[name].chunks])

    def captions(self) -> Captions:
        """All captions, told apart by their normalised text."""
        items, keys = [np.empty(0, np.int64)], [np.empty((0, 2), np.uint64)]
        for start, table in zip(self.starts, self._tables(["caption_keys"]), strict=False):
            cells = table["caption_keys"].combine_chunks()
            items.append(start + np.repeat(np.arange(len(cells)), np.asarray(pc.list_value_length(cells))))
            flat = cells.flatten().cast(pa.binary()).to_pylist()
            keys.append(np.frombuffer(b"".join(flat), ">u8").astype(np.uint64).reshape(-1, 2))
        firsts, numbers = number(first_equal(np.concatenate(keys)))
        return Captions(self, np.concatenate(items), numbers, firsts)

    def _tables(self, columns: list[str]) -> Iterator[pa.Table]:
        """The tables, one at a time."""
        for path in self.paths:
            yield pq.read_table(path, columns=columns)


@dataclass(frozen=True)
class Captions:
    """Every caption of every image.

    Attributes:
        signatures: where they come from.
        items: int64 [m], the row of the image that each caption belongs to.
        numbers: int64 [m], which distinct normalised caption it is, by first appearance.
        firsts: int64 [u], where each distinct one appears first.
    """

    signatures: Signatures
    items: Numbers
    numbers: Numbers
    firsts: Numbers

    def texts(self) -> Iterator[list[str]]:
        """The distinct captions as written where they appear first, in the order of their numbers, in batches."""
        done = 0
        for table in self.signatures._tables(["captions"]):
            flat = table["captions"].combine_chunks().flatten()
            low, high = np.searchsorted(self.firsts, [done, done + len(flat)])
            yield flat.take(pa.array(self.firsts[low:high] - done)).to_pylist()
            done += len(flat)
