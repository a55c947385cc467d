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
        from unmem.mitigations.dedup.distinct import first_equal
        from unmem.mitigations.dedup.leave_out import leave_out
        from unmem.mitigations.dedup.relations import Equal

        digests = [hashlib.sha256(data.images(np.array([i])).tobytes()).digest() for i in range(len(data))]
        keys = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 4)
        edges = np.stack([first_equal(keys), np.arange(len(data))], axis=1)
        everywhere = np.ones(len(data), bool)
        return leave_out(data, edges, Equal("pixels", keys, everywhere), "exact_duplicates")
