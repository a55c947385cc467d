"""Membership inference by how the loss rises around an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from unmem.component import Fraction, NonNegative, Positive, component
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.score_attack import ScoreAttack

if TYPE_CHECKING:
    from torch import Tensor

    from unmem.evaluate.matrix.batch import Batch


@component
class _CropLosses:
    """The error of the network's prediction, at each timestep for the image and then for each of its crops."""

    timesteps: tuple[int, ...]
    crops: int
    largest: float
    smallest: float

    access: ClassVar[str] = "predictions"

    @property
    def queries(self) -> int:
        """One a column."""
        return len(self.timesteps) * (1 + self.crops)

    def residuals(self, batch: Batch) -> Iterator[Tensor]:
        """Prediction less what it should be, [n, c, h, w]."""
        diffusion, encode = batch.denoiser.diffusion, batch.denoiser.encode
        shares = np.linspace(self.largest, self.smallest, self.crops)
        pictures = [batch.z, *(encode(_cropped(batch.x, float(share))) for share in shares)]
        for t in self.timesteps:
            at = batch.at(t)
            # one noise for the image and its crops, so that it does not pass for a difference between them
            eps = batch.noise("pfami", t)
            for z in pictures:
                predicted = batch.denoiser.predict(diffusion.noised(z, at, eps), at, batch.condition)
                yield predicted.float() - diffusion.target(z, at, eps)


def _cropped(x: Tensor, share: float) -> Tensor:
    """The middle of the images, a share of each side, enlarged to their size [n, c, h, w]."""
    from torch.nn.functional import interpolate

    height, width = x.shape[-2:]
    kept = max(1, round(share * height)), max(1, round(share * width))
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    middle = x[..., top : top + kept[0], left : left + kept[1]]
    return interpolate(middle, size=(height, width), mode="bilinear", align_corners=False)


@component
class PFAMI(ScoreAttack):
    """PFAMI: membership by a loss that rises around the image (Fu et al. 2023, arXiv 2308.12143), the mean statistic.

    A memorized image is a local maximum of the model's likelihood, one that merely looks likely is not. The image is
    compared with crops of its middle, enlarged to its size: the score is the mean loss of the crops less that of the
    image, averaged over timesteps; timesteps x (1 + crops) queries.

    Attributes:
        timesteps: at which the loss is taken, fixed in advance.
        crops: how many, evenly spaced from the largest to the smallest.
        largest: the side of the largest crop, as a share of the image's.
        smallest: the side of the smallest crop, likewise.
    """

    timesteps: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = (0, 50, 100, 150, 200, 250, 300, 350, 400, 450)
    crops: Positive = 10
    largest: Fraction = 0.95
    smallest: Fraction = 0.7

    @property
    def reading(self) -> Reading:
        """The losses."""
        probe = _CropLosses(timesteps=self.timesteps, crops=self.crops, largest=self.largest, smallest=self.smallest)
        return Reading(probe)

    def score(self, values: np.ndarray) -> np.ndarray:
        """The crops' mean loss less the image's, float64 [n]."""
        losses = values.reshape(len(values), len(self.timesteps), 1 + self.crops).mean(1)
        return np.asarray(losses[:, 1:].mean(1) - losses[:, 0])
