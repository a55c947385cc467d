"""What data consist of: shards, which are read one at a time, and the items in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

File = tuple[str, int, int]


@dataclass(frozen=True)
class Item:
    """One image with its captions.

    Attributes:
        id: unique in its data set and stable. A loose file's relative posix path; ``00000.tar/000000012``, the tar's
            path and the sample's key; ``part-0.parquet/12``, the table's path and the row's key, or its number where
            the table has no column ``key`` or ``__key__`` that tells all rows apart.
        image: the image file's bytes, or where it lies; None when images were not asked for.
        captions: the texts that go with it, in their order; none is blank.
        sha256: of the original file's bytes in lower-case hexadecimal, where the data's own metadata give it.
    """

    id: str
    image: bytes | Path | None
    captions: tuple[str, ...]
    sha256: str | None


@dataclass(frozen=True)
class Shard:
    """A part of the data that is read in one go; plain values.

    Attributes:
        name: unique among the shards: ``files-000002``, ``00000.tar``, ``part-0.parquet#3`` (a row group or Arrow
            batch) or ``part-0.parquet#3-5``.
        layout: how it is read.
        files: relative posix path, bytes and time of change (ns) of every file it consists of, side files included;
            a tar or table comes first.
        start: of a table, the first row group or batch.
        stop: of a table, one behind the last.
        first_row: of a table, the number of rows before ``start``.
        key: of a table, the column whose values are the rows' keys; None where these are numbered.
        rows: of loose files, the texts in the metadata as (image, JSON object), in the order of ``files``.
    """

    name: str
    layout: Literal["files", "tar", "parquet", "arrow"]
    files: tuple[File, ...]
    start: int = 0
    stop: int = 0
    first_row: int = 0
    key: str | None = None
    rows: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The shard as a JSON object."""
        return {**vars(self), "files": [list(file) for file in self.files], "rows": [list(row) for row in self.rows]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Shard:
        """The shard that :meth:`to_json` was called on."""
        files = tuple((name, size, changed) for name, size, changed in value["files"])
        return cls(**{**value, "files": files, "rows": tuple((name, row) for name, row in value["rows"])})
