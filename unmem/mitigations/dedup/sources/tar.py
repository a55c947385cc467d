"""webdataset tar shards, as img2dataset writes them: ``000000012.jpg``, ``.txt`` and ``.json`` are one sample."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from unmem.mitigations.dedup.sources.records import CAPTIONS, MAX_TEXT, Record, describe, parse, unusable
from unmem.mitigations.dedup.sources.shard import Item, Shard
from unmem.train.imageset import Rejected
from unmem.train.text import printable

IMAGES = frozenset(
    "avif bmp gif ico img image jfif jp2 jpe jpeg jpg mpo pbm pgm png pnm ppm tif tiff webp".split()  # noqa: SIM905
)
MAX_IMAGE = 1 << 30  # bytes of one image file: more would not be one photograph, and all of it is held in memory
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
}


@dataclass
class Index:
    """What a tar holds, from its headers alone.

    Attributes:
        samples: members by key and ending, in the order of their first member.
        rejected: what is not used, and why.
    """

    samples: dict[str, dict[str, tarfile.TarInfo]] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)


def check(base: Path, name: str) -> Rejected | None:
    """Why a file is no tar shard, or None."""
    try:
        with tarfile.open(base / name, "r:"):
            return None
    except Exception as error:  # from ReadError to OSError and, for random bytes, ValueError
        return _broken(name, error)


def read(base: Path, shard: Shard, *, images: bool, captions: str | None) -> Iterator[Item | Rejected]:
    """The samples of a tar; see :func:`unmem.mitigations.dedup.sources.read`."""
    name = shard.files[0][0]
    beside = _beside(base, shard, captions)
    if isinstance(beside, Rejected):
        yield beside
        beside = {}
    try:
        with open_tar(base / name) as tar:
            index = index_of(tar, name, shard.files[0][1])
            yield from index.rejected
            for key, members in index.samples.items():
                yield from _sample(tar, f"{name}/{key}", members, beside.get(key, {}), images=images, captions=captions)
    except (OSError, tarfile.TarError) as error:
        yield _broken(name, error)


@contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar for reading; its list of members is not kept."""
    with tarfile.open(path, "r:") as tar:
        yield tar


def index_of(tar: tarfile.TarFile, name: str, size: int) -> Index:
    """Read all headers of the tar ``name`` of ``size`` bytes; payloads are skipped."""
    index = Index()
    end = -1
    while True:
        try:
            member = tar.next()
        except Exception as error:  # a damaged header raises anything: ReadError, ValueError, OverflowError, ...
            index.rejected.append(_stopped(name, tar.offset, str(error)))
            break
        if member is None:
            if not _ends_well(tar):
                index.rejected.append(_stopped(name, tar.offset, "no further file and no mark of the end"))
            break
        if tar.offset <= end:  # a negative size would make the reading turn in a circle
            index.rejected.append(_stopped(name, end, "a file of negative size"))
            break
        end = tar.offset
        if member.isreg() and not member.issparse() and member.offset_data + member.size > size:
            index.rejected.append(_stopped(f"{name}/{printable(member.name)}", size, "cut off in the middle"))
            break
        _add(index, name, member)
    return index


def split_name(name: str) -> tuple[str, str]:
    """The sample's key and the ending, as webdataset has them: the file name is cut at its first dot."""
    folder, base = posixpath.split(posixpath.normpath(name))
    key, _, ending = base.partition(".")
    return posixpath.join(folder, key), ending.lower()


def image_of(members: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The first image among a sample's members."""
    return next((member for ending, member in members.items() if ending in IMAGES), None)


def _add(index: Index, name: str, member: tarfile.TarInfo) -> None:
    """Sort one member in."""
    where = f"{name}/{printable(member.name)}"
    if member.isdir() or posixpath.basename(member.name).startswith("."):
        return
    reason = unusable(member.name) or _refused(member)
    key, ending = split_name(member.name)
    sample = index.samples.get(key, {})
    if reason is None and ending in sample:
        reason = f"again: the key {key!r} has a .{ending} already; the first is used"
    if reason is not None:
        index.rejected.append(Rejected(where, reason))
    else:
        index.samples.setdefault(key, sample)[ending] = member


def _refused(member: tarfile.TarInfo) -> str | None:
    """Why a member is not touched, or None."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its path leaves the archive"
    if not member.isreg():
        return f"is {_KINDS.get(member.type, 'no regular file')}"
    return "is a sparse file" if member.issparse() else None


def _stopped(where: str, place: int, reason: str) -> Rejected:
    """Why the reading of headers ended too early."""
    return Rejected(where, f"broken at byte {place} ({reason}); what lies before it is used")


def _ends_well(tar: tarfile.TarFile) -> bool:
    """Whether zeros, and not garbage or nothing at all, made the reading end where it did."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    return len(block) == tarfile.BLOCKSIZE and not any(block)


def _beside(base: Path, shard: Shard, captions: str | None) -> dict[str, Record] | Rejected:
    """What the parquet beside a tar says, by key."""
    if len(shard.files) == 1:
        return {}
    path = shard.files[1][0]
    try:
        names = pq.read_schema(base / path).names
        wanted = [name for name in ("key", "sha256", *CAPTIONS, captions) if name in names]
        rows = pq.read_table(base / path, columns=list(dict.fromkeys(wanted))).to_pylist() if "key" in names else []
        return {str(row["key"]): row for row in rows}
    except (OSError, ValueError) as error:  # Arrow's own errors are of these
        return Rejected(path, f"cannot be read ({error})")


def _sample(
    tar: tarfile.TarFile,
    name: str,
    members: Mapping[str, tarfile.TarInfo],
    row: Record,
    *,
    images: bool,
    captions: str | None,
) -> Iterator[Item | Rejected]:
    """The item of one sample, after what is wrong with its side files."""
    image = image_of(members)
    if image is None:
        yield Rejected(name, "has no image")
        return
    if image.size > MAX_IMAGE:
        yield Rejected(name, f"its image of {image.size} bytes is too large; at most {MAX_IMAGE}")
        return
    rejected: list[Rejected] = []
    texts, sha256 = describe(_records(tar, name, members, row, captions, rejected), captions)
    yield from rejected
    yield Item(name, payload(tar, image) if images else None, texts, sha256)


def _records(
    tar: tarfile.TarFile,
    name: str,
    members: Mapping[str, tarfile.TarInfo],
    row: Record,
    captions: str | None,
    rejected: list[Rejected],
) -> Iterator[Record]:
    """What is known of a sample, the most trusted first; a member is read only when its turn comes."""
    texts = [ending for ending in (captions, "txt") if ending is not None and ending not in IMAGES]
    for ending in dict.fromkeys([*texts, None, "json"]):
        if ending is None:
            yield row
        elif ending in members:
            member = members[ending]
            where = f"{name}.{ending}"
            if member.size > MAX_TEXT:
                rejected.append(Rejected(where, f"holds more than {MAX_TEXT} bytes: no caption"))
                continue
            record = parse(where, ending, payload(tar, member))
            if isinstance(record, Rejected):
                rejected.append(record)
            else:
                yield record


def payload(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """A member's bytes."""
    file = tar.extractfile(member)
    assert file is not None, "only regular files are members of samples"
    return file.read()


def _broken(name: str, error: Exception) -> Rejected:
    """A tar that cannot be read at all."""
    return Rejected(name, f"cannot be read as an uncompressed tar ({getattr(error, 'strerror', None) or error})")
