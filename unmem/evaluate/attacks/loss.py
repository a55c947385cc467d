"""Membership inference by the denoising loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from unmem.component import NonNegative, Positive, component
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.score_attack import ScoreAttack

if TYPE_CHECKING:
    from torch import Tensor

    from unmem.evaluate.matrix.batch import Batch


@component
class _Losses:
    """The error of the network's prediction at noised images: a column for each timestep, draw and mirror image."""

    timesteps: tuple[int, ...]
    draws: int
    flips: bool

    access: ClassVar[str] = "predictions"

    @property
    def queries(self) -> int:
        """One a column."""
        return len(self.timesteps) * self.draws * (2 if self.flips else 1)

    def residuals(self, batch: Batch) -> Iterator[Tensor]:
        """Prediction less what it should be, [n, c, h, w]."""
        diffusion = batch.denoiser.diffusion
        pictures = [batch.z, batch.mirrored] if self.flips else [batch.z]
        for t in self.timesteps:
            at = batch.at(t)
            for draw in range(self.draws):
                eps = batch.noise("loss", t, draw)
                for z in pictures:
                    predicted = batch.denoiser.predict(diffusion.noised(z, at, eps), at, batch.condition)
                    yield predicted.float() - diffusion.target(z, at, eps)


@component
class Loss(ScoreAttack):
    """Membership by low denoising loss (Yeom et al. 2018; Carlini et al. 2023, section 5.2).

    The score is minus the loss, averaged over timesteps, noise draws and, if wanted, both mirror images.

    Attributes:
        timesteps: at which the loss is taken, fixed in advance. Carlini et al. find 50 to 300 of 1,000 telling.
        draws: noise draws a timestep.
        flips: average over the left-right mirror image too; for models trained with flips.
    """

    timesteps: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = (50, 100, 200)
    draws: Positive = 8
    flips: bool = False

    @property
    def reading(self) -> Reading:
        """The losses."""
        return Reading(_Losses(timesteps=self.timesteps, draws=self.draws, flips=self.flips))

    def score(self, values: np.ndarray) -> np.ndarray:
        """Minus the mean loss, float64 [n]."""
        return np.asarray(-values.mean(1))
