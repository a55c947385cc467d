"""The images that an attack scores, by what they are: members, non-members, canaries, generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np


def _none() -> np.ndarray:
    return np.empty(0)


@dataclass(frozen=True)
class Rows:
    """One array a group; the first axis is the images, in the audit's order.

    Attributes:
        members: the training set as intended.
        nonmembers: held-out images.
        canaries: images inserted by a coin, inserted or not; empty without canaries.
        generated: the audited model's own first samples, a control; empty where it gives none.
    """

    members: np.ndarray
    nonmembers: np.ndarray
    canaries: np.ndarray = field(default_factory=_none)
    generated: np.ndarray = field(default_factory=_none)

    def map(self, function: Callable[..., np.ndarray], *others: Rows) -> Rows:
        """``function`` on each group, beside the same group of the others; empty groups stay empty."""
        found = {}
        for name, mine in self.items():
            found[name] = function(mine, *(getattr(other, name) for other in others)) if len(mine) else _none()
        return Rows(**found)

    def items(self) -> list[tuple[str, Any]]:
        """(name, array) of every group."""
        return [(part.name, getattr(self, part.name)) for part in fields(self)]
