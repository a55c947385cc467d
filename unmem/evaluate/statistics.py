"""Estimates with their intervals: no number leaves here alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000
RESOLVABLE = 10  # expected false positives below which a TPR at that FPR rests on chance


@dataclass(frozen=True)
class Estimate:
    """A number with its interval and what it was counted from.

    Attributes:
        value: the point estimate; None where the data cannot resolve it (then ``note`` says why).
        low: lower end of the confidence interval.
        high: upper end.
        n: counts behind it, by name.
        note: what a reader must know.
    """

    value: float | None
    low: float | None
    high: float | None
    n: dict[str, int]
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """The exact binomial interval (Clopper & Pearson 1934), two-sided.

    >>> low, high = clopper_pearson(0, 10, 0.95)
    >>> round(low, 4), round(high, 4)
    (0.0, 0.3085)
    """
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def rate(successes: int, trials: int, confidence: float, note: str = "") -> Estimate:
    """A proportion with its Clopper-Pearson interval."""
    if trials == 0:
        return Estimate(None, None, None, {"successes": 0, "trials": 0}, "nothing was counted")
    low, high = clopper_pearson(successes, trials, confidence)
    return Estimate(successes / trials, low, high, {"successes": successes, "trials": trials}, note)


def quantile(values: np.ndarray, level: float, confidence: float, note: str = "") -> Estimate:
    """A quantile with its interval by order statistics: exact for any continuous distribution, conservative with ties.

    Args:
        values: float64 [n], one draw each.
        level: between 0 and 1, both excluded.
        confidence: two-sided; an end that so few values cannot bound is None.
        note: what a reader must know.
    """
    from scipy.stats import binom

    n = len(values)
    if n == 0:
        return Estimate(None, None, None, {"values": 0}, "nothing was counted")
    ordered, tail = np.sort(values), (1 - confidence) / 2
    below = int(binom.ppf(tail, n, level))  # so many values at least are below the quantile
    above = int(binom.ppf(1 - tail, n, level)) + 1  # and fewer than so many
    low = float(ordered[below - 1]) if below >= 1 else None
    high = float(ordered[above - 1]) if above <= n else None
    return Estimate(float(np.quantile(values, level)), low, high, {"values": n}, note)


def auc_value(members: np.ndarray, nonmembers: np.ndarray) -> float:
    """Area under the ROC curve: P(member's score > non-member's) + P(equal) / 2."""
    return _WeightedAUC(members, nonmembers)(np.ones(len(members)), np.ones(len(nonmembers)))


def auc(members: np.ndarray, nonmembers: np.ndarray, confidence: float, rng: np.random.Generator) -> Estimate:
    """AUC with a percentile bootstrap over members and non-members (resampled separately).

    At 0 or 1 the bootstrap sees no variation; there the inner end is Clopper-Pearson's for the smaller group.
    """
    counts = {"members": len(members), "nonmembers": len(nonmembers)}
    if min(counts.values()) == 0:
        return Estimate(None, None, None, counts, "nothing was counted")
    curve = _WeightedAUC(members, nonmembers)
    value = curve(np.ones(len(members)), np.ones(len(nonmembers)))
    values = [curve(_weights(len(members), rng), _weights(len(nonmembers), rng)) for _ in range(RESAMPLES)]
    low, high = _percentiles(values, confidence)
    if value in (0.0, 1.0):
        smaller = min(counts.values())
        low, high = clopper_pearson(round(value * smaller), smaller, confidence)
    return Estimate(value, low, high, counts)


def auc_difference(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    confidence: float,
    rng: np.random.Generator,
) -> Estimate:
    """AUC of ``first`` minus AUC of ``second``, both (members, nonmembers) over the same images in the same order.

    The bootstrap draws the same images for both, so that what is common to the two arms cancels.
    """
    (m1, n1), (m2, n2) = first, second
    assert len(m1) == len(m2) and len(n1) == len(n2), "paired scores need the same images"
    counts = {"members": len(m1), "nonmembers": len(n1)}
    a, b = _WeightedAUC(m1, n1), _WeightedAUC(m2, n2)
    ones = np.ones(len(m1)), np.ones(len(n1))
    draws = ((_weights(len(m1), rng), _weights(len(n1), rng)) for _ in range(RESAMPLES))
    low, high = _percentiles([a(*weights) - b(*weights) for weights in draws], confidence)
    return Estimate(a(*ones) - b(*ones), low, high, counts)


def paired_rate_difference(first: np.ndarray, second: np.ndarray, confidence: float) -> Estimate:
    """Rate of ``first`` minus rate of ``second``, bool [n] over the same items.

    The interval comes from exact bounds on the two discordant rates, each at half the error (Bonferroni): it is
    conservative, and does not vanish when no pair is discordant.
    """
    n = len(first)
    more, fewer = int((first & ~second).sum()), int((second & ~first).sum())
    if n == 0:
        return Estimate(None, None, None, {"more": 0, "fewer": 0, "items": 0}, "nothing was counted")
    each = 1 - (1 - confidence) / 2
    (more_low, more_high), (fewer_low, fewer_high) = clopper_pearson(more, n, each), clopper_pearson(fewer, n, each)
    counts = {"more": more, "fewer": fewer, "items": n}
    return Estimate((more - fewer) / n, more_low - fewer_high, more_high - fewer_low, counts)


def tpr_at_fpr(members: np.ndarray, nonmembers: np.ndarray, fpr: float, confidence: float) -> Estimate:
    """TPR at the largest empirical FPR that is at most ``fpr``, with Clopper-Pearson on the members.

    Withheld (value None) where fewer than ten false positives are expected: that rests on single images.
    """
    expected = fpr * len(nonmembers)
    counts = {"members": len(members), "nonmembers": len(nonmembers)}
    if expected < RESOLVABLE:
        needed = int(np.ceil(RESOLVABLE / fpr))
        note = f"withheld: {len(nonmembers)} non-members cannot resolve an FPR of {fpr:g} (needs {needed})"
        return Estimate(None, None, None, counts, note)
    ordered = np.sort(nonmembers)[::-1]
    threshold = ordered[int(np.floor(expected + 1e-9))] if int(expected + 1e-9) < len(ordered) else -np.inf
    hits, alarms = int((members > threshold).sum()), int((nonmembers > threshold).sum())
    low, high = clopper_pearson(hits, len(members), confidence)
    fpr_low, fpr_high = clopper_pearson(alarms, len(nonmembers), confidence)
    counts |= {"true_positives": hits, "false_positives": alarms}
    return Estimate(hits / len(members), low, high, counts, f"the threshold's own FPR: {fpr_low:.3f} to {fpr_high:.3f}")


def transferred(
    members: np.ndarray, nonmembers: np.ndarray, calibration: np.ndarray, fpr: float, confidence: float
) -> tuple[Estimate, Estimate]:
    """TPR and FPR at a threshold that other non-members set: what an attacker without the answers would reach.

    Args:
        members: float64 [m], scores of members.
        nonmembers: float64 [n], scores of non-members that took no part in the threshold.
        calibration: float64 [c], scores of the non-members that set it, at an FPR of at most ``fpr`` among them.
        fpr: the FPR that is aimed at.
        confidence: of Clopper and Pearson's intervals.
    """
    expected = fpr * len(calibration)
    if expected < RESOLVABLE or not len(nonmembers):
        needed = int(np.ceil(RESOLVABLE / fpr))
        note = f"withheld: {len(calibration)} calibration images cannot set an FPR of {fpr:g} (needs {needed})"
        none = Estimate(None, None, None, {"calibration": len(calibration)}, note)
        return none, none
    threshold = np.sort(calibration)[::-1][int(expected + 1e-9)] if fpr < 1 else -np.inf
    hits, alarms = int((members > threshold).sum()), int((nonmembers > threshold).sum())
    note = f"at the threshold for an FPR of {fpr:g} on {len(calibration)} calibration images"
    return rate(hits, len(members), confidence, note), rate(alarms, len(nonmembers), confidence, note)


def permutation_p_value(members: np.ndarray, nonmembers: np.ndarray) -> Estimate:
    """How often shuffled labels would give an AUC at least as large: its chance if membership did not show.

    One-sided, from the distribution of the AUC over all shuffles (Mann & Whitney 1947): exact for a few images without
    ties, else by its normal limit with ties corrected.
    """
    from scipy.stats import mannwhitneyu

    counts = {"members": len(members), "nonmembers": len(nonmembers)}
    if min(counts.values()) == 0:
        return Estimate(None, None, None, counts, "nothing was counted")
    p = float(mannwhitneyu(members, nonmembers, alternative="greater").pvalue)
    return Estimate(p, p, p, counts, "of all shuffles of the labels, not of a sample of them")


def balanced_accuracy(
    members: np.ndarray, nonmembers: np.ndarray, confidence: float, rng: np.random.Generator
) -> Estimate:
    """(TPR + TNR) / 2 at a threshold chosen on one half of the images and scored on the other, both ways round.

    The interval is Clopper-Pearson on either rate at half the error, hence conservative.
    """
    counts = {"members": len(members), "nonmembers": len(nonmembers)}
    if min(counts.values()) < 2:
        return Estimate(None, None, None, counts, "too few images to choose a threshold on one half")
    member_half, nonmember_half = _halves(len(members), rng), _halves(len(nonmembers), rng)
    hits = passes = 0
    for side in (False, True):
        threshold = _best_threshold(members[member_half == side], nonmembers[nonmember_half == side])
        hits += int((members[member_half != side] > threshold).sum())
        passes += int((nonmembers[nonmember_half != side] <= threshold).sum())
    each = 1 - (1 - confidence) / 2
    ends = zip(clopper_pearson(hits, len(members), each), clopper_pearson(passes, len(nonmembers), each), strict=True)
    low, high = (sum(end) / 2 for end in ends)
    value = (hits / len(members) + passes / len(nonmembers)) / 2
    return Estimate(value, low, high, counts, "threshold chosen on the other half")


def roc(members: np.ndarray, nonmembers: np.ndarray, most: int = 200) -> list[tuple[float, float]]:
    """(FPR, TPR) points from (0, 0) to (1, 1), thinned to about ``most``, densest at low FPR."""
    thresholds = np.unique(np.concatenate([members, nonmembers]))[::-1]
    fpr = 1 - np.searchsorted(np.sort(nonmembers), thresholds, side="left") / len(nonmembers)
    tpr = 1 - np.searchsorted(np.sort(members), thresholds, side="left") / len(members)
    if len(thresholds) > most:
        wanted = np.concatenate([np.geomspace(1 / len(nonmembers), 1, most // 2), np.linspace(0, 1, most // 2)])
        # both ends of the steps at these FPRs, so that thinning neither adds area nor takes any away
        ends = [np.searchsorted(fpr, wanted, side="left"), np.searchsorted(fpr, wanted, side="right") - 1]
        keep = np.unique(np.concatenate(ends).clip(0, len(fpr) - 1))
        fpr, tpr = fpr[keep], tpr[keep]
    return [(0.0, 0.0), *((round(float(f), 6), round(float(t), 6)) for f, t in zip(fpr, tpr, strict=True)), (1.0, 1.0)]


class _WeightedAUC:
    """AUC of weighted scores; the one sort is shared by all resamples."""

    def __init__(self, members: np.ndarray, nonmembers: np.ndarray) -> None:
        _, rank = np.unique(np.concatenate([members, nonmembers]), return_inverse=True)
        self._member_rank, self._nonmember_rank = rank[: len(members)], rank[len(members) :]
        self._ranks = int(rank.max()) + 1

    def __call__(self, member_weights: np.ndarray, nonmember_weights: np.ndarray) -> float:
        at = np.bincount(self._nonmember_rank, nonmember_weights, minlength=self._ranks)
        below = np.cumsum(at) - at / 2
        return float(member_weights @ below[self._member_rank] / (member_weights.sum() * nonmember_weights.sum()))


def _weights(n: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n items is in a bootstrap resample."""
    return np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)


def _percentiles(values: list[float], confidence: float) -> tuple[float, float]:
    """The middle ``confidence`` of the values."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _halves(n: int, rng: np.random.Generator) -> np.ndarray:
    """bool [n]: a random half."""
    return rng.permutation(n) < n // 2


def _best_threshold(members: np.ndarray, nonmembers: np.ndarray) -> float:
    """The score above which "member" gives the best balanced accuracy."""
    candidates = np.concatenate([[-np.inf], np.unique(np.concatenate([members, nonmembers]))])
    tpr = 1 - np.searchsorted(np.sort(members), candidates, side="right") / len(members)
    fpr = 1 - np.searchsorted(np.sort(nonmembers), candidates, side="right") / len(nonmembers)
    return float(candidates[int(np.argmax(tpr - fpr))])
