"""Images that stand alone, left out."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from unmem.component import Positive, component
from unmem.mitigations.ledger import Dropped
from unmem.train.imageset import ImageSet


@component
class OutlierRemoval:
    """Leave out the images that lie farthest from their neighbours in an embedding: the lowest density.

    Images unlike all others are among those that models repeat without any duplication (Carlini et al. 2023, arXiv
    2301.13188, section 4.3). An image's density falls with its mean distance to its nearest neighbours; its own
    copies are neighbours too, at distance 0. Others become the outermost once these are gone (the "privacy onion",
    Carlini et al. 2022, arXiv 2206.10469): measure again. No image stands in the place of one that is left out; its
    ledger entry holds the mean distance.

    Attributes:
        share: of the images that is left out, rounded down.
        neighbors: over how many of the nearest the distance is averaged.
        components: principal components of the pixels, in [0, 1], that make the embedding; unused with ``model``.
        model: an embedding instead, as ``embedding_duplicates`` takes it; its vectors have length 1.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.02
    neighbors: Positive = 5
    components: Positive = 32
    model: str | None = None

    def apply(self, data: ImageSet, rng: np.random.Generator) -> tuple[ImageSet, list[Dropped]]:
        """The set without its outliers, and a ledger entry (mean distance) for each; of equal ones the first go."""
        count = int(self.share * len(data))
        if count == 0:
            return data, []
        distances = self._distances(self._embedded(data, rng))
        farthest = np.argsort(-distances, kind="stable")[:count]
        dropped = [
            Dropped(data.ids[i], None, float(distances[i]), "outlier_removal") for i in np.sort(farthest).tolist()
        ]
        return data.take(np.setdiff1d(np.arange(len(data)), farthest)), dropped

    def _embedded(self, data: ImageSet, rng: np.random.Generator) -> np.ndarray:
        """float32 [n, d]."""
        if self.model is not None:
            from unmem.mitigations.dedup import embedding

            return embedding.vectors_of_arrays(data.images(), embedding.load(self.model))
        from sklearn.decomposition import PCA

        pixels = data.flat()
        components = min(self.components, *pixels.shape)
        embedded: np.ndarray = PCA(components, random_state=int(rng.integers(1 << 31))).fit_transform(pixels)
        return embedded.astype(np.float32)

    def _distances(self, vectors: np.ndarray) -> np.ndarray:
        """float64 [n]: each row's mean distance to the nearest others."""
        from unmem.neighbors import top_k

        # the nearest of all is the row itself, or an equal one in its place
        found = top_k(vectors, vectors, min(self.neighbors, len(vectors) - 1) + 1).distances[:, 1:]
        distances: np.ndarray = found.astype(np.float64).mean(1)
        return distances
