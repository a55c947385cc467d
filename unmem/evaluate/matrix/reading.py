"""One column of numbers an image: what is asked of the network, and how what it answers is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from unmem.component import Fraction, PositiveFloat, component, dump
from unmem.rundir import digest

if TYPE_CHECKING:
    from torch import Tensor

    from unmem.evaluate.matrix.batch import Batch


class Probe(Protocol):
    """A way to ask a network about images: a frozen, hashable component.

    Attributes:
        queries: evaluations of the network an image.
        access: what it needs: ``predictions``, or ``gradients``.
    """

    @property
    def queries(self) -> int:
        """Evaluations of the network an image."""

    @property
    def access(self) -> str:
        """What it needs: ``predictions``, or ``gradients``."""

    def residuals(self, batch: Batch) -> Iterator[Tensor]:
        """One tensor [n, ...] a column: what the network says, less what it would say if it knew the image best."""


@component
class Norm:
    """The size of a residual: the mean of its values' absolute powers, perhaps of its low frequencies mostly.

    Attributes:
        order: the power; 2 is the mean squared error.
        keep: the share of spatial frequencies, from the centre to the edge, that are left as they are; 1 is all.
        damp: the factor of the others' amplitudes.
    """

    order: PositiveFloat = 2.0
    keep: Fraction = 1.0
    damp: Fraction = 0.2

    def __call__(self, residual: Tensor) -> Tensor:
        """float32 [n] of [n, ...]; of [n, c, h, w] where frequencies are damped."""
        values = residual.float() if self.keep == 1 else self._damped(residual.float())
        values = values.flatten(1)
        powers = values.square() if self.order == 2 else values.abs().pow(self.order)
        mean: Tensor = powers.mean(1)
        return mean

    def _damped(self, residual: Tensor) -> Tensor:
        """High frequencies damped, as in a picture: along height and width."""
        import torch

        height, width = residual.shape[-2:]
        inside = [torch.fft.fftfreq(side, device=residual.device).abs() <= self.keep / 2 for side in (height, width)]
        factor = torch.where(inside[0][:, None] & inside[1][None, :], 1.0, self.damp)
        low: Tensor = torch.fft.ifft2(torch.fft.fft2(residual) * factor).real
        return low


@dataclass(frozen=True)
class Reading:
    """A probe and a norm: some columns of the matrix. Readings of one probe share its queries.

    Attributes:
        probe: what is asked.
        norm: how the answer is measured.
    """

    probe: Any
    norm: Norm = field(default_factory=Norm)

    @property
    def key(self) -> str:
        """The name of the columns: a digest of probe and norm."""
        return digest(self.as_json())[:16]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        probe = type(self.probe)
        return {"probe": f"{probe.__module__}.{probe.__qualname__}", **dump(self.probe), "norm": dump(self.norm)}
