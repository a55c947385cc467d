"""The embedded default data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unmem.component import component
from unmem.train.imageset import ImageSet, Rejected

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@component
class Digits:
    """1,797 real handwritten digits of 8x8 pixels, ten classes; ships with scikit-learn, needs no download.

    Source: Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998), its test set.

    Attributes:
        captions: whether each has a caption of its own, such as "a handwritten three, number 17", to try on it what
            needs texts.
    """

    captions: bool = False

    def fingerprint(self) -> str:
        """The data never change."""
        return "digits"

    def load(self, scratch: Path) -> tuple[ImageSet, list[Rejected]]:
        """Images uint8 [1797, 8, 8, 1]: the 17 grey levels 0..16 spread over 0..255."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        sources = [f"digits/{i:04d}" for i in range(len(images))]
        names = tuple(str(name) for name in digits.target_names)
        captions = tuple(f"a handwritten {WORDS[digit]}, number {i}" for i, digit in enumerate(digits.target))
        labels = digits.target.astype(np.int64)
        return ImageSet.of(images, sources, labels, names, captions if self.captions else None), []
