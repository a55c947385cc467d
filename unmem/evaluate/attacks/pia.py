"""Membership inference by the network's own noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from unmem.component import NonNegative, PositiveFloat, component
from unmem.evaluate.matrix.reading import Norm, Reading
from unmem.evaluate.score_attack import ScoreAttack

if TYPE_CHECKING:
    from torch import Tensor

    from unmem.evaluate.matrix.batch import Batch


@component
class _OwnNoise:
    """The change of the predicted noise when the image is noised with it: one column."""

    timestep: int
    normalised: bool

    access: ClassVar[str] = "predictions"
    queries: ClassVar[int] = 2

    def residuals(self, batch: Batch) -> Iterator[Tensor]:
        """Noise seen in the clean image less noise seen once it is added, [n, c, h, w]."""
        own = batch.eps(batch.z, 0).float()
        if self.normalised:
            # E|e| of a standard normal value is sqrt(2/pi). The paper's equation has sqrt(pi/2), which leaves the noise
            # larger by pi/2 than what the network was trained on; its public code has sqrt(2/pi), as here
            own = own * math.sqrt(2 / math.pi) / own.abs().mean((1, 2, 3), keepdim=True)
        z_t = batch.denoiser.diffusion.noised(batch.z, batch.at(self.timestep), own)
        yield own - batch.eps(z_t, self.timestep)


@component
class PIA(ScoreAttack):
    """PIA: membership by a steady prediction of noise, two queries (Kong et al. 2024, arXiv 2305.18355).

    The noise that the network sees in the clean image at t = 0 is added to it, up to a timestep, and the network is
    asked again: for a member it sees what was added. The score is minus the mean power of the difference.

    Attributes:
        timestep: up to which the noise is added, fixed in advance.
        order: the power of the absolute differences.
        normalised: PIAN: scale the noise to the mean absolute value of standard normal noise, each image's by itself.
    """

    timestep: NonNegative = 200
    order: PositiveFloat = 4.0
    normalised: bool = False

    @property
    def reading(self) -> Reading:
        """The size of the difference."""
        return Reading(_OwnNoise(timestep=self.timestep, normalised=self.normalised), Norm(order=self.order))

    def score(self, values: np.ndarray) -> np.ndarray:
        """Minus that size, float64 [n]."""
        return np.asarray(-values.mean(1))
