"""Membership inference by variations of an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from unmem.component import Positive, component
from unmem.evaluate.matrix.reading import Norm, Reading
from unmem.evaluate.score_attack import ScoreAttack

if TYPE_CHECKING:
    from torch import Tensor

    from unmem.evaluate.matrix.batch import Batch


@component
class _MeanVariation:
    """What the mean of an image's variations lacks of it: one column."""

    timestep: int
    stride: int
    variations: int

    access: ClassVar[str] = "predictions"

    @property
    def queries(self) -> int:
        """The steps down of all variations."""
        return self.variations * len(self._steps)

    @property
    def _steps(self) -> list[int]:
        """The timesteps at which a step down starts; the last may be shorter."""
        return list(range(self.timestep, 0, -self.stride))

    def residuals(self, batch: Batch) -> Iterator[Tensor]:
        """The image less the mean of its variations, pixels in [-1, 1], [n, c, h, w]."""
        mean = sum(self._variation(batch, draw) / self.variations for draw in range(self.variations))
        yield batch.x - mean

    def _variation(self, batch: Batch, draw: int) -> Tensor:
        """An image that the network makes of the noised one; clamped, as a picture that somebody is handed."""
        diffusion = batch.denoiser.diffusion
        eps = batch.noise("rediffuse", self.timestep, draw)
        z = diffusion.noised(batch.z, batch.at(self.timestep), eps)
        for t in self._steps:
            z = diffusion.moved(z, batch.eps(z, t), batch.at(t), batch.at(max(t - self.stride, 0)))
        return batch.denoiser.decode(z).clamp(-1, 1)


@component
class ReDiffuse(ScoreAttack):
    """ReDiffuse: membership by faithful variations (Li et al. 2025, arXiv 2405.20771), without a classifier.

    The image is noised and denoised by deterministic steps, several times; the variations are averaged. The score is
    minus the mean absolute difference of the average to the image, in pixels. It needs no more of a model than an
    interface for variations of an image: neither predictions nor latents are looked at.

    Attributes:
        timestep: up to which the image is noised, fixed in advance: the strength of the variation.
        stride: of the steps down, in timesteps.
        variations: how many are averaged; each takes timestep / stride queries.
    """

    timestep: Positive = 200
    stride: Positive = 100
    variations: Positive = 10

    @property
    def reading(self) -> Reading:
        """The size of the difference."""
        probe = _MeanVariation(timestep=self.timestep, stride=self.stride, variations=self.variations)
        return Reading(probe, Norm(order=1.0))

    def score(self, values: np.ndarray) -> np.ndarray:
        """Minus that size, float64 [n]."""
        return np.asarray(-values.mean(1))
