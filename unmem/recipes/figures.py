"""The report's figures, from a comparison's numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from unmem.recipes.drawing import STYLES, Axis, Curve, Figure, Mark, counts, linear, plot

ASIDE = 1.12  # by which the marks of neighbouring arms lie apart on an axis of samples
FEW = 2  # membership attacks that have figures of their own


def figures(comparison: dict[str, Any]) -> list[Figure]:
    """Every figure that the comparison has numbers for, but those of :mod:`unmem.recipes.membership_figures`."""
    return [*_tradeoffs(comparison), *_thresholds(comparison), *_by_samples(comparison), *_distances(comparison)]


def style_of(comparison: dict[str, Any]) -> dict[str, str]:
    """Arm -> CSS class of its colour."""
    return {arm: f"c{i % STYLES}" for i, arm in enumerate(comparison["arms"])}


def parts(comparison: Mapping[str, Any], section: str) -> dict[str, dict[str, Any]]:
    """Name -> arm -> report, of the ``attacks`` or the ``quality`` measures that any arm has."""
    found: dict[str, dict[str, Any]] = {}
    for arm, figures_of_arm in comparison["arms"].items():
        for name, report in figures_of_arm[section].items():
            found.setdefault(name, {})[arm] = report
    return found


def of_type(comparison: dict[str, Any], kind: str) -> list[tuple[str, dict[str, Any]]]:
    """(attack, arm -> report) of every attack of one type."""
    attacks = parts(comparison, "attacks").items()
    return [(name, reports) for name, reports in attacks if next(iter(reports.values()))["type"] == kind]


LEAKS = {"extracted": "training images extracted", "copied": "samples that copy", "auc": "membership AUC"}
Leaks = tuple[str, dict[str, Any], str]
"""An attack, its reports by arm, and the figure of theirs that says how much leaks."""


def against_quality(comparison: dict[str, Any]) -> tuple[str, dict[str, Any], list[Leaks]]:
    """What is set against what: a measure of quality, its reports by arm, and what leaks by each attack shown."""
    quality = parts(comparison, "quality")
    ranked = sorted(quality, key=lambda name: _rank(next(iter(quality[name].values()))["kind"]))
    if not ranked:
        return "", {}, []
    wanted = [(attack, reports, "extracted") for attack, reports in of_type(comparison, "extraction")]
    wanted += [(attack, reports, "copied") for attack, reports in of_type(comparison, "similarity")]
    wanted += [(attack, reports, "auc") for attack, reports in membership_shown(comparison)]
    return ranked[0], quality[ranked[0]], wanted


def _tradeoffs(comparison: dict[str, Any]) -> list[Figure]:
    """Privacy against quality, for each extraction attack and each membership attack that sees the model."""
    measure, measured, wanted = against_quality(comparison)
    fronts = {entry["attack"]: entry for entry in comparison.get("pareto", [])}  # earlier runs have none
    found = []
    for attack, reports, figure in wanted:
        leaks = {arm: report["estimates"][figure] for arm, report in reports.items()}
        front = fronts.get(attack, {"front": [], "dominated": {}})
        marks = _marks(measured, leaks, style_of(comparison), front["dominated"])
        if marks:
            found.append(_tradeoff(attack, figure, measure, measured, marks, style_of(comparison), front["front"]))
    return found


def membership_shown(comparison: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(attack, arm -> report) of the membership attacks that see the model: of a few each, of many the strongest."""
    seen = [
        (name, reports)
        for name, reports in of_type(comparison, "membership")
        if next(iter(reports.values()))["kind"] != "blind"
    ]
    if len(seen) <= FEW:
        return seen
    return [max(seen, key=lambda part: max(r["estimates"]["auc"]["value"] or 0.0 for r in part[1].values()))]


def _rank(kind: str) -> int:
    """Which quality measure stands for quality: a classifier's accuracy, else a Fréchet distance, else the first."""
    order = ("classifier", "frechet")
    return order.index(kind) if kind in order else len(order)


def _marks(
    measured: dict[str, Any], leaks: dict[str, Any], style: dict[str, str], dominated: Collection[str]
) -> list[Mark]:
    """A mark for each arm that has both numbers; a hollow one for a dominated arm."""
    marks = []
    for arm, leak in leaks.items():
        worth = measured[arm]["estimate"] if arm in measured else {"value": None}
        if worth["value"] is not None and leak["value"] is not None:
            ends = [(estimate["low"], estimate["high"]) for estimate in (worth, leak)]
            css = f"{style[arm]} hollow" if arm in dominated else style[arm]
            marks.append(Mark(worth["value"], leak["value"], ends[0], ends[1], css, arm))
    return marks


def _tradeoff(
    attack: str, figure: str, name: str, measured: dict[str, Any], marks: list[Mark], style: dict[str, str],
    front: list[str],
) -> Figure:  # fmt: skip
    """One plot of leak against quality."""
    first = next(iter(measured.values()))
    label, share = LEAKS[figure], figure != "auc"
    x = linear(f"{name} ({first['better']} is better)", [first["reference"], *_values(marks, "x")])
    y = linear(label, [0.0 if share else 0.5, *_values(marks, "y")], percent=share)
    guides = [Curve([(first["reference"], y.low), (first["reference"], y.high)], "guide")]
    if not share:
        guides.append(Curve([(x.low, 0.5), (x.high, 0.5)], "guide"))
    best = sorted((mark.x, mark.y) for mark in marks if mark.name in front)
    if len(best) > 1:
        guides.append(Curve(best, "front"))
    side = "right" if first["better"] == "higher" else "left"
    caption = f"Best is at the bottom {side}. Dashed: what real images reach ({first['reference_name']})"
    caption += "." if share else "; and an AUC of 0.5, chance."
    if any(mark.css.endswith(" hollow") for mark in marks):
        caption += " Hollow: dominated."
    if len(best) > 1:
        caption += " Grey line: the arms that no other dominates."
    return plot(f"{attack} against quality", caption, x, y, style, [m.name for m in marks], curves=guides, marks=marks)


def _values(marks: list[Mark], axis: str) -> list[float]:
    """All that must be seen along an axis."""
    values = [value for m in marks for value in (getattr(m, axis), *getattr(m, f"{axis}_ends"))]
    return [value for value in values if value is not None]


def _thresholds(comparison: dict[str, Any]) -> list[Figure]:
    """How many images count as extracted when the rule is made stricter or laxer.

    Attacks that differ in their threshold alone have the same curves, and share a figure.
    """
    style, alike = style_of(comparison), dict[str, list[tuple[str, dict[str, Any]]]]()
    for attack, reports in of_type(comparison, "extraction"):
        curves = {arm: report["curve"] for arm, report in reports.items()}
        if any(curves.values()):
            alike.setdefault(json.dumps(curves), []).append((attack, reports))
    return [_threshold([attack for attack, _ in same], [reports for _, reports in same], style)
            for same in alike.values()]  # fmt: skip


def _threshold(attacks: list[str], same: list[dict[str, Any]], style: dict[str, str]) -> Figure:
    """The curves of attacks that share them, with the threshold of each."""
    reports = same[0]
    points = [point for report in reports.values() for point in report["curve"]]
    x = linear("threshold", [point["threshold"] for point in points])
    y = counts("images", max(max(p["extracted"], p["false_positives"]) for p in points))
    used = sorted({report["threshold"] for by_arm in same for report in by_arm.values()})
    curves = [Curve([(at, y.low), (at, y.high)], "guide") for at in used]
    for arm, report in reports.items():
        for figure, dashes in (("false_positives", " dashed"), ("extracted", "")):
            line = [(float(point["threshold"]), float(point[figure])) for point in report["curve"]]
            curves.append(Curve(line, style[arm] + dashes))
    caption = (
        "Solid: extracted training images. Dashed: held-out images by the same rule. "
        f"Upright: the threshold{'s' if len(used) > 1 else ''} used."
    )
    return plot(f"{', '.join(attacks)} by threshold", caption, x, y, style, reports, curves=curves)


def _by_samples(comparison: dict[str, Any]) -> list[Figure]:
    """How many images are extracted as samples are drawn, and what ten times as many would bring."""
    style, found = style_of(comparison), []
    for attack, reports in of_type(comparison, "extraction"):
        shown = {arm: report for arm, report in reports.items() if report.get("samples_curve")}  # earlier runs lack it
        if not shown:
            continue
        curves, marks, most = [], [], 1.0
        for i, (arm, report) in enumerate(shown.items()):
            for figure, dashes in (("false_positives", " dashed"), ("extracted", "")):
                drawn, further, high = _growth(report, figure, style[arm], dashes, ASIDE**i)
                curves += drawn
                marks += further
                most = max(most, high)
        sizes = [point["samples"] for report in shown.values() for point in report["samples_curve"]]
        first, last = min(sizes), 10 * max(sizes) * ASIDE ** (len(shown) - 1)
        powers = [10**k for k in range(12) if first <= 10**k <= last]
        x = Axis("samples", first, last, tuple((power, f"{power:,}") for power in powers), math.log)
        y = counts("images", math.ceil(most))
        caption = (
            "Solid: training images that so many of the samples extract, on average; shaded, what so many new samples "
            "would. Dashed: held-out images by the same rule. Points: extrapolated to ten times the samples, side by "
            "side, with intervals; hollow for held-out images."
        )
        found.append(plot(f"{attack} by samples", caption, x, y, style, shown, curves=curves, marks=marks))
    return found


def _growth(
    report: dict[str, Any], figure: str, css: str, dashes: str, aside: float
) -> tuple[list[Curve], list[Mark], float]:
    """One figure of one arm by samples: curves, the mark at ten times the samples, and the largest value.

    ``aside`` moves the mark, so that those of several arms do not hide each other.
    """
    line = report["samples_curve"]
    points = [(float(point["samples"]), float(point[figure])) for point in line]
    curves, marks, most = [], [], points[-1][1]
    if figure == "extracted" and "extracted_low" in line[0]:
        ends = [[(float(p["samples"]), float(p[f"{figure}_{end}"])) for p in line] for end in ("low", "high")]
        curves.append(Curve(ends[0] + ends[1][::-1], f"{css} band"))
        most = max(most, ends[1][-1][1])
    curves.append(Curve(points, css + dashes))
    further = report["estimates"].get(f"{figure}_at_10x")
    if further is not None and further["value"] is not None:
        value, low, high = (further[end] * further["n"]["trials"] for end in ("value", "low", "high"))
        far = 10 * points[-1][0] * aside
        curves.append(Curve([points[-1], (far, value)], f"{css} further"))
        hollow = " hollow" if dashes else ""
        marks.append(Mark(far, value, (None, None), (low, high), css + hollow, ""))
        most = max(most, high)
    return curves, marks, most


def _distances(comparison: dict[str, Any]) -> list[Figure]:
    """Quantiles of the distances to the nearest training and the nearest held-out image."""
    style, found = style_of(comparison), []
    for attack, reports in of_type(comparison, "nearness"):
        curves, values = [], []
        for arm, report in reports.items():
            quantiles = report["quantiles"]
            for group, dashes in (("nonmember", " dashed"), ("member", "")):
                curves.append(Curve(list(zip(quantiles["level"], quantiles[group], strict=True)), style[arm] + dashes))
                values += quantiles[group]
        x, y = linear("share of generated images", [0.0, 1.0], percent=True), linear("distance", [0.0, *values])
        caption = "Distance to the nearest training image (solid) and to the nearest held-out image (dashed), in order."
        found.append(plot(attack, caption, x, y, style, reports, curves=curves))
    return found
