"""The report of a sweep, from ``sweep.json`` alone: ``sweep.html`` and ``sweep.md``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unmem.recipes.pages import html, markdown
from unmem.recipes.sweep_figures import sweep_figures, value_text
from unmem.recipes.sweep_grid import SEED, short
from unmem.recipes.sweep_summary import FILE, read
from unmem.recipes.tables import HEADLINES, Cell, Column, Row, Table, attack_columns, cell, number, table, title
from unmem.rundir import write_text

PAGES = ("sweep.html", "sweep.md")


def render(root: Path) -> list[Path]:
    """Write the pages of a sweep's directory, and return their paths.

    Raises:
        UserError: when ``sweep.json`` is missing, damaged or of another version.
    """
    view = _view(read(root))
    written = [root / name for name in PAGES]
    for path, environment in zip(written, (html(), markdown()), strict=True):
        write_text(path, environment.get_template(f"{path.name}.j2").render(view))
    return written


def is_fresh(root: Path) -> bool:
    """Whether the pages were written after ``sweep.json``."""
    told = (root / FILE).stat().st_mtime_ns
    return all((root / name).exists() and (root / name).stat().st_mtime_ns >= told for name in PAGES)


def _view(sweep: dict[str, Any]) -> dict[str, Any]:
    """All that the templates print."""
    cells = sweep["cells"]
    states = {state: [c for c in cells if c["state"] == state] for state in ("finished", "failed", "unfinished")}
    return {
        "sweep": sweep,
        "axes": {path: ", ".join(value_text(value) for value in values) for path, values in sweep["grid"].items()},
        "states": states,
        "refuted": [(c["name"], sentence) for c in cells for sentence in c["refuted"]],
        "style": {},
        "tables": {"cells": _of_cells(cells), "means": _of_means(sweep)},
        "figures": sweep_figures(sweep),
    }


def _of_cells(cells: list[dict[str, Any]]) -> Table:
    """A row for each arm of each cell, with what it gives away and is worth."""
    rows, arms = [], {}
    for found in cells:
        for name, arm in found["arms"].items():
            row = found["name"] if len(found["arms"]) == 1 else f"{found['name']} {name}"
            rows.append(Row(row))
            arms[row] = arm
    columns = [Column("training", "images", {row: Cell(_whole(arm["training_images"])) for row, arm in arms.items()})]
    for attack in dict.fromkeys(name for arm in arms.values() for name in arm["attacks"]):
        reports = {row: arm["attacks"][attack] for row, arm in arms.items() if attack in arm["attacks"]}
        columns += attack_columns(attack, reports, arms, only=(*HEADLINES, "extracted_by_copies"))
    for measure in dict.fromkeys(name for arm in arms.values() for name in arm["quality"]):
        columns.append(_of_quality(measure, arms))
    columns.append(Column("cost", "all stages, s", {row: Cell(f"{arm['seconds']:,.1f}") for row, arm in arms.items()}))
    return table("cell", rows, columns)


def _of_quality(measure: str, arms: Mapping[str, Any]) -> Column:
    """One measure of quality, beside what real images reach."""
    found = {row: arm["quality"].get(measure) for row, arm in arms.items()}
    first = next(report for report in found.values() if report is not None)
    cells = {row: cell(report["estimate"] if report else None) for row, report in found.items()}
    note = f"Real images: {first['reference_name']}."
    cells = {row: replace(entry, note=f"{note} {entry.note}".strip()) for row, entry in cells.items()}
    return Column("quality", measure, cells, f"{first['better']} is better; real: {number(first['reference'])}")


def _of_means(sweep: Mapping[str, Any]) -> Table:
    """Means over seeds with the smallest and the largest value; no interval, which few seeds cannot give."""
    rows, groups = [], {}
    for group in sweep["means"] if len(sweep["grid"].get(SEED, ())) > 1 else []:
        values = group["values"]
        name = ", ".join(f"{short(path, values)} {value_text(value)}" for path, value in values.items()) or "all"
        for arm, figures in group["arms"].items():
            row = name if len(group["arms"]) == 1 else f"{name} {arm}"
            seeds = max((figure["seeds"] for figure in figures.values()), default=0)
            rows.append(Row(row, f"{seeds} seeds"))
            groups[row] = figures
    columns = []
    for key in dict.fromkeys(key for figures in groups.values() for key in figures):
        attack, _, figure = key.rpartition(".") if not key.endswith("]") else key.partition(".")
        if not attack or figure.partition("[")[0] in HEADLINES:
            cells = {row: _mean(figures.get(key)) for row, figures in groups.items()}
            columns.append(Column(attack or "quality", title(figure) if attack else key, cells))
    return table("mean over seeds", rows, columns)


def _mean(found: Mapping[str, Any] | None) -> Cell:
    """A mean with the range below it."""
    if found is None:
        return Cell("\N{EN DASH}")
    ends = [number(found[end], found["most"]) for end in ("least", "most")]
    return Cell(number(found["mean"], found["most"]), f"from {ends[0]} to {ends[1]}")


def _whole(value: int | None) -> str:
    """A number of images."""
    return "\N{EN DASH}" if value is None else f"{value:,}"
