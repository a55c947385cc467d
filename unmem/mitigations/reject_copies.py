"""Samples that look like training images are not given out."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from unmem import progress
from unmem.component import NonNegative, Positive, component
from unmem.rundir import write_array
from unmem.train.imageset import ImageSet
from unmem.train.sampling_rule import Free

BATCH = 1024  # images in memory at once
INDEX = "hashes.npy"


@component
class RejectCopies:
    """Refuse each sample whose perceptual hash is within a distance of a training image's, and draw it again.

    The model needs only the hashes beside it, which ``samples/hashes.npy`` holds without pixels, names or order. They
    are not harmless: whoever has the file can ask of any image whether it, or one like it, was trained on, and a hash
    tells the rough lights and darks of its image. Whoever sees that a draw was refused learns a little of the same.
    Samples just outside the radius remain, and the network itself is what it was.

    Training images too flat for a hash to mean anything, such as single colours, are not guarded, nor is any turned or
    mirrored copy.

    Attributes:
        hash: imagededup's method, bit for bit.
        bits: 64; or, for phash, 256, which tell copies from others better.
        max_distance: in bits, 0 to ``bits``. The larger, the more samples are refused that only happen to be alike: of
            held-out 8x8 digits, 800 against 800, phash of 256 refuses 2 % at 24, 10 % at 32 and 25 % at 40, that of 64
            4 % at 4 and 37 % at 8.
        attempts: how often a sample is drawn at most. If all are refused, a black image stands in its place.
    """

    hash: Literal["phash", "dhash", "whash", "ahash"] = "phash"
    bits: Literal[64, 256] = 256
    max_distance: NonNegative = 32
    attempts: Positive = 8

    protects: ClassVar[str] = "samples"

    def __post_init__(self) -> None:
        if self.hash != "phash" and self.bits == 256:
            raise ValueError(f"bits: 256 goes with hash: phash, not {self.hash}")
        if self.max_distance > self.bits:
            raise ValueError(f"max_distance must be at most bits ({self.bits}), got {self.max_distance}")

    def sampling_rule(self, data: ImageSet, directory: Path) -> Refusal:
        """The refusal of what is like ``data``; its index, uint64 [m, bits / 64], is written to ``directory``."""
        codes = [np.empty((0, self.bits // 64), np.uint64)]
        with progress.track(self.hash, len(data)) as advance:
            for start in range(0, len(data), BATCH):
                images = data.images(slice(start, start + BATCH))
                found, firm = self.hashes(images)
                codes.append(found[firm])
                advance(len(images))
        index = np.unique(np.concatenate(codes), axis=0)
        write_array(directory / INDEX, index)
        return Refusal(self, index)

    def hashes(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of images uint8 [n, h, w, c]: uint64 [n, bits / 64], and bool [n], which hold enough for a hash."""
        from unmem.mitigations.dedup import perceptual

        return perceptual.codes_of_arrays(images, self.hash, self.bits), ~perceptual.flat_of_arrays(images)


class Refusal(Free):
    """Refuses what is within the distance of an index of hashes, uint64 [m, bits / 64]."""

    def __init__(self, settings: RejectCopies, index: np.ndarray) -> None:
        self.attempts, self._settings, self._index = settings.attempts, settings, index

    def accept(self, images: np.ndarray) -> np.ndarray:
        """bool [n]: which images, uint8 [n, h, w, c], are like none in the index."""
        from unmem.mitigations.dedup import hamming

        codes, firm = self._settings.hashes(images)
        rows = np.flatnonzero(firm)
        near = hamming.forest_between(codes[rows], self._index, self._settings.max_distance)[:, 0]
        accepted = np.ones(len(images), bool)
        accepted[rows[near]] = False
        return accepted
