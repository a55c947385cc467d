"""Captions and hashes out of what data say of an image: side files, metadata rows, columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from unmem.train.imageset import Rejected
from unmem.train.text import encodable

CAPTIONS = ("text", "caption", "txt", "TEXT", "captions", "texts", "prompt", "alt_text", "description")
MAX_TEXT = 1 << 24  # bytes of a side file: more is no caption
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")

Record = Mapping[str, Any]


def describe(records: Iterable[Record], field: str | None) -> tuple[tuple[str, ...], str | None]:
    """Captions and SHA-256: each from the first record that has one, and no record is fetched once both are known.

    Args:
        records: in the order in which they are believed.
        field: where the captions are; None takes the first of the usual fields, :data:`CAPTIONS`.
    """
    captions: tuple[str, ...] = ()
    sha256 = None
    for record in records:
        captions = captions or _captions(record, CAPTIONS if field is None else (field,))
        sha256 = sha256 or _sha256(record)
        if captions and sha256:
            break
    return captions, sha256


def caption_field(names: Iterable[str], field: str | None) -> str | None:
    """The field among ``names`` that the captions are taken from, as far as names tell."""
    present = set(names)
    return next((name for name in (CAPTIONS if field is None else (field,)) if name in present), None)


def parse(name: str, ending: str, raw: bytes) -> Record | Rejected:
    """A side file as a record: JSON as it is, a text's lines, each of them a caption, under the file's ending."""
    try:
        text = raw.decode("utf-8-sig")
        if ending != "json":
            return {ending: text.splitlines()}
        record = json.loads(text)
    except UnicodeDecodeError as error:
        return Rejected(name, f"is not UTF-8 (byte {error.start})")
    except (ValueError, RecursionError) as error:
        return Rejected(name, f"damaged JSON ({error})")
    return record if isinstance(record, dict) else Rejected(name, "is no JSON object")


def unusable(name: str) -> str | None:
    """Why a name from the file system or an archive cannot be an id: it must be text of one line; or None."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return None if "".join(name.splitlines()) == name else "its name holds a line break"


def _captions(record: Record, fields: tuple[str, ...]) -> tuple[str, ...]:
    """The texts in the first of the fields that holds any; a text is one caption, a list holds several."""
    for field in fields:
        value = record.get(field)
        texts = value if isinstance(value, list) else [value]
        captions = tuple(encodable(text.strip()) for text in texts if isinstance(text, str) and text.strip())
        if captions:
            return captions
    return ()


def _sha256(record: Record) -> str | None:
    """The record's hash, where it is one."""
    value = record.get("sha256")
    return value.lower() if isinstance(value, str) and _SHA256.fullmatch(value) else None
