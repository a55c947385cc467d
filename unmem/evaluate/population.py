"""All images of a target one after the other, with what its shadow models say of them: what calibrated attacks compare.

Columns of the arrays here are the n images of all groups of :class:`~unmem.evaluate.rows.Rows`, in its order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmem.component import UserError
from unmem.evaluate.results import Scores, Target
from unmem.evaluate.rows import Rows
from unmem.evaluate.score_attack import ScoreAttack


def joined(rows: Rows) -> np.ndarray:
    """[n, ...]: the groups one after the other."""
    return np.concatenate([values for _, values in rows.items() if len(values)])


def flags(marked: Rows, like: Rows) -> np.ndarray:
    """bool [n]: the marked images among those of ``like``; False for groups that ``marked`` says nothing about."""
    parts = []
    for name, values in like.items():
        mask = getattr(marked, name)
        assert len(mask) in (0, len(values)), f"{len(mask)} marks for {len(values)} {name}"
        parts.append(mask.astype(bool) if len(mask) else np.zeros(len(values), dtype=bool))
    return np.concatenate(parts)


def parted(values: np.ndarray, like: Rows, fitted: np.ndarray | None = None) -> Scores:
    """Scores of the groups, from float64 [n]; ``fitted`` is bool [n]: whose membership was learnt from."""
    ends = np.cumsum([len(rows) for _, rows in like.items()])[:-1]
    names = [name for name, _ in like.items()]
    groups = dict(zip(names, np.split(values, ends), strict=True))
    if fitted is None:
        return Scores(**groups)
    masks = dict(zip(names, np.split(fitted, ends), strict=True))
    return Scores(**groups, fitted_members=masks["members"], fitted_nonmembers=masks["nonmembers"])


def log_errors(scores: np.ndarray) -> np.ndarray:
    """Minus the log of errors, for scores that are minus an error, hence all below 0; other scores as they are.

    An error is a mean of powers: from image to image and from model to model it changes by factors, and its spread
    grows with its size. The log makes it near normal, with one spread for easy and hard images.
    """
    return -np.log(-scores) if (scores < 0).all() else scores


@dataclass(frozen=True)
class Population:
    """What the audited model and its shadows say of all images.

    Attributes:
        own: float64 [n], the base's scores by the audited model.
        shadows: float64 [models, n], by its shadows.
        inside: bool [models, n]: what each shadow was trained on; generated images never.
        rows: float64 [images] a group: ``own`` by groups.
    """

    own: np.ndarray
    shadows: np.ndarray
    inside: np.ndarray
    rows: Rows

    @classmethod
    def of(cls, base: ScoreAttack, target: Target) -> Population:
        """Read them."""
        rows = base.scored(target)
        shadows = [joined(base.scored(shadow)) for shadow in target.shadows]
        inside = [flags(shadow.inside, rows) for shadow in target.shadows]
        own = joined(rows)
        shape = len(shadows), len(own)
        return cls(own, np.reshape(shadows, shape), np.reshape(inside, shape).astype(bool), rows)

    @property
    def generated(self) -> np.ndarray:
        """bool [n]: the model's own samples, which no shadow was trained on."""
        return flags(Rows(np.empty(0), np.empty(0), generated=np.ones(len(self.rows.generated))), self.rows)

    def check(self, attack: str, *, inside: int, outside: int) -> None:
        """Refuse where some real image is inside or outside of too few shadows.

        Raises:
            UserError: naming the attack, what there is and what is needed.
        """
        real = self.inside[:, ~self.generated]
        for side, counts, needed in (("inside", real, inside), ("outside", ~real, outside)):
            fewest = int(counts.sum(0).min())
            if fewest < needed:
                raise UserError(
                    f"attacks.{attack}: some image is {side} only {fewest} of {len(real)} shadow models; it must be "
                    f"{side} at least {needed}; an image is inside half of them (shadows.count)"
                )
