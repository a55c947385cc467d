"""Extraction by how often an image stands in the training set: a figure and a table."""

from __future__ import annotations

import math
from typing import Any

from unmem.recipes.drawing import Axis, Curve, Figure, Mark, linear, plot
from unmem.recipes.figures import of_type, parts, style_of
from unmem.recipes.tables import Column, Table, arm_rows, cell, kind_of_report, table

FIGURE = "extracted_by_copies["


def copies_figures(comparison: dict[str, Any]) -> list[Figure]:
    """For each extraction attack the rate at each number of copies, where planted images differ in that."""
    style, found = style_of(comparison), []
    for attack, reports in of_type(comparison, "extraction"):
        rates = {arm: by_copies for arm, report in reports.items() if (by_copies := _rates(report))}
        if not rates:
            continue
        times = sorted({k for by_copies in rates.values() for k in by_copies})
        x = Axis("copies in the training set", times[0], times[-1], tuple((k, f"{k}") for k in times), math.log2)
        ends = [e["high"] for by_copies in rates.values() for e in by_copies.values()]
        y = linear("extracted", [0.0, *ends], percent=True)
        curves, marks = [], []
        for arm, by_copies in rates.items():
            held_out = reports[arm]["estimates"]["false_positives"]["value"]
            curves.append(Curve([(x.low, held_out), (x.high, held_out)], f"{style[arm]} dashed"))
            curves.append(Curve([(k, e["value"]) for k, e in by_copies.items()], style[arm]))
            marks += [Mark(k, e["value"], (None, None), (e["low"], e["high"]), style[arm], "")
                      for k, e in by_copies.items()]  # fmt: skip
        caption = "Of the members that stand so often in the training set. Dashed: held-out images by the same rule."
        found.append(plot(f"{attack} by copies", caption, x, y, style, rates, curves=curves, marks=marks))
    return found


def of_copies(comparison: dict[str, Any]) -> Table:
    """The same as a table, held-out images first: they stand in it 0 times."""
    columns = []
    for attack, reports in parts(comparison, "attacks").items():
        if kind_of_report(reports) != "extraction":
            continue
        times = sorted({k for report in reports.values() for k in _rates(report)})
        if times:
            held_out = {arm: report["estimates"]["false_positives"] for arm, report in reports.items()}
            by_copies = {0: held_out} | {
                k: {arm: _rates(report)[k] for arm, report in reports.items() if k in _rates(report)} for k in times
            }
            columns += [
                Column(attack, f"{k}", {arm: cell(found.get(arm), counted=True) for arm in comparison["arms"]})
                for k, found in by_copies.items()
            ]
    return table("arm", arm_rows(comparison), columns)


def _rates(report: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Copies -> estimate."""
    return {
        int(name.removeprefix(FIGURE).rstrip("]")): estimate
        for name, estimate in report["estimates"].items()
        if name.startswith(FIGURE)
    }
