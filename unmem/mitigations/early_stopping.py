"""The end of training before memorization begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from unmem.component import Positive, PositiveFloat, UserError, component
from unmem.mitigations.ledger import Dropped
from unmem.train.config import Train
from unmem.train.imageset import ImageSet, content_of

if TYPE_CHECKING:
    from unmem.train.update import UpdateRule


@component
class EarlyStopping:
    """Hold out a part of the training images, and stop when the loss on them is well above that on the others.

    A diffusion model first learns the distribution, in a time that does not depend on the number n of its images, and
    then the images, in a time proportional to n (Bonnaire et al., NeurIPS 2025, arXiv 2505.17638): between the two
    times the gap between the losses opens. It is taken at fixed noise, the same for both sides, image by image:
    (held out - trained on) / trained on. The released weights are an average over the last ones, which lags behind
    those that are looked at. The audit's non-members play no part.

    Images with equal pixels are held out together. The held-out images stand in the ledger, and are not trained on.
    ``early_stopping.json`` in the training stage holds every check and what was decided.

    Attributes:
        share: of the distinct images that is held out, rounded down.
        gap: the relative gap that is too large.
        patience: successive checks with such a gap that end training.
        every: images between two checks; as many as there are to train on when unset.
        most: images of each side that are looked at, at most.
        draws: of timestep and noise for each of them.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    gap: PositiveFloat = 0.1
    patience: Positive = 2
    every: Positive | None = None
    most: Positive = 512
    draws: Positive = 8

    def apply(self, data: ImageSet, rng: np.random.Generator) -> tuple[ImageSet, list[Dropped]]:
        """The set without the held-out images, which the ledger names."""
        contents = np.array([content_of(name) for name in data.ids])
        distinct = np.unique(contents)
        held_out = np.isin(contents, rng.permutation(distinct)[: int(self.share * len(distinct))])
        dropped = [Dropped(data.ids[i], None, 0.0, "early_stopping") for i in np.flatnonzero(held_out).tolist()]
        return data.take(np.flatnonzero(~held_out)), dropped

    def update_rule(
        self, data: ImageSet, train: Train, holds_for: str, state: Path, seed: int, left_out: ImageSet
    ) -> UpdateRule:
        """Plain training that may end before ``train.images``.

        Args:
            data: the training set, after the arm's data mitigations.
            train: the arm's settings.
            holds_for: unused: nothing is guaranteed.
            state: the trainer's resumable state; the record is written beside it.
            seed: of the order of images and of the losses' randomness, the same in all arms.
            left_out: what :meth:`apply` held out.

        Raises:
            UserError: where that is no image at all.
        """
        from unmem.mitigations.rules.watched import Watched

        if len(left_out) < 2:
            raise UserError(
                f"early_stopping.share: {self.share:g} of the training images are {len(left_out)}; "
                "needs 2 at least to compare with, so raise it"
            )
        return Watched(
            data, left_out, train, seed,
            gap=self.gap, patience=self.patience, every=self.every or len(data), most=self.most, draws=self.draws,
            record=state.parent / "early_stopping.json",
        )  # fmt: skip
