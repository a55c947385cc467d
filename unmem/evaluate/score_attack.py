"""Attacks that score each image by itself, from one reading of the matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from unmem.component import nested
from unmem.evaluate.audit import Audit
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.results import Scores, Target


class ScoreAttack:
    """What such attacks share; a subclass is a component with :attr:`reading` and :meth:`score`.

    Others build on them: ``lira`` and ``rmia`` calibrate their scores by shadow models, ``quantile`` by regression,
    ``frequency_filter`` changes the norm of their reading, ``dataset_inference`` adds them up over a set.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"predictions"})

    @property
    def reading(self) -> Reading:
        """What it reads of the matrix."""
        raise NotImplementedError

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The same, as a list of one."""
        return (self.reading,)

    def score(self, values: np.ndarray) -> np.ndarray:
        """float64 [n] of [n, columns]: larger means more likely a member."""
        raise NotImplementedError

    def run(self, target: Target, audit: Audit, seed: int) -> Scores:
        """Scores of all members, non-members, generated images and canaries."""
        found = target.read(self.reading).map(lambda values: self.score(values.astype(np.float64)))
        return Scores(found.members, found.nonmembers, found.generated, canaries=found.canaries)


if TYPE_CHECKING:
    Base = ScoreAttack
else:  # in a recipe: a mapping with the attack's kind and fields
    Base = nested("unmem.evaluate.attacks", ScoreAttack)
