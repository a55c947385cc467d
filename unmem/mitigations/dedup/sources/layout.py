"""Which layouts data have, and their shards."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unmem.component import UserError
from unmem.mitigations.dedup.sources import folder, table, tar
from unmem.mitigations.dedup.sources.listing import Listing, Survey, survey
from unmem.mitigations.dedup.sources.records import CAPTIONS
from unmem.mitigations.dedup.sources.saved import data_files, saved_folders
from unmem.mitigations.dedup.sources.shard import Item, Shard
from unmem.train.imageset import Rejected
from unmem.train.metadata import NAMES

_READERS = {"files": folder.read, "tar": tar.read, "parquet": table.read, "arrow": table.read}


def plan(
    data: Path, known: Sequence[Shard] = (), *, files_per_shard: int = 1000, captions: str | None = None
) -> tuple[list[Shard], list[Rejected]]:
    """The shards of a data set.

    What is recognised, by itself or side by side:

    * ``*.tar``: webdataset shards. A parquet file of the same name is their metadata.
    * ``*.parquet`` with a column of image bytes.
    * ``*.arrow`` as ``datasets.save_to_disk`` writes them; ``state.json`` says which belong to the data.
    * Loose image files: each file that is not hidden, nor ``.txt``, ``.json`` or ``metadata.csv/.jsonl/.parquet``.
      Beside tars and tables, only files with an image's ending, as their folders hold read-me files and the like.

    Args:
        data: a folder, or one file of these.
        known: the shards of an earlier call. Those whose files are unchanged (path, size, time of change) come first,
            as they are and in their order; files that no such shard covers make new shards.
        files_per_shard: how many loose images make a shard; the least rows for which row groups are put together.
        captions: where the captions are; given, it is an error that no item has one there.

    Returns:
        The shards, and what cannot be used, with reasons.

    Raises:
        UserError: when there is nothing at ``data`` or nothing in it, it cannot be read, its metadata are damaged, or
            ``captions`` is given and no item has such.
    """
    found = survey(data)
    kinds = _Kinds.of(found)
    rejected = [*found.rejected, *kinds.rejected]
    stamps = {name: kinds.stamps(name, found.files) for name in (*kinds.tars, *kinds.tables)}
    unchanged = {shard.name: shard for shard in known if shard.files == stamps.get(shard.files[0][0])}
    covered = {shard.files[0][0] for shard in unchanged.values()}
    fresh: list[Shard] = []
    for name in kinds.tars:
        if name not in covered:
            problem = tar.check(found.base, name)
            if problem is None:
                fresh.append(Shard(name, "tar", stamps[name]))
            else:
                rejected.append(problem)
    for name in kinds.tables:
        if name not in covered:
            shards = table.plan(found.base, name, found.files, files_per_shard)
            if isinstance(shards, Rejected):
                rejected.append(shards)
            else:
                fresh += shards
    loose, unmatched = folder.Loose.of(found.base, found.files, kinds.images)
    files = loose.shards([shard for shard in known if shard.layout == "files"], files_per_shard)
    current = unchanged | {shard.name: shard for shard in files}
    first = [current.pop(shard.name) for shard in known if shard.name in current]
    shards = [*first, *fresh, *current.values()]
    rejected += unmatched
    if not shards:
        reason = f" ({rejected[0].source}: {rejected[0].reason})" if rejected else ""
        raise UserError(f"{data}: holds no images{reason}")
    if captions is not None:
        _require_captions(data, shards, captions)
    return shards, rejected


def read(data: Path, shard: Shard, *, images: bool = True, captions: str | None = None) -> Iterator[Item | Rejected]:
    """The items of a shard, in order and one at a time; what cannot be used comes in between, with its reason.

    Captions come from the metadata's row of an image, else the text file beside it (each line is one), else the JSON
    beside it; in a tar from the ``.txt``, else the parquet beside the tar, else the ``.json``.

    Args:
        data: as given to :func:`plan`.
        shard: one of its shards.
        images: whether images are wanted; without, none is opened or read.
        captions: the column, JSON field or (of a tar's member) ending that holds captions: a text or a list of texts;
            None takes the first there is of :data:`unmem.mitigations.dedup.sources.records.CAPTIONS`.
    """
    base = data if data.is_dir() else data.parent
    return _READERS[shard.layout](base, shard, images=images, captions=captions)


@dataclass(frozen=True)
class _Kinds:
    """The listed files by what they are."""

    tars: tuple[str, ...]
    beside: dict[str, str]
    tables: tuple[str, ...]
    images: tuple[str, ...]
    rejected: tuple[Rejected, ...]

    @classmethod
    def of(cls, found: Survey) -> _Kinds:
        """Tell tars, their parquet files, tables and loose images apart."""
        files = found.files
        tars = tuple(name for name in files if _ending(name) == "tar")
        beside = {name: other for name in tars if (other := f"{folder.stem(name)}.parquet") in files}
        metadata = set(beside.values())
        saved, rejected = _saved(found)
        tables = tuple(
            name
            for name in files
            if (_ending(name) == "parquet" and name not in metadata and posixpath.basename(name) not in NAMES)
            or (_ending(name) == "arrow" and name in saved)
        )
        others = (name for name in files if _ending(name) not in ("tar", "parquet", "arrow") and folder.is_image(name))
        images = tuple(name for name in others if not (tars or tables) or _ending(name) in tar.IMAGES)
        return cls(tars, beside, tables, images, tuple(rejected))

    def stamps(self, name: str, files: Listing) -> tuple[tuple[str, int, int], ...]:
        """A tar or table and what goes with it, as they are now."""
        return tuple((file, *files[file]) for file in (name, self.beside.get(name)) if file is not None)


def _saved(found: Survey) -> tuple[set[str], list[Rejected]]:
    """The Arrow files that belong to the data: all but caches, or those that ``state.json`` in their folder names."""
    arrows = {name for name in found.files if _ending(name) == "arrow"}
    named = {where: data_files(found.base, where) for where in saved_folders(found.files)}
    loose = {n for n in arrows if posixpath.dirname(n) not in named and not posixpath.basename(n).startswith("cache-")}
    listed = [name for names in named.values() for name in names]
    missing = [
        Rejected(name, "state.json names it, but there is no such file") for name in listed if name not in arrows
    ]
    return loose | (arrows & set(listed)), missing


def _require_captions(data: Path, shards: Sequence[Shard], captions: str) -> None:
    """Refuse the name of a field in which no item has a caption."""
    for shard in shards:
        if any(isinstance(item, Item) and item.captions for item in read(data, shard, images=False, captions=captions)):
            return
    raise UserError(f"{data}: no image has a caption in {captions!r}; without a name, {', '.join(CAPTIONS)} are tried")


def _ending(name: str) -> str:
    """A file name's ending, in lower case and without the dot."""
    return posixpath.splitext(name)[1].lower().lstrip(".")
