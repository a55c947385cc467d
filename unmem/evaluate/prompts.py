"""Files of prompts: a manifest of what each generated image was asked for, or a list of what is to be asked."""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unmem.component import UserError
from unmem.train.imageset import Rejected
from unmem.train.text import encodable, printable

NAME = "file_name"
PROMPTS = ("prompt", "text", "caption")
LONGEST = 10_000  # letters of a prompt; encoders read some dozens or hundreds of tokens
ROWS = 64  # lines that one CSV record may have: behind a quote that is never closed, the others are read again


def read_prompts(path: Path) -> tuple[dict[str, str], list[Rejected]]:
    """The prompts of a manifest by the images' names; a line that cannot be used costs no other.

    A record has ``file_name``, a posix path relative to the images' folder, and ``prompt`` (or ``text``, or
    ``caption``); other fields are not read. Empty lines mean nothing. Listed, with line and reason, are records that
    are damaged or no UTF-8, that have no name or an empty prompt, that are longer than CSV allows (131,072 characters a
    field), and those that name an image again.

    Args:
        path: a ``.csv`` file with a header, or a ``.jsonl`` file.

    Returns:
        Prompt by name, in the file's order; and what was left out, in the same.

    Raises:
        UserError: when the file is missing, is of another kind, or its header lacks a column.
    """
    prompts: dict[str, str] = {}
    first: dict[str, int] = {}
    rejected = []
    for line, found in _records(path, (NAME, "prompt")):
        reason = found if isinstance(found, str) else _wrong(found)
        if not isinstance(found, str) and reason is None:
            name = posixpath.normpath(found[NAME])
            if name not in prompts:
                prompts[name], first[name] = found["prompt"], line
                continue
            reason = f"{name!r} again; first in line {first[name]}"
        rejected.append(Rejected(f"{path.name}, line {line}", str(reason)))
    return prompts, rejected


def read_list(path: Path) -> tuple[tuple[str, ...], list[Rejected]]:
    """The prompts of a list, each once and without spaces around it; a line that cannot be used costs no other.

    Listed, with line and reason, are prompts that are empty, longer than 10,000 letters or no UTF-8, and records that
    are damaged.

    Args:
        path: a ``.txt`` file with a prompt a line; a ``.csv`` file with a header, or a ``.jsonl`` file, of which
            ``prompt`` (or ``text``, or ``caption``) is read.

    Returns:
        Prompts in the file's order; and what was left out, in the same.

    Raises:
        UserError: when the file is missing, is of another kind, or its header lacks the column.
    """
    prompts: dict[str, None] = {}
    rejected = []
    for line, found in _records(path, ("prompt",)):
        text = found if isinstance(found, str) else found["prompt"]
        reason = found if isinstance(found, str) else unusable(text)
        if reason:
            rejected.append(Rejected(f"{path.name}, line {line}", reason))
        else:
            prompts[text.strip()] = None
    return tuple(prompts), rejected


def unusable(prompt: Any) -> str | None:
    """Why a model cannot be asked this."""
    if not isinstance(prompt, str):
        return f"is no text: {prompt!r}"[:200]
    if not prompt.strip():
        return "is empty"
    if len(prompt.strip()) > LONGEST:
        return f"has {len(prompt.strip())} letters, more than {LONGEST}"
    if encodable(prompt) != prompt:
        return "is not UTF-8"
    return None


def _records(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line number and fields of each record of a file, or why it cannot be read."""
    readers = {".csv": _csv, ".jsonl": _jsonl, **({".txt": _txt} if fields == ("prompt",) else {})}
    if path.suffix.lower() not in readers:
        known = " or ".join((", ".join(list(readers)[:-1]), list(readers)[-1]))
        raise UserError(f"{path}: prompts are read from {known}, not from {path.suffix or 'a nameless kind'}")
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return readers[path.suffix.lower()](path, lines, fields)


def _wrong(record: dict[str, Any]) -> str | None:
    """Why a record cannot be used."""
    for field, value in record.items():
        if not isinstance(value, str):
            return f"needs a text as {field!r}; got {value!r}"[:200]
        if not value.strip():
            return f"has no {field!r}"
        if printable(value) != value:
            return f"its {field!r} is not UTF-8"
    return None


def _txt(path: Path, lines: list[bytes], wanted: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line number and prompt of each line, or why it cannot be read."""
    for number, line in enumerate(lines, start=1):
        try:
            yield number, {"prompt": line.decode()}
        except UnicodeDecodeError as error:
            yield number, f"is not UTF-8 (byte {error.start})"


def _csv(path: Path, lines: list[bytes], wanted: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line number and what is wanted of each record of a table, or why it cannot be read."""
    texts = [line.decode("utf-8", "surrogateescape") for line in lines]
    header: list[str] = []
    start = 0
    while start < len(texts):
        reader, here = csv.reader(texts[start : start + ROWS], strict=True), start + 1
        try:
            fields = next(reader)
        except csv.Error as error:
            yield here, f"damaged ({error})"
            start += 1  # the next line may be whole
            continue
        start += reader.line_num
        if not any(fields):
            continue
        if not header:
            header = [field.strip() for field in fields]
            column = next((name for name in PROMPTS if name in header), None)
            columns = {**{name: name for name in wanted}, "prompt": column or ""}
            if not set(columns.values()) <= set(header):
                have = ", ".join(printable(field) for field in header)[:200]
                needed = " and ".join(f"'{name}'" for name in wanted)
                raise UserError(f"{path}: needs the columns {needed}; its first line has {have}")
            places = {name: header.index(column) for name, column in columns.items()}
        elif len(fields) != len(header):
            yield here, f"has {len(fields)} fields, the header {len(header)}"
        else:
            yield here, {field: fields[place] for field, place in places.items()}


def _jsonl(path: Path, lines: list[bytes], wanted: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line number and what is wanted of each object, or why it cannot be read."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield number, f"is not UTF-8 (byte {error.start})"
        except (json.JSONDecodeError, RecursionError) as error:
            yield number, f"damaged ({error})"
        else:
            if not isinstance(record, dict):
                yield number, "is no JSON object"
                continue
            prompt = next((record[name] for name in PROMPTS if record.get(name) is not None), "")
            values = {name: prompt if name == "prompt" else record.get(name, "") for name in wanted}
            yield number, {key: encodable(it) if isinstance(it, str) else it for key, it in values.items()}
