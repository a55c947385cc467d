"""An audit of the private step by gradient canaries: under the proven epsilon, and above it where a trainer is broken.

A canary is an example whose gradient is one huge number in a coordinate that nothing else touches (a Dirac canary;
Nasr et al. 2023, arXiv 2302.07956). Coordinates do not meet, so that thousands of canaries are thousands of independent
experiments in one run; each is in the data by a coin.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from tests.oracles.test_dp_sgd import ALONE
from unmem.mitigations.dp.plan import DPPlan
from unmem.mitigations.dp.update import PrivateUpdate
from unmem.train.config import Train
from unmem.train.update import Plain

CANARIES, STEPS, CONFIDENCE = 6_000, 12, 0.999
DELTAS = (1e-5, 0.001, 0.01, 0.03, 0.1, 0.2, 0.4)
HUGE = 100.0


class Recorder(torch.optim.SGD):
    """Keeps what each step releases."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, lr=0.0)
        self.released: list[np.ndarray] = []

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.released.append(self.param_groups[0]["params"][0].grad.flatten().double().numpy())


class Unclipped(PrivateUpdate):
    """Broken: sums gradients as they are."""

    def _add(self, parameter: nn.Parameter, part: Tensor) -> None:
        super()._add(parameter, part * HUGE)


class HalfTheNoise(PrivateUpdate):
    """Broken: adds half of the noise that it accounts for."""

    def update(self, step: int, size: int, losses: Callable[[np.ndarray], Tensor]) -> float:
        object.__setattr__(self.plan, "noise_multiplier", self.plan.noise_multiplier / 2)
        try:
            return super().update(step, size, losses)
        finally:
            object.__setattr__(self.plan, "noise_multiplier", self.plan.noise_multiplier * 2)


class Shuffled(PrivateUpdate):
    """Broken: shuffled epochs from the experiment's seed, with the epsilon of Poisson batches."""

    def positions(self, step: int) -> np.ndarray:
        return epochs(self.plan).positions(step)


def epochs(plan: DPPlan) -> Plain:
    return Plain(plan.n, Train(images=plan.steps * plan.expected_batch, batch=plan.expected_batch), seed=0)


def run(rule_class: type[PrivateUpdate], secret: int) -> tuple[DPPlan, np.ndarray, np.ndarray]:
    """Train once; returns the plan, who was in, and what was released of each canary, [steps, canaries]."""
    inside = np.random.default_rng(secret).random(CANARIES) < 0.5
    members = np.flatnonzero(inside)
    plan = DPPlan(len(members), len(members) // STEPS, STEPS, clip=0.5, noise_multiplier=1.0, delta=1e-5)
    model = nn.Embedding(CANARIES, 1)
    rule = rule_class(plan, secret=secret, lr=0.0, physical_batch=10_000, engine="bookkeeping", holds_for="canaries")
    recorder = Recorder(list(model.parameters()))
    rule.prepare(model, recorder, ALONE)
    rule.rehearse(8, lambda slots: HUGE * model(torch.from_numpy(slots)).flatten())
    for step in range(STEPS):
        who = torch.from_numpy(members[rule.positions(step)])
        rule.update(step, len(who), lambda slots, who=who: HUGE * model(who[slots]).flatten())
    return plan, inside, np.stack(recorder.released) * plan.expected_batch / plan.clip


def without_knowing_batches(plan: DPPlan, released: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Log likelihood ratio of the subsampled Gaussian, summed over steps."""
    shift = np.exp(np.clip((released - 0.5) / plan.noise_multiplier**2, -500, 500))
    return np.log1p(plan.sample_rate * (shift - 1)).sum(0)


def knowing_the_seed(plan: DPPlan, released: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """What was released at the one step that the experiment's seed puts a member in; for others, any step."""
    scores, members = released[0].copy(), np.flatnonzero(inside)
    rule = epochs(plan)
    for step in range(STEPS):
        who = members[rule.positions(step)]
        scores[who] = released[step][who]
    return scores


def excess(plan: DPPlan, scores: np.ndarray, inside: np.ndarray) -> float:
    """By how much the canaries' epsilon exceeds the proven one, at the delta and threshold where it is most.

    A plan proves an epsilon at every delta at once, and an attack is sharp at some: both are chosen on one half.
    """
    proven = proven_epsilons(plan)
    half = np.arange(len(scores)) % 2 == 0
    thresholds = np.quantile(scores[half], np.linspace(0.002, 0.998, 200))
    choices = [(t, d) for t in thresholds for d in DELTAS]
    found = [measured(scores[half], inside[half], t, d) - proven[d] for t, d in choices]
    threshold, delta = choices[int(np.argmax(found))]
    return measured(scores[~half], inside[~half], threshold, delta) - proven[delta]


def proven_epsilons(plan: DPPlan) -> dict[float, float]:
    """By Google's accountant, which takes no part in making a plan."""
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    step = dp_accounting.PoissonSampledDpEvent(plan.sample_rate, dp_accounting.GaussianDpEvent(plan.noise_multiplier))
    accountant = PLDAccountant().compose(step, plan.steps)
    return {delta: float(accountant.get_epsilon(delta)) for delta in DELTAS}


def measured(scores: np.ndarray, inside: np.ndarray, threshold: float, delta: float) -> float:
    """log((TPR - delta) / FPR) at the ends of their intervals, or that of the complements."""
    above = scores > threshold
    rates = (above[inside], above[~inside]), (~above[~inside], ~above[inside])
    return max(math.log(max(_end(hits, "low") - delta, 1e-9) / _end(misses, "high")) for hits, misses in rates)


def _end(hits: np.ndarray, which: str) -> float:
    """An end of Clopper and Pearson's interval."""
    k, n, alpha = int(hits.sum()), len(hits), (1 - CONFIDENCE) / 2
    if which == "low":
        return float(stats.beta.ppf(alpha, k, n - k + 1)) if k else 0.0
    return float(stats.beta.ppf(1 - alpha, k + 1, n - k)) if k < n else 1.0


@pytest.mark.parametrize("attack", [without_knowing_batches, knowing_the_seed])
@pytest.mark.parametrize("secret", [3, 4])
def test_the_bound_stays_under_the_proven_epsilon(secret: int, attack: Callable[..., np.ndarray]) -> None:
    plan, inside, released = run(PrivateUpdate, secret)
    found = excess(plan, attack(plan, released, inside), inside)
    assert found < 0
    if attack is without_knowing_batches:
        assert found > -0.3  # an audit that finds nothing would find nothing wrong, either


@pytest.mark.parametrize(
    ("broken", "attack"),
    [(Unclipped, without_knowing_batches), (HalfTheNoise, without_knowing_batches), (Shuffled, knowing_the_seed)],
)
def test_a_broken_trainer_is_caught(broken: type[PrivateUpdate], attack: Callable[..., np.ndarray]) -> None:
    plan, inside, released = run(broken, secret=3)
    assert excess(plan, attack(plan, released, inside), inside) > 0.3
