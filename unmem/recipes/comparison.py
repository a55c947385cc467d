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
from unmem.recipes.cost import COST
from unmem.recipes.defences import defence, own_settings
from unmem.recipes.pareto import fronts
from unmem.recipes.recipe import Recipe, kind_of
from unmem.recipes.training import saved_in
from unmem.recipes.verdict import verdict
from unmem.rng import derive
from unmem.rundir import read_json

REFUTED_AT = 0.99  # confidence at which an audit refutes a guarantee: a run that fails by chance is no use


def compare(recipe: Recipe, arms: list[Arm], root: Path) -> dict[str, Any]:
    """The comparison of the finished arms, as plain data (the form is in docs/run-directory.md)."""
    audit = Audit.open(root)
    planted = audit.member_copies[audit.is_planted()]
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
            "copies": int(planted.max(initial=1)),
            "fewest_copies": int(planted.min(initial=planted.max(initial=1))),
            "training_images": len(audit.training),
            "shape": list(audit.data.shape),
            "quarantined": len(read_json(root / "quarantine.json")),
        },
        "arms": {arm.name: _arm(arm, recipe) for arm in done},
        "unfinished": [arm.name for arm in arms if arm not in done],
    }
    _count_copies(found["arms"], done)
    reference = next((arm for arm in done if arm.name == recipe.compare.against), None)
    others = [arm for arm in done if arm is not reference]
    found["differences"] = {
        arm.name: _differences(arm, reference, audit) if reference is not None else {} for arm in others
    }
    found["pareto"] = fronts(found)
    found["verdict"] = verdict(found)
    return found


def _arm(arm: Arm, recipe: Recipe) -> dict[str, Any]:
    """One arm's figures; ``recipe`` is that of all arms."""
    trained = _optional(arm.directory / "data" / "ledger.json")
    spent = _optional(arm.directory / "train" / "privacy.json")
    seconds = {name: stage.seconds for name, stage in arm.stages.items()}
    if arm.shadows:
        seconds["shadows"] = sum(stage.seconds for shadow in arm.shadows for stage in shadow.stages.values())
    return {
        "trained": trained is not None,
        "control": kind_of(arm.finished_model) if arm.is_control else None,
        "model": _model(arm) if trained is not None else None,
        "mitigations": arm.plain_mitigations,
        "own": own_settings(recipe.resolved.get("arms", {}).get(arm.name), recipe.resolved),
        "defences": [defence(part, kind_of(part)) for part in arm.mitigations],
        "training_images": trained["kept"] if trained else None,
        "dropped": len(trained["dropped"]) if trained else 0,
        "privacy": spent,
        "measured": _measured(arm, spent) if spent else [],
        "sampling": _sampling(arm),
        "attacks": {name: _attack(arm, name, attack) for name, attack in arm.recipe.attacks.items()},
        "quality": {name: read_json(arm.directory / "quality" / name / "report.json") for name in arm.recipe.quality},
        "seconds": seconds,
        "cost": {stage: _optional(arm.directory / stage / COST) for stage in ("train", "samples")},
    }


def _model(arm: Arm) -> dict[str, str]:
    """The kind of model that was trained, what it can be asked for, and the folder that it was saved in."""
    model = arm.recipe.model
    return {"kind": kind_of(model), "conditioning": getattr(model, "conditioning", "none"), "saved_as": saved_in(model)}


def _attack(arm: Arm, name: str, attack: Any) -> dict[str, Any]:
    """An attack's report, with the access that it needs."""
    report = read_json(arm.directory / "attacks" / name / "report.json")
    return {**report, "needs": sorted(attack.needs)}


def _optional(path: Path) -> Any:
    """What a JSON file holds; None where there is none."""
    return read_json(path) if path.exists() else None


def _sampling(arm: Arm) -> dict[str, Any] | None:
    """The mitigations that stand between the model and who asks it for samples, what they refused, what was asked."""
    guards = [kind_of(part) for part in arm.mitigations if getattr(part, "protects", "") == "samples"]
    asked = _optional(arm.directory / "samples" / "asked.json")
    if not guards and asked is None:
        return None
    return {"guards": guards, "refused": _optional(arm.directory / "samples" / "refused.json"), "asked": asked}


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
