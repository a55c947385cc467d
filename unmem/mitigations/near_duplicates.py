"""Copies that look alike: perceptual hashes within a Hamming distance."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BeforeValidator

from unmem import progress
from unmem.component import component
from unmem.mitigations.ledger import Dropped
from unmem.train.imageset import ImageSet

BATCH = 256  # images in memory at once


def _radius(value: Any) -> Any:
    """Refuse what is no radius, in one message."""
    if value != "auto" and not (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        raise ValueError("must be a number of bits, or 'auto'")
    return value


@component
class NearDuplicates:
    """Drop each image whose perceptual hash is within a distance of one that stays; the first in the set's order stays.

    Every dropped image is that close to the one that is kept for it: chains (a like b, b like c, a unlike c) are cut.
    Images that hold too little to be told apart by a hash, such as single colours, are left to ``exact_duplicates``.

    Attributes:
        hash: imagededup's method, bit for bit.
        bits: 64; or, for phash, 256, for sets in which chance makes 64-bit hashes collide.
        max_distance: in bits. ``auto`` takes the largest at which less than one chance pair is expected, judged by the
            number of images and by how their hashes spread, at most 10 of 64 or 51 of 256.
        dihedral: whether flips and quarter turns count as the same image (phash).
    """

    hash: Literal["phash", "dhash", "whash", "ahash"] = "phash"
    bits: Literal[64, 256] = 64
    max_distance: Annotated[int | Literal["auto"], BeforeValidator(_radius)] = "auto"
    dihedral: bool = False

    def __post_init__(self) -> None:
        if self.hash != "phash" and (self.bits == 256 or self.dihedral):
            raise ValueError(f"bits: 256 and dihedral: true go with hash: phash, not {self.hash}")
        if self.max_distance != "auto" and self.max_distance > self.bits:
            raise ValueError(f"max_distance must be at most bits ({self.bits}), got {self.max_distance}")

    def apply(self, data: ImageSet, rng: np.random.Generator) -> tuple[ImageSet, list[Dropped]]:
        """The set without its near-duplicates, and a ledger entry (distance in bits) for each dropped image."""
        from unmem.mitigations.dedup import hamming
        from unmem.mitigations.dedup.leave_out import leave_out
        from unmem.mitigations.dedup.relations import NearHash

        codes, turned, firm = self._hashes(data)
        rows = np.flatnonzero(firm)
        radius = self._bits(codes[rows], rng)
        if turned is None:
            edges = hamming.forest(codes[rows], radius)
        else:
            edges = hamming.forest_between(turned[rows].reshape(-1, codes.shape[1]), codes[rows], radius)
            edges = edges // np.array([8, 1])
        return leave_out(data, rows[edges], NearHash(codes, firm, radius, turned), "near_duplicates")

    def repeated(self, others: ImageSet, data: ImageSet, rng: np.random.Generator) -> list[Dropped]:
        """A ledger entry (distance in bits) for each image of ``others`` that is like one of ``data``, which it names.

        What is alike within one of the sets does not matter.
        """
        from unmem.mitigations.dedup import hamming

        (codes, turned, firm), (theirs, _, clear) = self._hashes(data), self._hashes(others)
        rows, columns = np.flatnonzero(firm), np.flatnonzero(clear)
        radius = self._bits(np.concatenate([codes[rows], theirs[columns]]), rng)
        ours = codes[rows] if turned is None else turned[rows].reshape(-1, codes.shape[1])
        edges = hamming.forest_between(ours, theirs[columns], radius)
        found = []
        for left, right in edges[np.unique(edges[:, 1], return_index=True)[1]].tolist():
            bits = hamming.distances(theirs[columns[right]], ours[left : left + 1])[0]
            kept = rows[left * len(rows) // len(ours)]
            found.append(Dropped(others.ids[columns[right]], data.ids[kept], float(bits), "near_duplicates"))
        return found

    def _bits(self, codes: np.ndarray, rng: np.random.Generator) -> int:
        """The distance: as set, or by the codes uint64 [n, w] that are to be compared."""
        from unmem.mitigations.dedup import threshold

        if self.max_distance != "auto":
            return self.max_distance
        distinct = np.unique(codes, axis=0)
        chosen = threshold.choose(len(distinct), distinct, rng, comparisons=8 if self.dihedral else 1)
        progress.say(f"near_duplicates: max_distance {chosen.max_distance} of {self.bits} bits: {chosen.reason}")
        return chosen.max_distance

    def _hashes(self, data: ImageSet) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Codes uint64 [n, w], those of all turns [n, 8, w] if wanted, and which images hold enough for one."""
        from unmem.mitigations.dedup import perceptual

        codes = np.zeros((len(data), self.bits // 64), np.uint64)
        turned = np.zeros((len(data), 8, self.bits // 64), np.uint64) if self.dihedral else None
        firm = np.zeros(len(data), bool)
        with progress.track(self.hash, len(data)) as advance:
            for start in range(0, len(data), BATCH):
                part = slice(start, start + BATCH)
                images = data.images(part)
                codes[part] = perceptual.codes_of_arrays(images, self.hash, self.bits)
                firm[part] = ~perceptual.flat_of_arrays(images)
                if turned is not None:
                    pictures = (
                        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels) for pixels in images
                    )
                    turned[part] = np.stack([perceptual.dihedral_codes(picture, self.bits) for picture in pictures])
                advance(len(images))
        return codes, turned, firm
