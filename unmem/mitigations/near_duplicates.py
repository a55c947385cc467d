"""Copies that look alike: perceptual hashes within a Hamming distance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from unmem import progress
from unmem.component import component
from unmem.mitigations.ledger import Dropped
from unmem.train.imageset import ImageSet

METHODS = {"phash": "PHash", "dhash": "DHash", "whash": "WHash", "ahash": "AHash"}
TILE = 1024  # rows of the distance matrix held at once


@component
class NearDuplicates:
    """Keep one of each group of images whose perceptual hashes (imagededup, 64 bits) chain within a distance.

    Groups are the connected components of "at most ``max_distance`` bits apart"; the first image of a group in the
    set's order stays, so a group never vanishes.

    Attributes:
        hash: imagededup's method.
        max_distance: in bits of 64. imagededup's own default of 10 suits photographs; on tiny or flat images distinct
            pictures collide, so look at the dropped groups in the report.
    """

    hash: Literal["phash", "dhash", "whash", "ahash"] = "phash"
    max_distance: Annotated[int, Field(ge=0, le=64)] = 10

    def apply(self, data: ImageSet, rng: np.random.Generator) -> tuple[ImageSet, list[Dropped]]:
        """The set without its near-duplicates, and a ledger entry (distance in bits) for each dropped image."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        hashes = perceptual_hashes(data, self.hash)
        pairs = np.concatenate([np.empty((0, 2), np.int64), *pairs_within(hashes, self.max_distance)])
        graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(len(data), len(data)))
        _, group = connected_components(graph, directed=False)
        _, first, member = np.unique(group, return_index=True, return_inverse=True)
        kept_by = first[member]
        dropped = [
            Dropped(data.ids[i], data.ids[kept], float(np.bitwise_count(hashes[i] ^ hashes[kept])), "near_duplicates")
            for i, kept in enumerate(kept_by.tolist())
            if i != kept
        ]
        return data.take(np.sort(first)), dropped


def perceptual_hashes(data: ImageSet, method: str) -> np.ndarray:
    """uint64 [n]: imagededup's 64-bit hashes, first bit highest; grey images count as RGB with equal channels."""
    import imagededup.methods

    encoder = getattr(imagededup.methods, METHODS[method])(verbose=False)
    hashes = np.empty(len(data), np.uint64)
    with progress.track(method, len(data)) as advance:
        for position in range(len(data)):
            image = data.images(slice(position, position + 1))[0]
            hashes[position] = int(encoder.encode_image(image_array=np.repeat(image, 3 // image.shape[2], axis=2)), 16)
            advance(1)
    return hashes


def pairs_within(hashes: np.ndarray, max_distance: int) -> Iterator[np.ndarray]:
    """int64 [m, 2] blocks of all pairs i < j with at most ``max_distance`` differing bits; exact, O(n^2) popcounts."""
    for start in range(0, len(hashes), TILE):
        tile = hashes[start : start + TILE]
        near = np.bitwise_count(tile[:, None] ^ hashes[None, start:]) <= max_distance
        i, j = np.nonzero(np.triu(near, k=1))
        yield np.stack([i, j], axis=1) + start
