"""Membership inference by predictions that agree on the way down."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
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
class _Disagreements:
    """The differences between the noises predicted on a deterministic way down: a column for each two of them."""

    timestep: int
    stride: int
    steps: int

    access: ClassVar[str] = "predictions"

    @property
    def queries(self) -> int:
        """One a step."""
        return self.steps

    def residuals(self, batch: Batch) -> Iterator[Tensor]:
        """One predicted noise less another, [n, c, h, w]."""
        diffusion, t = batch.denoiser.diffusion, self.timestep
        z = diffusion.noised(batch.z, batch.at(t), batch.noise("small_noise", t))
        found = [batch.eps(z, t)]
        for _ in range(1, self.steps):
            z = diffusion.moved(z, found[-1], batch.at(t), batch.at(t - self.stride))
            t -= self.stride
            found.append(batch.eps(z, t))
        for one, other in combinations(found, 2):
            yield one.float() - other


@component
class SmallNoise(ScoreAttack):
    """Membership by agreeing predictions after a little noise (arXiv 2510.21783): small-noise aggregation.

    The image is noised a little and taken down by deterministic steps. For a member the noises predicted on the way
    lie close together: the score is minus the logarithm of their mean distance, the root mean square over values.

    Attributes:
        timestep: up to which the image is noised, fixed in advance.
        stride: of the steps down, in timesteps.
        steps: predictions, each one query; the last is made at timestep - (steps - 1) * stride.
    """

    timestep: NonNegative = 100
    stride: Positive = 10
    steps: Annotated[int, Field(ge=2)] = 5

    def __post_init__(self) -> None:
        way = (self.steps - 1) * self.stride
        if self.timestep < way:
            raise ValueError(f"timestep must be at least (steps - 1) * stride ({way}), got {self.timestep}")

    @property
    def reading(self) -> Reading:
        """The squared distances."""
        return Reading(_Disagreements(timestep=self.timestep, stride=self.stride, steps=self.steps))

    def score(self, values: np.ndarray) -> np.ndarray:
        """Minus the logarithm of the mean distance, float64 [n]."""
        return np.asarray(-np.log(np.sqrt(values).mean(1) + np.finfo(np.float32).tiny))
