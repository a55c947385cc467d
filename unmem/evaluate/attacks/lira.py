"""The likelihood-ratio attack."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from unmem.component import component
from unmem.evaluate.attacks.loss import Loss
from unmem.evaluate.audit import Audit
from unmem.evaluate.population import Population, log_errors, parted
from unmem.evaluate.results import Scores, Target
from unmem.evaluate.score_attack import Base, OnBase

MANY = 64  # shadow models from which on each image gets a variance of its own (Carlini et al. 2022, section VI-C)


@component
class LiRA(OnBase):
    """LiRA: each image's score against those under shadow models with and without it (Carlini et al. 2022).

    A normal distribution is fitted to the base's scores of an image under the shadow models that were trained on it,
    and one under those that were not (arXiv 2112.03570, algorithm 1; for diffusion models arXiv 2301.13188, section
    5.2.2). ``online`` scores log N(s; in) - log N(s; out); ``offline``, -log P[N(out) > s], without the models that
    were trained on it. The audited model is in no fit. Scores that are minus an error are taken as minus its log, on
    which they are near normal with one spread for all images. Generated images are inside no shadow: online, their
    "in" is their "out" moved by the mean shift of the others.

    Attributes:
        base: the attack whose scores are calibrated, with its fields. Many draws help; ``flips`` do where the model was
            trained with flips, and hurt where it was not.
        mode: ``online`` needs each image inside and outside of two shadow models at least; ``offline``, outside of two.
        variance: ``per_example``, or ``global``: one for all images, "in" and "out" apart, from the scores less each
            image's mean. When unset, global below 64 shadow models: a variance from few scores is mostly noise.
    """

    base: Base = Loss()
    mode: Literal["online", "offline"] = "online"
    variance: Literal["per_example", "global"] | None = None

    further: ClassVar[frozenset[str]] = frozenset({"shadows"})

    def run(self, target: Target, audit: Audit, seed: int) -> Scores:
        """Log likelihood ratios, or minus log tail probabilities.

        Raises:
            UserError: where there are too few shadow models.
        """
        population = Population.of(self.base, target)
        population.check("lira", inside=2 if self.mode == "online" else 0, outside=2)
        scores = log_errors(np.vstack([population.own, population.shadows]))
        pooled = (self.variance or ("global" if len(population.shadows) < MANY else "per_example")) == "global"
        function = likelihood_ratio if self.mode == "online" else tail
        return parted(function(scores[0], scores[1:], population.inside, pooled=pooled), population.rows)


def likelihood_ratio(own: np.ndarray, shadows: np.ndarray, inside: np.ndarray, *, pooled: bool) -> np.ndarray:
    """log N(own; in) - log N(own; out), float64 [n], with normals fitted to the shadows' scores of each image.

    Args:
        own: float64 [n], of the audited model.
        shadows: float64 [models, n].
        inside: bool [models, n]: who was trained on what; an image that is inside none gets the mean shift of the
            others, and their variance.
        pooled: one variance for all images.
    """
    seen = np.any(inside, axis=0)
    mean_in, variance_in = _normals(shadows, inside, pooled, seen)
    mean_out, variance_out = _normals(shadows, ~inside, pooled, seen)
    mean_in = np.where(seen, mean_in, mean_out + (mean_in - mean_out)[seen].mean())
    return np.asarray(_log_density(own, mean_in, variance_in) - _log_density(own, mean_out, variance_out))


def tail(own: np.ndarray, shadows: np.ndarray, inside: np.ndarray, *, pooled: bool) -> np.ndarray:
    """-log P[N(out) > own], float64 [n]; arguments as of :func:`likelihood_ratio`."""
    from scipy.special import log_ndtr

    mean, variance = _normals(shadows, ~inside, pooled, np.any(inside, axis=0))
    return np.asarray(-log_ndtr(-(own - mean) / np.sqrt(variance)))


def _normals(scores: np.ndarray, chosen: np.ndarray, pooled: bool, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means [n] and variances [n] of the chosen scores [models, n]; one variance is that of the images seen inside."""
    count = chosen.sum(0)
    mean = np.where(chosen, scores, 0).sum(0) / np.maximum(count, 1)
    squares = np.where(chosen, (scores - mean) ** 2, 0).sum(0)
    real = seen if seen.any() else np.ones_like(seen)  # the control must not change the figures
    shared = squares[real].sum() / np.maximum(count - 1, 0)[real].sum()
    alone = (count >= 2) & (not pooled)
    variance = np.where(alone, squares / np.maximum(count - 1, 1), shared)
    resolution = np.finfo(np.float32).eps * np.abs(scores[:, real]).max()  # of the readings: no spread is finer
    return mean, np.maximum(variance, max(resolution**2, np.finfo(np.float64).tiny))


def _log_density(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """log N(x; mean, variance) less its constant."""
    return np.asarray(-0.5 * (np.log(variance) + (x - mean) ** 2 / variance))
