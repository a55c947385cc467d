"""What each mitigation acts on, which access it protects against, and whether it was attacked by who knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ACCESS = ("samples", "predictions", "gradients")
NETWORK = frozenset({"predictions", "gradients"})  # access that goes around whatever stands before samples


def defence(part: Any, kind: str) -> dict[str, Any]:
    """A mitigation's ``kind``, what it ``acts_on`` and which access it ``covers``, as plain data.

    What is done to data or training is in the weights, whatever an attacker has of the model. What steps into sampling
    is before samples alone: who has the weights does not run it.
    """
    if getattr(part, "protects", "") == "samples" or not (hasattr(part, "apply") or hasattr(part, "update_rule")):
        return {"kind": kind, "acts_on": "sampling", "covers": ["samples"]}
    acts_on = "training" if hasattr(part, "update_rule") else "data"
    return {"kind": kind, "acts_on": acts_on, "covers": list(ACCESS)}


def lines(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each mitigation of each arm: its ``arm``, facts, and in words how it was ``attacked``."""
    return [
        {"arm": name, **found, "attacked": attacked(found["acts_on"], arm, comparison["shadows"])}
        for name, arm in comparison["arms"].items()
        for found in arm.get("defences", [])  # earlier runs have none
    ]


def covered(arm: Mapping[str, Any]) -> list[str]:
    """The access that any of an arm's mitigations covers."""
    return [access for access in ACCESS if any(access in found["covers"] for found in arm.get("defences", []))]


def attacked(acts_on: str, arm: Mapping[str, Any], shadows: int) -> str:
    """Whether an attacker who knows of the mitigation is among the attacks."""
    needs = {name: frozenset(report.get("needs", ())) for name, report in arm["attacks"].items()}
    if acts_on == "sampling":
        past = [name for name, wanted in needs.items() if wanted & NETWORK]
        through = [name for name, wanted in needs.items() if "samples" in wanted]
        words = [f"seen through it: {', '.join(through)}"] if through else []
        words.append(
            f"adaptive: past it, the network itself is asked by {_some(past)}"
            if past
            else "not adaptive: no attack goes around it"
        )
        return "; ".join(words)
    knowing = [name for name, wanted in needs.items() if "shadows" in wanted]
    words = ["every attack is on the model that was trained with it"] if any(needs.values()) else ["not attacked"]
    if knowing:
        words.append(f"adaptive: {shadows} shadow models trained with it teach {_some(knowing)}")
    else:
        words.append("not adaptive: no attack learns from models trained with it")
    return "; ".join(words)


def _some(names: list[str]) -> str:
    """Names, or of many how many and the first."""
    return (
        ", ".join(names)
        if len(names) <= 4
        else f"{len(names)} attacks ({names[0]}, {names[1]}, \N{HORIZONTAL ELLIPSIS})"
    )


def own_settings(arm: Any, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Where an arm's ``model`` and ``train`` differ from the recipe's; all of a model of another kind.

    Args:
        arm: as resolved in the recipe.
        recipe: the resolved recipe.
    """
    if not isinstance(arm, Mapping):
        return {}
    found = {}
    for section in ("model", "train"):
        ours, theirs = arm[section], recipe[section]
        same_kind = ours.get("kind") == theirs.get("kind")
        differs = {key: value for key, value in ours.items() if not same_kind or value != theirs.get(key)}
        if differs:
            found[section] = differs
    return found
