"""What a sweep came to, from its cells' comparisons: the content of ``sweep.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmem.component import UserError
from unmem.recipes.sweep_grid import SEED, Sweep
from unmem.recipes.verdict import contradictions
from unmem.rundir import read_json

SCHEMA = 1
FILE = "sweep.json"


def read(root: Path) -> dict[str, Any]:
    """What stands in a sweep's directory.

    Raises:
        UserError: when ``sweep.json`` is missing, damaged or of another version.
    """
    found = read_json(root / FILE)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise UserError(f"{root / FILE}: not a sweep of this version (needs schema {SCHEMA})")
    return found


def summary(
    sweep: Sweep, root: Path, places: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str]
) -> dict[str, Any]:
    """Grid, cells with their figures, and means over seeds, as plain data (the form is in docs/sweeps.md).

    Args:
        sweep: the checked sweep.
        root: its directory.
        places: cell's key -> its ``directory``, relative to ``root``, and ``data``, the key of its data stage.
        failed: cell's key -> what went wrong this time.
    """
    cells, confidence = [], None
    for cell in sweep.cells:
        file = root / places[cell.key]["directory"] / "comparison.json"
        found = read_json(file) if file.exists() else None
        if found is not None:
            confidence = found["confidence"]
        cells.append(
            {
                "name": cell.name,
                "values": cell.values,
                "key": cell.key,
                **places[cell.key],
                "state": _state(found, cell.key in failed),
                "message": failed.get(cell.key, ""),
                "refuted": contradictions(found) if found else [],
                "arms": {name: _arm(arm) for name, arm in found["arms"].items()} if found else {},
            }
        )
    return {
        "schema": SCHEMA,
        "recipe": sweep.name,
        "base": sweep.base,
        "grid": sweep.grid,
        "confidence": confidence,
        "cells": cells,
        "means": means(cells),
    }


def figures_of(arm: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``attack.figure`` or a quality measure's name -> estimate, of one arm of a cell."""
    found = {
        f"{name}.{figure}": e for name, attack in arm["attacks"].items() for figure, e in attack["estimates"].items()
    }
    return found | {name: measure["estimate"] for name, measure in arm["quality"].items()}


def means(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cells that differ in their seed alone, taken together: mean, smallest and largest value of every figure.

    An interval of one cell speaks of its images and samples, none of training again: the spread is given as it is.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        if SEED in cell["values"] and cell["arms"]:
            rest = {path: value for path, value in cell["values"].items() if path != SEED}
            groups.setdefault(repr(rest), []).append(cell)
    found = []
    for group in groups.values():
        rest = {path: value for path, value in group[0]["values"].items() if path != SEED}
        arms = list(dict.fromkeys(name for cell in group for name in cell["arms"]))
        found.append({"values": rest, "arms": {name: _over_seeds(name, group) for name in arms}})
    return found


def _over_seeds(arm: str, group: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figure -> mean, range and number of seeds, of one arm; figures that no seed has a value of are left out."""
    values: dict[str, list[float]] = {}
    for cell in group:
        for figure, estimate in figures_of(cell["arms"][arm]).items() if arm in cell["arms"] else ():
            if estimate["value"] is not None:
                values.setdefault(figure, []).append(estimate["value"])
    return {
        figure: {"mean": sum(seen) / len(seen), "least": min(seen), "most": max(seen), "seeds": len(seen)}
        for figure, seen in values.items()
    }


def _state(comparison: dict[str, Any] | None, failed: bool) -> str:
    """``failed``, ``finished`` or ``unfinished``."""
    if failed:
        return "failed"
    return "finished" if comparison is not None and not comparison["unfinished"] else "unfinished"


def _arm(arm: dict[str, Any]) -> dict[str, Any]:
    """An arm's figures without what its own report draws from."""
    attacks = {
        name: {part: attack[part] for part in ("kind", "type", "estimates")} for name, attack in arm["attacks"].items()
    }
    spent = arm["privacy"]
    return {
        "training_images": arm["training_images"],
        "dropped": arm["dropped"],
        "seconds": sum(arm["seconds"].values()),
        "privacy": spent and {part: spent[part] for part in ("epsilon", "delta", "void")},
        "attacks": attacks,
        "quality": arm["quality"],
    }
