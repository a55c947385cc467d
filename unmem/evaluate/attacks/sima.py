"""Membership inference by the size of the predicted noise."""

from __future__ import annotations

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
class _CleanNoise:
    """The noise that the network sees in the image itself: one column."""

    timestep: int

    access: ClassVar[str] = "predictions"
    queries: ClassVar[int] = 1

    def residuals(self, batch: Batch) -> Iterator[Tensor]:
        """The predicted noise, [n, c, h, w]; there is none."""
        yield batch.eps(batch.z, self.timestep)


@component
class SimA(ScoreAttack):
    """SimA: membership by little predicted noise in the clean image, one query (Rao et al. 2025, arXiv 2509.25003).

    The ideal network predicts (x - sqrt(alpha_bar_t) mean) / sqrt(1 - alpha_bar_t), where the mean is taken over the
    training images near x: next to nothing where x is one of them. The score is minus the mean power of what it
    predicts for the image as it is, neither noised nor scaled.

    Attributes:
        timestep: what the network is told, fixed in advance. Moderately early is best; at 0 the image lies where the
            network saw next to nothing in training.
        order: the power of the absolute values.
    """

    timestep: NonNegative = 100
    order: PositiveFloat = 4.0

    @property
    def reading(self) -> Reading:
        """The size of the predicted noise."""
        return Reading(_CleanNoise(timestep=self.timestep), Norm(order=self.order))

    def score(self, values: np.ndarray) -> np.ndarray:
        """Minus that size, float64 [n]."""
        return np.asarray(-values.mean(1))
