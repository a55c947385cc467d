"""The deduplicated set, written beside the data: a copy of what is kept, in the layout and the formats it had."""

from __future__ import annotations

import json
import posixpath
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from unmem.component import UserError
from unmem.mitigations.dedup.record import Record
from unmem.mitigations.dedup.sources import Shard
from unmem.mitigations.dedup.sources.folder import images_of, sides_of, stem
from unmem.mitigations.dedup.sources.listing import Listing, stamp_of, survey
from unmem.mitigations.dedup.sources.records import MAX_TEXT, caption_field
from unmem.mitigations.dedup.sources.rewrite import (
    as_text,
    is_whole,
    merged_json,
    rewrite_metadata,
    rewrite_table,
    rewrite_tar,
)
from unmem.mitigations.dedup.sources.saved import describe_saved
from unmem.rundir import PARTIAL, atomic, digest, free_bytes
from unmem.train.metadata import NAMES


def apply(
    data: Path,
    shards: Sequence[Shard],
    kept: Collection[str],
    out: Path,
    mode: Literal["copy", "link"],
    captions: Mapping[str, Sequence[str]] | None = None,
    *,
    field: str | None = None,
) -> dict[str, Any]:
    """Write the deduplicated set below ``out``, or bring it up to date; nothing of ``data`` is changed.

    * Loose images keep their relative paths; the text and JSON files beside them, and metadata reduced to the rows of
      kept images, go with them. Other files, such as a read-me, stay behind.
    * A tar becomes a tar of the kept samples, bytes unchanged, with the rows of the parquet beside it; a parquet or
      Arrow file becomes one of the kept rows. Rows that are known by their number get new ones. A folder that
      ``datasets.save_to_disk`` wrote stays one that ``datasets.load_from_disk`` opens, with the splits it had.
    * ``link`` makes hard links, or symbolic ones where the file system refuses, of images and of tars and tables of
      which nothing is dropped; all else is copied, as it is what people edit.

    What was written is recorded in the folder ``<out>.unmem`` beside ``out``. Another call, with whatever kept ids,
    data and mode, leaves the files that are right, removes those that it does not want any more, and writes the rest;
    so is a killed call continued.

    Args:
        data: as given to :func:`unmem.mitigations.dedup.sources.plan`.
        shards: its shards.
        kept: the ids of the items to keep.
        out: an absent or empty folder, or a set that this function wrote.
        mode: how to write it.
        captions: merged captions, by id. They take the place of the item's caption wherever it has one: the text and
            the JSON field beside the image or in the tar, the row of the metadata or of the parquet beside the tar, the
            column of the table. A list becomes the list of them, a text has one a line. Where the item has none, they
            become the text beside the image or in the tar.
        field: where the captions are, as given to :func:`unmem.mitigations.dedup.sources.read`.

    Returns:
        ``items`` and ``files`` in the set, the files' ``bytes``, and ``missing``: kept ids that the data lack.

    Raises:
        UserError: when ``out`` lies in the data, holds files that were not written here, or has no room; or the data
            were changed since the shards were planned.
    """
    record = Record(out)
    _check_place(data, out)
    _check_place(data, record.folder)
    merged = {identity: list(texts) for identity, texts in (captions or {}).items() if texts}
    base = data if data.is_dir() else data.parent
    _check_unchanged(data, base, shards)
    special = any(shard.rows or shard.layout == "arrow" for shard in shards)
    writer = _Writer(base, out, record, mode == "link", merged, field)
    writer.plan(survey(data).files if special else {}, shards, frozenset(kept))
    record.claim(writer.names)
    found = writer.write()
    sizes = {name: path.stat().st_size for name in writer.names if (path := out / name).exists()}
    record.settle(sizes)  # of the parquet files beside tars, damaged ones stay behind
    missing = sorted(frozenset(kept) - found)
    return {"items": len(found), "files": len(sizes), "bytes": sum(sizes.values()), "missing": missing}


class _Writer:
    """One set being written: first planned, then brought about file by file."""

    def __init__(
        self, base: Path, out: Path, record: Record, link: bool, captions: dict[str, list[str]], field: str | None
    ) -> None:
        self._base = base
        self._out = out
        self._record = record
        self._link = link
        self._captions = captions
        self._field = field
        self._images: dict[str, int] = {}  # name and bytes, as of the sides
        self._sides: dict[str, int] = {}
        self._contents: dict[str, bytes] = {}
        self._metadata: dict[str, str] = {}  # name and key, see Record.recall
        self._packed: dict[str, tuple[list[Shard], frozenset[str]]] = {}

    @property
    def names(self) -> frozenset[str]:
        """The files of the planned set."""
        packed = (name for shards, _ in self._packed.values() for name, _, _ in shards[0].files)
        return frozenset((*self._images, *self._sides, *self._contents, *self._metadata, *packed))

    def plan(self, files: Listing, shards: Sequence[Shard], kept: frozenset[str]) -> None:
        """Decide what becomes of each file; ``files`` are the data's, needed where there are metadata or Arrow."""
        packed: dict[str, list[Shard]] = defaultdict(list)
        for shard in shards:
            if shard.layout == "files":
                self._plan_loose(shard, kept)
            else:
                packed[shard.files[0][0]].append(shard)
        self._packed = {name: (packed[name], ids) for name, ids in _by_file(kept, packed).items()}
        depends = digest([sorted(kept), self._captions, self._field])
        in_rows = any(shard.rows for shard in shards)
        for name in files:
            if in_rows and posixpath.basename(name) in NAMES:
                self._metadata[name] = digest([files[name], sorted(self._images), depends])
        self._contents |= describe_saved(self._base, files, self._packed, depends)

    def write(self) -> frozenset[str]:
        """Write everything that is not there yet; give back the ids in the set."""
        self._bring(self._images, link=self._link)
        self._bring(self._sides, link=False)
        for name, raw in self._contents.items():
            self._write(name, raw)
        for name, key in self._metadata.items():
            if self._record.recall(name, key) is None:
                target = self._out / name
                rewrite_metadata(self._base / name, name, target, self._images, self._captions, self._field)
                self._record.remember(name, key, [name])
        return frozenset(self._images).union(*(self._pack(*entry) for entry in self._packed.values()))

    def _plan_loose(self, shard: Shard, kept: Collection[str]) -> None:
        """Plan the kept images of a shard of loose files, and what lies beside them."""
        sizes = {name: size for name, size, _ in shard.files}
        sides, rows = sides_of(shard), dict(shard.rows)
        for image in images_of(shard):
            if image not in kept:
                continue
            self._images[image] = sizes[image]
            beside = sides.get(stem(image), [])
            merged = self._captions.get(image)
            in_row = caption_field(json.loads(rows.get(image, "{}")), self._field) is not None
            replaced = self._merged_beside(image, beside, merged, in_row=in_row) if merged else {}
            self._contents |= replaced
            self._sides |= {name: sizes[name] for name in beside if name not in replaced}

    def _merged_beside(
        self, image: str, beside: Sequence[str], captions: Sequence[str], *, in_row: bool
    ) -> dict[str, bytes]:
        """The text and JSON files beside an image that merged captions change, or the text that they make."""
        replaced = {}
        text = f"{as_text(captions)}\n".encode()
        for name in beside:
            if name.lower().endswith(".txt"):
                raw = text if self._field in (None, "txt") else None
            elif (self._base / name).stat().st_size > MAX_TEXT:
                raw = None
            else:
                raw = merged_json(name, (self._base / name).read_bytes(), captions, self._field)
            if raw is not None:
                replaced[name] = raw
        made = f"{stem(image)}.txt"
        return replaced if replaced or in_row or made in beside else {made: text}

    def _pack(self, shards: Sequence[Shard], ids: frozenset[str]) -> frozenset[str]:
        """Write, copy or link one tar or table, of which ``ids`` are kept; give back those that it holds."""
        first = shards[0]
        name, names = first.files[0][0], [name for name, _, _ in first.files]
        captions = {identity: self._captions[identity] for identity in ids if identity in self._captions}
        key = digest([[shard.to_json() for shard in shards], sorted(ids), captions, self._field])
        note = self._record.recall(name, key)
        if note is None and not captions and is_whole(self._base, shards, ids):
            note = self._record.remember(name, key, [], whole=True, missing=[])
        elif note is None:
            self._require_room(sum(size for _, size, _ in first.files))  # an upper bound, asked for file by file
            if first.layout == "tar":
                written = rewrite_tar(self._base, first, self._out, ids, captions, self._field)
            else:
                written = rewrite_table(self._base, shards, self._out, ids, captions, self._field)
            missing = sorted(ids.difference(written))
            note = self._record.remember(name, key, names, whole=False, missing=missing)
        if note["whole"]:
            self._bring({name: size for name, size, _ in first.files}, link=self._link)
        return ids.difference(note["missing"])

    def _bring(self, sizes: Mapping[str, int], *, link: bool) -> None:
        """Copy or link the files that are not there yet, times included."""
        # not synced to the disk one by one, which is slow: what a power cut leaves short differs in size, see _is_copy
        is_done, make = (_is_link, _hard_or_symbolic) if link else (_is_copy, shutil.copy2)
        pending = [name for name in sizes if not is_done(self._base / name, self._out / name)]
        if not link:
            self._require_room(sum(sizes[name] for name in pending))
        for name in pending:
            self._place(name, make)

    def _write(self, name: str, raw: bytes) -> None:
        """Write a small file, unless it is there."""
        target = self._out / name
        if target.is_symlink() or not target.is_file() or target.read_bytes() != raw:
            with atomic(target) as partial:
                partial.write_bytes(raw)

    def _place(self, name: str, make: Callable[[Path, Path], Any]) -> None:
        """Make a file in a place of its own, whose name is never too long, and move it to where it belongs."""
        target, partial = self._out / name, self._record.folder / f"file{PARTIAL}"
        try:
            partial.unlink(missing_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            make(self._base / name, partial)
            partial.replace(target)
        except OSError as error:
            raise UserError(f"{target}: cannot be made from {self._base / name} ({error.strerror})") from None

    def _require_room(self, size: int) -> None:
        """Refuse to begin what cannot be finished."""
        free = free_bytes(self._out)
        if size > free:
            raise UserError(f"{self._out}: needs {size} bytes, has {free} free; make room and run this again")


def _hard_or_symbolic(source: Path, target: Path) -> None:
    """A hard link to the file itself, or a symbolic one where the file system refuses."""
    source = source.resolve()
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, one without links, or another user's file
        target.symlink_to(source)


def _is_link(source: Path, target: Path) -> bool:
    """Whether ``target`` is the file itself."""
    return target.exists() and target.samefile(source)


def _is_copy(source: Path, target: Path) -> bool:
    """Whether ``target`` is a finished copy."""
    if target.is_symlink() or not target.is_file() or target.samefile(source):
        return False
    return stamp_of(target.stat()) == stamp_of(source.stat())


def _by_file(ids: Iterable[str], names: Collection[str]) -> dict[str, frozenset[str]]:
    """The ids of each tar and table, sorted by these; other ids are left out."""
    found: dict[str, set[str]] = {name: set() for name in sorted(names)}
    for identity in ids:
        place = identity.find("/")
        while place >= 0 and identity[:place] not in found:
            place = identity.find("/", place + 1)
        if place >= 0:
            found[identity[:place]].add(identity)
    return {name: frozenset(entries) for name, entries in found.items() if entries}


def _check_unchanged(data: Path, base: Path, shards: Iterable[Shard]) -> None:
    """Refuse data that are not as when they were planned, as ids may mean something else."""
    for shard in shards:
        for name, size, changed in shard.files:
            path = base / name
            if not path.is_file() or stamp_of(path.stat()) != (size, changed):
                raise UserError(f"{data}: {name} was changed or removed since it was read; deduplicate again")


def _check_place(data: Path, out: Path) -> None:
    """Refuse to write into the data, or in place of a file."""
    place, source = out.resolve(), data.resolve()
    if data.is_dir() and (place.is_relative_to(source) or source.is_relative_to(place)):
        raise UserError(f"{out}: the new set and {data}, which is left as it is, must not lie in each other")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, not a folder")
