"""All arms in one JSON file: figures, differences from the arm of reference, and the verdict in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unmem.evaluate import results
from unmem.evaluate.analysis import difference
from unmem.evaluate.audit import Audit
from unmem.mitigations.ledger import copies
from unmem.recipes.arm import Arm
from unmem.recipes.recipe import Recipe
from unmem.recipes.verdict import verdict
from unmem.rng import derive
from unmem.rundir import read_json


def compare(recipe: Recipe, arms: list[Arm], root: Path) -> dict[str, Any]:
    """The comparison of the finished arms, as plain data (the form is in docs/run-directory.md)."""
    audit = Audit.open(root)
    done = [arm for arm in arms if arm.finished]
    found: dict[str, Any] = {
        "schema": 1,
        "recipe": recipe.name,
        "against": recipe.compare.against,
        "confidence": recipe.compare.confidence,
        "data": {
            "kind": recipe.resolved["data"]["kind"],
            "members": len(audit.members),
            "nonmembers": len(audit.nonmembers),
            "planted": len(audit.planted),
            "copies": 1 + len(audit.copies) // max(1, len(audit.planted)),
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
    ledger = read_json(arm.directory / "data" / "ledger.json")
    privacy = arm.directory / "train" / "privacy.json"
    stages = arm.stages
    return {
        "mitigations": arm.mitigations,
        "training_images": ledger["kept"],
        "dropped": len(ledger["dropped"]),
        "privacy": read_json(privacy) if privacy.exists() else None,
        "attacks": {name: read_json(arm.directory / "attacks" / name / "report.json") for name in arm.recipe.attacks},
        "quality": {name: read_json(arm.directory / "quality" / name / "report.json") for name in arm.recipe.quality},
        "seconds": {name: stage.seconds for name, stage in stages.items()},
    }


def _count_copies(figures: dict[str, Any], arms: list[Arm]) -> None:
    """Say of each extracted image how often it stands in the training set, by the arm whose ledger found most."""
    most: dict[str, int] = {}
    for arm in arms:
        dropped = read_json(arm.directory / "data" / "ledger.json")["dropped"]
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
