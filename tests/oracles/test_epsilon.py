"""Bounds on epsilon against known answers and slow references, and their level against mechanisms of known epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from unmem.evaluate.epsilon import (
    Guessing,
    LowerBound,
    best_one_run_epsilon,
    gdp_one_run_epsilon,
    guess,
    many_run_epsilon,
    one_run_epsilon,
    one_run_p_value,
)
from unmem.evaluate.exposure import exposure
from unmem.evaluate.statistics import clopper_pearson
from unmem.rng import stream

EPSILON = 1.0  # of randomized response below
TRUTHFUL = math.exp(EPSILON) / (1 + math.exp(EPSILON))
CONFIDENCE = 0.95

# the same counts come again and again in simulations
cached_one_run = cache(one_run_epsilon)
cached_gdp = cache(gdp_one_run_epsilon)
cached_many_run = cache(many_run_epsilon)


def too_often(failures: int, runs: int) -> bool:
    """Whether more bounds fail than their confidence allows, at a level that is no accident."""
    return bool(stats.binomtest(failures, runs, 1 - CONFIDENCE, alternative="greater").pvalue < 1e-5)


# --- the p-value and its epsilon ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "pure", "approximate"),
    [
        (200, 20, 20, 1.82, 1.82),
        (1000, 100, 100, 3.49, 3.47),
        (1000, 250, 238, 2.49, 2.49),
        (1000, 1000, 700, 0.73, 0.73),
        (5000, 500, 500, 5.11, 4.98),
        (5000, 500, 475, 2.60, 2.59),
        (10000, 1000, 1000, 5.81, 5.53),
    ],
)
def test_one_run_epsilon_has_the_known_answers(
    canaries: int, guesses: int, correct: int, pure: float, approximate: float
) -> None:
    found = [round(one_run_epsilon(canaries, guesses, correct, delta, CONFIDENCE), 2) for delta in (0, 1e-5)]
    assert found == [pure, approximate]


def slow_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The theorem, summand by summand."""
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [float(stats.binom.pmf(k, guesses, q)) for k in range(guesses + 1)]
    beta = math.fsum(mass[correct:])
    alpha = max([math.fsum(mass[correct - i : correct]) / i for i in range(1, correct + 1)], default=0.0)
    return min(1.0, beta + 2 * canaries * delta * alpha)


@pytest.mark.parametrize("trial", range(150))
def test_the_p_value_is_the_slow_one(trial: int) -> None:
    rng = stream(trial, "p-value")
    canaries = int(rng.integers(1, 200))
    guesses = int(rng.integers(0, canaries + 1))
    epsilon, delta = float(rng.exponential(1.5)), float(rng.choice([0, 1e-6, 1e-3, 0.02, 0.5]))
    for correct in {0, guesses, *(int(v) for v in rng.integers(0, guesses + 1, 6))}:
        slow = slow_p_value(canaries, guesses, correct, epsilon, delta)
        assert one_run_p_value(canaries, guesses, correct, epsilon, delta) == pytest.approx(slow, rel=1e-8)


def test_the_p_value_of_many_guesses_is_the_vectorized_one() -> None:
    canaries, guesses, q = 1_000_000, 800_000, float(1 / (1 + np.exp(-1.5)))
    mean = round(guesses * q)
    for correct in (mean - 3000, mean, mean + 400, mean + 1500, mean + 4000):
        steps = np.arange(1, correct + 1)
        beta = stats.binom.sf(correct - 1, guesses, q)
        alpha = ((stats.binom.sf(correct - steps - 1, guesses, q) - beta) / steps).max()
        expected = min(1.0, beta + 2 * canaries * 1e-6 * alpha)
        assert one_run_p_value(canaries, guesses, correct, 1.5, 1e-6) == pytest.approx(expected, rel=1e-6)


def test_without_delta_epsilon_is_the_one_sided_clopper_pearson_of_the_accuracy() -> None:
    for guesses, correct in ((30, 29), (500, 400), (1000, 1000)):
        low, _ = clopper_pearson(correct, guesses, 1 - 2 * (1 - CONFIDENCE))
        expected = math.log(low / (1 - low))
        assert one_run_epsilon(2000, guesses, correct, 0, CONFIDENCE) == pytest.approx(expected, abs=2e-6)


def rises(values: list[float]) -> bool:
    return all(a <= b + 1e-12 for a, b in pairwise(values))


@pytest.mark.parametrize("delta", [0, 1e-6, 1e-4, 1e-2])
def test_the_p_value_rises_and_falls_as_it_must(delta: float) -> None:
    """Without this a bound that is the end of the rejected epsilons would not hold its level."""
    grid = np.linspace(0, 6, 121)
    for guesses in (1, 10, 100, 1000):
        by_epsilon = [one_run_p_value(1000, guesses, guesses * 9 // 10, float(e), delta) for e in grid]
        assert rises([p for p in by_epsilon if p <= 0.5])
        assert all(p > 0.5 for p in by_epsilon[next((i for i, p in enumerate(by_epsilon) if p > 0.5), 121) :])
        by_correct = [one_run_p_value(1000, guesses, v, 1.0, delta) for v in range(guesses, -1, -1)]
        assert rises([p for p in by_correct if p <= 0.5])
        assert rises([one_run_p_value(m, guesses, guesses, 1.0, delta) for m in (1000, 2000, 9000)])


@pytest.mark.parametrize("bound", [one_run_epsilon, gdp_one_run_epsilon])
def test_bounds_rise_with_evidence_and_fall_with_demands(bound: Callable[..., float]) -> None:
    assert rises([bound(1000, 200, v, 1e-5, 0.95) for v in range(0, 201, 5)])
    assert rises([bound(1000, 200, 190, delta, 0.95) for delta in (1e-2, 1e-3, 1e-4, 1e-6)])
    assert rises([bound(1000, 200, 190, 1e-5, confidence) for confidence in (0.999, 0.99, 0.95, 0.8)])
    assert bound(1000, 200, 100, 1e-5, 0.95) == 0
    assert bound(1000, 0, 0, 1e-5, 0.95) == 0


# --- Gaussian differential privacy -------------------------------------------------------------------------------


def test_gdp_of_one_canary_by_hand() -> None:
    """One coin is guessed right with probability Phi(mu / 2) at most: 0.6 needs mu = 2 Phi^-1(0.6)."""
    mu = 2 * stats.norm.ppf(0.6)
    expected = dp_accounting.get_epsilon_gaussian(1 / mu, 1e-3)
    assert gdp_one_run_epsilon(1, 1, 1, 1e-3, confidence=0.4) == pytest.approx(expected, abs=1e-5)


def slow_rejects(mu: float, canaries: int, guesses: int, correct: int, significance: float) -> bool:
    """The recursion to its end, in lists, with SciPy's normal distribution."""
    h, r = [0.0] * (correct + 1), [0.0] * (correct + 1)
    h[correct], r[correct] = significance * (guesses - correct) / canaries, significance * correct / canaries
    for i in reversed(range(correct)):
        h[i] = max(h[i + 1], float(stats.norm.cdf(stats.norm.ppf(r[i + 1]) - mu)))
        r[i] = min(1.0, r[i + 1] + i / (guesses - i) * (h[i] - h[i + 1]))
    return r[0] + h[0] > guesses / canaries


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct"), [(3, 3, 3), (12, 12, 11), (30, 12, 12), (60, 60, 48), (200, 100, 90)]
)
def test_gdp_is_the_end_of_what_the_slow_recursion_rejects(canaries: int, guesses: int, correct: int) -> None:
    bound = gdp_one_run_epsilon(canaries, guesses, correct, 1e-5, 0.9)
    low, high = 1e-9, 20.0
    while high - low > 1e-5:
        mu = (low + high) / 2
        low, high = (mu, high) if slow_rejects(mu, canaries, guesses, correct, 0.1) else (low, mu)
    expected = dp_accounting.get_epsilon_gaussian(1 / low, 1e-5) if low > 1e-6 else 0.0
    assert bound == pytest.approx(expected, abs=1e-3)


# --- guesses -----------------------------------------------------------------------------------------------------


def test_guesses_by_hand() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.7, 0.3])
    inserted = np.array([False, True, True, False, True])
    assert guess(scores, inserted, positives=2, negatives=2) == Guessing(5, 2, 2, 2, lowest_in=0.7, highest_out=0.3)
    assert guess(scores, inserted, positives=1, negatives=0) == Guessing(5, 1, 0, 1, lowest_in=0.9, highest_out=None)
    assert guess(scores, inserted, positives=0, negatives=0).guesses == 0


def test_equal_scores_tell_nothing_even_where_the_list_does() -> None:
    scores = np.zeros(1000)
    for inserted in (np.arange(1000) < 500, np.arange(1000) >= 500):
        assert best_one_run_epsilon(scores, inserted, 0, CONFIDENCE).epsilon == 0
    in_order = (~inserted[:500]).sum() + inserted[500:].sum()  # what ties in the order of the list would give
    assert one_run_epsilon(1000, 1000, int(in_order), 0, CONFIDENCE) > 5


def test_a_lower_bound_says_what_it_depends_on() -> None:
    rng = stream(0, "strong")
    inserted = rng.random(2001) < 0.5
    scores = inserted + rng.normal(0, 0.3, 2001)
    for selection, paid in (("bonferroni", 24), ("split", 1)):
        found = best_one_run_epsilon(scores, inserted, 1e-6, CONFIDENCE, selection)  # type: ignore[arg-type]
        again = found.guessing
        own = 1 - (1 - CONFIDENCE) / paid
        epsilon = one_run_epsilon(again.canaries, again.guesses, again.correct, 1e-6, own)
        assert found == LowerBound(epsilon, 1e-6, CONFIDENCE, again, selection, paid)
        assert again.canaries == (2001 if selection == "bonferroni" else 1000)
        assert epsilon > 2


@pytest.mark.parametrize("m", [4, 5, 7, 33])
@pytest.mark.parametrize("selection", ["bonferroni", "split"])
def test_few_canaries_are_enough_to_say_nothing(m: int, selection: Any) -> None:
    inserted = np.arange(m) % 3 == 0
    found = best_one_run_epsilon(inserted * 1.0, inserted, 1e-5, CONFIDENCE, selection)
    assert 0 <= found.epsilon < 4


# --- the level, by simulation ------------------------------------------------------------------------------------


def randomized_response(m: int, run: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores, coins): every coin is told truthfully with probability e^epsilon / (1 + e^epsilon); noise parts ties."""
    rng = stream(run, "randomized response", m)
    inserted = rng.random(m) < 0.5
    told = np.where(rng.random(m) < TRUTHFUL, inserted, ~inserted)
    return told + 0.1 * rng.random(m), inserted


def unpaid(scores: np.ndarray, inserted: np.ndarray) -> float:
    """The broken bound: the best of all choices, each at the whole error."""
    half = len(scores) // 2
    choices = [(k, 0) for k in range(10, half, 10)] + [(0, k) for k in range(10, half, 10)]
    tried = [guess(scores, inserted, *choice) for choice in choices]
    return max(cached_one_run(g.canaries, g.guesses, g.correct, 0.0, CONFIDENCE) for g in tried)


def test_one_run_bounds_hold_their_level_and_one_that_does_not_pay_fails() -> None:
    runs, m = 1500, 200
    failures = dict.fromkeys(["plain", "bonferroni", "split", "unpaid"], 0)
    for run in range(runs):
        scores, inserted = randomized_response(m, run)
        everything = guess(scores, inserted, m // 2, m // 2)
        found = {
            "plain": cached_one_run(m, m, everything.correct, 0.0, CONFIDENCE),
            "bonferroni": best_one_run_epsilon(scores, inserted, 0.0, CONFIDENCE, "bonferroni", cached_one_run).epsilon,
            "split": best_one_run_epsilon(scores, inserted, 0.0, CONFIDENCE, "split", cached_one_run).epsilon,
            "unpaid": unpaid(scores, inserted),
        }
        for name, epsilon in found.items():
            failures[name] += epsilon > EPSILON
    verdicts = {name: too_often(count, runs) for name, count in failures.items()}
    assert verdicts == {"plain": False, "bonferroni": False, "split": False, "unpaid": True}, failures


def test_the_plain_level_is_used_up() -> None:
    """Randomized response is the worst case of pure DP: there the bound fails about as often as it may."""
    correct = stream(0, "exact level").binomial(20_000, TRUTHFUL, 4000)
    failures = sum(cached_one_run(20_000, 20_000, int(v), 0.0, CONFIDENCE) > EPSILON for v in correct)
    assert not too_often(failures, 4000)
    assert failures > 0.03 * 4000


def test_delta_is_paid_for() -> None:
    """Coins that leak with probability delta besides: with delta the bound holds, without it fails."""
    delta, m, runs = 0.02, 2000, 4000
    correct = stream(0, "leak").binomial(m, delta + (1 - delta) * TRUTHFUL, runs)
    failures = {d: sum(cached_one_run(m, m, int(v), d, CONFIDENCE) > EPSILON for v in correct) for d in (0.0, delta)}
    assert not too_often(failures[delta], runs)
    assert too_often(failures[0.0], runs)


def test_bounds_come_near_epsilon_with_many_canaries() -> None:
    m = 100_000
    correct = stream(0, "power").binomial(m, TRUTHFUL, 50)
    plain = [one_run_epsilon(m, m, int(v), 1e-9, CONFIDENCE) for v in correct]
    assert EPSILON - 0.03 < np.mean(plain) < EPSILON
    for selection, slack in (("bonferroni", 0.05), ("split", 0.05)):
        scores, inserted = randomized_response(m, 0)
        found = best_one_run_epsilon(scores, inserted, 1e-9, CONFIDENCE, selection)  # type: ignore[arg-type]
        assert EPSILON - slack < found.epsilon < EPSILON


def test_scores_that_know_nothing_show_nothing() -> None:
    runs, m = 400, 500
    for selection in ("bonferroni", "split"):
        above = 0
        for run in range(runs):
            rng = stream(run, "nothing")
            scores, inserted = rng.normal(size=m), rng.random(m) < 0.5
            above += best_one_run_epsilon(scores, inserted, 0.0, CONFIDENCE, selection, cached_one_run).epsilon > 0  # type: ignore[arg-type]
        assert not too_often(above, runs)


def test_the_gdp_bound_holds_for_a_gaussian_mechanism_and_is_tighter_there() -> None:
    """Also power: noise of a fourth of what is claimed is found out in every run."""
    sigma, m, runs, delta = 0.7, 1000, 300, 1e-5
    true, claimed = (dp_accounting.get_epsilon_gaussian(s, delta) for s in (sigma, 4 * sigma))
    gdp, dp = [], []
    for run in range(runs):
        rng = stream(run, "gaussian")
        inserted = rng.random(m) < 0.5
        scores = inserted + rng.normal(0, sigma, m)
        gdp.append(best_one_run_epsilon(scores, inserted, delta, CONFIDENCE, "split", cached_gdp).epsilon)
        dp.append(best_one_run_epsilon(scores, inserted, delta, CONFIDENCE, "split", cached_one_run).epsilon)
    assert not too_often(sum(epsilon > true for epsilon in gdp), runs)
    assert np.mean(gdp) > np.mean(dp) + 0.5
    assert sum(epsilon > claimed for epsilon in gdp) > 0.9 * runs


def test_the_gdp_level_of_one_canary_is_used_up() -> None:
    """One canary is the case without slack: the bound fails as often as it may, and would for any smaller mu."""
    sigma, runs = 2.0, 20_000
    rng = stream(0, "one canary")
    inserted = rng.random(runs) < 0.5
    right = (inserted + rng.normal(0, sigma, runs) > 0.5) == inserted
    accuracy = float(stats.norm.cdf(1 / (2 * sigma)))
    true = dp_accounting.get_epsilon_gaussian(sigma, 1e-3)
    assert gdp_one_run_epsilon(1, 1, 1, 1e-3, confidence=1 - accuracy + 0.01) < true
    assert gdp_one_run_epsilon(1, 1, 1, 1e-3, confidence=1 - accuracy - 0.01) > true
    assert stats.binomtest(int(right.sum()), runs, accuracy).pvalue > 1e-5


# --- many runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("left_out", "ceiling"), [(1000, 5.60), (5000, 7.21), (25_000, 8.82)])
def test_no_false_positive_leaves_the_known_ceiling(left_out: int, ceiling: float) -> None:
    """The ceilings are ln(1 / upper end of a two-sided interval at 95 %), for a TPR of one that is known exactly."""
    _, fpr_high = clopper_pearson(0, left_out, 0.95)
    assert round(math.log(1 / fpr_high), 2) == ceiling
    found = many_run_epsilon(left_out, left_out, 0, left_out, 0, 0.95)  # as many runs with: a TPR near one
    assert found == pytest.approx(math.log((1 - fpr_high) / fpr_high))


def test_many_runs_by_hand_and_from_either_side() -> None:
    low, _ = clopper_pearson(90, 100, 0.9)
    _, high = clopper_pearson(20, 200, 0.9)
    sides = math.log((low - 0.01) / high), math.log((1 - high - 0.01) / (1 - low))
    assert many_run_epsilon(90, 100, 20, 200, 0.01, 0.9) == pytest.approx(max(sides))
    assert many_run_epsilon(180, 200, 10, 100, 0.01, 0.9) == pytest.approx(max(sides))
    assert many_run_epsilon(10, 100, 20, 200, 0, 0.9) == 0
    assert many_run_epsilon(90, 100, 20, 200, 0.95, 0.9) == 0
    assert many_run_epsilon(0, 0, 0, 0, 0, 0.9) == 0


def test_many_run_bounds_hold_their_level() -> None:
    runs, trials = 4000, 500
    rng = stream(0, "many runs")
    hits, alarms = rng.binomial(trials, TRUTHFUL, runs), rng.binomial(trials, 1 - TRUTHFUL, runs)
    pairs = [(int(hit), int(alarm)) for hit, alarm in zip(hits, alarms, strict=True)]
    found = [cached_many_run(hit, trials, alarm, trials, 0.0, CONFIDENCE) for hit, alarm in pairs]
    assert not too_often(sum(epsilon > EPSILON for epsilon in found), runs)
    assert np.mean(found) > EPSILON - 0.35
    assert too_often(sum(math.log(hit / alarm) > EPSILON for hit, alarm in pairs), runs)  # no interval, no level


# --- exposure ----------------------------------------------------------------------------------------------------


def test_exposure_by_hand() -> None:
    reference = np.array([5.0, 1.0, 3.0, 3.0, 2.0, 0.0, 4.0])  # with the canary |R| = 8
    scores = np.array([[9.0, 4.5, 3.5], [3.0, 0.0, -1.0]])  # ranks 1, 2, 3; 5 behind its ties, 8 behind its tie, 8
    assert np.allclose(exposure(scores, reference), 3 - np.log2([[1, 2, 3], [5, 8, 8]]))
    assert exposure(9.0, reference) == 3


def test_exposure_of_a_secret_like_any_other_is_that_of_a_uniform_rank() -> None:
    rng = stream(0, "exposure")
    found = np.concatenate([exposure(rng.normal(size=1), rng.normal(size=127)) for _ in range(4000)])
    assert stats.binomtest(int((found >= 3).sum()), 4000, 1 / 8).pvalue > 1e-5  # rank 16 or better among 128


# --- refusals ----------------------------------------------------------------------------------------------------

COINS = np.array([True, False, True, False])
SCORES = np.arange(4.0)
REFUSED: list[tuple[str, Callable[[], object]]] = [
    ("canaries is 0", lambda: one_run_p_value(0, 0, 0, 1, 0)),
    ("guesses is 11", lambda: one_run_p_value(10, 11, 5, 1, 0)),
    ("correct is 6", lambda: one_run_epsilon(10, 5, 6, 0, 0.95)),
    ("correct is -1", lambda: gdp_one_run_epsilon(10, 5, -1, 0.1, 0.95)),
    ("epsilon is -1", lambda: one_run_p_value(10, 5, 5, -1, 0)),
    ("epsilon is nan", lambda: one_run_p_value(10, 5, 5, math.nan, 0)),
    ("delta is 1", lambda: one_run_epsilon(10, 5, 5, 1, 0.95)),
    ("delta is -0.1", lambda: many_run_epsilon(1, 2, 1, 2, -0.1, 0.95)),
    ("delta is 0", lambda: gdp_one_run_epsilon(10, 5, 5, 0, 0.95)),
    ("confidence is 1", lambda: one_run_epsilon(10, 5, 5, 0, 1)),
    ("confidence is 0", lambda: best_one_run_epsilon(SCORES, COINS, 0, 0)),
    ("confidence is 95", lambda: many_run_epsilon(1, 2, 1, 2, 0, 95)),
    ("true_positives is 3", lambda: many_run_epsilon(3, 2, 1, 2, 0, 0.95)),
    ("false_positives is -1", lambda: many_run_epsilon(1, 2, -1, 2, 0, 0.95)),
    ("positives is -1", lambda: guess(SCORES, COINS, -1, 0)),
    ("negatives is 3", lambda: guess(SCORES, COINS, 2, 3)),
    (r"scores is \(2, 2\)", lambda: guess(SCORES.reshape(2, 2), COINS, 1, 1)),
    ("scores is NaN", lambda: guess(SCORES * math.nan, COINS, 1, 1)),
    ("scores is 3", lambda: best_one_run_epsilon(SCORES[:3], COINS[:3], 0, 0.95)),
    (r"inserted is \(3,\)", lambda: guess(SCORES, COINS[:3], 1, 1)),
    ("inserted is float64", lambda: guess(SCORES, COINS * 1.0, 1, 1)),
    ("selection is best", lambda: best_one_run_epsilon(SCORES, COINS, 0, 0.95, "best")),  # type: ignore[arg-type]
    (r"reference_scores has the shape \(0,\)", lambda: exposure(1.0, np.array([]))),
    ("score holds NaN", lambda: exposure(math.nan, SCORES)),
    ("reference_scores holds NaN", lambda: exposure(1.0, SCORES * math.nan)),
]


@pytest.mark.parametrize(("message", "call"), REFUSED, ids=[message for message, _ in REFUSED])
def test_bad_arguments_are_named(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=message):
        call()
