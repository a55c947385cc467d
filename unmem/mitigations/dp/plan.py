"""One frozen object holds all that a guarantee depends on; the statement is computed from it alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from unmem.component import UserError
from unmem.mitigations.dp.accounting import (
    Query,
    named,
    pld_epsilon,
    prv_epsilon,
    rounded_up,
    tuned,
    without_amplification,
)
from unmem.rng import stream

EPSILON_TOLERANCE = 0.01
NOISE_TOLERANCE = 1e-4  # of the noise multiplier, relative; where epsilon hardly depends on it
MOST_NOISE = 10_000.0
AGREEMENT = 0.02  # of the two accountants; PRV's own interval has half of it


@dataclass(frozen=True)
class PrivacySpent:
    """A proven privacy loss with everything that it depends on: a bare epsilon does not exist.

    Attributes:
        epsilon: upper bound of the privacy loss at ``delta``.
        delta: failure probability.
        delta_rule: ``delta`` beside 1/(n ln n).
        unit: what is protected.
        relation: which data sets count as neighbours.
        accountant: who computed epsilon.
        checks: what an independent accountant says, and whether the two agree within 0.02.
        without_amplification: epsilon if batches were known, and each image in one of them an epoch.
        replace_one: epsilon where neighbours differ in an image's content instead of its presence.
        tuning: the runs tried to choose the settings, and epsilon of all of them; None if that is not stated.
        queries: every private query: name, noise multiplier, sample rate, steps.
        sampling: how batches were drawn.
        sample_rate: probability of each image to be in a batch.
        noise_multiplier: standard deviation of the noise over ``clip``.
        clip: L2 bound of one image's gradient.
        steps: noisy updates released.
        expected_batch: images a batch, in expectation.
        training_images: n, treated as public.
        randomness: where batches and noise came from.
        holds_for: the data set that the statement is about.
        released: what may be given away under it.
        not_covered: what was computed on private data without noise.
        void: why the guarantee does not hold; None if it does.
    """

    epsilon: float
    delta: float
    delta_rule: str
    unit: str
    relation: str
    accountant: str
    checks: dict[str, Any]
    without_amplification: float
    replace_one: float
    tuning: dict[str, Any] | None
    queries: tuple[Query, ...]
    sampling: str
    sample_rate: float
    noise_multiplier: float
    clip: float
    steps: int
    expected_batch: int
    training_images: int
    randomness: str
    holds_for: str
    released: tuple[str, ...]
    not_covered: tuple[str, ...]
    void: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class DPPlan:
    """Sampler, clip, noise and accountant of one DP-SGD run, so that they cannot disagree.

    Attributes:
        n: training images (public).
        expected_batch: expected images a Poisson batch.
        steps: updates.
        clip: L2 bound of one image's gradient.
        noise_multiplier: sigma; the noise on the sum of clipped gradients is N(0, (sigma clip)^2).
        delta: of the guarantee.
        before: private queries made before training, composed with it.
        tuning_runs: how many runs were tried to choose the settings; None if that is not stated.
    """

    n: int
    expected_batch: int
    steps: int
    clip: float
    noise_multiplier: float
    delta: float
    before: tuple[Query, ...] = ()
    tuning_runs: int | None = None

    @classmethod
    def calibrate(
        cls,
        *,
        epsilon: float,
        delta: float,
        n: int,
        expected_batch: int,
        steps: int,
        clip: float,
        before: tuple[Query, ...] = (),
        tuning_runs: int | None = None,
    ) -> DPPlan:
        """The plan with the least noise whose PRV epsilon, ``before`` included, is at most ``epsilon``.

        Raises:
            UserError: for a batch larger than the set, a delta above 1/n, which would allow an image to leak whole, or
                queries before training that leave it no room.
        """
        if expected_batch > n:
            raise UserError(f"dp_sgd.batch: {expected_batch} is more than the {n} training images")
        if delta > 1 / n:
            raise UserError(f"dp_sgd.delta: {delta:g} is above 1/n = {1 / n:.2g} for {n} training images")
        plan = cls(n, expected_batch, steps, clip, MOST_NOISE, delta, before, tuning_runs)
        if plan.epsilon > epsilon:
            raise UserError(_no_room(plan, epsilon))
        return replace(plan, noise_multiplier=_least_noise(plan, epsilon))

    @property
    def sample_rate(self) -> float:
        """q, the probability of each image to be in a batch."""
        return self.expected_batch / self.n

    @property
    def queries(self) -> tuple[Query, ...]:
        """Every private query of the run, in order."""
        return *self.before, Query("training", self.noise_multiplier, self.sample_rate, self.steps)

    @cached_property
    def epsilon(self) -> float:
        """The upper end of the PRV accountant's interval after all queries."""
        return prv_epsilon(self.queries, self.delta)

    def batch(self, secret: int, step: int) -> np.ndarray:
        """int64 positions of the step's Poisson batch: each image by its own coin with probability q."""
        return np.flatnonzero(stream(secret, "poisson", step).random(self.n) < self.sample_rate)

    def spent(self, *, holds_for: str, void: str | None) -> PrivacySpent:
        """The statement after all steps."""
        queries, delta = self.queries, self.delta
        prv, pld = self.epsilon, pld_epsilon(queries, delta)
        agree = abs(prv - pld) <= AGREEMENT
        both = f"{named('PRV')} and {named('PLD')}"
        return PrivacySpent(
            epsilon=rounded_up(prv if agree else max(prv, pld)),
            delta=delta,
            delta_rule=_delta_rule(delta, self.n),
            unit="one image (one row of the training set); k copies of an image are k units",
            relation="add or remove one",
            accountant=named("PRV") if agree else f"the larger of {both}, which differ by more than {AGREEMENT}",
            checks={"accountant": named("PLD"), "pld_epsilon": rounded_up(pld), "agrees": agree},
            without_amplification=rounded_up(without_amplification(queries, delta)),
            replace_one=rounded_up(pld_epsilon(queries, delta, "replace-one")),
            tuning=None if self.tuning_runs is None else _tuning(queries, delta, self.tuning_runs),
            queries=queries,
            sampling="Poisson",
            sample_rate=self.sample_rate,
            noise_multiplier=self.noise_multiplier,
            clip=self.clip,
            steps=self.steps,
            expected_batch=self.expected_batch,
            training_images=self.n,
            randomness=(
                "PCG64 (batches) and torch's generators (noise: MT19937 on a CPU, Philox on a GPU), seeded by SHA-256 "
                "from a 128-bit secret of the operating system; not a cryptographic generator, and noise in "
                "floating point"
            ),
            holds_for=holds_for,
            released=(
                "the averaged weights after the last step, and so the pipeline",
                "everything computed from them alone, such as samples",
            ),
            not_covered=(
                "the loss curve",
                "quality and attack figures computed on private images",
                _choices(self.tuning_runs),
                "the number of training images",
                "the number of examples without a finite gradient",
            ),
            void=void,
        )


def _least_noise(plan: DPPlan, epsilon: float) -> float:
    """Bisect the noise multiplier; the upper end, whose epsilon is small enough, is what is kept."""

    def spends(noise: float) -> float:
        return replace(plan, noise_multiplier=noise).epsilon

    low, high = 0.0, 20.0
    while (reached := spends(high)) > epsilon:
        low, high = high, 2 * high
    while epsilon - reached > EPSILON_TOLERANCE and high - low > NOISE_TOLERANCE * high:
        middle = (low + high) / 2
        if (tried := spends(middle)) <= epsilon:
            high, reached = middle, tried
        else:
            low = middle
    return high


def _no_room(plan: DPPlan, epsilon: float) -> str:
    """Who takes how much of a budget that is too small."""
    if not plan.before:
        return (
            f"dp_sgd.epsilon: {epsilon:g} at delta {plan.delta:g} cannot be reached by {plan.steps} steps with a "
            f"sample rate of {plan.sample_rate:.3g}; raise it, or lower dp_sgd.images"
        )
    taken = "; ".join(f"{query.name} {prv_epsilon([query], plan.delta):.3g}" for query in plan.before)
    return (
        f"dp_sgd.epsilon: {epsilon:g} at delta {plan.delta:g} leaves no room for training: the queries before it take "
        f"{prv_epsilon(plan.before, plan.delta):.3g} ({taken}); ask less often or with more noise, or raise epsilon"
    )


def _delta_rule(delta: float, n: int) -> str:
    """Delta beside the rule that it be below 1/(n ln n)."""
    rule = 1 / (n * math.log(n)) if n > 1 else 1.0
    return f"{delta:.3g} is {'below' if delta < rule else 'not below'} 1/(n ln n) = {rule:.3g}"


def _tuning(queries: tuple[Query, ...], delta: float, runs: int) -> dict[str, Any]:
    """What the stated runs spend together."""
    return {"runs": runs, "epsilon": rounded_up(tuned(queries, delta, runs))}


def _choices(runs: int | None) -> str:
    """Which choices were made on private data."""
    if runs is None:
        return "the choice of hyper-parameters and of a checkpoint"
    return f"a choice of hyper-parameters or of a checkpoint among more than the {runs} runs under tuning"
