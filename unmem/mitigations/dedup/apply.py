"""The deduplicated set, written beside the data: a list of ids, or a copy of what is kept in the layout it had."""

from __future__ import annotations

import json
import posixpath
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from unmem.component import UserError
from unmem.mitigations.dedup.sources import Shard
from unmem.mitigations.dedup.sources.folder import images_of, sides_of, stem
from unmem.mitigations.dedup.sources.listing import stamp_of, survey
from unmem.mitigations.dedup.sources.records import caption_field
from unmem.mitigations.dedup.sources.rewrite import (
    as_text,
    is_whole,
    rewrite_metadata,
    rewrite_table,
    rewrite_tar,
    target_of,
)
from unmem.rundir import PARTIAL, Stage, digest, free_bytes, read_json, write_json, write_text
from unmem.train.metadata import NAMES

OWN = ".unmem"  # the hidden folder, which readers of the set pass over, that makes the work resumable


def apply(
    data: Path,
    shards: Sequence[Shard],
    kept: Collection[str],
    out: Path,
    mode: Literal["copy", "link", "list"],
    captions: Mapping[str, Sequence[str]] | None = None,
    *,
    field: str | None = None,
) -> dict[str, Any]:
    """Write the deduplicated set below ``out``; nothing of ``data`` is changed.

    * Loose images keep their relative paths; the text and JSON files beside them, and metadata reduced to the rows of
      kept images, go with them. Other files, such as a read-me, stay behind.
    * A tar becomes a tar of the kept samples, bytes unchanged, with the rows of the parquet beside it; a parquet or
      Arrow file becomes a parquet file of the kept rows. Rows that are known by their number get new ones.
    * ``link`` makes hard links, or symbolic ones where the file system refuses, of images and of tars and parquet files
      of which nothing is dropped; all else is copied, as it is what people edit.
    * ``list`` writes nothing but ``keep.txt``, the sorted ids, one a line.

    A killed call is continued by the same call: finished files are left as they are.

    Args:
        data: as given to :func:`unmem.mitigations.dedup.sources.plan`.
        shards: its shards.
        kept: the ids of the items to keep.
        out: an absent or empty folder, or one where the same work was begun; with ``list``, any folder.
        mode: what to write.
        captions: merged captions, by id. Where the caption was in a column or a metadata row they replace it, as a list
            where it is one; else they replace the ``.txt``, or make one. In a text there is one caption a line. JSON
            files and the parquet beside a tar keep what they have: a ``.txt`` is believed before they are.
        field: where the captions are, as given to :func:`unmem.mitigations.dedup.sources.read`.

    Returns:
        ``items`` and ``files`` in the set, the files' ``bytes``, and ``missing``: kept ids that the data lack.

    Raises:
        UserError: when ``out`` lies in the data, holds other things, or has no room; or the data were changed since the
            shards were planned.
    """
    if mode == "list":
        text = "".join(f"{identity}\n" for identity in sorted(kept))
        write_text(out / "keep.txt", text)
        return {"items": len(kept), "files": 1, "bytes": len(text.encode()), "missing": []}
    _check_place(data, out)
    merged = {identity: list(texts) for identity, texts in (captions or {}).items() if texts}
    inputs = {
        "mode": mode,
        "data": digest([shard.to_json() for shard in shards]),
        "kept": digest(sorted(kept)),
        "captions": digest([merged, field]),
    }
    stage = Stage(out / OWN, inputs)
    if not stage.finished:
        writer = _Writer(data if data.is_dir() else data.parent, out, mode, merged, field)
        writer.check(data, shards)
        stage.begin()
        write_json(out / OWN / "result.json", writer.write(data, shards, frozenset(kept)))
        stage.finish()
    result: dict[str, Any] = read_json(out / OWN / "result.json")
    return result


class _Writer:
    """One set being written."""

    def __init__(
        self,
        base: Path,
        out: Path,
        mode: Literal["copy", "link", "list"],
        captions: dict[str, list[str]],
        field: str | None,
    ) -> None:
        self._base = base
        self._out = out
        self._mode = mode
        self._captions = captions
        self._field = field

    def check(self, data: Path, shards: Iterable[Shard]) -> None:
        """Refuse data that are not as when they were planned, as ids may mean something else, and names that meet."""
        sources: dict[Path, str] = {}
        for shard in shards:
            name = shard.files[0][0]
            other = sources.setdefault(target_of(self._out, shard), name)
            if other != name:
                raise UserError(f"{data}: {other} and {name} would both become the same parquet file; rename one")
            for name, size, changed in shard.files:
                path = self._base / name
                if not path.is_file() or stamp_of(path.stat()) != (size, changed):
                    raise UserError(f"{data}: {name} was changed or removed since it was read; deduplicate again")

    def write(self, data: Path, shards: Sequence[Shard], kept: frozenset[str]) -> dict[str, Any]:
        """Write everything that is not there yet."""
        loose = [shard for shard in shards if shard.layout == "files"]
        images = {image for shard in loose for image in images_of(shard)} & kept
        packed: dict[str, list[Shard]] = defaultdict(list)
        for shard in shards:
            if shard.layout != "files":
                packed[shard.files[0][0]].append(shard)
        records = [self._loose(loose, images), self._metadata(data, loose, images)]
        for name, ids in _by_file(kept - images, packed).items():
            records.append(self._packed(packed[name], ids))
        written = images.union(*(record["ids"] for record in records))
        return {
            "items": len(written),
            "files": sum(record["files"] for record in records),
            "bytes": sum(record["bytes"] for record in records),
            "missing": sorted(kept - written),
        }

    def _loose(self, shards: Sequence[Shard], images: Collection[str]) -> dict[str, Any]:
        """Copy or link the kept loose images; copy what lies beside them, or write their merged captions."""
        sizes: dict[str, int] = {}
        texts: dict[str, str] = {}
        for shard in shards:
            stamps = {name: size for name, size, _ in shard.files}
            sides, rows = sides_of(shard), dict(shard.rows)
            for image in images_of(shard):
                if image not in images:
                    continue
                beside = sides.get(stem(image), [])
                sizes |= {name: stamps[name] for name in (image, *beside)}
                text = next((name for name in beside if name.lower().endswith(".txt")), None)
                in_row = caption_field(json.loads(rows.get(image, "{}")), self._field) is not None
                if image in self._captions and (text is not None or not in_row):
                    texts[text or f"{stem(image)}.txt"] = as_text(self._captions[image])
        copied = [name for name in sizes if name not in texts and (self._mode == "copy" or name not in images)]
        pending = [name for name in copied if not _is_copy(self._base / name, self._out / name)]
        self._require_room(sum(sizes[name] for name in pending))
        for name in pending:
            self._copy(name)
        if self._mode == "link":
            for name in images:
                self._link(name)
        for name, text in texts.items():
            write_text(self._out / name, f"{text}\n")
        size = sum((self._out / name).stat().st_size for name in {**sizes, **texts})
        return {"ids": [], "files": len({**sizes, **texts}), "bytes": size}

    def _metadata(self, data: Path, shards: Iterable[Shard], images: Collection[str]) -> dict[str, Any]:
        """Write the metadata files of loose images."""
        targets = []
        if any(shard.rows for shard in shards):
            for name in survey(data).files:
                if posixpath.basename(name) in NAMES:
                    targets.append(self._out / name)
                    rewrite_metadata(self._base / name, name, targets[-1], images, self._captions, self._field)
        return {"ids": [], "files": len(targets), "bytes": sum(target.stat().st_size for target in targets)}

    def _packed(self, shards: Sequence[Shard], ids: frozenset[str]) -> dict[str, Any]:
        """Write or link one tar or table, of which ``ids`` are kept, unless a note says that it was done."""
        first = shards[0]
        note = self._out / OWN / f"{digest(first.files[0][0])[:20]}.json"
        if note.exists():
            done: dict[str, Any] = read_json(note)
            return done
        names = [name for name, _, _ in first.files]
        if self._mode == "link" and self._captions.keys().isdisjoint(ids) and is_whole(self._base, shards, ids):
            for name in names:
                self._link(name)
            written = sorted(ids)
        else:
            self._require_room(sum(size for _, size, _ in first.files))  # an upper bound, asked for file by file
            if first.layout == "tar":
                written = rewrite_tar(self._base, first, self._out, ids, self._captions)
            else:
                written = rewrite_table(self._base, shards, self._out, ids, self._captions, self._field)
        targets = [target_of(self._out, first), *(self._out / name for name in names[1:])]
        sizes = [target.stat().st_size for target in targets if target.exists()]  # a damaged parquet stays behind
        record = {"ids": written, "files": len(sizes), "bytes": sum(sizes)}
        write_json(note, record)
        return record

    def _copy(self, name: str) -> None:
        """Copy one file, times included."""
        # not synced to the disk one by one, which is slow: what a power cut leaves short differs in size, see _is_copy
        self._place(name, shutil.copy2)

    def _link(self, name: str) -> None:
        """Link one file."""
        target = self._out / name
        if not (target.exists() and target.samefile(self._base / name)):
            self._place(name, _hard_or_symbolic)

    def _place(self, name: str, make: Callable[[Path, Path], Any]) -> None:
        """Make a file in a place of its own, whose name is never too long, and move it to where it belongs."""
        target, partial = self._out / name, self._out / OWN / f"file{PARTIAL}"
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


def _is_copy(source: Path, target: Path) -> bool:
    """Whether ``target`` is a finished copy."""
    return target.is_file() and not target.is_symlink() and stamp_of(target.stat()) == stamp_of(source.stat())


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


def _check_place(data: Path, out: Path) -> None:
    """Refuse to write into the data, or among other things."""
    place, source = out.resolve(), data.resolve()
    if data.is_dir() and (place.is_relative_to(source) or source.is_relative_to(place)):
        raise UserError(f"{out}: the new set and {data}, which is left as it is, must not lie in each other")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, not a folder")
    if out.exists() and not (out / OWN).is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; name a new folder for the deduplicated set")
