"""Membership inference by the error of one deterministic step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from unmem.component import Positive, component
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.score_attack import ScoreAttack

if TYPE_CHECKING:
    from torch import Tensor

    from unmem.evaluate.matrix.batch import Batch


@component
class _StepError:
    """What one deterministic step up and back loses, at the end of a deterministic walk: one column."""

    t_sec: int
    stride: int

    access: ClassVar[str] = "predictions"

    @property
    def queries(self) -> int:
        """The walk, then one step up and one back."""
        return len(self._walk) + 1

    @property
    def _walk(self) -> list[int]:
        """Timesteps from 0 up to t_sec, both included; the last stride may be shorter."""
        return [*range(0, self.t_sec, self.stride), self.t_sec]

    def residuals(self, batch: Batch) -> Iterator[Tensor]:
        """The image walked to t_sec, less the same one stride further and back, [n, c, h, w]."""
        z, above = batch.z, self.t_sec + self.stride
        for t, s in pairwise(self._walk):
            z = _moved(batch, z, t, s)
        yield z - _moved(batch, _moved(batch, z, self.t_sec, above), above, self.t_sec)


def _moved(batch: Batch, z: Tensor, t: int, s: int) -> Tensor:
    """One deterministic step from t to s."""
    return batch.denoiser.diffusion.moved(z, batch.eps(z, t), batch.at(t), batch.at(s))


@component
class SecMI(ScoreAttack):
    """SecMI: membership by a small t-error (Duan et al. 2023, arXiv 2302.01316), the statistic without a classifier.

    The clean image is walked up to t_sec by deterministic steps, then one step further and back. The score is minus
    the mean squared difference at t_sec; t_sec / stride + 2 queries.

    Attributes:
        t_sec: where the error is taken, fixed in advance.
        stride: of the steps, in timesteps.
    """

    # the paper's public code walks to t_sec - stride and takes the error there, with one query fewer

    t_sec: Positive = 100
    stride: Positive = 10

    @property
    def reading(self) -> Reading:
        """The t-error."""
        return Reading(_StepError(t_sec=self.t_sec, stride=self.stride))

    def score(self, values: np.ndarray) -> np.ndarray:
        """Minus the t-error, float64 [n]."""
        return np.asarray(-values.mean(1))
