"""Attacks that score each image by itself, from one reading of the matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from unmem.component import nested
from unmem.evaluate.audit import Audit
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.results import Attack, Scores, Shadow, Target
from unmem.evaluate.rows import Rows


class ScoreAttack(ABC):
    """What such attacks share; a subclass is a component with :attr:`reading` and :meth:`score`.

    Others build on them: ``lira`` and ``rmia`` calibrate their scores by shadow models, ``quantile`` by regression,
    ``frequency_filter`` changes the norm of their reading, ``dataset_inference`` adds them up over a set.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"predictions"})

    @property
    @abstractmethod
    def reading(self) -> Reading:
        """What it reads of the matrix."""

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The same, as a list of one."""
        return (self.reading,)

    @abstractmethod
    def score(self, values: np.ndarray) -> np.ndarray:
        """float64 [n] of [n, columns]: larger means more likely a member."""

    def scored(self, model: Target | Shadow) -> Rows:
        """float64 [images] a group: the scores by one model's answers."""
        return model.read(self.reading).map(lambda values: self.score(values.astype(np.float64)))

    def run(self, target: Target, audit: Audit, seed: int) -> Scores:
        """Scores of all members, non-members, generated images and canaries."""
        found = self.scored(target)
        return Scores(found.members, found.nonmembers, found.generated, canaries=found.canaries)


class OnBase:
    """What attacks share that stand on another one, their field ``base``."""

    if TYPE_CHECKING:
        base: Attack

    further: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs(self) -> frozenset[str]:
        """What the base needs, and what is needed further."""
        return self.base.needs | self.further

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What the base reads."""
        return self.base.readings


if TYPE_CHECKING:
    Base = ScoreAttack
else:  # in a recipe: a mapping with the attack's kind and fields
    Base = nested("unmem.evaluate.attacks", ScoreAttack)
