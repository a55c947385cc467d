"""What the report's tables are made of, and its numbers: every one is formatted here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context
from itertools import groupby
from typing import Any

from unmem.recipes.figures import parts

NOTHING = "\N{EN DASH}"
_UPWARD = Context(prec=6, rounding=ROUND_CEILING)


def number(value: float | None, *beside: float | None) -> str:
    """A number, with as many decimals as suit the largest of those it is shown beside."""
    if value is None:
        return NOTHING
    largest = max(abs(other) for other in (value, *beside) if other is not None)
    decimals = next((d for limit, d in ((0, 3), (0.01, 5), (1, 3), (10, 2), (1000, 1)) if largest <= limit), 0)
    text = f"{value:,.{decimals}f}"
    if value and not text.strip("-0."):  # what is not zero does not look like it
        text = f"{value:.1g}"
    return text.replace("-", "\N{MINUS SIGN}")


def plain(value: Any, name: str = "") -> str:
    """A setting or a constant as it stands in its file, floats with six digits.

    One that is called epsilon is an upper bound, and so is rounded up.
    """
    if not isinstance(value, float):
        return str(value)
    return f"{float(_UPWARD.create_decimal(repr(value))) if 'epsilon' in name else value:.6g}"


def seconds(value: float | None) -> str:
    """A duration in seconds."""
    return NOTHING if value is None else f"{value:,.1f}"


def interval(estimate: Mapping[str, Any]) -> str:
    """An estimate's interval, from low to high; empty where there is none."""
    low, high = estimate["low"], estimate["high"]
    if None in (low, high) or low == high == estimate["value"]:
        return ""
    between = "\N{EN DASH}" if low >= 0 else " to "
    return f"{number(low, high, estimate['value'])}{between}{number(high, low, estimate['value'])}"


def counts(estimate: Mapping[str, Any]) -> str:
    """What an estimate was counted from."""
    n = estimate["n"]
    if "successes" in n:
        return f"{n['successes']} of {n['trials']}"
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in n.items())


def _percent(estimate: Mapping[str, Any]) -> str:
    """The interval of a proportion, in percent."""
    if None in (estimate["low"], estimate["high"]):
        return ""
    decimals = 2 if estimate["n"]["trials"] >= 10_000 else 1
    return f"{100 * estimate['low']:.{decimals}f}\N{EN DASH}{100 * estimate['high']:.{decimals}f}%"


_FIGURES = {
    "flagged": "prompts flagged",
    "flagged_planted": "of planted images'",
    "extracted": "extracted",
    "extracted_planted": "planted",
    "false_positives": "false positives",
    "precision": "precision",
    "recall": "recall",
    "copied": "copies",
    "copied_held_out": "copies of held-out images",
    "auc": "AUC",
    "auc_as_trained": "AUC, as trained",
    "auc_planted": "AUC, planted",
    "tpr_at_fpr": "TPR at FPR",
    "nearer_to_training": "nearer to training",
    "balanced_accuracy": "balanced accuracy",
    "extracted_at_10x": "extracted, of 10 times the samples",
    "false_positives_at_10x": "false positives, of 10 times",
    "extracted_by_copies": "extracted, of copies",
    "epsilon": "\N{GREEK SMALL LETTER EPSILON} at least",
    "epsilon_gdp": "\N{GREEK SMALL LETTER EPSILON} at least, if Gaussian",
    "exposure": "exposure at copies",
    "tpr_transferred": "TPR, threshold for FPR",
    "fpr_transferred": "FPR, threshold for FPR",
    "auc_generated": "AUC, own samples",
    "permutation_p_value": "p, labels shuffled",
    "p_value": "p",
    "p_value_control": "p, held out",
    "power": "power at images",
}
HEADLINES = (  # the others stand in tables of their own
    "flagged", "flagged_planted", "extracted", "extracted_planted", "false_positives", "precision", "recall", "copied",
    "copied_held_out", "auc", "auc_as_trained", "auc_planted", "tpr_at_fpr", "nearer_to_training",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One entry of a table: the figure, its interval below it, a note, and the note's number under the table."""

    text: str
    interval: str = ""
    note: str = ""
    mark: int = 0

    @property
    def inline(self) -> str:
        """The entry on one line, without its note."""
        return f"{self.text} ({self.interval})" if self.interval else self.text


@dataclass(frozen=True)
class Column:
    """One figure of every row.

    Attributes:
        group: what stands above neighbouring columns: the attack or measure.
        title: the figure's name.
        cells: row -> entry.
        below: what stands small under the title.
        mark: number of the note that all entries share.
    """

    group: str
    title: str
    cells: dict[str, Cell]
    below: str = ""
    mark: int = 0


@dataclass(frozen=True)
class Row:
    """A row's name, what stands small below it, and whether it is an arm, with a colour of its own."""

    name: str
    below: str = ""
    is_arm: bool = False


@dataclass(frozen=True)
class Table:
    """Columns under their groups (name, width), rows under a head, and the notes below."""

    head: str
    rows: list[Row]
    groups: list[tuple[str, int]]
    columns: list[Column]
    notes: list[str]


def arm_rows(comparison: Mapping[str, Any]) -> list[Row]:
    """A row for each arm."""
    rows = []
    for name, arm in comparison["arms"].items():
        own = arm.get("own", {})  # earlier runs lack it
        words = [f"{section} {found.get('kind') or said(found)}" for section, found in own.items()]
        kinds = ", then ".join(part["kind"] for part in arm["mitigations"])
        of_none = "a control" if arm.get("control") else "a finished model"
        words.append(kinds or ("no mitigation" if arm["trained"] else of_none))
        rows.append(Row(name, "; ".join(words), is_arm=True))
    return rows


def said(settings: Mapping[str, Any]) -> str:
    """Settings on one line, the kind first."""
    words = [str(settings["kind"])] if "kind" in settings else []
    return " ".join(words + [f"{key} {plain(value, key)}" for key, value in settings.items() if key != "kind"])


def table(head: str, rows: list[Row], columns: list[Column]) -> Table:
    """Number the notes: one that all entries of a column share goes to its head, any other to the entry."""
    notes: list[str] = []

    def mark(note: str) -> int:
        if note and note not in notes:
            notes.append(note)
        return notes.index(note) + 1 if note else 0

    marked = []
    for column in columns:
        shared = {cell.note for cell in column.cells.values()}
        if len(shared) == 1:
            marked.append(replace(column, mark=mark(shared.pop())))
        else:
            cells = {arm: replace(cell, mark=mark(cell.note)) for arm, cell in column.cells.items()}
            marked.append(replace(column, cells=cells))
    groups = [(group, len(list(members))) for group, members in groupby(marked, key=lambda column: column.group)]
    return Table(head, rows, groups, marked, notes)


def kind_of_report(reports: Mapping[str, Any]) -> str:
    """The type of an attack's reports."""
    kind: str = next(iter(reports.values()))["type"]
    return kind


def is_blind(reports: Mapping[str, Any]) -> bool:
    """Whether an attack is the one that never sees the model."""
    return bool(next(iter(reports.values()))["kind"] == "blind")


def membership_attacks(comparison: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> arm -> report, of the membership attacks that see the model."""
    attacks = parts(comparison, "attacks").items()
    return {n: found for n, found in attacks if kind_of_report(found) == "membership" and not is_blind(found)}


def attack_columns(
    attack: str, reports: Mapping[str, Any], arms: Mapping[str, Any], only: Collection[str] = ()
) -> list[Column]:
    """An attack's figures, all or only these, in one order whichever arm has which."""
    names = dict.fromkeys(name for report in reports.values() for name in report["estimates"])
    names = {name: None for name in names if not only or name.partition("[")[0] in only}
    order = list(_FIGURES)

    def rank(name: str) -> int:
        base = name.partition("[")[0]
        return order.index(base) if base in order else len(order)

    columns = []
    for name in sorted(names, key=rank):
        estimates = {arm: reports.get(arm, {"estimates": {}})["estimates"].get(name) for arm in arms}
        counted = any(report["type"] == "extraction" for report in reports.values())
        columns.append(Column(attack, title(name), {arm: cell(found, counted) for arm, found in estimates.items()}))
    return columns


def title(name: str) -> str:
    """A figure's name for a table's head."""
    base, _, rate = name.partition("[")
    return f"{_FIGURES.get(base, base.replace('_', ' '))} {rate.rstrip(']')}".strip()


def cell(estimate: Mapping[str, Any] | None, counted: bool = False) -> Cell:
    """An estimate as a table's entry; ``counted`` ones as "8 of 800"."""
    if estimate is None:
        return Cell(NOTHING)
    note = _sentence(estimate["note"])
    if estimate["value"] is None:
        return Cell("withheld", "", note)
    if counted and "successes" in estimate["n"]:
        return Cell(counts(estimate), _percent(estimate), note)
    return Cell(number(estimate["value"], estimate["low"], estimate["high"]), interval(estimate), note)


def _sentence(note: str) -> str:
    """A note with a capital and a full stop."""
    return f"{note[:1].upper()}{note[1:]}." if note else ""


def epsilon(spent: Mapping[str, Any] | None) -> Cell:
    """What is proven, never without its delta."""
    if spent is None:
        return Cell("none")
    if spent["void"]:
        return Cell("void", "", _sentence(f"no guarantee: {spent['void']}"))
    return Cell(plain(spent["epsilon"], "epsilon"), f"at \N{GREEK SMALL LETTER DELTA} = {plain(spent['delta'])}")
