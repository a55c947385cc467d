"""Who may step in while samples are drawn: between two steps of the sampler, and when an image is finished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:  # whoever writes a rule can be looked at without torch
    from torch import Tensor


class SamplingRule(Protocol):
    """A condition on how samples are drawn.

    Each image is judged by itself, whatever else is in the batch, and nothing is drawn at random, so that sample k
    stays a function of the experiment's seed and of k.

    Attributes:
        attempts: how often a sample is drawn at most; 1 where nothing is ever refused.
    """

    attempts: int

    def steer(self, x0: Tensor, sigma: float) -> Tensor:
        """What the network's estimate of the finished image is to be replaced by, before the sampler's step.

        Args:
            x0: float32 [n, c, h, w] in [-1, 1].
            sigma: noise relative to an image that is not scaled down, sqrt((1 - alpha_bar) / alpha_bar), above 0.

        Returns:
            The same shape; an image that is returned as it came leaves the sampler's step as it would have been.
        """

    def accept(self, images: np.ndarray) -> np.ndarray:
        """bool [n]: which finished images, uint8 [n, h, w, c], may leave the sampler; the others are drawn again."""


class Free:
    """Ordinary sampling: nothing is steered, nothing refused. Rules that do one of the two stand on it."""

    attempts = 1

    def steer(self, x0: Tensor, sigma: float) -> Tensor:
        """As it came."""
        return x0

    def accept(self, images: np.ndarray) -> np.ndarray:
        """All."""
        return np.ones(len(images), bool)
