"""One frozen object holds all that a guarantee depends on; the statement is computed from it alone."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from unmem.component import UserError
from unmem.rng import stream

EPSILON_TOLERANCE = 0.01


@dataclass(frozen=True)
class PrivacySpent:
    """A proven privacy loss with everything that it depends on: a bare epsilon does not exist.

    Attributes:
        epsilon: upper bound of the privacy loss at ``delta``.
        delta: failure probability.
        unit: what is protected.
        relation: which data sets count as neighbours.
        accountant: who computed epsilon.
        sampling: how batches were drawn.
        sample_rate: probability of each image to be in a batch.
        noise_multiplier: standard deviation of the noise over ``clip``.
        clip: L2 bound of one image's gradient.
        steps: noisy updates released.
        expected_batch: images a batch, in expectation.
        training_images: n, treated as public.
        holds_for: the data set that the statement is about.
        not_covered: what was computed on private data without noise.
        void: why the guarantee does not hold; None if it does.
    """

    epsilon: float
    delta: float
    unit: str
    relation: str
    accountant: str
    sampling: str
    sample_rate: float
    noise_multiplier: float
    clip: float
    steps: int
    expected_batch: int
    training_images: int
    holds_for: str
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
    """

    n: int
    expected_batch: int
    steps: int
    clip: float
    noise_multiplier: float
    delta: float

    @classmethod
    def calibrate(cls, *, epsilon: float, delta: float, n: int, expected_batch: int, steps: int, clip: float) -> DPPlan:
        """The plan with the least noise whose PRV epsilon (Gopi et al. 2021) is at most ``epsilon``.

        Raises:
            UserError: for a batch larger than the set, or a delta above 1/n, which would allow an image to leak whole.
        """
        if expected_batch > n:
            raise UserError(f"dp_sgd.batch: {expected_batch} is more than the {n} training images")
        if delta > 1 / n:
            raise UserError(f"dp_sgd.delta: {delta:g} is above 1/n = {1 / n:.2g} for {n} training images")
        from opacus.accountants.utils import get_noise_multiplier

        with warnings.catch_warnings():  # about RDP orders that PRV takes for a starting point only
            warnings.filterwarnings("ignore", message="Optimal order is")
            sigma = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=expected_batch / n,
                steps=steps,
                accountant="prv",
                epsilon_tolerance=EPSILON_TOLERANCE,
            )
        return cls(n, expected_batch, steps, clip, float(sigma), delta)

    @property
    def sample_rate(self) -> float:
        """q, the probability of each image to be in a batch."""
        return self.expected_batch / self.n

    @cached_property
    def epsilon(self) -> float:
        """The upper end of the PRV accountant's interval after all steps."""
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = [(self.noise_multiplier, self.sample_rate, self.steps)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Optimal order is")
            return float(accountant.get_epsilon(delta=self.delta))

    def batch(self, secret: int, step: int) -> np.ndarray:
        """int64 positions of the step's Poisson batch: each image by its own coin with probability q."""
        return np.flatnonzero(stream(secret, "poisson", step).random(self.n) < self.sample_rate)

    def spent(self, *, holds_for: str, void: str | None) -> PrivacySpent:
        """The statement after all steps."""
        return PrivacySpent(
            epsilon=math.ceil(self.epsilon * 1e4) / 1e4,  # a bound is rounded up
            delta=self.delta,
            unit="one image (one row of the training set); k copies of an image are k units",
            relation="add or remove one",
            accountant=f"PRV (opacus {version('opacus')})",
            sampling="Poisson",
            sample_rate=self.sample_rate,
            noise_multiplier=self.noise_multiplier,
            clip=self.clip,
            steps=self.steps,
            expected_batch=self.expected_batch,
            training_images=self.n,
            holds_for=holds_for,
            not_covered=(
                "the loss curve",
                "quality and attack figures computed on private images",
                "the choice of hyper-parameters",
                "the number of training images",
                "the number of examples without a finite gradient",
            ),
            void=void,
        )
