"""From scores of canaries to figures: lower bounds on epsilon, how well coins can be told, and exposure by copies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unmem.evaluate.epsilon import Bound, best_one_run_epsilon, gdp_one_run_epsilon, one_run_epsilon
from unmem.evaluate.exposure import exposure
from unmem.evaluate.results import CanaryScores
from unmem.evaluate.statistics import RESAMPLES, Estimate, auc, clopper_pearson
from unmem.rng import stream

if TYPE_CHECKING:
    from unmem.evaluate.analysis import Compare

FEWEST_GUESSED = 4  # canaries below which nothing can be bounded
FEWEST_INSERTED = 6  # a median of fewer has no interval at 95 %: 2 * 0.5^5 is above 0.05


def canary_figures(result: CanaryScores, compare: Compare, seed: int) -> dict[str, Any]:
    """A canary audit's report: estimates by name, and what they depend on.

    Args:
        result: what the attack wrote.
        compare: confidence of ``auc`` and ``exposure``; the bounds have the attack's own.
        seed: of the bootstrap.

    Returns:
        ``{"type": "canaries", "estimates": {name: estimate}, ...}`` as plain data. ``epsilon`` and ``epsilon_gdp`` have
        no upper end: an audit says nothing about it.
    """
    scores, inserted = result.scores, result.inserted
    estimates = {
        "epsilon": measured_epsilon(result),
        "epsilon_gdp": measured_epsilon(result, gdp_one_run_epsilon, "holds for Gaussian mechanisms (mu-GDP) only; "),
        "auc": _auc(scores[inserted], scores[~inserted], compare.confidence, stream(seed, "auc")),
    }
    for copies in sorted(set(result.copies.tolist())):
        chosen = scores[inserted & (result.copies == copies)]
        rng = stream(seed, "exposure", copies)
        estimates[f"exposure[{copies}]"] = _exposure(chosen, scores[~inserted], compare.confidence, rng)
    return {
        "type": "canaries",
        "estimates": {name: estimate.as_json() for name, estimate in estimates.items()},
        "delta": float(result.delta),
        "confidence": float(result.confidence),
        "selection": _selection(result),
    }


def _selection(result: CanaryScores) -> Any:
    """How the choice of guesses is paid for, by its name."""
    return "split" if result.split else "bonferroni"


def measured_epsilon(result: CanaryScores, bound: Bound = one_run_epsilon, assumption: str = "") -> Estimate:
    """A lower bound on epsilon at the result's delta; from the canaries that stand once, as a guarantee is for one."""
    once = result.copies == 1
    counts = {"canaries": int(once.sum()), "guesses": 0, "correct": 0}
    if counts["canaries"] < FEWEST_GUESSED:
        note = f"withheld: needs {FEWEST_GUESSED} canaries with one copy"
        return Estimate(None, None, None, counts, note)
    delta, confidence = float(result.delta), float(result.confidence)
    found = best_one_run_epsilon(
        result.scores[once], result.inserted[once], delta, confidence, _selection(result), bound
    )
    guessing = found.guessing
    counts = {"canaries": guessing.canaries, "guesses": guessing.guesses, "correct": guessing.correct}
    note = f"{assumption}lower bound at delta {delta:g}, {confidence:.4g} confidence; 0 shows nothing"
    return Estimate(found.epsilon, found.epsilon, None, counts, note)


def _auc(inserted: np.ndarray, left_out: np.ndarray, confidence: float, rng: np.random.Generator) -> Estimate:
    """AUC of inserted canaries against those that were left out."""
    found = auc(inserted, left_out, confidence, rng)
    return replace(found, n={"inserted": len(inserted), "left_out": len(left_out)})


def _exposure(inserted: np.ndarray, left_out: np.ndarray, confidence: float, rng: np.random.Generator) -> Estimate:
    """Median exposure in bits among the canaries that were left out, with a percentile bootstrap over both.

    Where no left-out canary reaches the median the bootstrap sees no variation; there the lower end is of the rank
    that Clopper and Pearson's bound on the share of such canaries allows.
    """
    counts = {"inserted": len(inserted), "left_out": len(left_out)}
    if len(inserted) < FEWEST_INSERTED or not len(left_out):
        note = f"withheld: needs {FEWEST_INSERTED} inserted canaries and one that was left out"
        return Estimate(None, None, None, counts, note)
    medians = [
        np.median(exposure(rng.choice(inserted, len(inserted)), rng.choice(left_out, len(left_out))))
        for _ in range(RESAMPLES)
    ]
    low, high = (float(end) for end in np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2]))
    value, most = float(np.median(exposure(inserted, left_out))), float(np.log2(len(left_out) + 1))
    if value == most:
        _, share = clopper_pearson(0, len(left_out), confidence)
        low = min(low, most - float(np.log2(1 + share * len(left_out))))
    note = f"bits; 1 is chance, {most:.1f} the most that can be seen"
    return Estimate(value, min(value, low), max(value, high), counts, note)
