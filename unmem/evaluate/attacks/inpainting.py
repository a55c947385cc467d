"""Membership inference by what the model puts in place of a hidden half."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from unmem.component import NonNegative, Positive, UserError, component
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.score_attack import ScoreAttack

if TYPE_CHECKING:
    from torch import Tensor

    from unmem.evaluate.matrix.batch import Batch

LEAST = 1e-5  # alpha_bar below which a prediction is too much noise to read an image from


@component
class _Completions:
    """Each completion's difference to the image where it was hidden, and the model's errors at the completion."""

    hidden: str
    steps: int
    resamplings: int
    draws: int
    timesteps: tuple[int, ...]

    access: ClassVar[str] = "predictions"

    @property
    def queries(self) -> int:
        """All steps of all completions, the last of which is done once, and one a loss."""
        return self.draws * ((self.steps - 1) * self.resamplings + 1 + len(self.timesteps))

    def residuals(self, batch: Batch) -> Iterator[Tensor]:
        """For each completion: what it lacks of the hidden half, [n, c, h, w / 2]; the prediction's error, [n, ...]."""
        diffusion = batch.denoiser.diffusion
        half = _half(batch.x.shape[-1], self.hidden)
        seen = batch.x.clone()
        seen[..., half] = 0  # grey: an encoder would carry what is hidden over to its other half
        z_seen = batch.denoiser.encode(seen)
        for draw in range(self.draws):
            z = self._completed(batch, z_seen, draw)
            yield (batch.denoiser.decode(z).clamp(-1, 1) - batch.x)[..., half]
            for t in self.timesteps:
                at, eps = batch.at(t), batch.noise("inpainting", "loss", t, draw)
                predicted = batch.denoiser.predict(diffusion.noised(z, at, eps), at, batch.condition)
                yield predicted.float() - diffusion.target(z, at, eps)

    def _completed(self, batch: Batch, z_seen: Tensor, draw: int) -> Tensor:
        """The image [n, c', h', w'] with its hidden half as the model has it (RePaint, algorithm 1)."""
        half, diffusion = _half(z_seen.shape[-1], self.hidden), batch.denoiser.diffusion
        times = self._times(int((diffusion.alphas_cumprod >= LEAST).sum()))
        z = batch.noise("inpainting", "start", draw)
        for t, s in pairwise(times):
            for again in range(self.resamplings):
                if again:
                    z = _renoised(batch, z, s, t, batch.noise("inpainting", "again", t, again, draw))
                fresh = batch.noise("inpainting", "step", t, again, draw)  # of both halves: they do not overlap
                drawn = _posterior(batch, z, self._clean(batch, z, t), t, s, fresh)
                z = _pasted(diffusion.noised(z_seen, batch.at(s), fresh), drawn, half)
        return _pasted(z_seen, self._clean(batch, z, times[-1]), half)

    def _times(self, known: int) -> list[int]:
        """The timesteps from the noisiest of so many down, evenly spaced."""
        if self.steps > known:
            raise UserError(
                f"inpainting: {self.steps} steps are asked for, but the model's schedule has {known} to take"
            )
        times: list[int] = np.linspace(known - 1, 0, self.steps + 1).round().astype(int)[:-1].tolist()
        return times

    def _clean(self, batch: Batch, z: Tensor, t: int) -> Tensor:
        """The finished image as the model sees it in z; pixels are clamped to what images can be."""
        signal, noise = _scales(batch, t)
        found: Tensor = (z - noise * batch.eps(z, t)) / signal
        return found.clamp(-1, 1) if batch.z is batch.x else found


def _half(width: int, hidden: str) -> slice:
    """The columns of one half; the middle one is not hidden."""
    return slice(0, width // 2) if hidden == "left" else slice(width - width // 2, width)


def _scales(batch: Batch, t: int) -> tuple[float, float]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t)."""
    alpha_bar = float(batch.denoiser.diffusion.alphas_cumprod[t])
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


def _posterior(batch: Batch, z: Tensor, clean: Tensor, t: int, s: int, eps: Tensor) -> Tensor:
    """A draw of z_s given z_t and the finished image (Ho et al. 2020, eq. 7), s below t."""
    (signal_t, noise_t), (signal_s, noise_s) = _scales(batch, t), _scales(batch, s)
    kept = (signal_t / signal_s) ** 2
    mean = (signal_s * (1 - kept) * clean + math.sqrt(kept) * noise_s**2 * z) / noise_t**2
    return mean + math.sqrt(1 - kept) * noise_s / noise_t * eps


def _renoised(batch: Batch, z: Tensor, s: int, t: int, eps: Tensor) -> Tensor:
    """A draw of z_t given z_s, s below t."""
    kept = (_scales(batch, t)[0] / _scales(batch, s)[0]) ** 2
    return math.sqrt(kept) * z + math.sqrt(1 - kept) * eps


def _pasted(known: Tensor, drawn: Tensor, half: slice) -> Tensor:
    """What is known, with the hidden half as it was drawn."""
    found = known.clone()
    found[..., half] = drawn[..., half]
    return found


@component
class Inpainting(ScoreAttack):
    """Membership by completions of a hidden half that come back to it (Carlini et al. 2023, section 5.3).

    Half of the image is hidden and drawn anew by the model, several times, in the way of RePaint (Lugmayr et al. 2022,
    arXiv 2201.09865): ancestral steps, after each of which the known half is put back at the step's own noise. Of the
    completions those are kept at which the model's own loss is least; a choice that looks at nothing hidden. The score
    is minus their mean distance to the image in the hidden half: L2 over the root of the number of values, pixels in
    [0, 1]. Models on latents are given the latents of the image with its hidden half grey, and complete half of these.

    Attributes:
        hidden: which half is hidden.
        steps: of a completion, evenly spaced from the schedule's noisiest timestep down.
        resamplings: how often each step but the last is done, noise added again in between, so that the halves agree.
        draws: completions; the paper has 5,000 an image.
        keep: how many are kept; the paper's number is 10.
        timesteps: at which a completion's loss is taken, fixed in advance.
    """

    hidden: Literal["left", "right"] = "right"
    steps: Positive = 25
    resamplings: Positive = 1
    draws: Positive = 8
    keep: Positive = 1
    timesteps: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = (50, 100, 200)

    def __post_init__(self) -> None:
        if self.keep > self.draws:
            raise ValueError(f"keep must be at most draws ({self.draws}), got {self.keep}")

    @property
    def reading(self) -> Reading:
        """Mean squares: a completion's difference in [-1, 1], then its losses."""
        probe = _Completions(
            hidden=self.hidden, steps=self.steps, resamplings=self.resamplings, draws=self.draws,
            timesteps=self.timesteps,
        )  # fmt: skip
        return Reading(probe)

    def score(self, values: np.ndarray) -> np.ndarray:
        """Minus the kept completions' mean distance, float64 [n]."""
        by_draw = values.reshape(len(values), self.draws, 1 + len(self.timesteps))
        best = np.argsort(by_draw[:, :, 1:].mean(2), axis=1, kind="stable")[:, : self.keep]
        distances = np.sqrt(np.take_along_axis(by_draw[:, :, 0], best, axis=1)) / 2
        return np.asarray(-distances.mean(1))
