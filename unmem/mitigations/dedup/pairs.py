"""Pairs of duplicates: what every search gives back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Pairs(NamedTuple):
    """Pairs of items within a threshold, in lexicographic order, each once.

    Attributes:
        left: int64 [m], positions in the (first) set.
        right: int64 [m], positions in the same set, each above its ``left``; or in the second set.
        distance: float32 [m], in the search's own unit: bits, cosine distance, or 1 - Jaccard.
    """

    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float32]

    @classmethod
    def sort(cls, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64], distance: npt.ArrayLike) -> Pairs:
        """Pairs in their order."""
        order = np.lexsort((right, left))
        return cls(left[order], right[order], np.asarray(distance, np.float32)[order])
