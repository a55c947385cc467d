"""Figures of similarity: how many samples are copies, how similar they are, and the same of held-out images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from unmem.evaluate.audit import Audit
from unmem.evaluate.results import Similarities
from unmem.evaluate.statistics import quantile, rate

if TYPE_CHECKING:
    from unmem.evaluate.analysis import Compare

LEVELS = (0.75, 0.9, 0.95)  # Somepalli et al.'s percentiles


def similarity_figures(result: Similarities, audit: Audit, compare: Compare) -> dict[str, Any]:
    """The report of an attack by similarity.

    * ``copied``: of the samples, those more similar to a member than the threshold.
    * ``similarity[q]``: the q-quantile of the samples' similarity to the most similar member.
    * ``copied_held_out``, ``similarity_held_out[q]``: the same with held-out images in place of members, the control.
    """
    confidence, limit, samples = compare.confidence, float(result.threshold), len(result.member)
    where = "the held-out images' own threshold" if result.taken else "the threshold"
    note = f"{where}, {limit:.4g}"
    if result.taken:
        beyond = int((result.held_out > limit).sum())
        note += f", is exceeded by {beyond} of {len(result.held_out)} of them"
    sides = {"": result.member_similarity, "_held_out": result.nonmember_similarity}
    estimates = {f"copied{side}": rate(int((found > limit).sum()), samples, confidence, note)
                 for side, found in sides.items()}  # fmt: skip
    for level in LEVELS:
        for side, found in sides.items():
            estimates[f"similarity{side}[{level:g}]"] = quantile(found, level, confidence)
    levels = np.linspace(0, 1, 21)
    return {
        "type": "similarity",
        "estimates": {name: estimate.as_json() for name, estimate in estimates.items()},
        "samples": samples,
        "threshold": limit,
        "quantiles": {
            "level": levels.round(3).tolist(),
            "member": np.quantile(result.member_similarity, levels).round(6).tolist(),
            "nonmember": np.quantile(result.nonmember_similarity, levels).round(6).tolist(),
        },
        "matches": _matches(result, audit, limit),
    }


def _matches(result: Similarities, audit: Audit, limit: float) -> list[dict[str, Any]]:
    """Each copied member with its most similar sample, the most similar first."""
    planted, best = set(audit.planted), dict[int, int]()
    for sample in np.argsort(-result.member_similarity, kind="stable").tolist():
        if result.member_similarity[sample] > limit:
            best.setdefault(int(result.member[sample]), sample)
    return [
        {
            "id": audit.members[member],
            "sample": sample,
            "similarity": float(result.member_similarity[sample]),
            "planted": audit.members[member] in planted,
        }
        for member, sample in best.items()
    ]
