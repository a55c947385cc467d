"""The audit split: who is a member, who is not, which images are planted; drawn once, before any mitigation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from unmem.component import NonNegative, Positive, UserError, component
from unmem.evaluate.planting import Variant, near_copy
from unmem.rng import stream, uniform_of
from unmem.rundir import read_json, write_json
from unmem.train.imageset import ImageSet, concatenate


@component
class Planted:
    """Images that are in the training set many times.

    Attributes:
        images: how many members are planted.
        copies: how often each is in the training set, itself included.
        variant: what the further copies look like; ``mixed`` takes the others in turn.
    """

    images: NonNegative
    copies: Positive
    variant: Variant = "exact"


@component
class Split:
    """How many images the audit wants.

    Attributes:
        members: the training set as intended.
        nonmembers: images of the same source that no arm ever sees.
        planted: members that are in the training set many times.
    """

    members: Positive
    nonmembers: Positive
    planted: Planted | None = None


@dataclass(frozen=True)
class Audit:
    """The split over one image set.

    Attributes:
        data: members, then non-members, then planted copies.
        members: ids of the training set as intended, planted images included once.
        nonmembers: ids of the held-out images.
        planted: ids of the members that were planted.
        copies: id of each further copy -> id of the planted image.
    """

    data: ImageSet
    members: tuple[str, ...]
    nonmembers: tuple[str, ...]
    planted: tuple[str, ...]
    copies: dict[str, str]

    @property
    def training(self) -> ImageSet:
        """Members and planted copies: the training set before any mitigation."""
        return self.data.select([*self.members, *self.copies])

    @property
    def member_images(self) -> ImageSet:
        """The members, in order."""
        return self.data.select(self.members)

    @property
    def nonmember_images(self) -> ImageSet:
        """The held-out images, in order."""
        return self.data.select(self.nonmembers)

    def is_planted(self) -> np.ndarray:
        """bool [members]: which members are planted."""
        planted = set(self.planted)
        return np.array([name in planted for name in self.members])

    def save(self, directory: Path) -> None:
        """Write ``audit.json`` (ids) and ``data/`` (pixels and index)."""
        self.data.save(directory / "data")
        ids = {name: value for name, value in asdict(self).items() if name != "data"}
        write_json(directory / "audit.json", ids)

    @classmethod
    def open(cls, directory: Path) -> Audit:
        """Open what :meth:`save` wrote."""
        ids = read_json(directory / "audit.json")
        lists = {name: tuple(ids[name]) for name in ("members", "nonmembers", "planted")}
        return cls(data=ImageSet.open(directory / "data"), copies=ids["copies"], **lists)


def draw(source: ImageSet, split: Split, seed: int) -> Audit:
    """Draw the audit split by ids, so that it does not change with the order of files.

    Raises:
        UserError: when the source has too few images, or more are to be planted than there are members.
    """
    wanted = split.members + split.nonmembers
    if wanted > len(source):
        raise UserError(
            f"data: {split.members} members and {split.nonmembers} nonmembers are {wanted} images, "
            f"but the source has {len(source)}"
        )
    planted = split.planted or Planted(images=0, copies=1)
    if planted.images > split.members:
        raise UserError(f"data.planted.images: {planted.images} is more than the {split.members} members")
    # equal images share their ids' hash: they stay together, so that none is a member and held out at once
    order = sorted(source.ids, key=lambda name: (uniform_of(seed, _content(name), salt="split"), name))
    members = order[: split.members]
    seen = {_content(name) for name in members}
    nonmembers = [name for name in order[split.members :] if _content(name) not in seen][: split.nonmembers]
    if len(nonmembers) < split.nonmembers:
        raise UserError(f"data: only {len(nonmembers)} images are not copies of members; {split.nonmembers} are wanted")
    chosen = sorted(members, key=lambda name: uniform_of(seed, name, salt="planted"))[: planted.images]
    data, copies = source.select(members + nonmembers), {}
    if chosen and planted.copies > 1:
        extra = _copies(source.select(chosen), planted, seed)
        copies = {name: name.rsplit("#", 1)[0] for name in extra.ids}
        data = concatenate(data, extra)
    return Audit(data, tuple(members), tuple(nonmembers), tuple(chosen), copies)


def _content(name: str) -> str:
    """The part of an id that says what the image looks like."""
    return name.split(":", 1)[0]


def _copies(originals: ImageSet, planted: Planted, seed: int) -> ImageSet:
    """The further copies of the planted images, with ids ``<original>#copy-<k>``."""
    images, ids, positions = [], [], []
    for position, name in enumerate(originals.ids):
        image = originals.images(np.array([position]))[0]
        for k in range(1, planted.copies):
            images.append(near_copy(image, planted.variant, k, stream(seed, "copy", name, k)))
            ids.append(f"{name}#copy-{k}")
            positions.append(position)
    labels = None if originals.labels is None else originals.labels[positions]
    captions = None if originals.captions is None else tuple(originals.captions[i] for i in positions)
    return ImageSet(np.stack(images), np.arange(len(ids)), tuple(ids), labels, originals.label_names, captions)
