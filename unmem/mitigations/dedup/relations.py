"""The ways for two items to be duplicates: one for each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unmem.mitigations.dedup import hamming
from unmem.mitigations.dedup.captions import jaccard
from unmem.mitigations.dedup.groups import Relation

Numbers = npt.NDArray[np.int64]
Distances = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Equal:
    """Equal keys: of the files' bytes, or of the decoded pixels.

    Attributes:
        stage: the name in the ledger.
        keys: uint64 [n, w].
        present: bool [n]; an item without a key equals none.
    """

    stage: str
    keys: npt.NDArray[np.uint64]
    present: npt.NDArray[np.bool_]

    def distances(self, item: int, others: Numbers) -> Distances:
        """0 or infinity."""
        same = (self.keys[others] == self.keys[item]).all(axis=1) & self.present[others] & self.present[item]
        return np.where(same, 0, np.inf).astype(np.float32)


@dataclass(frozen=True)
class NearHash:
    """Perceptual hashes within a Hamming radius.

    Attributes:
        codes: uint64 [n, w].
        present: bool [n]; flat images have no hash to compare.
        max_distance: in bits.
        turned: uint64 [n, 8, w], the hashes of all flips and quarter turns, where these count as equal.
    """

    codes: npt.NDArray[np.uint64]
    present: npt.NDArray[np.bool_]
    max_distance: int
    turned: npt.NDArray[np.uint64] | None = None
    stage: str = "perceptual"

    def distances(self, item: int, others: Numbers) -> Distances:
        """Differing bits, at the best turn."""
        if self.turned is None:
            bits = hamming.distances(self.codes[item], self.codes[others])
        else:
            ours = [hamming.distances(turn, self.codes[others]) for turn in self.turned[item]]
            theirs = [hamming.distances(self.codes[item], self.turned[others, turn]) for turn in range(8)]
            bits = np.min([*ours, *theirs], axis=0)
        near = (bits <= self.max_distance) & self.present[others] & self.present[item]
        return np.where(near, bits, np.inf).astype(np.float32)


@dataclass(frozen=True)
class NearVector:
    """Embeddings within a cosine distance.

    Attributes:
        vectors: float32 [n, d], rows of length 1 (or 0: near to none).
        max_distance: cosine distance, 0 to 2.
    """

    vectors: npt.NDArray[np.float32]
    max_distance: float
    stage: str = "embedding"

    def distances(self, item: int, others: Numbers) -> Distances:
        """Cosine distances, from the differences: ``1 - cos = |a - b|² / 2``."""
        a, b = self.vectors[item].astype(np.float64), self.vectors[others].astype(np.float64)
        cosine = ((a - b) ** 2).sum(axis=1) / 2
        near = (cosine <= self.max_distance) & a.any() & b.any(axis=1)
        return np.where(near, cosine, np.inf).astype(np.float32)


@dataclass(frozen=True)
class NearCaption:
    """Captions within a Jaccard threshold; the best of all pairs, where items have several.

    Attributes:
        captions: the texts of each item.
        threshold: the least similarity, 0 to 1.
    """

    captions: Sequence[Sequence[str]]
    threshold: float
    stage: str = "captions"

    def distances(self, item: int, others: Numbers) -> Distances:
        """1 - Jaccard similarity."""
        best = np.array([_similarity(self.captions[item], self.captions[other]) for other in others.tolist()])
        return np.where(best >= self.threshold, 1 - best, np.inf).astype(np.float32)


@dataclass(frozen=True)
class WithCaption:
    """An image relation that counts only where the captions are near, too.

    Attributes:
        image: the image relation.
        caption: the caption relation.
    """

    image: Relation
    caption: NearCaption

    @property
    def stage(self) -> str:
        """The image relation's."""
        return self.image.stage

    def distances(self, item: int, others: Numbers) -> Distances:
        """The image relation's distances."""
        found = self.image.distances(item, others)
        near = np.flatnonzero(found < np.inf)
        found[near[np.isinf(self.caption.distances(item, others[near]))]] = np.inf
        return found


def _similarity(left: Sequence[str], right: Sequence[str]) -> float:
    """The largest Jaccard similarity between a caption of the one and a caption of the other."""
    return max((jaccard(a, b) for a in left for b in right), default=0.0)
