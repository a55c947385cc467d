"""The report's tables of membership attacks, of whole sets, of screens, and of canaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unmem.recipes.figures import FEW, parts
from unmem.recipes.tables import (
    Column,
    Row,
    Table,
    arm_rows,
    attack_columns,
    cell,
    epsilon,
    kind_of_report,
    membership_attacks,
    table,
    title,
)

Wanted = Callable[[str], bool]


def of_membership(comparison: dict[str, Any]) -> Table:
    """Every membership attack against every arm, where there are too many for the table of arms."""
    attacks = membership_attacks(comparison)
    return _by_attack(comparison, attacks if len(attacks) > FEW else {}, ("auc", "tpr_at_fpr"))


def of_membership_controls(comparison: dict[str, Any]) -> Table:
    """What each membership attack makes of the model's own samples, of moved thresholds, and of shuffled labels.

    Of attacks and arms, those of which there are more are the rows.
    """
    wanted = "tpr_transferred", "fpr_transferred", "auc_generated", "permutation_p_value"
    attacks, arms = membership_attacks(comparison), comparison["arms"]
    if len(attacks) >= len(arms):
        return _by_attack(comparison, attacks, wanted)
    columns = [column for name, reports in attacks.items() for column in attack_columns(name, reports, arms, wanted)]
    return table("arm", arm_rows(comparison), columns)


def of_sets(comparison: dict[str, Any]) -> Table:
    """Whether the training set as a whole gives itself away."""
    return table("arm", arm_rows(comparison), _columns_of(comparison, "dataset_inference"))


def of_screens(comparison: dict[str, Any]) -> Table:
    """How well cheap screens rank the prompts that the full rule flags."""
    return table("arm", arm_rows(comparison), _columns_of(comparison, "screens"))


def of_canaries(comparison: dict[str, Any]) -> Table:
    """What canaries show, beside what is proven."""
    columns = _columns_of(comparison, "canaries")
    if columns:
        proven = {name: epsilon(arm["privacy"]) for name, arm in comparison["arms"].items()}
        columns.insert(0, Column("proven", "\N{GREEK SMALL LETTER EPSILON} at most", proven))
    return table("arm", arm_rows(comparison), columns)


def _columns_of(comparison: Mapping[str, Any], kind: str) -> list[Column]:
    """All figures of all attacks of one type."""
    columns = []
    for name, reports in parts(comparison, "attacks").items():
        if kind_of_report(reports) == kind:
            columns += attack_columns(name, reports, comparison["arms"])
    return columns


def _by_attack(comparison: dict[str, Any], attacks: Mapping[str, Any], wanted: tuple[str, ...]) -> Table:
    """A row for each attack, and these figures for each arm."""
    rows, columns = [], []
    for name, reports in attacks.items():
        queries = next(iter(reports.values()))["queries"]
        rows.append(Row(name, f"{queries:,} {'query' if queries == 1 else 'queries'}"))
    for arm in comparison["arms"]:
        named = {name: reports[arm]["estimates"] for name, reports in attacks.items() if arm in reports}
        figures = dict.fromkeys(figure for estimates in named.values() for figure in estimates)
        for figure in sorted(figures, key=lambda figure: _rank(figure, wanted)):
            if figure.partition("[")[0] in wanted:
                cells = {name: cell(named.get(name, {}).get(figure)) for name in attacks}
                columns.append(Column(arm, title(figure), cells))
    return table("attack", rows, columns)


def _rank(figure: str, wanted: tuple[str, ...]) -> int:
    """Where a figure stands among the wanted ones."""
    base = figure.partition("[")[0]
    return wanted.index(base) if base in wanted else len(wanted)
