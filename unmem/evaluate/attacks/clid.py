"""Membership inference by what the caption explains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from unmem.component import Fraction, NonNegative, Positive, UserError, component
from unmem.evaluate.audit import Audit
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.results import Scores, Target
from unmem.evaluate.rows import Rows

if TYPE_CHECKING:
    from torch import Tensor

    from unmem.evaluate.matrix.batch import Batch


@component
class _CaptionLosses:
    """The prediction's error under the caption and under weaker ones: columns by timestep, draw and caption."""

    timesteps: tuple[int, ...]
    draws: int
    keep: tuple[float, ...]

    access: ClassVar[str] = "predictions"

    @property
    def queries(self) -> int:
        """One a column."""
        return len(self.timesteps) * self.draws * (1 + len(self.keep))

    def residuals(self, batch: Batch) -> Iterator[Tensor]:
        """Prediction less what it should be, [n, c, h, w]."""
        denoiser, diffusion = batch.denoiser, batch.denoiser.diffusion
        if denoiser.conditioning != "text":
            raise UserError(f"clid needs a text-conditional model; conditioning of this one: {denoiser.conditioning}")
        # the model's own samples, a control, come without captions
        captions = batch.captions or ("",) * len(batch)
        weaker = [tuple(_cut(caption, share) for caption in captions) for share in self.keep]
        conditions = [batch.condition, *(denoiser.condition(len(batch), None, texts) for texts in weaker)]
        for t in self.timesteps:
            at = batch.at(t)
            for draw in range(self.draws):
                eps = batch.noise("clid", t, draw)
                z_t, wanted = diffusion.noised(batch.z, at, eps), diffusion.target(batch.z, at, eps)
                for condition in conditions:
                    yield denoiser.predict(z_t, at, condition).float() - wanted


def _cut(caption: str, share: float) -> str:
    """The first words, at most that share of them."""
    words = caption.split()
    return " ".join(words[: int(share * len(words))])


@component
class CLiD:
    """CLiD: membership by what the caption explains (Zhai et al. 2024, arXiv 2405.14800), the threshold variant.

    Text-to-image models overfit to pairs before they overfit to images. D is the loss under weakened captions less the
    loss L under the image's own, averaged over weakenings, timesteps and draws. The score is alpha S(D) +
    (1 - alpha) S(-L), where S subtracts the median and divides by the interquartile range, both of the calibration
    split's non-members. The paper clips captions by the words' importance; here they are cut from their end. Needs
    captions and a text-conditional model; timesteps x draws x (1 + weakenings) queries.

    Attributes:
        timesteps: at which the losses are taken, fixed in advance.
        draws: noise draws a timestep, the same for all captions.
        keep: the share of its words that each weakened caption keeps; 0 is the empty text.
        alpha: the weight of the discrepancy against the loss.
    """

    timesteps: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = (440, 450, 460)
    draws: Positive = 1
    keep: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1)] = (0.75, 0.5, 0.25, 0.0)
    alpha: Fraction = 0.5

    needs: ClassVar[frozenset[str]] = frozenset({"predictions", "captions"})

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The losses."""
        return (Reading(_CaptionLosses(timesteps=self.timesteps, draws=self.draws, keep=self.keep)),)

    def run(self, target: Target, audit: Audit, seed: int) -> Scores:
        """Scores of all members, non-members, generated images and canaries."""
        if audit.data.captions is None:
            raise UserError("clid needs images with captions; the data set has none")
        losses = target.read(self.readings[0]).map(self._by_caption)
        calibration = audit.is_calibration().nonmembers
        own = _scaled(losses.map(lambda values: -values[:, 0]), calibration)
        discrepancy = _scaled(losses.map(lambda values: values[:, 1:].mean(1) - values[:, 0]), calibration)
        found = discrepancy.map(lambda d, likely: self.alpha * d + (1 - self.alpha) * likely, own)
        return Scores(
            found.members, found.nonmembers, found.generated, fitted_nonmembers=calibration, canaries=found.canaries
        )

    def _by_caption(self, values: np.ndarray) -> np.ndarray:
        """float64 [n, 1 + weakenings]: the mean loss under each caption."""
        return np.asarray(values.astype(np.float64).reshape(len(values), -1, 1 + len(self.keep)).mean(1))


def _scaled(rows: Rows, calibration: np.ndarray) -> Rows:
    """In interquartile ranges of the calibration split's non-members, from their median."""
    low, middle, high = np.quantile(rows.nonmembers[calibration], (0.25, 0.5, 0.75))
    return rows.map(lambda values: (values - middle) / ((high - low) or 1.0))
