"""Which files of a set were written here, noted beside it: these are brought up to date, others never touched."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from unmem.component import UserError
from unmem.mitigations.dedup.sources.listing import stamp_of
from unmem.rundir import PARTIAL, digest, read_json, write_json
from unmem.train.text import printable


class Record:
    """The record of one set, in the folder ``<set>.unmem`` beside it.

    ``files.json`` names every file that may have been written, from before the first one is; ``notes`` hold what was
    known of a file when it was made.

    Attributes:
        folder: where it is.
    """

    def __init__(self, out: Path) -> None:
        """Args: the set's folder, which need not exist."""
        place = out.resolve()
        self.folder = place.with_name(f"{place.name}.unmem")
        self._out = out
        self._names = self.folder / "files.json"

    def claim(self, names: Collection[str]) -> None:
        """Remove what was written earlier and is not among ``names``, which may be written from now on.

        Args:
            names: relative posix paths.

        Raises:
            UserError: when the set's folder holds anything that the record does not name; nothing is changed then.
        """
        known = frozenset[str](read_json(self._names) if self._names.exists() else ())
        if not known and self._out.exists() and any(self._out.iterdir()):
            raise UserError(f"{self._out}: is not empty, and is no set that was written here before; move it away")
        stale = []
        for name in _below(self._out):
            if name not in known and _unfinished(name) not in known:
                raise UserError(f"{self._out / printable(name)}: was not written with the set; move it away")
            if name not in known or name not in names:
                stale.append(name)
        write_json(self._names, sorted(known.union(names)))
        for name in stale:
            (self._out / name).unlink()
            self._note(name).unlink(missing_ok=True)
        gone = known.difference(names)  # not only what is stale: a killed call may have left empty folders
        for parent in sorted({parent for name in gone for parent in PurePath(name).parents[:-1]}, reverse=True):
            path = self._out / parent
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def settle(self, names: Iterable[str]) -> None:
        """Note that the set consists of just these files."""
        write_json(self._names, sorted(names))

    def recall(self, name: str, key: str) -> dict[str, Any] | None:
        """The note on a file, if it was made from the same inputs and is still as it was made."""
        path = self._note(name)
        if not path.exists():
            return None
        note: dict[str, Any] = read_json(path)
        return note if note["key"] == key and note["made"] == self._stamps(note["made"]) else None

    def remember(self, name: str, key: str, made: Iterable[str], **facts: Any) -> dict[str, Any]:
        """Write the note on a file.

        Args:
            name: the file.
            key: the digest of all that it was made from.
            made: the files that were made for it, which it is known by when it is recalled.
            facts: what else to recall, as JSON has it.
        """
        note = {"key": key, "made": self._stamps(made), **facts}
        write_json(self._note(name), note)
        return note

    def _stamps(self, names: Iterable[str]) -> dict[str, list[int]]:
        """Bytes and time of change of those files that there are."""
        paths = {name: self._out / name for name in names}
        return {name: list(stamp_of(path.stat())) for name, path in paths.items() if path.is_file()}

    def _note(self, name: str) -> Path:
        """Where the note on a file is: its name may hold folders and be too long."""
        return self.folder / "notes" / f"{digest(name)[:20]}.json"


def _below(folder: Path) -> Iterator[str]:
    """The relative posix paths of all files below a folder; a link is one of them, whatever it leads to."""
    prefixes = [""] if folder.exists() else []
    while prefixes:
        prefix = prefixes.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    prefixes.append(f"{prefix}{entry.name}/")
                else:
                    yield prefix + entry.name


def _unfinished(name: str) -> str | None:
    """The file that a killed write left this file for, see :func:`unmem.rundir.atomic`, or None."""
    return name.removesuffix(PARTIAL).rpartition(".")[0] if name.endswith(PARTIAL) else None
