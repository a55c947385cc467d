"""No further training on captions that bring back their image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from unmem.component import Fraction, PositiveFloat, component
from unmem.train.config import Train
from unmem.train.imageset import ImageSet

if TYPE_CHECKING:
    from unmem.train.update import UpdateRule


@component
class TextNoiseMask:
    """Skip an image in a step where its caption moves the predicted noise much farther than captions do on average.

    Wen et al., ICLR 2024, arXiv 2407.21720: the magnitude || eps(x_t, caption) - eps(x_t, empty text) || is
    large where a caption leads to one memorized image whatever the noise. It is taken with the weights of the moment,
    without dropout, at one late timestep for all images, where x_t tells little of the image and the caption most: so
    magnitudes of different steps can be compared. The noise is the step's own. Two forward passes are added to each
    step.

    The scale of magnitudes differs by model, by size of latents, and with the progress of training. So the threshold is
    in multiples of a moving average of all captions' magnitudes: it finds captions that are memorized more than others,
    such as those of duplicated images, and none where all are alike. ``relative: false`` is the paper's fixed one. A
    caption that the step drops has magnitude 0, plays no part in the average, and is never skipped. The others' mean is
    taken over the whole batch, so that a masked batch makes a smaller step.

    ``text_noise_mask.json`` in the training stage says how many images were skipped.

    Attributes:
        threshold: an image is skipped if its magnitude is above so many times the average.
        relative: whether the threshold is in multiples of the average; else it is a magnitude.
        decay: of the moving average, each step.
        level: the timestep, as a fraction of the schedule's length.
    """

    threshold: PositiveFloat = 1.5
    relative: bool = True
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    level: Fraction = 0.9

    for_texts: ClassVar[bool] = True

    def update_rule(self, data: ImageSet, train: Train, holds_for: str, state: Path, seed: int) -> UpdateRule:
        """Plain training, masked.

        Args:
            data: the training set, after the arm's data mitigations.
            train: the arm's settings.
            holds_for: unused: nothing is guaranteed.
            state: the trainer's resumable state; the record is written beside it.
            seed: of the order of images and of the losses' randomness, the same in all arms.
        """
        from unmem.mitigations.rules.text_masked import TextMasked

        return TextMasked(
            len(data), train, seed, threshold=self.threshold, relative=self.relative, decay=self.decay,
            level=self.level, record=state.parent / "text_noise_mask.json",
        )  # fmt: skip
