"""Which files there are: millions below a folder, listed quickly."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from unmem.component import UserError
from unmem.mitigations.dedup.sources.records import unusable
from unmem.train.imageset import Rejected
from unmem.train.text import printable

Listing = dict[str, tuple[int, int]]
_Inode = tuple[int, int]


@dataclass
class Survey:
    """The files of a data set.

    Attributes:
        base: the folder that relative paths start from.
        files: bytes and time of change (ns) by relative posix path, sorted by these once complete.
        rejected: what could not be listed, and why.
    """

    base: Path
    files: Listing = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)

    def note(self, name: str, entry: os.DirEntry[str]) -> _Inode | None:
        """List an entry, or say why not; for a folder, which one it is."""
        try:
            if entry.is_dir():
                status = entry.stat()
                return status.st_dev, status.st_ino
            if reason := unusable(name):
                self.rejected.append(Rejected(printable(name), reason))
            elif entry.is_file():
                self.files[name] = stamp_of(entry.stat())
            else:
                reason = "a link to nothing" if entry.is_symlink() else "is no regular file"
                self.rejected.append(Rejected(name, reason))
        except OSError as error:
            self.rejected.append(Rejected(printable(name), f"cannot be read ({error.strerror})"))
        return None


def survey(data: Path) -> Survey:
    """All files of a data set.

    Hidden files and folders are left out. Links are followed, except to a folder that they lie in. Of a single file,
    its neighbours of the same name with another ending are listed with it.

    Raises:
        UserError: when ``data`` is missing or cannot be read.
    """
    if not data.exists():
        raise UserError(f"{data}: no such file or folder")
    if not data.is_dir():
        endings = (".parquet",) if data.suffix.lower() == ".tar" else (".txt", ".json")
        beside = [data, *(data.with_suffix(ending) for ending in endings)]
        return Survey(data.parent, {path.name: stamp_of(path.stat()) for path in beside if path.is_file()})
    found = Survey(data)
    root = data.stat()
    folders: list[tuple[str, tuple[_Inode, ...]]] = [("", ((root.st_dev, root.st_ino),))]
    while folders:
        prefix, above = folders.pop()
        try:
            with os.scandir(data / prefix) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    inode = None if entry.name.startswith(".") else found.note(name, entry)
                    if inode is not None and inode not in above:
                        folders.append((f"{name}/", (*above, inode)))
        except OSError as error:
            if not prefix:
                raise UserError(f"{data}: cannot be read ({error.strerror})") from None
            found.rejected.append(Rejected(printable(prefix.rstrip("/")), f"cannot be read ({error.strerror})"))
    found.rejected.sort(key=_source)
    return Survey(data, dict(sorted(found.files.items())), found.rejected)


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """A file's bytes and time of change."""
    return status.st_size, status.st_mtime_ns


def _source(entry: Rejected) -> str:
    """What rejected entries are sorted by."""
    return entry.source
