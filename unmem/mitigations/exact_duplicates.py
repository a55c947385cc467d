"""Copies that are equal pixel by pixel."""

from __future__ import annotations

import hashlib

import numpy as np

from unmem.component import component
from unmem.mitigations.ledger import Dropped
from unmem.train.imageset import ImageSet


@component
class ExactDuplicates:
    """Keep one of each group of images whose decoded pixels are equal; the first in the set's order stays."""

    def apply(self, data: ImageSet, rng: np.random.Generator) -> tuple[ImageSet, list[Dropped]]:
        """The set without its exact copies, and a ledger entry for each dropped image."""
        first: dict[bytes, int] = {}
        keep, dropped = [], []
        for position in range(len(data)):
            pixels = hashlib.sha256(data.images(np.array([position])).tobytes()).digest()
            kept = first.setdefault(pixels, position)
            if kept == position:
                keep.append(position)
            else:
                dropped.append(Dropped(data.ids[position], data.ids[kept], 0.0, "exact_duplicates"))
        return data.take(np.array(keep, dtype=np.int64)), dropped
