"""Was a set trained on? A test of scores that were fitted on other images, at all images and on random subsets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from unmem.evaluate.results import SetScores
from unmem.evaluate.statistics import RESAMPLES, Estimate, clopper_pearson
from unmem.rng import stream

if TYPE_CHECKING:
    from unmem.evaluate.analysis import Compare

LEVEL = 0.01  # a set counts as recognised where its p-value is below
ENOUGH = 0.95  # the share of subsets that are to be recognised


def set_figures(result: SetScores, compare: Compare, seed: int) -> dict[str, Any]:
    """The report of a set test: p-values, and how many images it takes.

    Args:
        result: scores; images that the attack learnt from are left out.
        compare: confidence of the intervals.
        seed: of subsets and bootstrap.

    Returns:
        ``{"type": "dataset_inference", "estimates": {name: estimate}, "level": ...}`` as plain data.
    """
    members, nonmembers = result.members[result.tested.members], result.nonmembers[result.tested.nonmembers]
    estimates = set_test(members, nonmembers, result.sizes.tolist(), compare.confidence, seed)
    plain = {name: estimate.as_json() for name, estimate in estimates.items()}
    return {"type": "dataset_inference", "estimates": plain, "level": LEVEL}


def set_test(
    members: np.ndarray, nonmembers: np.ndarray, sizes: list[int], confidence: float, seed: int
) -> dict[str, Estimate]:
    """P-values, power and false alarms by the subset's size, and the smallest size that suffices.

    Subsets are drawn without replacement and compared with held-out images of the same number: members for the power,
    non-members for the false alarms. The control says that the test holds its level on such scores; whether members
    and non-members come from one distribution is for the blind attack to say.

    Args:
        members: float64 [m], of the images in question.
        nonmembers: float64 [n], of held-out images.
        sizes: of the subsets, 2 or more; those that do not fit are left out.
        confidence: of the intervals.
        seed: of subsets and bootstrap.

    Returns:
        ``p_value`` at all images; ``p_value_control``, the median over random halves of the non-members;
        ``power[size]`` and ``false_alarms[size]``, shares of subsets with a p-value below 0.01; ``smallest_size`` with
        a power of 0.95.
    """
    most, half = min(len(members), len(nonmembers)), len(nonmembers) // 2
    counts = {"members": len(members), "nonmembers": len(nonmembers)}
    if min(most, half) < 2:
        short = Estimate(None, None, None, counts, "too few images that the attack did not learn from")
        return dict.fromkeys(("p_value", "p_value_control", "smallest_size"), short)
    members, nonmembers = members - nonmembers.mean(), nonmembers - nonmembers.mean()  # else squares lose digits
    rng, control = stream(seed, "set", "power"), stream(seed, "set", "control")

    def subsets() -> tuple[np.ndarray, np.ndarray]:
        return rng.permutation(members), rng.permutation(nonmembers)

    def halves() -> tuple[np.ndarray, np.ndarray]:
        shuffled = control.permutation(nonmembers)
        return shuffled[:half], shuffled[half:]

    fitting = sorted({size for size in sizes if size <= most})
    small = [size for size in fitting if size <= half]
    p_values, p_control = _resampled(subsets, fitting), _resampled(halves, [*small, half])
    power = {size: _share(p_values[:, k], size, most, confidence) for k, size in enumerate(fitting)}
    alarms = {size: _share(p_control[:, k], size, half, confidence) for k, size in enumerate(small)}
    return {
        "p_value": _p_value(members, nonmembers, confidence, stream(seed, "set", "bootstrap")),
        "p_value_control": _median(p_control[:, -1], confidence, {"nonmembers": len(nonmembers), "halves": RESAMPLES}),
        **{f"power[{size}]": estimate for size, estimate in power.items()},
        **{f"false_alarms[{size}]": estimate for size, estimate in alarms.items()},
        "smallest_size": _smallest(power, counts),
    }


Moments = tuple[Any, Any, Any]  # number of values, mean, unbiased variance: numbers, or arrays of one shape


def welch(first: Moments, second: Moments) -> np.ndarray:
    """One-sided p-values of Welch's t-test: is the first mean larger? 0.5 where nothing varies and nothing differs."""
    from scipy.special import stdtr

    (n_first, mean_first, variance_first), (n_second, mean_second, variance_second) = first, second
    part = variance_first / n_first
    spread = np.maximum(part + variance_second / n_second, np.finfo(np.float64).tiny)
    weight = part / spread
    freedom = 1 / (weight**2 / (n_first - 1) + (1 - weight) ** 2 / (n_second - 1))
    return np.asarray(stdtr(freedom, (mean_second - mean_first) / np.sqrt(spread)))


def _moments(values: np.ndarray) -> Moments:
    """Of the values along the last axis."""
    return values.shape[-1], values.mean(-1), values.var(-1, ddof=1)


def _first_moments(values: np.ndarray, sizes: np.ndarray) -> Moments:
    """Of the first so many values, [sizes]: one pass for all sizes."""
    mean = np.cumsum(values)[sizes - 1] / sizes
    squares = np.cumsum(values**2)[sizes - 1]
    return sizes, mean, np.maximum(squares - sizes * mean**2, 0) / (sizes - 1)


def _resampled(draw: Callable[[], tuple[np.ndarray, np.ndarray]], sizes: list[int]) -> np.ndarray:
    """P-values [resamples, sizes] of two random subsets: the first of shuffled images."""
    of = np.array(sizes, dtype=np.int64)
    drawn = (draw() for _ in range(RESAMPLES))
    return np.array([welch(_first_moments(first, of), _first_moments(second, of)) for first, second in drawn])


def _p_value(members: np.ndarray, nonmembers: np.ndarray, confidence: float, rng: np.random.Generator) -> Estimate:
    """At all images, with a percentile bootstrap over them."""
    value = float(welch(_moments(members), _moments(nonmembers)))
    drawn = ((rng.choice(members, len(members)), rng.choice(nonmembers, len(nonmembers))) for _ in range(RESAMPLES))
    resamples = [welch(_moments(first), _moments(second)) for first, second in drawn]
    low, high = np.quantile(resamples, [(1 - confidence) / 2, (1 + confidence) / 2])
    counts = {"members": len(members), "nonmembers": len(nonmembers)}
    note = "one-sided Welch test; the interval says where it would fall with other images of the same kind"
    return Estimate(value, min(float(low), value), max(float(high), value), counts, note)


def _median(p_values: np.ndarray, confidence: float, counts: dict[str, int]) -> Estimate:
    """The median, and the middle of them."""
    low, value, high = np.quantile(p_values, [(1 - confidence) / 2, 0.5, (1 + confidence) / 2])
    return Estimate(float(value), float(low), float(high), counts, "about 0.5: non-members against non-members")


def _share(p_values: np.ndarray, size: int, images: int, confidence: float) -> Estimate:
    """The share below the level. Subsets overlap: the interval is Clopper-Pearson's for as many as are disjoint."""
    value, disjoint = float((p_values < LEVEL).mean()), images // size
    low, high = clopper_pearson(round(value * disjoint), disjoint, confidence)
    counts = {"subsets": len(p_values), "disjoint": disjoint, "size": size}
    return Estimate(value, low, high, counts, f"p < {LEVEL:g}")


def _smallest(power: dict[int, Estimate], counts: dict[str, int]) -> Estimate:
    """The smallest size with enough power, and those at which the power's upper and lower end reach it."""
    reached = [size for size, estimate in power.items() if estimate.value is not None and estimate.value >= ENOUGH]
    if not reached:
        return Estimate(None, None, None, counts, f"withheld: no size that fits reaches a power of {ENOUGH:g}")
    possible = [size for size, estimate in power.items() if estimate.high is not None and estimate.high >= ENOUGH]
    certain = [size for size, estimate in power.items() if estimate.low is not None and estimate.low >= ENOUGH]
    note = f"of the sizes that were tried; power {ENOUGH:g} at p < {LEVEL:g}"
    if not certain:
        note += "; the upper end is the largest size tried: too few disjoint subsets bound the power"
    return Estimate(min(reached), min(possible), min(certain, default=max(power)), counts, note)
