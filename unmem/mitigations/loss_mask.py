"""No further training on what is memorized already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from unmem.component import Positive, component
from unmem.train.config import Train
from unmem.train.imageset import ImageSet

if TYPE_CHECKING:
    from unmem.train.update import UpdateRule


@component
class LossMask:
    """Skip an image in a step where its loss is far below what losses at its timestep have been of late.

    The memorization-aware mask ("anti-gradient control") of Chen et al., ECCV 2024, arXiv 2407.15328: skipped if
    ``ratio`` times the loss is below the moving average at its timestep. Losses of skipped images are part of the
    average, and the others' mean is taken over the whole batch, so that a masked batch makes a smaller step.

    The paper keeps an average for each of 1,000 timesteps. One of ``decay`` 0.8 spans the last 5 to 10 losses there,
    which 5,000 to 10,000 training images bring: as long as losses fall faster than that, the average is of the past,
    and everything is skipped. Neighbouring timesteps have nearly the same loss, so ``width`` of them share an average
    that is as many times fresher. The average moves once a step in which a loss falls into its range.

    ``loss_mask.json`` in the training stage says how many images were skipped.

    Attributes:
        ratio: an image is skipped if its loss times this is below the average.
        decay: of the moving average, each time that it moves.
        width: neighbouring timesteps that share an average; 1 is the paper's.
    """

    ratio: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.8
    width: Positive = 10

    def update_rule(self, data: ImageSet, train: Train, holds_for: str, state: Path, seed: int) -> UpdateRule:
        """Plain training, masked.

        Args:
            data: the training set, after the arm's data mitigations.
            train: the arm's settings.
            holds_for: unused: nothing is guaranteed.
            state: the trainer's resumable state; the record is written beside it.
            seed: of the order of images and of the losses' randomness, the same in all arms.
        """
        from unmem.mitigations.rules.masked import Masked

        return Masked(
            len(data), train, seed,
            ratio=self.ratio, decay=self.decay, width=self.width, record=state.parent / "loss_mask.json",
        )  # fmt: skip
