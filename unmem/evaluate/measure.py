"""What a quality measure hands on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np

from unmem.evaluate.audit import Audit
from unmem.evaluate.statistics import Estimate


@dataclass(frozen=True)
class Measured:
    """A quality figure beside what real images would reach.

    Attributes:
        estimate: the figure.
        better: which direction is better.
        reference: the same figure for real training images in place of samples.
        reference_name: what the reference is, in words.
    """

    estimate: Estimate
    better: Literal["lower", "higher"]
    reference: float
    reference_name: str

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class Quality(Protocol):
    """A quality measure: one file in ``quality/``.

    Attributes:
        samples: generated images that it wants.
        needs_labels: whether samples must carry classes.
    """

    @property
    def samples(self) -> int:
        """Generated images that it wants."""

    @property
    def needs_labels(self) -> bool:
        """Whether samples must carry classes."""

    def measure(self, samples: np.ndarray, labels: np.ndarray | None, audit: Audit, seed: int) -> Measured:
        """Measure samples uint8 [n, h, w, c] (labels int64 [n]) against the audit's real images."""
