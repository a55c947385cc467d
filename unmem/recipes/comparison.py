"""All arms in one JSON file: figures, differences from the arm of reference, and the verdict in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unmem.evaluate import results
from unmem.evaluate.analysis import difference
from unmem.evaluate.audit import Audit
from unmem.evaluate.canary_figures import measured_epsilon
from unmem.evaluate.statistics import Estimate
from unmem.mitigations.ledger import copies
from unmem.recipes.arm import Arm
from unmem.recipes.recipe import Recipe, kind_of
from unmem.recipes.verdict import verdict
from unmem.rng import derive
from unmem.rundir import read_json

REFUTED_AT = 0.99  # confidence at which an audit refutes a guarantee: a run that fails by chance is no use


def compare(recipe: Recipe, arms: list[Arm], root: Path) -> dict[str, Any]:
    """The comparison of the finished arms, as plain data (the form is in docs/run-directory.md)."""
    audit = Audit.open(root)
    done = [arm for arm in arms if arm.finished]
    found: dict[str, Any] = {
        "schema": 1,
        "recipe": recipe.name,
        "against": recipe.compare.against,
        "confidence": recipe.compare.confidence,
        "shadows": recipe.shadows.count if recipe.shadows is not None else 0,
        "data": {
            "kind": recipe.resolved["data"].get("kind", "given"),
            "members": len(audit.members),
            "nonmembers": len(audit.nonmembers),
            "planted": len(audit.planted),
            "canaries": len(audit.canaries),
            "copies": 1 + sum(name in audit.planted for name in audit.copies.values()) // max(1, len(audit.planted)),
            "training_images": len(audit.training),
            "shape": list(audit.data.shape),
            "quarantined": len(read_json(root / "quarantine.json")),
        },
        "arms": {arm.name: _arm(arm) for arm in done},
        "unfinished": [arm.name for arm in arms if arm not in done],
    }
    _count_copies(found["arms"], done)
    reference = next((arm for arm in done if arm.name == recipe.compare.against), None)
    others = [arm for arm in done if arm is not reference]
    found["differences"] = {
        arm.name: _differences(arm, reference, audit) if reference is not None else {} for arm in others
    }
    found["verdict"] = verdict(found)
    return found


def _arm(arm: Arm) -> dict[str, Any]:
    """One arm's figures."""
    ledger, privacy = arm.directory / "data" / "ledger.json", arm.directory / "train" / "privacy.json"
    trained = read_json(ledger) if ledger.exists() else None
    spent = read_json(privacy) if privacy.exists() else None
    seconds = {name: stage.seconds for name, stage in arm.stages.items()}
    if arm.shadows:
        seconds["shadows"] = sum(stage.seconds for shadow in arm.shadows for stage in shadow.stages.values())
    return {
        "trained": trained is not None,
        "mitigations": arm.plain_mitigations,
        "training_images": trained["kept"] if trained else None,
        "dropped": len(trained["dropped"]) if trained else 0,
        "privacy": spent,
        "measured": _measured(arm, spent) if spent else [],
        "sampling": _sampling(arm),
        "attacks": {name: read_json(arm.directory / "attacks" / name / "report.json") for name in arm.recipe.attacks},
        "quality": {name: read_json(arm.directory / "quality" / name / "report.json") for name in arm.recipe.quality},
        "seconds": seconds,
    }


def _sampling(arm: Arm) -> dict[str, Any] | None:
    """The mitigations that stand between the model and who asks it for samples, and what they refused; None without."""
    guards = [kind_of(part) for part in arm.mitigations if getattr(part, "protects", "") == "samples"]
    if not guards:
        return None
    refused = arm.directory / "samples" / "refused.json"
    return {"guards": guards, "refused": read_json(refused) if refused.exists() else None}


def _measured(arm: Arm, spent: dict[str, Any]) -> list[dict[str, Any]]:
    """What each canary audit measures at the delta of the guarantee, and whether that contradicts it."""
    found = []
    for name in arm.recipe.attacks:
        result = results.load(arm.directory / "attacks" / name / "scores.npz")
        if isinstance(result, results.CanaryScores):
            bound = _best_bound(result, spent["delta"])
            # where images are left out by a look at all of them, the guarantee is not about the data with the canaries
            covered = not spent["void"] and not any(hasattr(part, "apply") for part in arm.mitigations)
            contradicts = covered and bound.value is not None and bound.value > spent["epsilon"]
            found.append({"attack": name, "epsilon": bound.as_json(), "contradicts": contradicts})
    return found


def _best_bound(result: results.CanaryScores, delta: float) -> Estimate:
    """The larger of the bounds by both ways to pay for the choice of guesses, each at half of the error.

    The one is better for few canaries, the other where canaries times delta is no longer small.
    """
    confidence = np.array(1 - (1 - REFUTED_AT) / 2)
    ways = [
        measured_epsilon(replace(result, delta=np.array(delta), confidence=confidence, split=np.array(split)))
        for split in (False, True)
    ]
    return max(ways, key=lambda bound: -1.0 if bound.value is None else bound.value)


def _count_copies(figures: dict[str, Any], arms: list[Arm]) -> None:
    """Say of each extracted image how often it stands in the training set, by the arm whose ledger found most."""
    most: dict[str, int] = {}
    for arm in arms:
        ledger = arm.directory / "data" / "ledger.json"
        dropped = read_json(ledger)["dropped"] if ledger.exists() else []
        for name, count in copies((entry["id"], entry["kept"]) for entry in dropped).items():
            most[name] = max(count, most.get(name, 1))
    for found in figures.values():
        for attack in found["attacks"].values():
            for match in attack.get("matches", []):
                match["copies"] = most.get(match["id"], 1)


def _differences(arm: Arm, reference: Arm, audit: Audit) -> dict[str, Any]:
    """Paired differences of every attack's figures, arm minus reference, as ``attack.figure``."""
    found = {}
    for name, attack in arm.recipe.attacks.items():
        if not attack.needs:
            continue  # a control that never sees the model cannot differ
        pair = [results.load(a.directory / "attacks" / name / "scores.npz") for a in (arm, reference)]
        seed = derive(arm.recipe.seed, "difference", name)
        for figure, estimate in difference(pair[0], pair[1], audit, arm.recipe.compare, seed).items():
            found[f"{name}.{figure}"] = estimate.as_json()
    return found
