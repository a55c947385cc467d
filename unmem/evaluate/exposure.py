"""Exposure: how far a canary stands out among secrets that could have been drawn in its place."""

from __future__ import annotations

import numpy as np


def exposure(score: float | np.ndarray, reference_scores: np.ndarray) -> np.ndarray:
    """Exposure of canaries: log2 |R| - log2 rank (Carlini et al. 2019, "The Secret Sharer").

    R is the reference and the one canary itself, so that |R| = n + 1 and exposure lies between 0 (rank n + 1) and
    log2(n + 1) (rank 1: above every reference). Ties count against the canary.

    >>> exposure(3.0, np.array([0.0, 1.0, 2.0])).item()
    2.0

    Args:
        score: float, or float array of any shape: one for each canary.
        reference_scores: float [n], of secrets that could have been drawn and were not; n at least 1.

    Returns:
        float64 of the shape of ``score``, in bits.

    Raises:
        ValueError: on an empty reference, one of another dimension, or NaN.
    """
    if np.ndim(reference_scores) != 1 or len(reference_scores) == 0:
        raise ValueError(f"reference_scores has the shape {np.shape(reference_scores)}; allowed is [n] with n >= 1")
    for name, values in (("score", score), ("reference_scores", reference_scores)):
        if np.isnan(values).any():
            raise ValueError(f"{name} holds NaN; allowed are numbers")
    below = np.searchsorted(np.sort(reference_scores), score, side="left")
    rank = 1 + len(reference_scores) - below
    return np.asarray(np.log2(len(reference_scores) + 1) - np.log2(rank))
