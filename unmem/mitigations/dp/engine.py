"""What an engine of per-example gradients does, and what all engines share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from unmem.train.update import Losses

Add = Callable[[nn.Parameter, Tensor], None]

MARGIN = 1 - 2.0**-20  # clipped a little below the bound, so that rounding never goes above it


class Unsupported(ValueError):
    """An engine cannot take this model; the message says why, and names the place."""


@dataclass(frozen=True)
class Clipped:
    """What clipping some examples gave.

    Attributes:
        losses: float32 [examples].
        norms: float32 [examples], before clipping; NaN or infinite where an example's gradient is not finite.
    """

    losses: Tensor
    norms: Tensor


class Engine(Protocol):
    """Forward, backward, clip by example, sum.

    Attributes:
        name: as recipes call it.
    """

    name: str

    def clip(self, losses: Losses, slots: np.ndarray, bound: float, add: Add) -> Clipped:
        """Hand each trainable parameter's sum of clipped gradients to ``add``.

        An example whose gradient is not finite contributes nothing.

        Args:
            losses: the un-reduced losses of some slots, each from rows of its own and of all the same number.
            slots: the examples; at least one.
            bound: L2 bound of one example's gradient over all trainable parameters.
            add: takes a parameter and its sum, float32; may be called more than once a parameter.
        """

    def detach(self) -> None:
        """Give the model back as it was."""


def clip_factors(norms: Tensor, bound: float) -> tuple[Tensor, Tensor | None]:
    """min(1, bound / norm) by example, and which are not finite (their factor is 0); None if all are."""
    finite = norms.isfinite()
    factors = (bound * MARGIN / norms).clamp(max=1.0)
    if bool(finite.all()):
        return factors, None
    return torch.where(finite, factors, 0.0), ~finite
