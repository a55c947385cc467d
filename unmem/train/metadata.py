"""Captions and classes from ``metadata.csv``, ``.jsonl`` or ``.parquet``, as Hugging Face's ImageFolder has them."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmem.component import UserError
from unmem.train.datasets._files import read_text
from unmem.train.text import encodable

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CAPTIONS = ("text", "caption")


@dataclass(frozen=True)
class Row:
    """What a metadata file, called by its relative path, says of one image: caption and class, or None."""

    place: str
    caption: str | None
    label: str | int | None


def read_metadata(files: Mapping[str, Path]) -> dict[str, Row]:
    """The rows of all metadata files among ``files``, by the image's relative posix path.

    A ``file_name`` is relative to its metadata file. The caption is in the column ``text`` or ``caption``, the class
    in ``label``; other columns are not read.

    Raises:
        UserError: naming file and line, when a file is damaged, lacks ``file_name``, or names an image twice.
    """
    rows: dict[str, Row] = {}
    for name, path in files.items():
        if posixpath.basename(name) not in NAMES:
            continue
        for line, record in read_records(path):
            place = f"{path}, {line}"
            image = named_image(name, record)
            if image in rows:
                raise UserError(f"{place}: 'file_name' {image!r} again; first in {rows[image].place}")
            rows[image] = Row(f"{name}, {line}", _caption(place, record), _label(place, record))
    return rows


def read_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The records of one metadata file, each with its place in words ("line 3"); every one has a ``file_name``.

    Raises:
        UserError: naming file and line, when the file is damaged or lacks a ``file_name``.
    """
    read = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix]
    for place, record in read(path):
        name = record.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}, {place}: needs a 'file_name'; got {name!r}")
        yield place, record


def named_image(metadata: str, record: Mapping[str, Any]) -> str:
    """The relative posix path of the image that a record of the metadata file with this relative path names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(metadata), record["file_name"]))


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Row numbers and records of a parquet table."""
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "file_name" not in names:
                raise UserError(f"{path}: needs a column 'file_name'; has {', '.join(names) or 'none'}")
            records = (record for batch in file.iter_batches(batch_size=4096) for record in batch.to_pylist())
            for row, record in enumerate(records, start=1):
                yield f"row {row}", record
    except UserError:
        raise
    except (OSError, ValueError) as error:  # Arrow's own errors are of these
        raise UserError(f"{path}: damaged ({error})") from None


def _csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Places and records of a table with a header."""
    reader = csv.DictReader(io.StringIO(read_text(path)), strict=True)
    try:
        if "file_name" not in (reader.fieldnames or ()):
            raise UserError(f"{path}: needs a column 'file_name'; has {', '.join(reader.fieldnames or ()) or 'none'}")
        for record in reader:
            yield f"line {reader.line_num}", record
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: damaged ({error})") from None


def _jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Places and records of a file with one JSON object a line."""
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}, line {line}: damaged ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {line}: needs a JSON object; got {text[:40]!r}")
        yield (
            f"line {line}",
            {key: encodable(value) if isinstance(value, str) else value for key, value in record.items()},
        )


def _caption(place: str, record: Mapping[str, Any]) -> str | None:
    """The first caption that the record has."""
    caption = next((record[column] for column in CAPTIONS if record.get(column) is not None), None)
    if caption is not None and not isinstance(caption, str):
        raise UserError(f"{place}: the caption must be a text; got {caption!r}")
    return caption


def _label(place: str, record: Mapping[str, Any]) -> str | int | None:
    """The class."""
    label = record.get("label")
    if label is not None and not isinstance(label, str | int):
        raise UserError(f"{place}: 'label' must be a text or an integer; got {label!r}")
    return None if label == "" else label
