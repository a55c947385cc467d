"""What attacks hand on: scores and matches, on disk before any analysis. Larger score = more likely a member."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unmem.component import UserError
from unmem.evaluate.audit import Audit
from unmem.rundir import read_arrays, write_arrays


@dataclass(frozen=True)
class Scores:
    """Membership scores: larger means more likely a member.

    Attributes:
        members: float64 [members], in the audit's order.
        nonmembers: float64 [nonmembers], in the audit's order.
    """

    members: np.ndarray
    nonmembers: np.ndarray


@dataclass(frozen=True)
class Matches:
    """For each generated image its nearest member and its nearest held-out image, by one rule.

    Attributes:
        member: int64 [samples], position of the nearest member (the group's first, where copies form a group).
        member_distance: float64 [samples], L2 over the root of the number of values, pixels in [0, 1].
        member_ratio: float64 [samples], distance over alpha times the mean distance of the n nearest groups.
        nonmember, nonmember_distance, nonmember_ratio: the same against the held-out images.
        threshold: float64 scalar; a ratio below is a match.
        group_threshold: float64 scalar; images nearer than this count as one.
    """

    member: np.ndarray
    member_distance: np.ndarray
    member_ratio: np.ndarray
    nonmember: np.ndarray
    nonmember_distance: np.ndarray
    nonmember_ratio: np.ndarray
    threshold: np.ndarray
    group_threshold: np.ndarray


@dataclass(frozen=True)
class Distances:
    """For each generated image the distance (as in :class:`Matches`) to the nearest member and held-out image.

    Attributes:
        member: float64 [samples].
        nonmember: float64 [samples].
    """

    member: np.ndarray
    nonmember: np.ndarray


Result = Scores | Matches | Distances


class Target(Protocol):
    """What is attacked.

    Attributes:
        access: what it gives, of ``samples``, ``losses`` and ``gradients``.
    """

    @property
    def access(self) -> frozenset[str]:
        """What it gives."""

    def samples(self, count: int) -> np.ndarray:
        """The first ``count`` generated images, uint8 [count, h, w, c]."""

    def losses(self, images: np.ndarray, labels: np.ndarray | None, t: int, eps: np.ndarray) -> np.ndarray:
        """Denoising losses, float64 [n], of images uint8 [n, h, w, c] at timestep t, noise float32 [n, c, h, w]."""


class Attack(Protocol):
    """An attack: one file in ``attacks/``.

    Attributes:
        needs: the access that it asks of a target; empty for controls that never see the model.
    """

    @property
    def needs(self) -> frozenset[str]:
        """The access that it asks of a target."""

    def run(self, target: Target, audit: Audit, seed: int) -> Result:
        """Attack ``target``; all randomness comes from ``seed``."""


def save(result: Result, path: Path) -> None:
    """Write ``scores.npz``."""
    write_arrays(path, kind=np.array(type(result).__name__), **asdict(result))


def load(path: Path) -> Result:
    """Read what :func:`save` wrote.

    Raises:
        UserError: when the file is damaged or of an unknown kind.
    """
    arrays: dict[str, Any] = read_arrays(path)
    classes: dict[str, type[Result]] = {cls.__name__: cls for cls in (Scores, Matches, Distances)}
    try:
        return classes[str(arrays.pop("kind"))](**arrays)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not an attack's result ({error})") from None
