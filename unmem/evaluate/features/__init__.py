"""Feature extractors for quality measures and similarity, one component a file."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Features(Protocol):
    """A feature extractor; beside the call it says its ``dimension``, the length of a feature vector."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float64 [n, dimension] of images uint8 [n, h, w, c]."""


def files_of(extract: Features) -> str:
    """A digest of the files that an extractor reads; empty where it reads none."""
    found: str = extract.fingerprint() if hasattr(extract, "fingerprint") else ""
    return found
