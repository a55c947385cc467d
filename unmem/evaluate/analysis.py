"""From scores on disk to figures with intervals; no model is touched here."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from unmem.component import Confidence, component
from unmem.evaluate.audit import Audit
from unmem.evaluate.canary_figures import canary_figures
from unmem.evaluate.prompt_figures import prompt_figures
from unmem.evaluate.rarefaction import bounds, extrapolated, rarefied
from unmem.evaluate.results import (
    Agreements,
    CanaryScores,
    Distances,
    Matches,
    Result,
    Scores,
    Screened,
    SetScores,
    Similarities,
)
from unmem.evaluate.screen_figures import screen_figures
from unmem.evaluate.set_test import set_figures
from unmem.evaluate.similarity_figures import similarity_figures
from unmem.evaluate.statistics import (
    Estimate,
    auc,
    auc_difference,
    balanced_accuracy,
    paired_rate_difference,
    permutation_p_value,
    rate,
    roc,
    tpr_at_fpr,
    transferred,
)
from unmem.rng import stream

CURVE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)  # thresholds at which extraction is counted
HALVINGS = 10  # of the samples: sizes at which extraction is counted
FURTHER = 10  # times as many samples: how far extraction is extrapolated


@component
class Compare:
    """How arms are compared.

    Attributes:
        against: the arm that the others are compared with.
        tpr_at_fpr: false-positive rates at which the true-positive rate is given.
        confidence: of all intervals.
    """

    against: str = "baseline"
    tpr_at_fpr: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.01,)
    confidence: Confidence = 0.95


def analyse(result: Result, audit: Audit, dropped: frozenset[str], compare: Compare, seed: int) -> dict[str, Any]:
    """An attack's report: estimates by name, and what figures are drawn from.

    Args:
        result: what the attack wrote.
        audit: the split.
        dropped: members that the arm's mitigations left out: members as intended, not as trained.
        compare: confidence and rates.
        seed: of the bootstrap.

    Returns:
        ``{"estimates": {name: estimate}, ...}`` as plain data.
    """
    if isinstance(result, SetScores):
        return set_figures(result, compare, seed)
    if isinstance(result, Scores):
        return _membership(result, audit, dropped, compare, seed)
    if isinstance(result, Matches):
        return _extraction(result, audit, compare)
    if isinstance(result, Agreements):
        return prompt_figures(result, audit, compare)
    if isinstance(result, CanaryScores):
        return canary_figures(result, compare, seed)
    if isinstance(result, Similarities):
        return similarity_figures(result, audit, compare)
    if isinstance(result, Screened):
        return screen_figures(result, compare, seed)
    return _nearness(result, compare)


def difference(first: Result, second: Result, audit: Audit, compare: Compare, seed: int) -> dict[str, Estimate]:
    """Estimates of ``first`` minus those of ``second``, paired over the same images; by the estimates' names."""
    if type(first) is Scores and type(second) is Scores:
        rng = stream(seed, "difference")
        tested, fresh = first.tested.members, first.tested.nonmembers
        planted = audit.is_planted() & tested
        pairs = {"auc": tested} | ({"auc_planted": planted} if planted.any() else {})
        return {
            name: auc_difference(
                (first.members[chosen], first.nonmembers[fresh]),
                (second.members[chosen], second.nonmembers[fresh]),
                compare.confidence,
                rng,
            )
            for name, chosen in pairs.items()
        }
    if isinstance(first, Matches) and isinstance(second, Matches):
        a, b = extracted(first, len(audit.members)), extracted(second, len(audit.members))
        planted = audit.is_planted()
        found = {"extracted": paired_rate_difference(a, b, compare.confidence)}
        if planted.any():
            found["extracted_planted"] = paired_rate_difference(a[planted], b[planted], compare.confidence)
        return found
    return {}


def extracted(matches: Matches, members: int, threshold: float | None = None) -> np.ndarray:
    """bool [members]: which members some sample matches."""
    limit = float(matches.threshold) if threshold is None else threshold
    return _found(matches.member, matches.member_ratio, members, limit)


def _found(nearest: np.ndarray, ratio: np.ndarray, count: int, limit: float) -> np.ndarray:
    """bool [count]: which images some sample matches at this limit."""
    found = np.zeros(count, dtype=bool)
    found[nearest[ratio < limit]] = True
    return found


def _membership(scores: Scores, audit: Audit, dropped: frozenset[str], compare: Compare, seed: int) -> dict[str, Any]:
    """AUC, TPR at FPR and balanced accuracy; over all members, those trained on, and the planted ones."""
    tested, fresh = scores.tested.members, scores.tested.nonmembers
    members, nonmembers = scores.members[tested], scores.nonmembers[fresh]
    confidence, planted = compare.confidence, audit.is_planted()[tested]
    trained = np.array([name not in dropped for name in audit.members])[tested]
    estimates = {"auc": auc(members, nonmembers, confidence, stream(seed, "auc"))}
    if not trained.all():
        estimates["auc_as_trained"] = auc(members[trained], nonmembers, confidence, stream(seed, "trained"))
    if planted.any():
        estimates["auc_planted"] = auc(members[planted], nonmembers, confidence, stream(seed, "planted"))
    for fpr in compare.tpr_at_fpr:
        estimates[f"tpr_at_fpr[{fpr:g}]"] = tpr_at_fpr(members, nonmembers, fpr, confidence)
    estimates["balanced_accuracy"] = balanced_accuracy(members, nonmembers, confidence, stream(seed, "halves"))
    calibration = audit.is_calibration().nonmembers
    for fpr in compare.tpr_at_fpr:
        kept = fresh & ~calibration
        tpr, seen = transferred(members, scores.nonmembers[kept], scores.nonmembers[calibration], fpr, confidence)
        estimates |= {f"tpr_transferred[{fpr:g}]": tpr, f"fpr_transferred[{fpr:g}]": seen}
    estimates["permutation_p_value"] = permutation_p_value(members, nonmembers)
    if len(scores.generated):
        generated = auc(scores.generated, nonmembers, confidence, stream(seed, "generated"))
        estimates["auc_generated"] = replace(generated, note="the model's own samples in place of members")
    return {"type": "membership", "estimates": _plain(estimates), "roc": roc(members, nonmembers)}


def _extraction(matches: Matches, audit: Audit, compare: Compare) -> dict[str, Any]:
    """Extracted members beside matched held-out images, which are false positives by construction."""
    members, nonmembers, confidence = len(audit.members), len(audit.nonmembers), compare.confidence
    hit, planted = extracted(matches, members), audit.is_planted()
    false = _found(matches.nonmember, matches.nonmember_ratio, nonmembers, float(matches.threshold))
    estimates = {"extracted": rate(int(hit.sum()), members, confidence)}
    if planted.any():
        estimates["extracted_planted"] = rate(int(hit[planted].sum()), int(planted.sum()), confidence)
    estimates["false_positives"] = rate(int(false.sum()), nonmembers, confidence, "held-out images by the same rule")
    estimates |= _by_copies(hit, audit, confidence)
    limit = float(matches.threshold)
    hits = {
        "extracted": np.bincount(matches.member[matches.member_ratio < limit], minlength=members),
        "false_positives": np.bincount(matches.nonmember[matches.nonmember_ratio < limit], minlength=nonmembers),
    }
    samples_curve, further = _by_samples(hits, len(matches.member), confidence)
    curve = [
        {
            "threshold": limit,
            "extracted": int((found := extracted(matches, members, limit)).sum()),
            "extracted_planted": int(found[planted].sum()),
            "false_positives": int(_found(matches.nonmember, matches.nonmember_ratio, nonmembers, limit).sum()),
        }
        for limit in CURVE
    ]
    return {
        "type": "extraction",
        "estimates": _plain(estimates | further),
        "samples": len(matches.member),
        "threshold": float(matches.threshold),
        "group_threshold": float(matches.group_threshold),
        "curve": curve,
        "samples_curve": samples_curve,
        "eidetic": _eidetic(hit, matches.copies),
        "matches": _best_matches(matches, audit, hit),
    }


def _eidetic(hit: np.ndarray, copies: np.ndarray) -> list[dict[str, int]]:
    """How many extracted members have at most k images like them in the training set, themselves included.

    These are (k, l2, delta)-eidetically memorized (Carlini et al. 2023, definition 2), delta being the attack's
    ``group_threshold``; k doubles up to the largest number there is.
    """
    doublings = int(np.ceil(np.log2(max(1, copies[hit].max(initial=1)))))
    return [{"k": 2**i, "extracted": int((hit & (copies <= 2**i)).sum())} for i in range(doublings + 1)]


def _by_copies(hit: np.ndarray, audit: Audit, confidence: float) -> dict[str, Estimate]:
    """How many of the members that stand so often in the training set are extracted, if planted ones differ in that."""
    copies = audit.member_copies
    if len(np.unique(copies[audit.is_planted()])) < 2:
        return {}
    return {
        f"extracted_by_copies[{k}]": rate(int(hit[copies == k].sum()), int((copies == k).sum()), confidence)
        for k in np.unique(copies).tolist()
    }


def _by_samples(
    hits: dict[str, np.ndarray], samples: int, confidence: float
) -> tuple[list[dict[str, Any]], dict[str, Estimate]]:
    """How many images of each kind fewer samples match, and an estimate for ``FURTHER`` times as many.

    Args:
        hits: name -> int64 [images], how many samples match each.
        samples: all samples.
        confidence: of the intervals.
    """
    sizes = sorted({max(1, samples >> k) for k in range(HALVINGS + 1)})
    curve: list[dict[str, Any]] = [{"samples": size} for size in sizes]
    further = {}
    for name, of_image in hits.items():
        images, found = len(of_image), int((of_image > 0).sum())
        *within, (low, high) = bounds(of_image, samples, [*sizes, FURTHER * samples], confidence).tolist()
        for point, value, ends in zip(curve, rarefied(of_image, samples, sizes).tolist(), within, strict=True):
            point |= {name: value, f"{name}_low": min(value, ends[0]), f"{name}_high": max(value, ends[1])}
        expected = min(max(extrapolated(of_image, FURTHER), low), high)
        counts = {"successes": round(expected), "trials": images, "found": found, "samples": samples}
        note = f"extrapolated to {FURTHER * samples} samples"
        further[f"{name}_at_{FURTHER}x"] = Estimate(expected / images, low / images, high / images, counts, note)
    return curve, further


def _best_matches(matches: Matches, audit: Audit, hit: np.ndarray) -> list[dict[str, Any]]:
    """For each extracted member the sample with the smallest ratio, best first."""
    best: dict[int, int] = {}
    for sample in np.argsort(matches.member_ratio, kind="stable").tolist():
        member = int(matches.member[sample])
        if hit[member]:
            best.setdefault(member, sample)
    planted = set(audit.planted)
    return [
        {
            "id": audit.members[member],
            "sample": sample,
            "distance": float(matches.member_distance[sample]),
            "ratio": float(matches.member_ratio[sample]),
            "planted": audit.members[member] in planted,
        }
        for member, sample in best.items()
    ]


def _nearness(distances: Distances, compare: Compare) -> dict[str, Any]:
    """How often a sample is nearer to the training set than to held-out images; a half is chance."""
    closer, samples = int((distances.member < distances.nonmember).sum()), len(distances.member)
    ties = int((distances.member == distances.nonmember).sum())
    estimates = {"nearer_to_training": rate(closer, samples - ties, compare.confidence, "0.5 is chance")}
    levels = np.linspace(0, 1, 21)
    return {
        "type": "nearness",
        "estimates": _plain(estimates),
        "quantiles": {
            "level": levels.round(3).tolist(),
            "member": np.quantile(distances.member, levels).round(6).tolist(),
            "nonmember": np.quantile(distances.nonmember, levels).round(6).tolist(),
        },
    }


def _plain(estimates: dict[str, Estimate]) -> dict[str, Any]:
    """Estimates as JSON."""
    return {name: estimate.as_json() for name, estimate in estimates.items()}
