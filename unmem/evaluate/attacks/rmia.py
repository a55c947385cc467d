"""The robust membership-inference attack."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from unmem.component import Fraction, PositiveFloat, UserError, component
from unmem.evaluate.attacks.loss import Loss
from unmem.evaluate.audit import Audit
from unmem.evaluate.population import Population, flags, parted
from unmem.evaluate.results import Scores, Target
from unmem.evaluate.rows import Rows
from unmem.evaluate.score_attack import Base, OnBase


@component
class RMIA(OnBase):
    """RMIA: is an image likelier under the model, against its shadows, than other images are? (Zarifzadeh et al. 2024).

    arXiv 2312.03262, section 3: the score is the share of population images z with
    [p(x | model) / p(x)] / [p(z | model) / p(z)] >= gamma, where p(x) is the mean over shadow models with x and
    without. The population is the calibration half of the non-members. That ratio falls apart into one of x and one of
    z, so that images are ranked by p(x | model) / p(x), and the population gives the scale: 1 minus the score is the
    share of non-members that look more like members.

    p is exp(score / scale), the scale being three times the population's median absolute score under the shadows: for
    scores that are minus an error it lies between 0 and 1 as a confidence does, whatever the error's unit, and 1 - p is
    about proportional to the error. The likelihood itself, exp(-values * error / variance), would differ from model to
    model by orders of magnitude, and p(x) would be that of the one best shadow.

    Attributes:
        base: the attack whose scores are calibrated, with its fields.
        mode: ``online`` needs each image inside and outside of a shadow model; ``offline`` reads those alone that were
            not trained on it, and takes p(x) as ((1 + a) p_out(x) + 1 - a) / 2.
        gamma: how much likelier x must be. Losses of members are lower by a part, seldom by factors: with 2, as for
            classifiers, most images would score 0.
        a: of ``offline``: p_in is taken as a * p_out + 1 - a, so that training on an image leaves about a of its error;
            the paper's for CIFAR-10.
    """

    base: Base = Loss()
    mode: Literal["online", "offline"] = "online"
    gamma: PositiveFloat = 1.0
    a: Fraction = 0.3

    further: ClassVar[frozenset[str]] = frozenset({"shadows"})

    def run(self, target: Target, audit: Audit, seed: int) -> Scores:
        """Shares of the population, 0 to 1.

        Raises:
            UserError: where there are too few shadow models, or no calibration images.
        """
        population = Population.of(self.base, target)
        population.check("rmia", inside=1 if self.mode == "online" else 0, outside=1)
        public = flags(Rows(np.empty(0), audit.is_calibration().nonmembers), population.rows)
        if not public.any():
            raise UserError("attacks.rmia: the calibration half holds no non-members; use more (data.nonmembers)")
        scale = 3 * np.median(np.abs(population.shadows[:, public])) or 1.0
        own, shadows = population.own / scale, population.shadows / scale
        a = None if self.mode == "online" else self.a
        ratios = own - log_marginal(shadows, population.inside, a)
        return parted(dominated(ratios, ratios[public], np.log(self.gamma)), population.rows, fitted=public)


def log_marginal(shadows: np.ndarray, inside: np.ndarray, a: float | None) -> np.ndarray:
    """log p(x), float64 [n]: over models with the image and without.

    Args:
        shadows: float64 [models, n], log p of each image under each shadow model.
        inside: bool [models, n]: who was trained on what. An image that is inside none gets the others' mean
            log(p_in / p_out).
        a: stands for the models with the image, p_in = a * p_out + 1 - a; None to use them.
    """
    p_out = _log_mean(shadows, ~inside)
    if a is not None:
        with np.errstate(divide="ignore"):  # a of 1 adds nothing: the log of 0
            return np.asarray(np.logaddexp(np.log1p(a) + p_out, np.log1p(-a)) - np.log(2))
    seen = inside.any(0)
    p_in = _log_mean(shadows, inside)
    p_in = np.where(seen, p_in, p_out + (p_in - p_out)[seen].mean())
    return np.asarray(np.logaddexp(p_in, p_out) - np.log(2))


def dominated(ratios: np.ndarray, population: np.ndarray, log_gamma: float) -> np.ndarray:
    """The share of the population's log ratios [m] that each log ratio [n] exceeds by log gamma or more, [n]."""
    return np.searchsorted(np.sort(population), ratios - log_gamma, side="right") / len(population)


def _log_mean(logs: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """log of the mean of exp(logs) [models, n] over the chosen models, [n]; -inf where there are none."""
    with np.errstate(divide="ignore"):
        shares = np.log(chosen) - np.log(np.maximum(chosen.sum(0), 1))
    return np.asarray(np.logaddexp.reduce(logs + shares, axis=0))
