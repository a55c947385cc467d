"""Which prompts a text-to-image model is asked, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from unmem.component import NonNegative, Positive, UserError, build, component
from unmem.evaluate.audit import Audit
from unmem.evaluate.prompts import read_list, unusable
from unmem.evaluate.stopping import Stop
from unmem.train.datasets._files import LocalPath, stamp
from unmem.train.imageset import ImageSet, Rejected

CHUNK = 4096  # images in memory at once


@dataclass(frozen=True)
class Chosen:
    """Prompts.

    Attributes:
        texts: no two alike; the first ``members`` are members' captions, the next ``nonmembers`` held-out images'.
        members, nonmembers: how many; both 0 where somebody brought their own.
        rejected: captions or lines that cannot be asked.
    """

    texts: tuple[str, ...]
    members: int
    nonmembers: int
    rejected: tuple[Rejected, ...]


@component
class Prompts:
    """Captions of the training set and, as a control, of held-out images; or somebody's own list.

    Attributes:
        each: samples a prompt; 500 in the paper (Carlini et al. 2023, arXiv 2301.13188, section 4.2).
        choose: of the members' captions: ``duplicated``, those that stand most often in the training set before any
            mitigation, planted copies counted; ``outlying``, those of images farthest from their neighbours; ``all``,
            in the audit's random order. Held-out captions are chosen by the same rule, among held-out images.
        members: how many of them; all when unset.
        nonmembers: how many held-out captions, none of them a member's; as many as there are of members when unset.
        file: prompts of one's own instead (see :func:`unmem.evaluate.prompts.read_list`).
        features: where ``outlying`` measures distance: a component of ``unmem/evaluate/features``.
        neighbor: to which nearest neighbour it measures it; an image's copies are neighbours, too.
        stop: prompts that show no agreement are given up; every prompt gets all of its samples when unset.
    """

    each: Positive
    choose: Literal["all", "duplicated", "outlying"] = "duplicated"
    members: Positive | None = None
    nonmembers: NonNegative | None = None
    file: LocalPath | None = None
    features: dict[str, Any] = field(default_factory=lambda: {"kind": "random_convolutions"})
    neighbor: Positive = 5
    stop: Stop | None = None

    def __post_init__(self) -> None:
        self._extractor()
        if self.file is not None and (self.members, self.nonmembers) != (None, None):
            raise ValueError("members and nonmembers choose among captions, file brings prompts; leave one out")
        if self.stop is not None and any(look >= self.each for look in self.stop.looks):
            raise ValueError(f"stop.looks must be below each ({self.each}), got {list(self.stop.looks)}")

    @property
    def first(self) -> int:
        """Samples that every prompt gets, whatever they are."""
        looks = () if self.stop is None else self.stop.rule(self.each).looks
        return looks[0] if looks else self.each

    def fingerprint(self) -> str | None:
        """A digest that changes with the file; None without.

        Raises:
            UserError: when there is no such file.
        """
        if self.file is None:
            return None
        if not self.file.is_file():
            raise UserError(f"prompts.file: {self.file}: no such file")
        return stamp([("prompts", self.file)])

    def chosen(self, audit: Audit) -> Chosen:
        """The prompts, the same for every model that is audited by this split.

        Raises:
            UserError: when there is none, or the images have no captions.
        """
        if self.file is not None:
            texts, rejected = read_list(self.file)
            if not texts:
                raise UserError(f"{self.file}: holds no prompt that can be asked ({len(rejected)} lines are unusable)")
            return Chosen(texts, 0, 0, tuple(rejected))
        if audit.data.captions is None:
            raise UserError("prompts: are chosen among captions, and the images have none; give prompts.file")
        rejected = []
        inside = _usable(audit.member_images, "member", rejected)
        outside = _usable(audit.nonmember_images, "held-out image", rejected)
        among = set(inside)
        outside = {text: places for text, places in outside.items() if text not in among}
        first = self._ranked(inside, audit.member_images, audit.member_training)[: self.members]
        if not first:
            raise UserError("prompts: no member has a caption that can be asked")
        control = len(first) if self.nonmembers is None else self.nonmembers
        second = self._ranked(outside, audit.nonmember_images, audit.nonmember_images)[:control]
        return Chosen((*first, *second), len(first), len(second), tuple(rejected))

    def _ranked(self, places: dict[str, list[int]], images: ImageSet, among: ImageSet) -> list[str]:
        """Captions, first those that are chosen first; of equal ones in the images' order.

        Args:
            places: of each caption, its images' positions.
            images: these images.
            among: the set in which copies are counted and neighbours sought.
        """
        if self.choose == "all" or not places:
            return list(places)
        if self.choose == "duplicated":
            counts = Counter(text.strip() for text in among.captions or ())
            return sorted(places, key=lambda text: -counts[text])
        queries, points = (_embedded(self._extractor(), part) for part in (images, among))
        distances = _kth(queries, points, self.neighbor)
        return sorted(places, key=lambda text: -float(distances[places[text]].max()))

    def _extractor(self) -> Callable[[np.ndarray], np.ndarray]:
        """The feature extractor."""
        problems: list[Any] = []
        built: Callable[[np.ndarray], np.ndarray] = build(
            "unmem.evaluate.features", self.features, "features", problems
        )
        if problems:
            raise ValueError("; ".join(str(problem) for problem in problems))
        return built


def _usable(images: ImageSet, whose: str, rejected: list[Rejected]) -> dict[str, list[int]]:
    """Where each caption that can be asked stands, without spaces around it; why others cannot be is appended."""
    found: dict[str, list[int]] = {}
    for position, (name, text) in enumerate(zip(images.ids, images.captions or (), strict=True)):
        if reason := unusable(text):
            rejected.append(Rejected(f"caption of {whose} {name}", reason))
        else:
            found.setdefault(text.strip(), []).append(position)
    return found


def _embedded(extract: Callable[[np.ndarray], np.ndarray], images: ImageSet) -> np.ndarray:
    """float32 [n, d]: features, some images at a time."""
    starts: Sequence[int] = range(0, len(images), CHUNK)
    found = [extract(images.images(slice(start, start + CHUNK))) for start in starts]
    return np.concatenate(found).astype(np.float32)


def _kth(queries: np.ndarray, points: np.ndarray, k: int) -> np.ndarray:
    """float32 [n]: each query's distance to its k-th nearest point other than itself, which is one of the points."""
    from unmem.neighbors import top_k

    found = top_k(queries, points, min(k, len(points) - 1) + 1).distances
    last: np.ndarray = found[:, -1]
    return last
