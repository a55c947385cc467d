"""Samples are led away from training images while they are drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from unmem.component import Fraction, PositiveFloat, component
from unmem.train.imageset import ImageSet
from unmem.train.sampling_rule import Free

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 2**14  # training images that are compared at once
STEADY = 0.1  # of the reach: nearer than that, the way out is mostly rounding, and is not magnified further


@component
class DissimilarityGuidance:
    """Lead samples away from the training image that they are about to become (after Chen et al. 2024, AMG, section 4).

    At each step the network's estimate x0 of the finished image is compared with the nearest training image n. With
    d = L2 over the root of the number of values, pixels in [0, 1], and a reach that shrinks with the noise,
    r_t = sqrt(alpha_bar_t) radius, the similarity is (r_t - d)^2 / 2 where d < r_t, and 0 elsewhere. Its gradient in x0
    has a closed form, and x0 becomes

        x0 + strength (r_t - d) (x0 - n) / d           where d < r_t; then clipped to what images can be.

    Two simplifications against the paper (arXiv 2404.00922): the gradient stops at x0, where theirs goes on through the
    network to x_t; and the threshold follows the noise in closed form. Of their three guidances this is the one that
    needs no caption. The gradient vanishes at n itself, so a sample that nothing but copies is open to is not helped;
    one that is about to be a copy is led to what else the network would draw. Training images must be at hand while
    samples are drawn, and the network itself is what it was.

    Attributes:
        radius: the reach without noise, 0 to 1. Samples that are at most that far from a training image are changed, be
            they copies or not: of held-out 8x8 digits 2 % are within 0.1 of one of 800 others, and 53 % within 0.15.
        strength: how hard to push; at 1 x0 is put where the reach ends.
    """

    radius: Fraction = 0.1
    strength: PositiveFloat = 4.0

    protects: ClassVar[str] = "samples"
    steers: ClassVar[bool] = True

    def sampling_rule(self, data: ImageSet, directory: Path) -> Repulsion:
        """The push away from ``data``; nothing is written to ``directory``."""
        return Repulsion(self, data)


class Repulsion(Free):
    """Pushes what is near an image of a set away from it."""

    def __init__(self, settings: DissimilarityGuidance, data: ImageSet) -> None:
        from unmem.train.diffusion import to_model

        self._settings, self._points = settings, to_model(data.images()).flatten(1)

    def steer(self, x0: Tensor, sigma: float) -> Tensor:
        """The images [n, c, h, w] in [-1, 1], those in reach pushed away from their nearest."""
        import torch

        reach = self._settings.radius / math.sqrt(1 + sigma**2)
        x = x0.flatten(1)
        away = x - self._nearest(x)
        distance = away.square().mean(1).sqrt() / 2  # pixels in [0, 1]
        push = self._settings.strength * (reach - distance) / distance.clamp(min=STEADY * reach)
        pushed = (x + push[:, None] * away).clamp(-1, 1)
        return torch.where((distance < reach)[:, None], pushed, x).view_as(x0)

    def _nearest(self, x: Tensor) -> Tensor:
        """The nearest point of each row of x [n, d]."""
        import torch

        self._points = self._points.to(x.device)
        least = torch.full((len(x),), math.inf, device=x.device)
        nearest = torch.zeros_like(x)
        for points in torch.split(self._points, BLOCK):
            # |x - p|^2 but for |x|^2, on which the order does not depend
            found, at = (points.square().sum(1) - 2 * x @ points.T).min(1)
            nearest = torch.where((found < least)[:, None], points[at], nearest)
            least = torch.minimum(found, least)
        return nearest
