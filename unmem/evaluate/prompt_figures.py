"""Figures of extraction by prompt: what was flagged and extracted, what would have been, and what was no memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from unmem.evaluate.audit import Audit
from unmem.evaluate.results import Agreements
from unmem.evaluate.statistics import rate

if TYPE_CHECKING:
    from unmem.evaluate.analysis import Compare

CURVE = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)  # distances at which extraction is counted


def prompt_figures(result: Agreements, audit: Audit, compare: Compare) -> dict[str, Any]:
    """The report of an attack by prompts.

    * ``flagged``: of the prompts with enough samples, those with a clique.
    * ``extracted``: of the members whose caption was such a prompt, those near to the middle of its clique.
    * ``false_positives``: the same of held-out images whose caption no member has: images with one caption are often
      alike, as variants of one picture are, and those of held-out images would be no control.
    * ``precision``: of the flagged prompts that are members' captions, those that lead to such a member.
    * ``recall``: of the prompts that are memorized for certain, those that are flagged. That is a prompt of which as
      many samples as make a clique are near to one member with this caption, whatever they are to one another.
    * ``flagged_planted``: of the prompts that are planted members' captions, those that are flagged: what is known to
      have been there to memorize.
    """
    confidence, least = compare.confidence, int(result.clique)
    judged = result.samples >= least
    flagged = result.medoid >= 0
    known = judged & (result.members > 0)
    memorized = known & (result.member_near >= least)
    limit = float(result.near)
    control = result.members == 0
    members, held_out = (np.unique(found) for found in _extracted(result, limit))
    right = flagged & known & (result.member_distance <= limit)
    few = int((~judged).sum())
    note = f"{few} further prompts have fewer than {least} samples" if few else ""
    note += f"{'; ' if note else ''}{result.black} black samples are left out" if result.black else ""
    estimates = {
        "flagged": rate(int(flagged.sum()), int(judged.sum()), confidence, note),
        "extracted": rate(
            len(members), int(result.members[judged].sum()), confidence, "members whose caption was asked"
        ),
        "false_positives": rate(
            len(held_out),
            int(result.nonmembers[judged & control].sum()),
            confidence,
            "held-out images by the same rule, where no member has the caption",
        ),
        "precision": rate(int(right.sum()), int((flagged & known).sum()), confidence),
        "recall": rate(int((flagged & memorized).sum()), int(memorized.sum()), confidence),
    }
    if audit.planted:
        planted = judged & (result.planted > 0)
        estimates["flagged_planted"] = rate(int((flagged & planted).sum()), int(planted.sum()), confidence)
    curve = [
        {"threshold": at, **{name: len(np.unique(found)) for name, found in
         zip(("extracted", "false_positives"), _extracted(result, at), strict=True)}}
        for at in CURVE
    ]  # fmt: skip
    order = [int(i) for i in np.argsort(result.mean, kind="stable") if flagged[i]]
    return {
        "type": "extraction",
        "estimates": {name: estimate.as_json() for name, estimate in estimates.items()},
        "samples": int(result.samples.sum()),
        "black": int(result.black),
        "threshold": limit,
        "curve": curve,
        "prompts": [
            {
                "sample": int(result.sample[i]),
                "samples": int(result.samples[i]),
                "mean_distance": float(result.mean[i]),
                "medoid": int(result.medoid[i]),
            }
            for i in order
        ],
        "matches": _matches(result, audit, [i for i in order if right[i]], limit),
    }


def _extracted(result: Agreements, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Members, and held-out images of prompts that are no member's caption, within a distance of the prompt's medoid.

    Some perhaps several times.
    """
    member = (result.member >= 0) & (result.member_distance <= limit)
    held_out = (result.nonmember >= 0) & (result.nonmember_distance <= limit) & (result.members == 0)
    return result.member[member], result.nonmember[held_out]


def _matches(result: Agreements, audit: Audit, order: list[int], limit: float) -> list[dict[str, Any]]:
    """Each extracted member with the sample that gives it away, the tightest clique first."""
    planted = set(audit.planted)
    best = {int(result.member[i]): i for i in reversed(order)}
    return [
        {
            "id": audit.members[member],
            "sample": int(result.medoid[i]),
            "distance": float(result.member_distance[i]),
            "ratio": float(result.member_distance[i]) / limit if limit else 0.0,
            "planted": audit.members[member] in planted,
        }
        for member, i in sorted(best.items(), key=lambda pair: order.index(pair[1]))
    ]
