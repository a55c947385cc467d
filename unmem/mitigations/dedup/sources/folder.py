"""Loose image files, with captions in text, JSON or metadata files beside them."""

from __future__ import annotations

import json
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unmem.mitigations.dedup.sources.listing import Listing
from unmem.mitigations.dedup.sources.records import MAX_TEXT, Record, describe, parse
from unmem.mitigations.dedup.sources.shard import Item, Shard
from unmem.train.imageset import Rejected
from unmem.train.metadata import NAMES, named_image, read_records

SIDE = (".txt", ".json")


def is_image(name: str) -> bool:
    """Whether a loose file is taken for an image, rather than for something that goes with images."""
    return not name.lower().endswith(SIDE) and posixpath.basename(name) not in NAMES


def stem(name: str) -> str:
    """What an image and its side files have in common: the path without the last ending."""
    return posixpath.splitext(name)[0]


@dataclass(frozen=True)
class Loose:
    """All loose files of a data set.

    Attributes:
        files: bytes and time of change, by relative posix path.
        images: those taken for images, in order.
        sides: the text and JSON files, by :func:`stem`.
        rows: the metadata's rows as JSON, by image.
    """

    files: Listing
    images: tuple[str, ...]
    sides: Mapping[str, Sequence[str]]
    rows: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, base: Path, files: Listing, images: Iterable[str]) -> tuple[Loose, list[Rejected]]:
        """The loose files ``images`` and what goes with them; metadata rows without an image are rejected.

        Raises:
            UserError: when a metadata file is damaged.
        """
        sides = defaultdict(list)
        for name in files:
            if name.lower().endswith(SIDE):
                sides[stem(name)].append(name)
        present = dict.fromkeys(images)
        rows = defaultdict(list)
        rejected = []
        for name in files:
            if posixpath.basename(name) not in NAMES:
                continue
            for place, record in read_records(base / name):
                image = named_image(name, record)
                if image in present:
                    rows[image].append(_texts_of(record))
                else:
                    rejected.append(Rejected(image, f"{name}, {place} names it, but there is no such image"))
        return cls(files, tuple(present), sides, rows), rejected

    def shards(self, known: Sequence[Shard], size: int) -> list[Shard]:
        """The known shards that are unchanged, as they are and first; then new ones, of ``size`` images or fewer."""
        kept = [shard for shard in known if shard == self._shard(shard.name, images_of(shard))]
        covered = {image for shard in kept for image in images_of(shard)}
        rest = [image for image in self.images if image not in covered]
        number = 1 + max((int(shard.name.rpartition("-")[2]) for shard in known), default=-1)
        starts = range(0, len(rest), size)
        return kept + [self._shard(f"files-{number + i:06d}", rest[s : s + size]) for i, s in enumerate(starts)]

    def _shard(self, name: str, images: Sequence[str]) -> Shard:
        """A shard of these images as they are now."""
        names = dict.fromkeys(file for image in images for file in (image, *self.sides.get(stem(image), ())))
        files = tuple((file, *self.files.get(file, (-1, -1))) for file in names)
        rows = tuple((image, row) for image in images for row in self.rows.get(image, ()))
        return Shard(name, "files", files, rows=rows)


def images_of(shard: Shard) -> list[str]:
    """The images of a shard of loose files."""
    return [name for name, _, _ in shard.files if is_image(name)]


def sides_of(shard: Shard) -> dict[str, list[str]]:
    """The side files of a shard, by :func:`stem`: texts before JSON."""
    sides = defaultdict(list)
    for name in sorted((name for name, _, _ in shard.files if not is_image(name)), key=_json_last):
        sides[stem(name)].append(name)
    return sides


def read(base: Path, shard: Shard, *, images: bool, captions: str | None) -> Iterator[Item | Rejected]:
    """The items of a shard of loose files; see :func:`unmem.mitigations.dedup.sources.read`."""
    sides = sides_of(shard)
    rows = defaultdict(list)
    for image, row in shard.rows:
        rows[image].append(json.loads(row))
    for name in images_of(shard):
        rejected: list[Rejected] = []
        records = _records(base, rows.get(name, []), sides.get(stem(name), []), rejected)
        texts, sha256 = describe(records, captions)
        yield from rejected
        yield Item(name, base / name if images else None, texts, sha256)


def _records(base: Path, rows: list[Record], sides: list[str], rejected: list[Rejected]) -> Iterator[Record]:
    """What is known of an image, the most trusted first; side files are read only when their turn comes."""
    if rows:
        yield _merged(rows)
    for side in sides:
        record = _read_side(base, side)
        if isinstance(record, Rejected):
            rejected.append(record)
        else:
            yield record


def _merged(rows: list[Record]) -> Record:
    """Several metadata rows of one image as one: texts of one field become a list."""
    if len(rows) == 1:
        return rows[0]
    merged = defaultdict(list)
    for row in rows:
        for field, value in row.items():
            merged[field].extend(value if isinstance(value, list) else [value])
    return {field: values[0] if field == "sha256" else values for field, values in merged.items()}


def _read_side(base: Path, name: str) -> Record | Rejected:
    """A side file as a record."""
    try:
        with (base / name).open("rb") as file:
            raw = file.read(MAX_TEXT + 1)
    except OSError as error:
        return Rejected(name, f"cannot be read ({error.strerror})")
    if len(raw) > MAX_TEXT:
        return Rejected(name, f"holds more than {MAX_TEXT} bytes: no caption")
    return parse(name, name.rpartition(".")[2].lower(), raw)


def _texts_of(record: Record) -> str:
    """A metadata row's texts and lists of texts as JSON: captions may be in any field."""
    texts = {}
    for field, value in record.items():
        if field != "file_name" and (isinstance(value, str) or _is_texts(value)):
            texts[field] = value
    return json.dumps(texts)


def _is_texts(value: object) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _json_last(name: str) -> tuple[bool, str]:
    """An order in which JSON comes after text."""
    return name.lower().endswith(".json"), name
