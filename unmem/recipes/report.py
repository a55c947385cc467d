"""The report of a run, from its JSON files alone: ``report.html``, ``report.md``, and a table for the terminal."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from unmem.component import UserError
from unmem.recipes.figures import figures, parts, style_of
from unmem.rundir import read_json, write_text

TEMPLATES = Path(__file__).parent / "templates"
NOTHING = "\N{EN DASH}"
LISTED = 200  # extracted images and quarantined files that are named at most
LEFT_OUT = "(left out)"


def render(root: Path, *, redact: bool = False) -> list[Path]:
    """Write ``report.html`` and ``report.md`` of a run directory.

    Args:
        root: the run's directory.
        redact: leave out every picture that is, or may show, a training image, and every file name; the files are
            then ``report-redacted.html`` and ``report-redacted.md``.

    Returns:
        The files written.

    Raises:
        UserError: when ``comparison.json`` is missing, or a file is damaged.
    """
    run = _read(root)
    view = _view(_redacted(run) if redact else run, redact)
    written = []
    for suffix, environment in (("html", _html()), ("md", _markdown())):
        path = root / f"report{'-redacted' if redact else ''}.{suffix}"
        write_text(path, environment.get_template(f"report.{suffix}.j2").render(view))
        written.append(path)
    return written


def table(comparisons: dict[str, dict[str, Any]]) -> str:
    """The arms of several runs in one aligned table of plain text.

    Args:
        comparisons: run -> its ``comparison.json``.

    Raises:
        UserError: when one of them is no comparison.
    """
    for run, comparison in comparisons.items():
        _check(comparison, run)
    rows = [
        {"run": run, "arm": arm, **_brief(comparison, arm)}
        for run, comparison in comparisons.items()
        for arm in comparison["arms"]
    ]
    titles = list(dict.fromkeys(title for row in rows for title in row)) or ["run", "arm"]
    last = [title for title in titles if title.startswith("epsilon")]
    titles = [title for title in titles if title not in last] + last
    lines = [titles, *([row.get(title, NOTHING) for title in titles] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    texts = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    texts.insert(1, "  ".join("-" * width for width in widths))
    data = {run: _facts(comparison["data"]) for run, comparison in comparisons.items()}
    if len({_same(comparison["data"]) for comparison in comparisons.values()}) > 1:
        listed = "; ".join(f"{run}: {facts}" for run, facts in data.items())
        texts.append(f"\nThe runs differ in data, so their rows are not comparable ({listed}).")
    return "\n".join(texts)


# Numbers: every one is formatted here.


def number(value: float | None, *beside: float | None) -> str:
    """A number, with as many decimals as suit the largest of those it is shown beside."""
    if value is None:
        return NOTHING
    largest = max(abs(other) for other in (value, *beside) if other is not None)
    decimals = next((d for limit, d in ((0, 3), (0.01, 5), (1, 3), (10, 2), (1000, 1)) if largest <= limit), 0)
    return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def plain(value: Any) -> str:
    """A setting or a constant as it stands in its file, floats with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def seconds(value: float | None) -> str:
    """A duration in seconds."""
    return NOTHING if value is None else f"{value:,.1f}"


def interval(estimate: Mapping[str, Any]) -> str:
    """An estimate's interval, from low to high; empty where there is none."""
    low, high = estimate["low"], estimate["high"]
    if None in (low, high):
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


# The table of arms.

_FIGURES = {
    "extracted": "extracted",
    "extracted_planted": "planted",
    "false_positives": "false positives",
    "auc": "AUC",
    "auc_as_trained": "AUC, as trained",
    "auc_planted": "AUC, planted",
    "tpr_at_fpr": "TPR at FPR",
    "balanced_accuracy": "balanced accuracy",
    "nearer_to_training": "nearer to training",
}


@dataclass(frozen=True)
class Cell:
    """One entry of a table: the figure, its interval below it, a note, and the note's number under the table."""

    text: str
    interval: str = ""
    note: str = ""
    mark: int = 0


@dataclass(frozen=True)
class Column:
    """One figure of every arm.

    Attributes:
        group: what stands above neighbouring columns: the attack or measure.
        title: the figure's name.
        cells: arm -> entry.
        below: what stands small under the title.
        mark: number of the note that all entries share.
    """

    group: str
    title: str
    cells: dict[str, Cell]
    below: str = ""
    mark: int = 0


@dataclass(frozen=True)
class Table:
    """Columns under their groups (name, width), and the notes below."""

    groups: list[tuple[str, int]]
    columns: list[Column]
    notes: list[str]


def _table(columns: list[Column]) -> Table:
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
    return Table(groups, marked, notes)


def _columns(comparison: dict[str, Any]) -> list[Column]:
    """What each arm trained on, gives away, is worth, and what is proven; at what cost."""
    arms = comparison["arms"]
    trained = {
        name: Cell(f"{arm['training_images']:,}", f"{arm['dropped']:,} dropped" if arm["dropped"] else "")
        for name, arm in arms.items()
    }
    epsilon = {name: _epsilon(arm["privacy"]) for name, arm in arms.items()}
    spent_on = {name: Cell(seconds(arm["seconds"].get("train"))) for name, arm in arms.items()}
    columns = [Column("training", "images", trained)]
    for attack, reports in parts(comparison, "attacks").items():
        if not _is_control(reports):
            columns += _attack_columns(attack, reports, arms)
    return [
        *columns,
        *_quality_columns(comparison),
        Column("proven", "\N{GREEK SMALL LETTER EPSILON} for one image", epsilon),
        Column("cost", "training, s", spent_on),
    ]


def _controls(comparison: dict[str, Any]) -> list[Column]:
    """Attacks that say whether the others can be believed."""
    attacks = parts(comparison, "attacks").items()
    arms = comparison["arms"]
    return [
        column for name, reports in attacks if _is_control(reports) for column in _attack_columns(name, reports, arms)
    ]


def _is_control(reports: dict[str, Any]) -> bool:
    """Whether an attack is a control: one that never sees the model, or one without a count of its own."""
    report = next(iter(reports.values()))
    return report["kind"] == "blind" or report["type"] not in ("membership", "extraction")


def _attack_columns(attack: str, reports: dict[str, Any], arms: Mapping[str, Any]) -> list[Column]:
    """An attack's figures, in one order whichever arm has which."""
    names = dict.fromkeys(name for report in reports.values() for name in report["estimates"])
    order = list(_FIGURES)

    def rank(name: str) -> int:
        base = name.partition("[")[0]
        return order.index(base) if base in order else len(order)

    columns = []
    for name in sorted(names, key=rank):
        estimates = {arm: reports.get(arm, {"estimates": {}})["estimates"].get(name) for arm in arms}
        counted = any(report["type"] == "extraction" for report in reports.values())
        columns.append(Column(attack, _title(name), {arm: _cell(found, counted) for arm, found in estimates.items()}))
    return columns


def _quality_columns(comparison: dict[str, Any]) -> list[Column]:
    """Each quality figure beside what real images reach."""
    columns = []
    for name, reports in parts(comparison, "quality").items():
        first = next(iter(reports.values()))
        cells = {arm: _cell(reports[arm]["estimate"] if arm in reports else None) for arm in comparison["arms"]}
        below = f"{first['better']} is better; real: {number(first['reference'])}"
        note = f"Real images: {first['reference_name']}."
        cells = {arm: replace(cell, note=f"{note} {cell.note}".strip()) for arm, cell in cells.items()}
        columns.append(Column("quality", name, cells, below))
    return columns


def _title(name: str) -> str:
    """A figure's name for a table's head."""
    base, _, rate = name.partition("[")
    return f"{_FIGURES.get(base, base.replace('_', ' '))} {rate.rstrip(']')}".strip()


def _cell(estimate: Mapping[str, Any] | None, counted: bool = False) -> Cell:
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


def _epsilon(spent: Mapping[str, Any] | None) -> Cell:
    """What is proven, never without its delta."""
    if spent is None:
        return Cell("none")
    if spent["void"]:
        return Cell("void", "", _sentence(f"no guarantee: {spent['void']}"))
    return Cell(plain(spent["epsilon"]), f"at \N{GREEK SMALL LETTER DELTA} = {plain(spent['delta'])}")


def _brief(comparison: dict[str, Any], arm: str) -> dict[str, str]:
    """One arm's row of the terminal's table."""
    figures_of_arm = comparison["arms"][arm]
    row = {"trained on": f"{figures_of_arm['training_images']:,}"}
    for name, report in figures_of_arm["attacks"].items():
        estimates = report["estimates"]
        if report["type"] == "extraction":
            found = {figure: counts(estimate) for figure, estimate in estimates.items()}
            planted = f" ({found['extracted_planted']})" if "extracted_planted" in found else ""
            title = f"{name}: extracted (planted) | false positives"
            row[title] = f"{found['extracted']}{planted} | {found['false_positives']}"
        elif report["type"] == "membership":
            row[f"{name} AUC"] = _inline(_cell(estimates["auc"]))
    for name, measure in figures_of_arm["quality"].items():
        row[f"{name} ({measure['better']} is better)"] = _inline(_cell(measure["estimate"]))
    return {**row, "epsilon": _inline(_epsilon(figures_of_arm["privacy"]))}


def _inline(cell: Cell) -> str:
    """A table's entry on one line."""
    return f"{cell.text} ({cell.interval})" if cell.interval else cell.text


# What the templates are given.


@dataclass(frozen=True)
class Run:
    """What the JSON files of a run directory hold."""

    comparison: dict[str, Any]
    provenance: dict[str, Any]
    quarantine: list[dict[str, str]]
    galleries: dict[str, dict[str, Any]]


_NEEDED = ("recipe", "against", "confidence", "data", "arms", "differences", "verdict", "unfinished")
_NEEDED_OF_ARM = ("mitigations", "training_images", "dropped", "privacy", "attacks", "quality", "seconds")
_EMPTY: dict[str, Any] = {"samples": [], "pairs": [], "groups": []}


def _read(root: Path) -> Run:
    """Read a run directory; files that older or unfinished runs lack count as empty."""
    comparison = read_json(root / "comparison.json")
    _check(comparison, str(root / "comparison.json"))

    def optional(path: Path, missing: Any) -> Any:
        return read_json(path) if path.exists() else missing

    galleries = {arm: optional(root / "arms" / arm / "gallery" / "gallery.json", _EMPTY) for arm in comparison["arms"]}
    return Run(comparison, optional(root / "provenance.json", {}), optional(root / "quarantine.json", []), galleries)


def _check(comparison: Any, place: str) -> None:
    """Refuse what is not a whole comparison."""
    if not isinstance(comparison, dict) or comparison.get("schema") != 1:
        raise UserError(f"{place}: not a comparison of schema 1")
    missing = [key for key in _NEEDED if key not in comparison]
    missing += [
        f"arms.{name}.{key}"
        for name, arm in comparison.get("arms", {}).items()
        for key in _NEEDED_OF_ARM
        if key not in arm
    ]
    if missing:
        raise UserError(f"{place}: damaged (it has no {missing[0]!r}); run the recipe again")


def _view(run: Run, redacted: bool) -> dict[str, Any]:
    """All that the templates print."""
    comparison = run.comparison
    arms = list(comparison["arms"])
    cautions = [text for text in comparison["verdict"] if text.startswith(("Caution", "Not finished"))]
    return {
        "comparison": comparison,
        "facts": _facts(comparison["data"]),
        "redacted": redacted,
        "arms": arms,
        "style": style_of(comparison),
        "verdict": [_spoken(text, arms) for text in comparison["verdict"] if text not in cautions],
        "cautions": cautions,
        "tables": {"arms": _table(_columns(comparison)), "controls": _table(_controls(comparison))},
        "differences": _differences(comparison),
        "estimates": _estimates(comparison),
        "figures": figures(comparison),
        "extracted": _extracted(run),
        "samples": {arm: gallery["samples"] for arm, gallery in run.galleries.items() if gallery["samples"]},
        "dropped": _dropped(run),
        "private": {arm: found["privacy"] for arm, found in comparison["arms"].items() if found["privacy"]},
        "quarantine": run.quarantine,
        "reasons": Counter(entry["reason"] for entry in run.quarantine).most_common(20),
        "provenance": run.provenance,
        "stages": list(dict.fromkeys(s for arm in comparison["arms"].values() for s in arm["seconds"])),
        "listed": LISTED,
    }


def _facts(data: Mapping[str, Any]) -> str:
    """The data in one line."""
    planted = f", {data['planted']:,} planted {data['copies']} times" if data["planted"] else ""
    shape = " \N{MULTIPLICATION SIGN} ".join(str(side) for side in data["shape"])
    return f"{data['kind']}, {shape}: {data['members']:,} members, {data['nonmembers']:,} held out{planted}"


def _same(data: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two runs must share to be comparable."""
    return data["kind"], data["members"], data["nonmembers"]


def _spoken(sentence: str, arms: list[str]) -> tuple[str, str]:
    """A sentence of the verdict as (arm, what is said of it)."""
    arm, colon, rest = sentence.partition(": ")
    return (arm, rest) if colon and arm in arms else ("", sentence)


def _differences(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Each figure's difference from the arm of reference, by arm; ``sign`` says which way it surely goes."""
    arms = {arm: found for arm, found in comparison["differences"].items() if found}
    rows = []
    for name in dict.fromkeys(name for found in arms.values() for name in found):
        attack, _, figure = name.partition(".")
        cells = {
            arm: (_cell(found[name]), _sign(found[name]), counts(found[name]))
            for arm, found in arms.items()
            if name in found
        }
        shared = {counted for _, _, counted in cells.values()}
        one = shared.pop() if len(shared) == 1 else ""
        rows.append({"attack": attack, "figure": _title(figure), "counts": one, "cells": cells})
    return rows


def _sign(estimate: Mapping[str, Any]) -> int:
    """1 or -1 where the interval excludes 0, else 0."""
    if None in (estimate["low"], estimate["high"]):
        return 0
    return int(estimate["low"] > 0) - int(estimate["high"] < 0)


def _estimates(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Every estimate of every arm with its counts and note."""
    rows = []
    for arm, found in comparison["arms"].items():
        named = {
            f"{name}.{key}": e for name, report in found["attacks"].items() for key, e in report["estimates"].items()
        }
        named |= {name: report["estimate"] for name, report in found["quality"].items()}
        rows += [{"arm": arm, "name": name, "cell": _cell(e), "counts": counts(e)} for name, e in named.items()]
    return rows


def _extracted(run: Run) -> list[dict[str, Any]]:
    """For each arm and extraction attack what was extracted, with pictures of the first."""
    found = []
    for arm, figures_of_arm in run.comparison["arms"].items():
        for attack, report in figures_of_arm["attacks"].items():
            if report["type"] == "extraction":
                pairs = [pair for pair in run.galleries[arm]["pairs"] if pair["attack"] == attack]
                found.append({"arm": arm, "attack": attack, "matches": report["matches"], "pairs": pairs})
    return found


def _dropped(run: Run) -> list[dict[str, Any]]:
    """Groups that mitigations reduced to one image; arms that dropped the same ones share an entry."""
    found: list[dict[str, Any]] = []
    for arm, gallery in run.galleries.items():
        total, groups = run.comparison["arms"][arm]["dropped"], gallery["groups"]
        same = next((entry for entry in found if (entry["groups"], entry["total"]) == (groups, total)), None)
        if same is not None:
            same["arms"].append(arm)
        elif total:
            inside = sum(group["dropped"] for group in groups)
            found.append({"arms": [arm], "groups": groups, "total": total, "inside": inside})
    return found


# Redaction.

_ID = re.compile(r"([0-9a-f]{12}):.*?(#copy-\d+)?", re.DOTALL)
_REASONS = (
    "empty file", "not an image of a known format", "decompression bomb", "cannot be decoded", "multi-page", "animated",
    "floating-point values", "integer values", "its name is not UTF-8", "there is no such image",
)  # fmt: skip


def _redacted(run: Run) -> Run:
    """The run without pictures, file names, and settings or arguments that may hold a path."""
    arms = {}
    for name, arm in run.comparison["arms"].items():
        attacks = {attack: _without_sources(report) for attack, report in arm["attacks"].items()}
        mitigations = [{"kind": part["kind"]} for part in arm["mitigations"]]
        arms[name] = {**arm, "attacks": attacks, "mitigations": mitigations}
    galleries = {
        name: {**_EMPTY, "groups": [_without_pictures(group) for group in gallery["groups"]]}
        for name, gallery in run.galleries.items()
    }
    command = [*run.provenance.get("command", [])[:2], LEFT_OUT]
    quarantine = [
        {"source": "", "reason": next((known for known in _REASONS if known in entry["reason"]), "another reason")}
        for entry in run.quarantine
    ]
    return Run({**run.comparison, "arms": arms}, {**run.provenance, "command": command}, quarantine, galleries)


def _without_sources(report: dict[str, Any]) -> dict[str, Any]:
    """An attack's report with the ids' hashes alone."""
    return {**report, "matches": [{**match, "id": _hash(match["id"])} for match in report.get("matches", [])]}


def _without_pictures(group: dict[str, Any]) -> dict[str, Any]:
    """A dropped group with the ids' hashes alone."""
    shown = [{"id": _hash(entry["id"]), "distance": entry["distance"]} for entry in group["shown"]]
    return {
        "kept": _hash(group["kept"]),
        "mitigation": group["mitigation"],
        "dropped": group["dropped"],
        "shown": shown,
    }


def _hash(name: str) -> str:
    """An id without the source's path: the hash, and the number of a planted copy."""
    found = _ID.fullmatch(name)
    return found[1] + (found[2] or "") if found else LEFT_OUT


# Two environments: both escape every value, each in its own way.


def _environment(**options: Any) -> Environment:
    """What both have in common."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, **options,
    )  # fmt: skip
    filters: list[Callable[..., str]] = [number, plain, seconds]
    made.filters |= {function.__name__: function for function in filters}
    return made


def _html() -> Environment:
    """HTML: Jinja's own escaping."""
    return _environment()


def _markdown() -> Environment:
    """Markdown: what could end a table's cell or start markup is escaped; line breaks become spaces."""

    def escape(value: Any) -> Markup:
        if isinstance(value, Markup):
            return value
        text = html.escape(" ".join(str(value).split()), quote=False)
        return Markup(re.sub(r"[\\`*|\[\]]", r"\\\g<0>", text))

    return _environment(finalize=escape)
