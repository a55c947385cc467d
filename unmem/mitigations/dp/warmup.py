"""Warm-up on noisy central images, before DP-SGD (DP-FETA: Li et al. 2025, arXiv 2504.01395)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from unmem.component import Positive, PositiveFloat, UserError, component
from unmem.mitigations.dp.accounting import Query
from unmem.rng import derive, stream
from unmem.train.config import Train
from unmem.train.imageset import ImageSet

if TYPE_CHECKING:
    from unmem.train.update import Plain

CHUNK = 1024  # images in float64 at once
COUNTER = 0.25  # the counting coordinate over the largest norm of an image: a sharp count, for 3% more norm


@component
class Warmup:
    """Plain training on noisy means of random samples of the images, a mean a class; these queries are private, too.

    Attributes:
        central: how often the means are asked for; each time gives one image a class.
        sample: probability of each image to be in a query's sample.
        noise_multiplier: standard deviation of the noise on the sums over ``clip``.
        clip: L2 bound of one image's part: its pixels in [-1, 1] and a constant that counts it. Unset: the norm that no
            image exceeds, sqrt(17/16 d) for d pixel values, so that nothing is clipped.
        images: central images seen in the plain training, all in all.
        batch: central images an update.
        lr: peak learning rate of the plain training.
    """

    central: Positive = 50
    sample: Annotated[float, Field(gt=0, le=1)] = 0.1
    noise_multiplier: PositiveFloat = 5.0
    clip: PositiveFloat | None = None
    images: Positive = 20_000
    batch: Positive = 64
    lr: PositiveFloat = 1e-3

    @property
    def queries(self) -> tuple[Query, ...]:
        """What is asked of the private images, for the plan."""
        return (Query("central images", self.noise_multiplier, self.sample, self.central),)

    def prepare(self, data: ImageSet, train: Train, secret: int) -> tuple[ImageSet, Plain]:
        """The central images, and how to train on them: plainly."""
        from unmem.train.update import Plain

        central = self.central_images(data, secret)
        settings = replace(train, images=self.images, batch=self.batch, lr=self.lr)
        return central, Plain(len(central), settings, derive(secret, "warm-up"))

    def central_images(self, data: ImageSet, secret: int) -> ImageSet:
        """The noisy means, a function of data and secret: asking again gives the same and spends nothing.

        A mean whose noise would be as large as half the range of pixels is left out, by its noisy count.

        Raises:
            UserError: when that would be so, or is so, of all.
        """
        least = self.noise_multiplier * self._bound(data)  # at this count the noise of a pixel's mean has deviation 1
        needed = least * max(1, _largest(data) / self._bound(data))  # clipping makes images count less
        if (expected := self.sample * len(data) / _classes(data)) < needed:
            raise UserError(
                f"dp_sgd.warmup: about {expected:.0f} images a class and query drown in noise, {needed:.0f} are "
                "needed; raise sample, or lower noise_multiplier"
            )
        images, labels, names = [], [], []
        for query in range(self.central):
            sums = self.noisy_sums(data, secret, query)
            counts = sums[:, -1] / _counter(data)
            clear = np.flatnonzero(counts > least)
            images.append(_pixels(sums[clear, :-1] / counts[clear, None], data.shape))
            labels.append(clear)
            names += [f"central {query} of {label}" for label in clear]
        if not names:
            raise UserError("dp_sgd.warmup: every central image drowned in noise; raise sample, or central")
        found = None if data.labels is None else np.concatenate(labels)
        return ImageSet.of(np.concatenate(images), names, found, data.label_names)

    def noisy_sums(self, data: ImageSet, secret: int, query: int) -> np.ndarray:
        """float64 [classes, d + 1]: the sum over a Poisson sample of clipped vectors, a row a class, with noise."""
        sums = self.sums(data, secret, query)
        scale = self.noise_multiplier * self._bound(data)
        return sums + scale * stream(secret, "central", "noise", query).standard_normal(sums.shape)

    def sums(self, data: ImageSet, secret: int, query: int) -> np.ndarray:
        """The same without noise, private: one image changes one row, by at most ``clip``."""
        coins = stream(secret, "central", "poisson", query).random(len(data))
        chosen, bound, counter = np.flatnonzero(coins < self.sample), self._bound(data), _counter(data)
        labels = np.zeros(len(data), dtype=np.int64) if data.labels is None else data.labels
        sums = np.zeros((_classes(data), math.prod(data.shape) + 1))
        for start in range(0, len(chosen), CHUNK):
            part = chosen[start : start + CHUNK]
            pixels = data.images(part).reshape(len(part), -1) / 127.5 - 1
            vectors = np.concatenate([pixels, np.full((len(part), 1), counter)], axis=1)
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors *= np.minimum(1, bound / norms)
            for label in np.unique(labels[part]):
                sums[label] += vectors[labels[part] == label].sum(0)
        return sums

    def _bound(self, data: ImageSet) -> float:
        """``clip``, or the largest norm there is."""
        return self.clip or _largest(data)


def _classes(data: ImageSet) -> int:
    """Rows of sums: one where nothing is labelled."""
    return 1 if data.labels is None else len(data.label_names)


def _counter(data: ImageSet) -> float:
    """The constant coordinate, by which a class's images are counted."""
    return COUNTER * math.sqrt(math.prod(data.shape))


def _largest(data: ImageSet) -> float:
    """The norm of an all-black or all-white image with its counter: the largest there is."""
    return math.hypot(math.sqrt(math.prod(data.shape)), _counter(data))


def _pixels(means: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """float64 [k, d], in [-1, 1] but for noise, as uint8 [k, h, w, c]."""
    return np.rint((means.clip(-1, 1) + 1) * 127.5).astype(np.uint8).reshape(-1, *shape)
