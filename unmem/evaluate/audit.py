"""The audit split: members, non-members, planted images and canaries; drawn once, before any mitigation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator

from unmem.component import NonNegative, Positive, UserError, component
from unmem.evaluate.canaries import Canaries
from unmem.evaluate.planting import Variant, near_copy
from unmem.evaluate.rows import Rows
from unmem.rng import stream, uniform_of
from unmem.rundir import read_json, write_json
from unmem.train.imageset import ImageSet, Rejected, concatenate, content_of


def _times(value: Any) -> Any:
    """Refuse what is neither a number of copies nor a list of them: a union's own messages name its parts."""
    times = value if isinstance(value, (list, tuple)) else [value]
    if not times or any(not isinstance(k, int) or isinstance(k, bool) or k < 1 for k in times):
        raise ValueError("must be a whole number from 1 on, or a list of them")
    return value


@component
class Planted:
    """Images that are in the training set many times.

    Attributes:
        images: how many members are planted.
        copies: how often each is in the training set, itself included; of a list each image takes one in turn.
        variant: what the further copies look like; ``mixed`` takes the others in turn.
    """

    images: NonNegative
    copies: Annotated[int | tuple[int, ...], BeforeValidator(_times)]
    variant: Variant = "exact"


@component
class Split:
    """How many images the audit wants.

    Attributes:
        members: the training set as intended.
        nonmembers: images of the same source that no arm ever sees.
        planted: members that are in the training set many times.
        canaries: further images, each in the training set by a fair coin.
    """

    members: Positive
    nonmembers: Positive
    planted: Planted | None = None
    canaries: Canaries | None = None


@dataclass(frozen=True)
class Audit:
    """The split over one image set.

    Attributes:
        data: members, then non-members, canaries, and the further copies of planted images and of canaries.
        members: ids of the training set as intended, planted images included once.
        nonmembers: ids of the held-out images.
        planted: ids of the members that were planted.
        copies: id of each further copy -> id of the planted image or canary, inserted or not.
        calibration: ids of a random half of the members and of the non-members: attacks may learn from these alone.
        canaries: ids of the canaries.
        inserted: each canary's coin: whether it is in the training set.
        canary_copies: how often each canary is in it, if it is inserted.
    """

    data: ImageSet
    members: tuple[str, ...]
    nonmembers: tuple[str, ...]
    planted: tuple[str, ...]
    copies: dict[str, str]
    calibration: tuple[str, ...] = ()
    canaries: tuple[str, ...] = ()
    inserted: tuple[bool, ...] = ()
    canary_copies: tuple[int, ...] = ()

    @property
    def inside(self) -> Rows:
        """bool a group: what is in the training set: all members, no non-members, canaries by their coins."""
        return Rows(
            np.ones(len(self.members), dtype=bool),
            np.zeros(len(self.nonmembers), dtype=bool),
            np.array(self.inserted, dtype=bool),
        )

    @property
    def training(self) -> ImageSet:
        """Members, inserted canaries and the copies of both: the training set before any mitigation."""
        return self.training_of(self.inside)

    @property
    def member_copies(self) -> np.ndarray:
        """int64 [members]: how often each member is in the training set."""
        further = Counter(self.copies.values())
        return np.array([1 + further[name] for name in self.members], dtype=np.int64)

    @property
    def member_training(self) -> ImageSet:
        """Members and their planted copies: the same without canaries."""
        return self.training_of(Rows(self.inside.members, self.inside.nonmembers))

    def training_of(self, inside: Rows) -> ImageSet:
        """The training set in which these images are inside, each with all of its copies.

        Args:
            inside: bool [members], [nonmembers], [canaries] (or none); generated images are never in one.
        """
        groups = zip(
            (self.members, self.nonmembers, self.canaries),
            (inside.members, inside.nonmembers, inside.canaries),
            strict=True,
        )
        kept = {names[i] for names, mask in groups for i in np.flatnonzero(mask)}
        chosen = [i for i, name in enumerate(self.data.ids) if self.copies.get(name, name) in kept]
        return self.data.take(np.array(chosen))

    @property
    def member_images(self) -> ImageSet:
        """The members, in order."""
        return self.data.select(self.members)

    @property
    def nonmember_images(self) -> ImageSet:
        """The held-out images, in order."""
        return self.data.select(self.nonmembers)

    @property
    def groups(self) -> dict[str, ImageSet]:
        """The images that attacks score, by the names of :class:`~unmem.evaluate.rows.Rows`; canaries if any."""
        found = {"members": self.member_images, "nonmembers": self.nonmember_images}
        return found | ({"canaries": self.data.select(self.canaries)} if self.canaries else {})

    def is_calibration(self) -> Rows:
        """bool [members], [nonmembers]: which images an attack may learn from."""
        chosen = set(self.calibration)
        groups = self.members, self.nonmembers
        return Rows(*(np.array([name in chosen for name in group], dtype=bool) for group in groups))

    def is_planted(self) -> np.ndarray:
        """bool [members]: which members are planted."""
        planted = set(self.planted)
        return np.array([name in planted for name in self.members])

    def save(self, directory: Path) -> None:
        """Write ``audit.json`` (ids and coins) and ``data/`` (pixels and index)."""
        self.data.save(directory / "data")
        ids = {name: value for name, value in asdict(self).items() if name != "data"}
        write_json(directory / "audit.json", ids)

    @classmethod
    def open(cls, directory: Path) -> Audit:
        """Open what :meth:`save` wrote.

        Raises:
            UserError: naming the file when it is missing, damaged or of another version.
        """
        file = directory / "audit.json"
        ids = read_json(file)
        wanted = {part.name for part in fields(cls)} - {"data"}
        if set(ids) != wanted:
            raise UserError(f"{file}: not an audit split of this version (needs {', '.join(sorted(wanted))})")
        lists = {name: tuple(ids[name]) for name in wanted - {"copies"}}
        return cls(data=ImageSet.open(directory / "data"), copies=ids["copies"], **lists)


def draw(source: ImageSet, split: Split, seed: int, rejected: list[Rejected] | None = None) -> Audit:
    """Draw the audit split by ids, so that it does not change with the order of files.

    Args:
        source: the images to draw from.
        split: how many of each.
        seed: of all draws, the canaries' coins included.
        rejected: receives files of a folder of canaries that could not be read.

    Raises:
        UserError: when the source has too few images, or more are to be planted than there are members.
    """
    rejected = [] if rejected is None else rejected
    members, nonmembers = _sides(source, split, seed)
    planted = split.planted or Planted(images=0, copies=1)
    if planted.images > split.members:
        raise UserError(f"data.planted.images: {planted.images} is more than the {split.members} members")
    chosen = sorted(members, key=lambda name: uniform_of(seed, name, salt="planted"))[: planted.images]
    canaries, canary_copies = _canaries(source, split.canaries, members + nonmembers, seed, rejected)
    times = (planted.copies,) if isinstance(planted.copies, int) else planted.copies
    further = [
        _copies(source.select(chosen), _dealt(times, len(chosen)), planted.variant, seed),
        _copies(canaries, canary_copies, "exact", seed),
    ]
    data = source.select(members + nonmembers)
    for part in (canaries, *further):
        data = concatenate(data, part) if len(part) else data
    return Audit(
        data=data,
        members=tuple(members),
        nonmembers=tuple(nonmembers),
        planted=tuple(chosen),
        copies={name: name.rsplit("#", 1)[0] for part in further for name in part.ids},
        calibration=tuple(_half(members, seed) + _half(nonmembers, seed)),
        canaries=canaries.ids,
        inserted=tuple(uniform_of(seed, name, salt="coin") < 0.5 for name in canaries.ids),
        canary_copies=tuple(canary_copies),
    )


def given(data: ImageSet, members: Sequence[str], nonmembers: Sequence[str], seed: int) -> Audit:
    """The audit split of two sets that somebody chose, each in a random order.

    Args:
        data: both sets.
        members: ids of the training set.
        nonmembers: ids of images that were not trained on; none equal to a member.
        seed: of the order and of the calibration split.
    """
    inside, outside = _shuffled(members, seed), _shuffled(nonmembers, seed)
    return Audit(
        data=data.select(inside + outside),
        members=tuple(inside),
        nonmembers=tuple(outside),
        planted=(),
        copies={},
        calibration=tuple(_half(inside, seed) + _half(outside, seed)),
    )


def _sides(source: ImageSet, split: Split, seed: int) -> tuple[list[str], list[str]]:
    """Members and non-members; equal images stay together, so that none is a member and held out at once."""
    wanted = split.members + split.nonmembers
    if wanted > len(source):
        raise UserError(
            f"data: {split.members} members and {split.nonmembers} nonmembers are {wanted} images, "
            f"but the source has {len(source)}"
        )
    order = _shuffled(source.ids, seed)
    members = order[: split.members]
    seen = {content_of(name) for name in members}
    nonmembers = [name for name in order[split.members :] if content_of(name) not in seen][: split.nonmembers]
    if len(nonmembers) < split.nonmembers:
        raise UserError(f"data: only {len(nonmembers)} images are not copies of members; {split.nonmembers} are wanted")
    return members, nonmembers


def _shuffled(ids: Sequence[str], seed: int) -> list[str]:
    """In an order that depends on what each image looks like, and for equal images on their sources."""
    return sorted(ids, key=lambda name: (uniform_of(seed, content_of(name), salt="split"), name))


def _canaries(
    source: ImageSet, canaries: Canaries | None, taken: list[str], seed: int, rejected: list[Rejected]
) -> tuple[ImageSet, list[int]]:
    """The canaries, no two of them equal and none equal to a member or non-member; how often each may be in."""
    if canaries is None:
        return source.select([]), []
    candidates, unread = canaries.candidates(source, seed)
    rejected += unread
    new = {content_of(name): name for name in reversed(_shuffled(candidates.ids, seed))}
    for name in taken:
        new.pop(content_of(name), None)
    names = _shuffled(list(new.values()), seed)[: canaries.images]
    if len(names) < canaries.images:
        raise UserError(
            f"data.canaries.images: {canaries.images} canaries are wanted, but beside {len(taken)} members and "
            f"nonmembers there are only {len(names)} other, different images to take them from ({canaries.source})"
        )
    return candidates.select(names), _dealt(canaries.copies, len(names))


def _dealt(times: tuple[int, ...], images: int) -> list[int]:
    """How often each image is to stand in the training set: the numbers in turn."""
    return [times[i % len(times)] for i in range(images)]


def _half(names: list[str], seed: int) -> list[str]:
    """A random half; equal images stay together, or what is learnt from one would be scored on the other."""
    contents = sorted({content_of(name) for name in names}, key=lambda part: uniform_of(seed, part, salt="calibration"))
    chosen = set(contents[: len(contents) // 2])
    return [name for name in names if content_of(name) in chosen]


def _copies(originals: ImageSet, times: list[int], variant: Variant, seed: int) -> ImageSet:
    """The further copies of images that are in the training set so many times, with ids ``<original>#copy-<k>``."""
    places = [(position, k) for position, count in enumerate(times) for k in range(1, count)]
    positions = [position for position, _ in places]
    ids = tuple(f"{originals.ids[position]}#copy-{k}" for position, k in places)
    images = np.empty((len(places), *originals.shape), dtype=np.uint8)
    for row, (position, k) in enumerate(places):
        original = originals.images(np.array([position]))[0]
        images[row] = near_copy(original, variant, k, stream(seed, "copy", originals.ids[position], k))
    labels = None if originals.labels is None else originals.labels[positions]
    captions = None if originals.captions is None else tuple(originals.captions[i] for i in positions)
    return ImageSet(images, np.arange(len(ids)), ids, labels, originals.label_names, captions)
