"""A model of a run, as attacks see it: what was drawn from it, and what it answered, both on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unmem.component import UserError
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.matrix.store import read
from unmem.evaluate.rows import Rows
from unmem.rundir import read_json


@dataclass(frozen=True)
class TrainedShadow:
    """A shadow model's answers.

    Attributes:
        inside: bool [images] a group: what it was trained on.
        matrix: the folder of its answers.
    """

    inside: Rows
    matrix: Path

    def read(self, reading: Reading) -> Rows:
        """float32 [images, columns] a group."""
        return read(self.matrix, reading)


@dataclass(frozen=True)
class Attacked:
    """The audited model.

    Attributes:
        access: what it gives, of ``samples``, ``prompts``, ``predictions``, ``gradients`` and ``shadows``.
        images: an ``.npy`` file of images drawn from it, uint8 [n, h, w, c]; beside it ``prompts.json``, where it has
            prompts.
        matrix: the folder of its answers.
        shadows: models of the same training.
        drawn: the folder of what the attack drew by itself, where it draws.
    """

    access: frozenset[str]
    images: Path
    matrix: Path
    shadows: Sequence[TrainedShadow] = ()
    drawn: Path = Path()

    def samples(self, count: int) -> np.ndarray:
        """The first ``count`` drawn images, uint8 [count, h, w, c].

        Raises:
            UserError: when fewer were drawn.
        """
        drawn = np.load(self.images, mmap_mode="r", allow_pickle=False)
        if len(drawn) < count:
            raise UserError(f"{self.images}: holds {len(drawn)} images; {count} are asked for")
        return np.asarray(drawn[:count])

    @property
    def prompts(self) -> tuple[str | None, ...]:
        """What each image was asked for, where that is known.

        Raises:
            UserError: when the images have no prompts.
        """
        return tuple(read_json(self.images.with_name("prompts.json")))

    def read(self, reading: Reading) -> Rows:
        """float32 [images, columns] a group: what the model answered."""
        return read(self.matrix, reading)
