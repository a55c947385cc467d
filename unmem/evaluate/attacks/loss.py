"""Membership inference by the denoising loss."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from unmem import progress
from unmem.component import NonNegative, Positive, component
from unmem.evaluate.audit import Audit
from unmem.evaluate.results import Scores, Target
from unmem.rng import stream
from unmem.train.imageset import ImageSet

BLOCK = 256  # images a forward pass; part of the noise's name, so that scores depend on no batch size


@component
class Loss:
    """Membership by low denoising loss (Yeom et al. 2018; Carlini et al. 2023, section 5.2).

    The score is minus the loss, averaged over timesteps, noise draws and, if wanted, both mirror images.

    Attributes:
        timesteps: at which the loss is taken, fixed in advance. Carlini et al. find 50 to 300 of 1,000 telling.
        draws: noise draws a timestep.
        flips: average over the left-right mirror image too; for models trained with flips.
    """

    timesteps: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = (50, 100, 200)
    draws: Positive = 8
    flips: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"losses"})

    def run(self, target: Target, audit: Audit, seed: int) -> Scores:
        """Scores of all members and non-members."""
        with progress.track("loss", self._forwards(len(audit.members) + len(audit.nonmembers))) as advance:
            members = self._scores(target, audit.member_images, "members", seed, advance)
            nonmembers = self._scores(target, audit.nonmember_images, "nonmembers", seed, advance)
        return Scores(members, nonmembers)

    def _forwards(self, images: int) -> int:
        """Forward passes for so many images."""
        return images * len(self.timesteps) * self.draws * (2 if self.flips else 1)

    def _scores(self, target: Target, data: ImageSet, name: str, seed: int, advance: progress.Advance) -> np.ndarray:
        """Minus the mean loss, float64 [n]."""
        total = np.zeros(len(data))
        for start in range(0, len(data), BLOCK):
            block = slice(start, start + BLOCK)
            images = data.images(block)
            labels = None if data.labels is None else data.labels[block]
            for t in self.timesteps:
                for draw in range(self.draws):
                    rng = stream(seed, "loss", name, start, t, draw)
                    eps = rng.standard_normal(images.transpose(0, 3, 1, 2).shape, dtype=np.float32)
                    total[block] += target.losses(images, labels, t, eps)
                    if self.flips:
                        total[block] += target.losses(images[:, :, ::-1], labels, t, eps)
                    advance(self._forwards(len(images)) // (len(self.timesteps) * self.draws))
        return -total / self._forwards(1)
