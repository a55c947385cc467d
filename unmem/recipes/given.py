"""Members and non-members that somebody chose: the data of a model that is trained already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unmem import progress
from unmem.component import UserError
from unmem.evaluate.audit import Audit, given
from unmem.mitigations.near_duplicates import NearDuplicates
from unmem.rng import stream
from unmem.rundir import digest
from unmem.train.datasets._labels import number
from unmem.train.datasets._stream import allocate
from unmem.train.imageset import ImageSet, Rejected, content_of

CHUNK = 4096  # images copied at once
FEWEST = 2  # non-members: one to calibrate on, one to test on


@dataclass(frozen=True)
class Given:
    """Two data sets: what a model was trained on, or a part of it, and images that it never saw.

    Attributes:
        members: a data set component.
        nonmembers: another one; images in it that are, or look like, members are left out.
    """

    members: Any
    nonmembers: Any

    def fingerprint(self) -> str:
        """A digest of both."""
        return digest([self.members.fingerprint(), self.nonmembers.fingerprint()])

    def audit(self, scratch: Path, seed: int) -> tuple[Audit, list[Rejected]]:
        """The audit split, and what was left out of it.

        Args:
            scratch: a folder for pixels, until the audit is saved.
            seed: of the order and of the calibration split.

        Raises:
            UserError: when the two do not go together, or too little of them is left.
        """
        members, unread = _loaded(self.members, scratch, "members")
        nonmembers, also_unread = _loaded(self.nonmembers, scratch, "nonmembers")
        if members.shape != nonmembers.shape:
            raise UserError(
                f"data: members are {_size(members)}, nonmembers {_size(nonmembers)}; bring both to one `size`, "
                "and one number of `channels`"
            )
        found = len(nonmembers)
        nonmembers, repeated = _apart(members, nonmembers, seed)
        if repeated:
            progress.say(f"data: {len(repeated)} of {found} nonmembers are, or look like, members; they are left out")
        if len(nonmembers) < FEWEST:
            raise UserError(
                f"data.nonmembers: of {found} images {len(repeated)} are, or look like, members; {len(nonmembers)} "
                f"left, but {FEWEST} are needed: images of the same kind that the model was not trained on"
            )
        members, nonmembers = _alike(members, nonmembers)
        both = _joined(members, nonmembers, scratch / "both.npy")
        return given(both, members.ids, nonmembers.ids, seed), [*unread, *also_unread, *repeated]


def _loaded(source: Any, scratch: Path, side: str) -> tuple[ImageSet, list[Rejected]]:
    """One of the sets; what could not be read is named after it."""
    folder = scratch / side
    folder.mkdir(parents=True, exist_ok=True)
    images, rejected = source.load(folder)
    return images, [replace(entry, source=f"{side}: {entry.source}") for entry in rejected]


def _apart(members: ImageSet, nonmembers: ImageSet, seed: int) -> tuple[ImageSet, list[Rejected]]:
    """The non-members that neither are nor look like members; and the others, each with the member it is like."""
    first = {content_of(name): name for name in reversed(members.ids)}
    reasons = {name: f"has the pixels of the member {first[content_of(name)]}" for name in nonmembers.ids
               if content_of(name) in first}  # fmt: skip
    others = nonmembers.select([name for name in nonmembers.ids if name not in reasons])
    for entry in NearDuplicates().repeated(others, members, stream(seed, "overlap")):
        reasons[entry.id] = f"looks like the member {entry.kept} ({entry.distance:.0f} bits of its hash differ)"
    left = nonmembers.select([name for name in nonmembers.ids if name not in reasons])
    return left, [Rejected(f"nonmembers: {name}", reason) for name, reason in reasons.items()]


def _alike(members: ImageSet, nonmembers: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Both with classes of the same numbers, and both with captions; or both without, where one of them lacks them."""
    if (members.labels is None) != (nonmembers.labels is None):
        _say_alone("classes", members.labels is not None)
        members, nonmembers = (replace(data, labels=None, label_names=()) for data in (members, nonmembers))
    if (members.captions is None) != (nonmembers.captions is None):
        _say_alone("captions", members.captions is not None)
        members, nonmembers = (replace(data, captions=None) for data in (members, nonmembers))
    names = _classes([*members.label_names, *nonmembers.label_names])
    return _renumbered(members, names), _renumbered(nonmembers, names)


def _say_alone(what: str, of_members: bool) -> None:
    """One line about what only one of the sets has."""
    progress.say(f"data: the {'members' if of_members else 'nonmembers'} alone have {what}; they are not used")


def _classes(found: list[str]) -> tuple[str, ...]:
    """Names of all classes, in the order of their numbers: classes that are called by numbers keep these."""
    _, names = number(found)
    if names and all(name.isdecimal() and name == str(int(name)) for name in names):
        return tuple(str(i) for i in range(int(names[-1]) + 1))
    return names


def _renumbered(data: ImageSet, names: tuple[str, ...]) -> ImageSet:
    """The same with its classes, if it has any, numbered as in ``names``."""
    if data.labels is None:
        return data
    where = np.array([names.index(name) for name in data.label_names], dtype=np.int64)
    return replace(data, labels=where[data.labels], label_names=names)


def _joined(members: ImageSet, nonmembers: ImageSet, file: Path) -> ImageSet:
    """One set, members first, with its pixels in a new file: they may not fit in memory."""
    store = allocate(file, (len(members) + len(nonmembers), *members.shape))
    start = 0
    for data in (members, nonmembers):
        for position in range(0, len(data), CHUNK):
            images = data.images(slice(position, position + CHUNK))
            store[start : start + len(images)] = images
            start += len(images)
    labels = captions = None
    if members.labels is not None and nonmembers.labels is not None:
        labels = np.concatenate([members.labels, nonmembers.labels])
    if members.captions is not None and nonmembers.captions is not None:
        captions = members.captions + nonmembers.captions
    ids = members.ids + nonmembers.ids
    return ImageSet(store, np.arange(len(ids)), ids, labels, members.label_names, captions)


def _size(data: ImageSet) -> str:
    """The size of a set's images in words."""
    height, width, channels = data.shape
    return f"{height} x {width} {'grey' if channels == 1 else 'colour'}"
