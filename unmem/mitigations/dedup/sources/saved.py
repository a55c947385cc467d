"""Folders as Hugging Face's ``datasets`` saves them: Arrow files, and the JSON files that name and describe them."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa

from unmem.component import UserError
from unmem.mitigations.dedup.sources.batches import opened
from unmem.rundir import digest

STATE = "state.json"
INFO = "dataset_info.json"
SPLITS = "dataset_dict.json"
_COUNTS = ("splits", "dataset_size", "size_in_bytes")  # of an info: wrong once rows are gone; all are optional


def saved_folders(files: Collection[str]) -> list[str]:
    """The folders among relative posix paths that hold Arrow files and the ``state.json`` that names them."""
    folders = {posixpath.dirname(name) for name in files if name.lower().endswith(".arrow")}
    return sorted(where for where in folders if posixpath.join(where, STATE) in files)


def data_files(base: Path, where: str) -> list[str]:
    """The relative posix paths of the Arrow files that a folder's ``state.json`` names.

    Raises:
        UserError: when it is damaged.
    """
    path = base / where / STATE
    try:
        return [posixpath.join(where, str(file["filename"])) for file in _load(path)["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: is not as save_to_disk writes it ({error!r})") from None


def describe_saved(base: Path, files: Collection[str], tables: Collection[str], mark: str) -> dict[str, bytes]:
    """What ``datasets.load_from_disk`` needs beside the Arrow files that keep rows, and the files' contents.

    ``state.json`` names these files under a new fingerprint. ``dataset_info.json`` loses the numbers of rows and bytes,
    which ``datasets`` counts where it needs them. Of a folder that keeps no row, its first Arrow file remains without
    rows, as a split may be empty but not absent; only if all are damaged, the folder stays behind.

    Args:
        base: the folder that paths start from.
        files: the data's files, as relative posix paths.
        tables: the Arrow files that keep rows.
        mark: what the new fingerprints depend on, beside the old ones.
    """
    contents: dict[str, bytes] = {}
    described = set()
    for where in saved_folders(files):
        named = [name for name in data_files(base, where) if name in files]
        kept = [name for name in named if name in tables]
        if not kept:
            empty = next(((name, raw) for name in named if (raw := _without_rows(base / name)) is not None), None)
            if empty is None:
                continue
            kept = [empty[0]]
            contents[empty[0]] = empty[1]
        state = _load(base / where / STATE)
        state["_data_files"] = [{"filename": posixpath.relpath(name, where or ".")} for name in kept]
        state["_fingerprint"] = digest([state.get("_fingerprint"), mark])[:16]
        contents[posixpath.join(where, STATE)] = _dump(state)
        info = posixpath.join(where, INFO)
        if info in files:
            contents[info] = _dump({name: value for name, value in _load(base / info).items() if name not in _COUNTS})
        described.add(where)
    for where in {posixpath.dirname(where) for where in described if where}:
        path = posixpath.join(where, SPLITS)
        if path in files:
            splits = _load(base / path)
            names = [str(name) for name in splits.get("splits", ())]
            splits["splits"] = [name for name in names if posixpath.join(where, name) in described]
            contents[path] = _dump(splits)
    return contents


def _without_rows(path: Path) -> bytes | None:
    """An Arrow stream of no rows, with the schema and its metadata; None where the file is damaged."""
    sink = pa.BufferOutputStream()
    try:
        with opened(path) as table, pa.ipc.new_stream(sink, table.schema):
            pass
    except (OSError, ValueError):  # Arrow's own errors are of these
        return None
    raw: bytes = sink.getvalue().to_pybytes()
    return raw


def _load(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not as save_to_disk writes it ({error!r})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not as save_to_disk writes it (no JSON object)")
    return value


def _dump(value: dict[str, Any]) -> bytes:
    """A JSON object as ``datasets`` writes it."""
    return json.dumps(value, indent=2).encode()
