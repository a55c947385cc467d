"""Which arms are worth a look: those that no other arm surely beats in privacy without being worse in quality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unmem.recipes.figures import against_quality

RULE = (
    "An arm is dominated by another whose interval lies wholly on the better side of its own in one of the two "
    "figures, and whose value is no worse in the other. Where the intervals overlap in both, neither is dominated."
)


@dataclass(frozen=True)
class Point:
    """An arm's place: smaller is better in both; (value, low, high) of what leaks and of what the quality lacks."""

    leak: tuple[float, float, float]
    lack: tuple[float, float, float]

    def dominates(self, other: Point) -> bool:
        """Whether the other is surely worse in one figure, and no better in the other."""
        pairs = (self.leak, other.leak), (self.lack, other.lack)
        return all(mine[0] <= its[0] for mine, its in pairs) and any(mine[2] < its[1] for mine, its in pairs)


def fronts(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """For each attack that the report sets against quality, which arms are dominated, and by which.

    Args:
        comparison: with its ``arms``.

    Returns:
        A list of ``attack``, ``figure`` (the attack's), ``measure`` (of quality), ``front`` (arms that none dominates,
        in their order), ``dominated`` (arm -> those that dominate it) and ``unplaced`` (arms without both figures, and
        controls).
    """
    name, measured, wanted = against_quality(comparison)
    found = []
    for attack, reports, figure in wanted:
        points = {}
        for arm, report in reports.items():
            if comparison["arms"][arm].get("control"):
                continue  # nobody would choose one
            leak = _ends(report["estimates"][figure])
            lack = _ends(measured[arm]["estimate"]) if arm in measured else None
            if leak is not None and lack is not None:
                value, low, high = lack
                points[arm] = Point(leak, lack if measured[arm]["better"] == "lower" else (-value, -high, -low))
        if points:
            found.append({"attack": attack, "figure": figure, "measure": name, **_ordered(points, comparison["arms"])})
    return found


def _ordered(points: dict[str, Point], arms: dict[str, Any]) -> dict[str, Any]:
    """The front, who is dominated by whom, and arms that have no place."""
    over = {arm: [other for other in points if points[other].dominates(points[arm])] for arm in points}
    return {
        "front": [arm for arm in points if not over[arm]],
        "dominated": {arm: others for arm, others in over.items() if others},
        "unplaced": [arm for arm in arms if arm not in points],
    }


def _ends(estimate: dict[str, Any]) -> tuple[float, float, float] | None:
    """Value, low and high; without an interval it reaches everywhere, and without a value there is no place."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None:
        return None
    return value, float("-inf") if low is None else low, float("inf") if high is None else high
