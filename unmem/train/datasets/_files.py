"""The user's files: which there are, what they say, and whether they changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from unmem.component import UserError

CHUNK = 1 << 20  # bytes in memory at once

LocalPath = Annotated[Path, AfterValidator(Path.expanduser)]


def files_below(folder: Path) -> dict[str, Path]:
    """Every file below a folder, by relative posix path, in the order of these; hidden files and folders are left out.

    Links are followed, except to a folder that they lie in. A dangling link is listed, so that it is not lost silently.

    Raises:
        UserError: when the folder is missing, is no folder, or cannot be read.
    """
    if not folder.exists():
        raise UserError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file, not a folder")
    return dict(sorted((path.relative_to(folder).as_posix(), path) for path in _walk(folder, ())))


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The files below a folder, in no order."""
    real = folder.resolve()
    if real in above:
        return
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, (*above, real))
        elif entry.is_file() or entry.is_symlink():
            yield entry


def stamp(files: Iterable[tuple[str, Path]]) -> str:
    """A digest that changes when a file is added, removed, renamed or written to; where they lie does not matter."""
    state = hashlib.sha256()
    for name, path in files:
        status = path.stat() if path.exists() else path.lstat()
        state.update(os.fsencode(name) + f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return state.hexdigest()


def contents(folder: Path) -> str:
    """A digest of a folder's names and contents, whatever it is called and wherever it lies."""
    return _contents(folder, stamp(files_below(folder).items()))


@lru_cache(maxsize=8)
def _contents(folder: Path, state: str) -> str:
    """SHA-256 of a folder's names and contents; read again when its ``state`` has changed."""
    digest = hashlib.sha256()
    for name, path in files_below(folder).items():
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while part := file.read(CHUNK):
                digest.update(part)
    return digest.hexdigest()


def read_text(path: Path) -> str:
    """A text file's contents, without a byte-order mark.

    Raises:
        UserError: when it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
