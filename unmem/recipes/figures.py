"""The report's figures, from a comparison's numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unmem.recipes.drawing import STYLES, Axis, Curve, Figure, Mark, counts, linear, plot

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


def _tradeoffs(comparison: dict[str, Any]) -> list[Figure]:
    """Privacy against quality, for each extraction attack and each membership attack that sees the model."""
    quality = parts(comparison, "quality")
    ranked = sorted(quality, key=lambda name: _rank(next(iter(quality[name].values()))["kind"]))
    if not ranked:
        return []
    measured = quality[ranked[0]]
    wanted = [(attack, reports, "extracted", "training images extracted") for attack, reports in
              of_type(comparison, "extraction")]  # fmt: skip
    wanted += [(attack, reports, "auc", "membership AUC") for attack, reports in membership_shown(comparison)]
    found = []
    for attack, reports, figure, label in wanted:
        leaks = {arm: report["estimates"][figure] for arm, report in reports.items()}
        marks = _marks(measured, leaks, style_of(comparison))
        if marks:
            found.append(_tradeoff(attack, label, ranked[0], measured, marks, style_of(comparison)))
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


def _marks(measured: dict[str, Any], leaks: dict[str, Any], style: dict[str, str]) -> list[Mark]:
    """A mark for each arm that has both numbers."""
    marks = []
    for arm, leak in leaks.items():
        worth = measured[arm]["estimate"] if arm in measured else {"value": None}
        if worth["value"] is not None and leak["value"] is not None:
            ends = [(estimate["low"], estimate["high"]) for estimate in (worth, leak)]
            marks.append(Mark(worth["value"], leak["value"], ends[0], ends[1], style[arm], arm))
    return marks


def _tradeoff(
    attack: str, label: str, name: str, measured: dict[str, Any], marks: list[Mark], style: dict[str, str]
) -> Figure:
    """One plot of leak against quality."""
    first = next(iter(measured.values()))
    extraction = label.startswith("training")
    x = linear(f"{name} ({first['better']} is better)", [first["reference"], *_values(marks, "x")])
    y = linear(label, [0.0 if extraction else 0.5, *_values(marks, "y")], percent=extraction)
    guides = [Curve([(first["reference"], y.low), (first["reference"], y.high)], "guide")]
    if not extraction:
        guides.append(Curve([(x.low, 0.5), (x.high, 0.5)], "guide"))
    side = "right" if first["better"] == "higher" else "left"
    caption = f"Best is at the bottom {side}. Dashed: what real images reach ({first['reference_name']})" + (
        "." if extraction else "; and an AUC of 0.5, chance."
    )
    return plot(f"{attack} against quality", caption, x, y, style, [m.name for m in marks], curves=guides, marks=marks)


def _values(marks: list[Mark], axis: str) -> list[float]:
    """All that must be seen along an axis."""
    values = [value for m in marks for value in (getattr(m, axis), *getattr(m, f"{axis}_ends"))]
    return [value for value in values if value is not None]


def _thresholds(comparison: dict[str, Any]) -> list[Figure]:
    """How many images count as extracted when the rule is made stricter or laxer."""
    style, found = style_of(comparison), []
    for attack, reports in of_type(comparison, "extraction"):
        points = [point for report in reports.values() for point in report["curve"]]
        if not points:
            continue
        x = linear("threshold", [point["threshold"] for point in points])
        y = counts("images", max(max(p["extracted"], p["false_positives"]) for p in points))
        used = {report["threshold"] for report in reports.values()}
        curves = [Curve([(at, y.low), (at, y.high)], "guide") for at in sorted(used)]
        for arm, report in reports.items():
            for figure, dashes in (("false_positives", " dashed"), ("extracted", "")):
                line = [(float(point["threshold"]), float(point[figure])) for point in report["curve"]]
                curves.append(Curve(line, style[arm] + dashes))
        caption = (
            "Solid: extracted training images. Dashed: held-out images by the same rule. Upright: the threshold used."
        )
        found.append(plot(f"{attack} by threshold", caption, x, y, style, reports, curves=curves))
    return found


def _by_samples(comparison: dict[str, Any]) -> list[Figure]:
    """How many images are extracted as samples are drawn, and what ten times as many would bring."""
    style, found = style_of(comparison), []
    for attack, reports in of_type(comparison, "extraction"):
        shown = {arm: report for arm, report in reports.items() if report.get("samples_curve")}  # earlier runs lack it
        if not shown:
            continue
        curves, marks, sizes, most = [], [], [], 1.0
        for arm, report in shown.items():
            line, further = report["samples_curve"], report["estimates"]["extracted_at_10x"]
            for figure, dashes in (("false_positives", " dashed"), ("extracted", "")):
                points = [(float(point["samples"]), float(point[figure])) for point in line]
                curves.append(Curve(points, style[arm] + dashes))
                most = max(most, points[-1][1])
            sizes += [line[0]["samples"], 10 * line[-1]["samples"]]
            if further["value"] is not None:
                value, low, high = (further[end] * further["n"]["trials"] for end in ("value", "low", "high"))
                marks.append(Mark(float(sizes[-1]), value, (None, None), (low, high), style[arm], arm))
                most = max(most, high)
        first, last = min(sizes), max(sizes)
        powers = [10**k for k in range(12) if first <= 10**k <= last]
        x = Axis("samples", first, last, tuple((power, f"{power:,}") for power in powers), math.log)
        y = counts("images", math.ceil(most))
        caption = (
            "Solid: training images that so many of the samples extract, on average. Dashed: held-out images by the "
            "same rule. Points: extrapolated to ten times the samples."
        )
        found.append(plot(f"{attack} by samples", caption, x, y, style, shown, curves=curves, marks=marks))
    return found


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
