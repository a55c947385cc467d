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


def contents(place: Path) -> str:
    """A digest of a folder's names and contents, or of a file's contents, whatever it is called and wherever it lies.

    Raises:
        UserError: when there is no such folder or file, or it cannot be read.
    """
    return _contents(place, stamp(_files(place).items()))


def _files(place: Path) -> dict[str, Path]:
    """The files of a folder, by relative path; or the file itself."""
    return {"": place} if place.is_file() else files_below(place)


@lru_cache(maxsize=8)
def _contents(place: Path, state: str) -> str:
    """SHA-256 of names and contents; read again when the ``state`` has changed."""
    digest = hashlib.sha256()
    for name, path in _files(place).items():
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
