"""Tables with image bytes in a column: parquet files, and Arrow files as Hugging Face ``datasets`` saves them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from unmem.mitigations.dedup.sources.batches import opened
from unmem.mitigations.dedup.sources.listing import Listing
from unmem.mitigations.dedup.sources.records import caption_field, describe, unusable
from unmem.mitigations.dedup.sources.shard import Item, Shard
from unmem.train.imageset import Rejected
from unmem.train.text import printable

IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
KEYS = ("key", "__key__")
IMAGE_ROWS = 16  # decoded at once where there are images: each may hold megabytes
TEXT_ROWS = 4096


@dataclass(frozen=True)
class Columns:
    """Which of a table's columns are used; None for what it lacks."""

    image: str
    caption: str | None
    sha256: str | None
    key: str | None

    @classmethod
    def of(cls, schema: pa.Schema, key: str | None, captions: str | None) -> Columns | str:
        """The columns of a table with that schema, or a text that says why it holds no images."""
        holders = [field.name for field in schema if _holds_bytes(field.type)]
        named = [name for name in IMAGES if name in holders]
        if not holders:
            return f"has no column of image bytes; has {', '.join(schema.names) or 'none'}"
        if not named and len(holders) > 1:
            return f"has several columns of bytes, {', '.join(holders)}, and none is called {', '.join(IMAGES)}"
        texts = [field.name for field in schema if _holds_texts(field.type)]
        sha256 = "sha256" if "sha256" in texts else None
        return cls((named or holders)[0], caption_field(texts, captions), sha256, key)

    def wanted(self, *, images: bool) -> list[str]:
        """The columns to read."""
        names = (self.image if images else None, self.caption, self.sha256, self.key)
        return list(dict.fromkeys(name for name in names if name is not None))


def plan(base: Path, name: str, files: Listing, size: int) -> list[Shard] | Rejected:
    """A table's shards: runs of row groups or batches of at least ``size`` rows together; or why there are none."""
    try:
        with opened(base / name) as table:
            columns = Columns.of(table.schema, None, None)
            if isinstance(columns, str):
                return Rejected(name, columns)
            counts = table.counts()
        key = _key_column(base / name, table.schema)
    except (OSError, ValueError) as error:  # Arrow's own errors are of these
        return Rejected(name, f"cannot be read ({error})")
    shards = []
    start = row = rows = 0
    for stop, count in enumerate(counts, start=1):
        rows += count
        if rows >= size or stop == len(counts):
            part = f"{name}#{start}" if stop == start + 1 else f"{name}#{start}-{stop - 1}"
            shards.append(Shard(part, table.layout, ((name, *files[name]),), start, stop, row, key))
            start, row, rows = stop, row + rows, 0
    return shards


def read(base: Path, shard: Shard, *, images: bool, captions: str | None) -> Iterator[Item | Rejected]:
    """The items of some row groups or batches; see :func:`unmem.mitigations.dedup.sources.read`."""
    name = shard.files[0][0]
    try:
        with opened(base / name) as table:
            columns = Columns.of(table.schema, shard.key, captions)
            assert isinstance(columns, Columns), "a table without images makes no shard"
            wanted = columns.wanted(images=images)
            counts = table.counts()
            first = shard.first_row
            for group in range(shard.start, shard.stop):
                row = first
                try:
                    for batch in table.batches(group, wanted, IMAGE_ROWS if images else TEXT_ROWS):
                        yield from _items(base, name, batch, row, columns, images=images)
                        row += batch.num_rows
                except (OSError, ValueError) as error:
                    yield Rejected(f"{name}#{group}", f"damaged from row {row} on ({error})")
                first += counts[group]
    except (OSError, ValueError) as error:
        yield Rejected(name, f"cannot be read ({error})")


def row_ids(name: str, batch: pa.RecordBatch, first: int, key: str | None) -> list[str]:
    """The ids of a batch's rows; ``first`` is the number of the first one in its table."""
    if key is None:
        return [f"{name}/{first + i}" for i in range(batch.num_rows)]
    return [f"{name}/{value}" for value in batch.column(key).to_pylist()]


def _items(
    base: Path, name: str, batch: pa.RecordBatch, first: int, columns: Columns, *, images: bool
) -> Iterator[Item | Rejected]:
    """The items of a batch of rows."""
    texts = columns.wanted(images=False)
    for i, identity in enumerate(row_ids(name, batch, first, columns.key)):
        try:
            row = {column: batch.column(column)[i].as_py() for column in texts}
        except UnicodeDecodeError:
            yield Rejected(identity, f"row {first + i} holds a text that is not UTF-8")
            continue
        data = _image(base, batch.column(columns.image)[i].as_py()) if images else None
        if isinstance(data, str):
            yield Rejected(identity, data)
        else:
            captions, sha256 = describe([row], columns.caption)
            yield Item(identity, data, captions, sha256)


def _image(base: Path, cell: Any) -> bytes | Path | str:
    """The image in a cell, which holds bytes or Hugging Face's ``{bytes, path}``; or why there is none."""
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if data is not None:
        assert isinstance(data, bytes)
        return data
    if not path:
        return "holds no image bytes"
    try:
        file = (base / path).resolve()
        inside = file.is_relative_to(base.resolve())
    except (OSError, ValueError, RuntimeError):  # a null character, a loop of links
        inside = False
    return file if inside else f"holds no image bytes, and the path {printable(path)!r} leads out of the data"


def _key_column(path: Path, schema: pa.Schema) -> str | None:
    """The column of keys, where it tells all rows of a table apart."""
    for name in KEYS:
        if name not in schema.names or not (_is_text(schema.field(name).type) or _is_integer(schema.field(name).type)):
            continue
        seen: set[str | None] = set()
        rows = 0
        try:
            with opened(path) as table:
                for group in range(len(table.counts())):
                    for batch in table.batches(group, [name], TEXT_ROWS):
                        rows += batch.num_rows
                        seen.update(None if value is None else str(value) for value in batch.column(name).to_pylist())
        except (OSError, ValueError):  # damaged somewhere: rows that can be read are numbered
            continue
        if len(seen) == rows and all(value and unusable(value) is None for value in seen):
            return name
    return None


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column may hold images."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _holds_texts(kind: pa.DataType) -> bool:
    """Whether a column may hold captions."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return _is_text(kind.value_type if is_list or pa.types.is_dictionary(kind) else kind)


def _is_text(kind: pa.DataType) -> bool:
    """Whether a type is of texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_integer(kind: pa.DataType) -> bool:
    """Whether a type is of integers."""
    return bool(pa.types.is_integer(kind))
