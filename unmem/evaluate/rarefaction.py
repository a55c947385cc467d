"""How many images would have been extracted with fewer samples, and how many would be with more.

A sample matches one image of a set or none. ``hits`` counts, for each image, the samples that match it; image i is
matched by each sample with an unknown probability p_i, independently of the other samples, so that m samples find
E(m) = sum_i 1 - (1 - p_i)^m images on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unmem.evaluate.statistics import clopper_pearson

GRID = 400  # probabilities that p_i may have in the bounds, from 0 and 1 / (1000 samples) to 1


def rarefied(hits: np.ndarray, samples: int, sizes: Sequence[int]) -> np.ndarray:
    """How many images a random subset of the samples matches, averaged over all subsets of each size.

    The hypergeometric expectation (Hurlbert 1971), exact; no unbiased estimate of E(m) varies less.

    Args:
        hits: int64 [images], how many samples match each.
        samples: all samples, those without a match included.
        sizes: of the subsets, 1 to ``samples``.

    Returns:
        float64 [sizes]; with all samples the number of images that any matches.

    >>> rarefied(np.array([1, 1, 0]), 4, [1, 2, 4]).round(3).tolist()
    [0.5, 1.0, 2.0]
    """
    from scipy.special import gammaln

    assert all(1 <= size <= samples for size in sizes)
    often, images = np.unique(hits[hits > 0], return_counts=True)
    found = []
    for size in sizes:
        left = samples - often  # samples without the image: a subset of them misses it
        missed = np.zeros(len(often))
        fits = left >= size
        some = left[fits]
        logs = gammaln(some + 1) - gammaln(some - size + 1) - gammaln(samples + 1) + gammaln(samples - size + 1)
        missed[fits] = np.exp(logs)
        found.append(images @ (1 - missed))
    return np.array(found, dtype=np.float64)


def extrapolated(hits: np.ndarray, factor: float) -> float:
    """An estimate of E at ``factor`` times as many samples: the smoothed estimator of Good and Toulmin.

    Orlitsky, Suresh and Wu 2016 (PNAS 113): with t = ``factor`` - 1, f_i images that i samples match, and n matching
    samples, images found + sum_i -(-t)^i P(L >= i) f_i, L binomial with floor(log3(n t^2 / (t - 1)) / 2) trials (1 at
    least) and probability 2 / (2 + t). Where few images are matched often and many seldom it errs less than Chao's
    lower bound, and falls short by 20 to 30 % in simulations (``tests/oracles/test_rarefaction.py``): t = 9 is past
    what any estimator can reach with so few matches. :func:`bounds` says how far the truth may be.

    Args:
        hits: int64 [images], how many samples match each.
        factor: above 2.
    """
    from scipy.stats import binom

    assert factor > 2
    t, matching = factor - 1, int(hits.sum())
    if not matching:
        return 0.0
    trials = max(1, int(np.log(matching * t * t / (t - 1)) / np.log(3) / 2))
    i = np.arange(1, trials + 1)
    of_i = np.bincount(hits, minlength=trials + 1)[1 : trials + 1]
    weights = -((-t) ** i) * binom.sf(i - 1, trials, 2 / (2 + t))
    # where more images are matched twice than once the sum is negative, yet more samples find no fewer images
    return float((hits > 0).sum() + max(0.0, weights @ of_i))


def bounds(hits: np.ndarray, samples: int, sizes: Sequence[int], confidence: float) -> np.ndarray:
    """An interval for E at each size, fewer samples or more: all of them hold together.

    How many images are matched 0, 1, 2, 3 to 4, 5 to 16, ... times, and how many samples match at all, each has an
    interval of Clopper and Pearson at its share of the error (Bonferroni). Whatever the p_i are, their distribution
    makes the expectations of these numbers and E linear; so the least and the largest E that agree with all intervals
    are two linear programs. Nothing is assumed of the p_i but that they lie on a fine grid, so what the data cannot
    tell, as between images found seldom and never, widens the interval.

    Args:
        hits: int64 [images], how many samples match each.
        samples: all samples, those without a match included.
        sizes: numbers of samples; may exceed ``samples``.
        confidence: that every interval holds; in simulations they do more often.

    Returns:
        float64 [sizes, 2], lower and upper ends, in images.
    """
    from scipy.stats import binom

    images = len(hits)
    last = np.unique(np.minimum([0, 1, 2, *4 ** np.arange(1, 16)], samples))  # of each range of counts
    p = np.concatenate([[0.0], np.geomspace(1e-3 / samples, 1, GRID)])
    up_to = binom.cdf(last[:, None], samples, p)
    expected = np.diff(up_to, axis=0, prepend=0)
    seen = np.bincount(np.searchsorted(last, hits), minlength=len(last))
    each = 1 - (1 - confidence) / (len(last) + 1)
    ends = [clopper_pearson(int(count), images, each) for count in seen]
    rows = [*expected, images * p]
    ends.append(clopper_pearson(int(hits.sum()), samples, each))
    return np.array([_range(images * (1 - (1 - p) ** size), np.array(rows), np.array(ends)) for size in sizes])


def _range(value: np.ndarray, rows: np.ndarray, ends: np.ndarray) -> tuple[float, float]:
    """The least and the largest mean of ``value`` under weights with these means of ``rows``; all, if none has them."""
    from scipy.optimize import linprog

    rows = rows / ends[:, 1:]  # the solver's tolerance is absolute
    limits: dict[str, Any] = {
        "A_ub": np.concatenate([rows, -rows]),
        "b_ub": np.concatenate([np.ones(len(ends)), -ends[:, 0] / ends[:, 1]]),
        "A_eq": np.ones((1, len(value))),
        "b_eq": [1.0],
    }
    least, most = (linprog(sign * value, **limits, method="highs") for sign in (1, -1))
    if least.status or most.status:
        return float(value.min()), float(value.max())
    return float(least.fun), float(-most.fun)
