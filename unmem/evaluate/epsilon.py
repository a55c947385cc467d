"""Lower bounds on epsilon that an audit measured.

A bound holds in all but a share of 1 - ``confidence`` of audits. It says "no (epsilon, delta) guarantee below this
is true"; it never says that one above this is. Scores follow the house rule: larger means "more likely a member".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import betainc, expit, log_ndtr, ndtr, ndtri

from unmem.evaluate.statistics import clopper_pearson
from unmem.rng import stream

RESOLUTION = 1e-6  # how far below the exact bound a returned one may lie
SIZES = 8  # numbers of guesses tried on one side, in geometric steps
FEWEST = 16  # the smallest of them: 16 right of 16 show no more than 0.75 at 95 % with 24 choices paid for

Bound = Callable[[int, int, int, float, float], float]  # (canaries, guesses, correct, delta, confidence)


@dataclass(frozen=True)
class Guessing:
    """Guesses on canaries, counted.

    Attributes:
        canaries: how many there are, abstained ones included.
        positives: how many were guessed in.
        negatives: how many were guessed out.
        correct: how many guesses of both kinds were right.
        lowest_in: the lowest score that was guessed in; None without positives.
        highest_out: the highest score that was guessed out; None without negatives.
    """

    canaries: int
    positives: int
    negatives: int
    correct: int
    lowest_in: float | None
    highest_out: float | None

    @property
    def guesses(self) -> int:
        """How many guesses were made."""
        return self.positives + self.negatives


@dataclass(frozen=True)
class LowerBound:
    """A lower bound on epsilon with what it depends on.

    Attributes:
        epsilon: the bound, at least 0; 0 says that nothing was shown.
        delta: the delta that it goes with.
        confidence: of the whole, the choice of thresholds included.
        guessing: the counts that give it.
        selection: how the choice of thresholds was paid for.
        choices: how many choices share the error; 1 where the choice was made on other canaries.
    """

    epsilon: float
    delta: float
    confidence: float
    guessing: Guessing
    selection: str
    choices: int


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How likely an (epsilon, delta)-DP mechanism lets an auditor guess so well (Steinke, Nasr & Jagielski 2023).

    With q = e^epsilon / (1 + e^epsilon) and W ~ Binomial(guesses, q), arXiv 2305.08846 (main theorem; code in its
    appendix) has p = P[W >= v] + 2 m delta max_i P[v > W >= v - i] / i. It needs canaries whose inclusion was drawn
    by independent fair coins, and numbers of guesses of either kind that were fixed beforehand.

    >>> round(one_run_p_value(1000, 100, 100, epsilon=3.49, delta=0), 3)
    0.05

    Args:
        canaries: m, each in or out by its own coin.
        guesses: how many of them were guessed, in or out; at most ``canaries``.
        correct: v, how many guesses were right; at most ``guesses``.
        epsilon: of the null hypothesis, at least 0.
        delta: of the null hypothesis, in [0, 1).

    Returns:
        The p-value, in [0, 1].

    Raises:
        ValueError: where an argument is out of its range.
    """
    _check_counts(canaries, guesses, correct)
    _require(epsilon >= 0, "epsilon", epsilon, "at least 0")
    _require(0 <= delta < 1, "delta", delta, "in [0, 1)")
    q = float(expit(epsilon))
    beta = _at_least(correct, guesses, q)
    if delta == 0 or correct == 0:
        return beta
    return min(1.0, beta + 2 * canaries * delta * _densest_below(correct, guesses, q))


def one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """The largest epsilon that ``one_run_p_value`` rejects at 1 - ``confidence``; 0 if there is none.

    >>> round(one_run_epsilon(1000, 250, 238, delta=1e-5, confidence=0.95), 2)
    2.49

    Args:
        canaries: m, each in or out by its own fair coin.
        guesses: how many of them were guessed; fixed beforehand (``best_one_run_epsilon`` pays for choosing).
        correct: how many guesses were right.
        delta: in [0, 1).
        confidence: in (0, 1); in use above 0.5, below which the p-value need not fall as ``correct`` rises.

    Returns:
        Epsilon, rounded down by less than ``RESOLUTION``.

    Raises:
        ValueError: where an argument is out of its range.
    """
    _require(0 < confidence < 1, "confidence", confidence, "inside (0, 1)")
    return _largest(lambda epsilon: one_run_p_value(canaries, guesses, correct, epsilon, delta) <= 1 - confidence)


def gdp_one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """Lower bound on epsilon of a Gaussian mechanism (Mahloujifar, Melis & Chaudhuri 2024, arXiv 2410.22235).

    **It assumes** that the mechanism's trade-off between errors is that of mu-GDP for some mu, or is dominated by
    it, and finds the largest mu that the guesses reject, by the paper's recursion with abstention
    (``audit_rh_with_cap``). That mu becomes an epsilon by the duality of Dong, Roth & Su 2019 (arXiv 1905.02383,
    corollary 2.13). The sum of Gaussian noise and bounded gradients is such a mechanism; DP-SGD with subsampling is
    so in the limit of many steps only. Without the assumption the number bounds nothing.

    Args:
        canaries: m, each in or out by its own fair coin.
        guesses: how many of them were guessed; fixed beforehand.
        correct: how many guesses were right.
        delta: in (0, 1): at 0 no Gaussian mechanism has a finite epsilon.
        confidence: in (0, 1).

    Returns:
        Epsilon at ``delta``; 0 if no mu is rejected.

    Raises:
        ValueError: where an argument is out of its range.
    """
    _check_counts(canaries, guesses, correct)
    _require(0 < delta < 1, "delta", delta, "inside (0, 1)")
    _require(0 < confidence < 1, "confidence", confidence, "inside (0, 1)")
    mu = _largest(lambda mu: _rejects_gdp(mu, canaries, guesses, correct, 1 - confidence))
    return _largest(lambda epsilon: _gaussian_delta(mu, epsilon) >= delta) if mu > 0 else 0.0


def guess(scores: np.ndarray, inserted: np.ndarray, positives: int, negatives: int) -> Guessing:
    """Guess the highest scores in, the lowest out, and abstain between.

    Equal scores are ordered by a fixed shuffle of the positions: in the given order, canaries that are listed by
    their coins would be told apart by the list.

    Args:
        scores: float [m], larger for "more likely inserted".
        inserted: bool [m], the coins.
        positives: how many to guess in.
        negatives: how many to guess out; at most m together.

    Raises:
        ValueError: on shapes that differ, NaN, or more guesses than canaries.
    """
    _check_scores(scores, inserted)
    _require(positives >= 0, "positives", positives, "at least 0")
    _require(0 <= negatives <= len(scores) - positives, "negatives", negatives, "0 to the canaries not guessed in")
    return _guess(scores, inserted, _ascending(scores), positives, negatives)


def best_one_run_epsilon(
    scores: np.ndarray,
    inserted: np.ndarray,
    delta: float,
    confidence: float,
    selection: Literal["bonferroni", "split"] = "bonferroni",
    bound: Bound = one_run_epsilon,
) -> LowerBound:
    """The best lower bound over numbers of guesses, in, out or both, with the choice paid for.

    ``bonferroni`` tests every choice at its share of the error; ``split`` chooses on the canaries at even positions
    and bounds on those at odd positions. Given the former's coins the latter's are still fair, so that the bound on
    that half stands by itself. From m delta of about 0.01 on, ``split`` shows more: delta's part of the p-value has to
    fit into one share of the error, and falls far more slowly than the binomial tail as epsilon is lowered.

    Args:
        scores: float [m], larger for "more likely inserted"; m at least 4.
        inserted: bool [m], independent fair coins. The scores may depend on them through the mechanism only.
        delta: in [0, 1); above 0 for ``gdp_one_run_epsilon``.
        confidence: in (0, 1), of the whole.
        selection: how to pay for the choice.
        bound: ``one_run_epsilon``, ``gdp_one_run_epsilon``, or another of their signature.

    Raises:
        ValueError: where an argument is out of its range, or shapes differ.
    """
    _check_scores(scores, inserted)
    _require(len(scores) >= 4, "scores", len(scores), "at least 4 canaries")
    _require(0 <= delta < 1, "delta", delta, "in [0, 1)")
    _require(0 < confidence < 1, "confidence", confidence, "inside (0, 1)")
    _require(selection in ("bonferroni", "split"), "selection", selection, "'bonferroni' or 'split'")
    choices = _choices(len(scores))
    if selection == "split":
        choices = _choices(len(scores) // 2)
        _, chosen = _best(scores[::2], inserted[::2], choices, delta, confidence, bound)
        choices = [(chosen.positives, chosen.negatives)]
        scores, inserted = scores[1::2], inserted[1::2]
    each = 1 - (1 - confidence) / len(choices)
    epsilon, guessing = _best(scores, inserted, choices, delta, each, bound)
    return LowerBound(epsilon, delta, confidence, guessing, selection, len(choices))


def many_run_epsilon(
    true_positives: int, inserted: int, false_positives: int, left_out: int, delta: float, confidence: float
) -> float:
    """Lower bound on epsilon from independent runs, by exact bounds on the rates of a test fixed beforehand.

    (epsilon, delta)-DP gives TPR <= e^epsilon FPR + delta and TNR <= e^epsilon FNR + delta (Kairouz, Oh & Viswanath
    2015; as an audit, Jagielski, Ullman & Oh 2020). TPR from below and FPR from above, each at half the error,
    bound all four rates: the ends of two-sided Clopper-Pearson intervals at ``confidence``.

    >>> round(many_run_epsilon(1000, 1000, 0, 1000, delta=0, confidence=0.95), 2)
    5.6

    Args:
        true_positives: how many of the runs with the canary were guessed so.
        inserted: runs with the canary. Counts over canaries of one run are not independent runs.
        false_positives: how many of the runs without it were guessed to have it.
        left_out: runs without the canary.
        delta: in [0, 1).
        confidence: in (0, 1), of the whole.

    Returns:
        The larger of the two sides, at least 0.

    Raises:
        ValueError: where an argument is out of its range.
    """
    _require(0 <= true_positives <= inserted, "true_positives", true_positives, f"0 to inserted ({inserted})")
    _require(0 <= false_positives <= left_out, "false_positives", false_positives, f"0 to left_out ({left_out})")
    _require(0 <= delta < 1, "delta", delta, "in [0, 1)")
    _require(0 < confidence < 1, "confidence", confidence, "inside (0, 1)")
    tpr_low, _ = clopper_pearson(true_positives, inserted, confidence)
    _, fpr_high = clopper_pearson(false_positives, left_out, confidence)
    sides = (tpr_low - delta, fpr_high), (1 - fpr_high - delta, 1 - tpr_low)
    return max(float(np.log(right / wrong)) if right > wrong else 0.0 for right, wrong in sides)


def _at_least(successes: int, trials: int, q: float) -> float:
    """P[Binomial(trials, q) >= successes]."""
    return float(betainc(successes, trials - successes + 1, q)) if successes > 0 else 1.0


def _densest_below(correct: int, guesses: int, q: float) -> float:
    """max over i of P[correct > W >= correct - i] / i for W ~ Binomial(guesses, q)."""
    beta = _at_least(correct, guesses, q)

    def mean(i: int) -> float:
        return (_at_least(correct - i, guesses, q) - beta) / i

    # The binomial has one mode: the mean over a window that grows downwards rises, then falls, and never rises again.
    low, high = 1, correct
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if mean(middle + 1) > mean(middle) else (low, middle)
    return mean(low)


def _rejects_gdp(mu: float, canaries: int, guesses: int, correct: int, significance: float) -> bool:
    """Whether ``correct`` or more right guesses have a probability below ``significance`` under mu-GDP.

    For i falling from ``correct``, ``right`` and ``wrong`` are the shares of canaries guessed right and wrong in
    outcomes with at least i right guesses. Turning one coin makes such an outcome one with at least i - 1 at a
    price that mu-GDP sets; once the shares exceed all guesses, the start was impossible.
    """
    right, wrong = significance * correct / canaries, significance * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        least_wrong = float(ndtr(ndtri(right) - mu))
        if least_wrong <= wrong:  # nothing moves from here on
            return False
        right += i / (guesses - i) * (least_wrong - wrong)
        wrong = least_wrong
        if right + wrong > guesses / canaries:
            return True
    return False


def _gaussian_delta(mu: float, epsilon: float) -> float:
    """Delta of mu-GDP at ``epsilon``: Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)."""
    first, second = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(-np.exp(first) * np.expm1(second - first))  # a difference of near numbers, without its cancellation


def _largest(holds: Callable[[float], bool]) -> float:
    """The largest x >= 0, rounded down, at which ``holds``, true from 0 to some point, still does; 0 if nowhere."""
    if not holds(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while holds(high):
        low, high = high, 2 * high
    while high - low > RESOLUTION:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _choices(canaries: int) -> list[tuple[int, int]]:
    """Numbers of (positives, negatives) to try, most guesses first: up to one half in, out, and both."""
    most = canaries // 2
    sizes = {round(float(size)) for size in np.geomspace(min(FEWEST, most), most, SIZES)}
    choices = {choice for size in sizes for choice in ((size, 0), (0, size), (size, size))}
    return sorted(choices, key=lambda choice: (sum(choice), choice), reverse=True)


def _best(
    scores: np.ndarray,
    inserted: np.ndarray,
    choices: list[tuple[int, int]],
    delta: float,
    confidence: float,
    bound: Bound,
) -> tuple[float, Guessing]:
    """The largest of the choices' bounds, each at ``confidence``, with its guesses."""
    order = _ascending(scores)
    guessings = [_guess(scores, inserted, order, *choice) for choice in choices]
    epsilons = [bound(g.canaries, g.guesses, g.correct, delta, confidence) for g in guessings]
    best = int(np.argmax(epsilons))
    return epsilons[best], guessings[best]


def _ascending(scores: np.ndarray) -> np.ndarray:
    """int [m]: positions by score, equal scores in the order of a shuffle that knows nothing but m."""
    return np.lexsort((stream(0, "epsilon", "ties").permutation(len(scores)), scores))


def _guess(scores: np.ndarray, inserted: np.ndarray, order: np.ndarray, positives: int, negatives: int) -> Guessing:
    """``guess`` for positions that are sorted by score."""
    guessed_out, guessed_in = order[:negatives], order[len(order) - positives :]
    return Guessing(
        canaries=len(scores),
        positives=positives,
        negatives=negatives,
        correct=int(inserted[guessed_in].sum() + (~inserted[guessed_out]).sum()),
        lowest_in=float(scores[guessed_in[0]]) if positives else None,
        highest_out=float(scores[guessed_out[-1]]) if negatives else None,
    )


def _require(holds: bool | np.bool_, name: str, value: object, allowed: str) -> None:
    """Refuse an argument by its name and value."""
    if not holds:
        raise ValueError(f"{name} is {value}; allowed is {allowed}")


def _check_counts(canaries: int, guesses: int, correct: int) -> None:
    """0 <= correct <= guesses <= canaries, and a canary."""
    _require(canaries >= 1, "canaries", canaries, "at least 1")
    _require(0 <= guesses <= canaries, "guesses", guesses, f"0 to canaries ({canaries})")
    _require(0 <= correct <= guesses, "correct", correct, f"0 to guesses ({guesses})")


def _check_scores(scores: np.ndarray, inserted: np.ndarray) -> None:
    """One score, not NaN, and one coin for each canary."""
    _require(np.ndim(scores) == 1, "scores", np.shape(scores), "one dimension")
    _require(np.shape(inserted) == np.shape(scores), "inserted", np.shape(inserted), f"shape {np.shape(scores)}")
    _require(inserted.dtype == np.bool_, "inserted", inserted.dtype, "bool")
    _require(not np.isnan(scores).any(), "scores", "NaN", "numbers")
