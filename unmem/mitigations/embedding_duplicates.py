"""Copies that a model sees as one: embeddings within a cosine distance."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from unmem.component import component
from unmem.mitigations.ledger import Dropped
from unmem.train.imageset import ImageSet


@component
class EmbeddingDuplicates:
    """Drop each image whose embedding is within a distance of one that stays; the first in the set's order stays.

    Finds what hashes cannot: crops, borders, rotations. A copy-detection model such as SSCD (Pizzi et al. 2022,
    arXiv 2202.10261) is made for it; its authors take a cosine distance of 0.25.

    Attributes:
        model: ``package.module:callable`` from a list of RGB images to float32 [n, d], or a local model (TorchScript
            file, transformers folder, torchvision weights; see docs/deduplication.md).
        max_distance: cosine distance, 0 to 2; every model has its own scale, and the default is SSCD's.
    """

    model: str
    max_distance: Annotated[float, Field(ge=0, le=2)] = 0.25

    def apply(self, data: ImageSet, rng: np.random.Generator) -> tuple[ImageSet, list[Dropped]]:
        """The set without embedded near-duplicates; a ledger entry (cosine distance) for each dropped image."""
        from unmem.mitigations.dedup import embedding
        from unmem.mitigations.dedup.leave_out import leave_out
        from unmem.mitigations.dedup.relations import NearVector
        from unmem.mitigations.dedup.search import spanning

        vectors = embedding.vectors_of_arrays(data.images(), embedding.load(self.model))
        pairs = embedding.within(vectors, self.max_distance)
        edges = spanning(np.stack([pairs.left, pairs.right], axis=1))
        return leave_out(data, edges, NearVector(vectors, self.max_distance), "embedding_duplicates")
