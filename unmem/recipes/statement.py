"""A privacy statement as the report lays it out: epsilon counted in several ways, the queries, then all the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LAID_OUT = ("checks", "without_amplification", "replace_one", "tuning", "queries", "self_check")


@dataclass(frozen=True)
class Way:
    """One way to count what was spent: its name, its epsilon, and what it assumes."""

    name: str
    epsilon: float
    assuming: str


@dataclass(frozen=True)
class Statement:
    """A privacy statement, laid out.

    Attributes:
        spent: the statement as recorded.
        ways: what is stated first, then how it would be counted otherwise.
        queries: the private queries, as recorded.
        check: the self-check of clipping, as recorded; None where none was made.
        rest: everything else that was recorded.
    """

    spent: Mapping[str, Any]
    ways: list[Way]
    queries: list[Mapping[str, Any]]
    check: Mapping[str, Any] | None
    rest: dict[str, Any]


def laid_out(spent: Mapping[str, Any]) -> Statement:
    """A statement as recorded; parts that a mitigation did not record are left out."""
    rest = {key: value for key, value in spent.items() if key not in _LAID_OUT}
    return Statement(spent, _ways(spent), spent.get("queries", []), spent.get("self_check"), rest)


def _ways(spent: Mapping[str, Any]) -> list[Way]:
    """Epsilon as stated and otherwise; nothing where it is recorded one way only."""
    ways = []
    if checks := spent.get("checks"):
        agreement = "agrees" if checks["agrees"] else "differs: the larger is stated"
        ways.append(Way("by another accountant", checks["pld_epsilon"], f"{checks['accountant']}; {agreement}"))
    if "without_amplification" in spent:
        known = "batches known, each image in one of them an epoch"
        ways.append(Way("without amplification", spent["without_amplification"], known))
    if "replace_one" in spent:
        ways.append(Way("replace one", spent["replace_one"], "neighbours that differ in one image's content"))
    if tuning := spent.get("tuning"):
        ways.append(Way("with tuning", tuning["epsilon"], f"all {tuning['runs']} runs that were tried, together"))
    if not ways:
        return []
    stated = f"{spent['accountant']}; {spent['relation']}, {spent['sampling']} batches that stay secret"
    return [Way("as stated", spent["epsilon"], stated), *ways]
