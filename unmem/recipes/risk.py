"""The members of a run, one by one: how exposed is each, by every attack?"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unmem.component import UserError, suggest
from unmem.evaluate import results
from unmem.evaluate.audit import Audit
from unmem.mitigations.ledger import copies
from unmem.mitigations.near_duplicates import NearDuplicates
from unmem.recipes.runner import arm_of, open_run
from unmem.rng import stream
from unmem.rundir import read_json, write_json, write_text

NOTABLE = 0.05  # a risk that is counted in the summary; chance gives it to at most this share of the members


@dataclass(frozen=True)
class Exposure:
    """One attack's word on the members.

    Attributes:
        scores: float64 [members]: larger means more likely a member.
        p: float64 [members]: (1 + k) / (1 + n), where k of n non-members score at least as high.
        rank: int64 [members]: 1 for the member with the largest score; equal scores share the better rank.
        tested: bool [members]: whose membership the attack did not learn from; the others' numbers mean nothing.
    """

    scores: np.ndarray
    p: np.ndarray
    rank: np.ndarray
    tested: np.ndarray

    @classmethod
    def of(cls, scores: results.Scores) -> Exposure:
        """From an attack's scores."""
        tested = scores.tested.members
        members, nonmembers = scores.members[tested], scores.nonmembers[scores.tested.nonmembers]
        reached = len(nonmembers) - np.searchsorted(np.sort(nonmembers), scores.members, side="left")
        higher = len(members) - np.searchsorted(np.sort(members), scores.members, side="right")
        return cls(scores.members, (1 + reached) / (1 + len(nonmembers)), 1 + higher, tested)


def write(root: Path, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """Write ``risk.json`` and ``risk.csv`` of a finished run, and return what the former holds.

    Args:
        root: the run's directory.
        only: arms; all that are finished when empty.

    Raises:
        UserError: for unknown or unfinished arms, and where no attack scores members.
    """
    comparison = read_json(root / "comparison.json")
    for name in only:
        if name not in comparison["arms"]:
            have = ", ".join(comparison["arms"])
            raise UserError(f"--arm {name}: no such finished arm{suggest(name, comparison['arms'])}; have {have}")
    audit = Audit.open(root)
    standing = _copies(audit, open_run(root).seed)
    arms = {
        name: _arm(root, name, arm["attacks"], audit, standing)
        for name, arm in comparison["arms"].items()
        if not only or name in only
    }
    found = {"schema": 1, "members": len(audit.members), "nonmembers": len(audit.nonmembers), "arms": arms}
    write_json(root / "risk.json", found)
    write_text(root / "risk.csv", _table(arms))
    return found


def summary(found: dict[str, Any]) -> list[str]:
    """How many members are exposed, one line an arm."""
    lines = []
    for name, members in found["arms"].items():
        smallest = len(members[0]["attacks"]) / (1 + found["nonmembers"])
        if smallest > NOTABLE:
            lines.append(
                f"{name}: {found['nonmembers']} nonmembers resolve no risk below {smallest:.2g}, so nobody can stand "
                f"out at {NOTABLE:g}; give more of them, or fewer attacks"
            )
            continue
        exposed = sum(member["risk"] is not None and member["risk"] <= NOTABLE for member in members)
        lines.append(
            f"{name}: {exposed} of {len(members)} members stand out at a risk of {NOTABLE:g} or less; were the model "
            f"to know none of them, at most {NOTABLE * len(members):.3g} would be expected"
        )
    return lines


def _arm(
    root: Path, name: str, reports: dict[str, Any], audit: Audit, standing: dict[str, int]
) -> list[dict[str, Any]]:
    """The members of an arm, the most exposed first."""
    exposures = {}
    for attack, report in reports.items():
        if report["type"] == "membership" and report["kind"] != "blind":
            scores = results.load(root / "arms" / name / "attacks" / attack / "scores.npz")
            assert isinstance(scores, results.Scores)
            exposures[attack] = Exposure.of(scores)
    if not exposures:
        raise UserError(f"{root}: no attack on {name} scores members; run one, such as loss")
    dropped = arm_of(root, name).dropped_members(audit)
    members = []
    for i, member in enumerate(audit.members):
        words = {attack: _word(exposure, i) for attack, exposure in exposures.items()}
        said = [word["p"] for word in words.values() if word is not None]
        members.append(
            {
                "id": member,
                "risk": min(1.0, len(said) * min(said)) if said else None,
                "copies": standing.get(member, 1),
                "trained_on": member not in dropped,
                "attacks": words,
            }
        )
    return sorted(members, key=_order)


def _word(exposure: Exposure, i: int) -> dict[str, Any] | None:
    """What an attack says of a member; nothing where it learnt from it."""
    if not exposure.tested[i]:
        return None
    return {"score": float(exposure.scores[i]), "p": float(exposure.p[i]), "rank": int(exposure.rank[i])}


def _order(member: dict[str, Any]) -> tuple[float, float, str]:
    """By risk; among equals, by what the attacks say together; then by id, so that it is always the same."""
    said = [word["p"] for word in member["attacks"].values() if word is not None]
    return (
        math.inf if member["risk"] is None else member["risk"],
        math.fsum(math.log(p) for p in said) / max(1, len(said)),
        member["id"],
    )


def _copies(audit: Audit, seed: int) -> dict[str, int]:
    """How often the members that do not stand alone stand in the training set, near duplicates counted."""
    _, dropped = NearDuplicates().apply(audit.member_training, stream(seed, "risk"))
    return copies((entry.id, entry.kept) for entry in dropped)


def _table(arms: dict[str, list[dict[str, Any]]]) -> str:
    """The same as comma-separated values."""
    attacks = list(dict.fromkeys(attack for members in arms.values() for attack in members[0]["attacks"]))
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    columns = [f"{attack}_{what}" for attack in attacks for what in ("score", "p", "rank")]
    out.writerow(["arm", "place", "id", "risk", "copies", "trained_on", *columns])
    for name, members in arms.items():
        for place, member in enumerate(members, 1):
            words = [member["attacks"].get(attack) or {} for attack in attacks]
            cells = [word.get(what) for word in words for what in ("score", "p", "rank")]
            facts = [member["id"], member["risk"], member["copies"], str(member["trained_on"]).lower()]
            out.writerow([name, place, *facts, *cells])
    return text.getvalue()
