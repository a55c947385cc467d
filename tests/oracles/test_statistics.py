"""Estimates against independent references, and their intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from unmem.evaluate.statistics import (
    auc,
    auc_difference,
    auc_value,
    balanced_accuracy,
    clopper_pearson,
    paired_rate_difference,
    roc,
    tpr_at_fpr,
)
from unmem.rng import stream


def scores(rng: np.random.Generator, shift: float, members: int = 80, nonmembers: int = 120) -> tuple[np.ndarray, ...]:
    """Gaussian scores on a coarse grid, so that there are ties."""
    draws = rng.normal(shift, 1, members), rng.normal(0, 1, nonmembers)
    return tuple(np.round(x, 1) for x in draws)


@pytest.mark.parametrize("successes", [0, 1, 7, 19, 20])
def test_clopper_pearson_is_scipys(successes: int) -> None:
    reference = stats.binomtest(successes, 20).proportion_ci(0.9, method="exact")
    assert clopper_pearson(successes, 20, 0.9) == pytest.approx((reference.low, reference.high))


@pytest.mark.parametrize("trial", range(20))
def test_auc_is_sklearns_with_ties(trial: int) -> None:
    members, nonmembers = scores(stream(trial, "auc"), shift=0.5)
    truth = np.r_[np.ones(len(members)), np.zeros(len(nonmembers))]
    assert auc_value(members, nonmembers) == pytest.approx(roc_auc_score(truth, np.r_[members, nonmembers]))


def covers(shift: float, runs: int = 200) -> int:
    """How often the 90 % interval holds the true AUC."""
    true = stats.norm.cdf(shift / np.sqrt(2))
    found = 0
    for run in range(runs):
        rng = stream(run, "coverage", int(shift * 10))
        estimate = auc(rng.normal(shift, 1, 60), rng.normal(0, 1, 60), 0.9, rng)
        assert estimate.low is not None
        assert estimate.high is not None
        found += estimate.low <= true <= estimate.high
    return found


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_auc_interval_holds_its_level(shift: float) -> None:
    found = covers(shift)
    assert stats.binomtest(found, 200, 0.9).pvalue > 1e-4
    assert stats.binomtest(found, 200, 0.5).pvalue < 1e-4  # the check itself can fail


def test_the_auc_of_separated_scores_is_one_with_an_open_inner_end() -> None:
    estimate = auc(np.ones(8), np.zeros(100), 0.95, stream(0, "one"))
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(0.025 ** (1 / 8))


def test_the_difference_is_paired() -> None:
    """What two arms have in common cancels: the same scores twice differ by exactly nothing."""
    rng = stream(0, "paired")
    first = scores(rng, 0.5)
    same = auc_difference(first, first, 0.95, rng)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    shifted = auc_difference((first[0] + 1, first[1]), first, 0.95, rng)
    assert shifted.low is not None
    assert shifted.low > 0


def test_tpr_at_fpr_against_the_definition() -> None:
    rng = stream(0, "tpr")
    members, nonmembers = scores(rng, 1.0, members=500, nonmembers=1000)
    for fpr in (0.01, 0.05, 0.1, 1.0):
        estimate = tpr_at_fpr(members, nonmembers, fpr, 0.95)
        allowed = [t for t in np.r_[-np.inf, np.unique(np.r_[members, nonmembers])] if (nonmembers > t).mean() <= fpr]
        assert estimate.value == pytest.approx(max((members > t).mean() for t in allowed))
        assert estimate.n["false_positives"] <= fpr * 1000


def test_tpr_is_withheld_where_non_members_cannot_resolve_it() -> None:
    estimate = tpr_at_fpr(np.ones(50), np.zeros(999), 0.01, 0.95)
    assert estimate.value is None
    assert "needs 1000" in estimate.note


def test_balanced_accuracy_is_not_flattered_by_its_own_choice() -> None:
    """On pure noise the best threshold on all data beats a half; chosen on the other half it does not."""
    values = [
        balanced_accuracy(*scores(stream(k, "flat"), 0.0, 30, 30), 0.95, stream(k, "b")).value for k in range(200)
    ]
    naive = []
    for k in range(200):
        members, nonmembers = scores(stream(k, "flat"), 0.0, 30, 30)
        thresholds = np.r_[members, nonmembers]
        naive.append(max(((members > t).mean() + (nonmembers <= t).mean()) / 2 for t in thresholds))
    assert abs(np.mean(values) - 0.5) < 0.01
    assert np.mean(naive) > 0.55


def test_paired_rates_keep_an_interval_when_nothing_differs() -> None:
    same = np.array([True] * 5 + [False] * 45)
    estimate = paired_rate_difference(same, same, 0.95)
    assert estimate.value == 0
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < 0 < estimate.high
    more = paired_rate_difference(np.ones(50, bool), np.zeros(50, bool), 0.95)
    assert more.value == 1
    assert more.low is not None
    assert more.low > 0.8


def test_the_roc_ends_in_its_corners_rises_and_has_the_auc() -> None:
    members, nonmembers = scores(stream(1, "roc"), 0.8, 2000, 3000)
    members = members + stream(2, "ties").normal(0, 1e-3, 2000)
    points = np.array(roc(members, nonmembers, most=400))
    assert tuple(points[0]) == (0, 0)
    assert tuple(points[-1]) == (1, 1)
    assert (np.diff(points, axis=0) >= 0).all()
    area = float(np.trapezoid(points[:, 1], points[:, 0]))
    assert area == pytest.approx(auc_value(members, nonmembers), abs=0.01)
