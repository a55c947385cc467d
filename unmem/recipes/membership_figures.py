"""The report's figures of membership attacks and of canaries."""

from __future__ import annotations

import math
from typing import Any

from unmem.recipes.drawing import STYLES, Axis, Curve, Figure, Mark, linear, log_ticks, plot
from unmem.recipes.figures import FEW, of_type, style_of


def membership_figures(comparison: dict[str, Any]) -> list[Figure]:
    """ROC curves; of many attacks their power by cost; exposure by copies."""
    return [*_rocs(comparison), *_power(comparison), *_exposure(comparison)]


def _rocs(comparison: dict[str, Any]) -> list[Figure]:
    """ROC curves, log-log: what matters is at low false-positive rates. Of a few attacks each, else each arm's."""
    attacks = of_type(comparison, "membership")
    if len(attacks) <= FEW + 1:  # one of them is the blind control
        style = style_of(comparison)
        return [_roc(f"ROC of {name}", comparison, reports, style) for name, reports in attacks if _drawn(reports)]
    style = {name: f"c{i % STYLES}{' dashed' if i >= STYLES else ''}" for i, (name, _) in enumerate(attacks)}
    found = []
    for arm in comparison["arms"]:
        reports = {name: by_arm[arm] for name, by_arm in attacks if arm in by_arm}
        if _drawn(reports):
            found.append(_roc(f"ROC of the attacks on {arm}", comparison, reports, style))
    return found


def _drawn(reports: dict[str, Any]) -> bool:
    """Whether any of them has a curve."""
    return any(report.get("roc") for report in reports.values())


def _roc(name: str, comparison: dict[str, Any], reports: dict[str, Any], style: dict[str, str]) -> Figure:
    """The curves of some reports in one figure."""
    floors = [1 / max(2, comparison["data"][group]) for group in ("nonmembers", "members")]
    x, y = (
        Axis(label, low, 1.0, log_ticks(low), math.log10)
        for label, low in zip(("false-positive rate", "true-positive rate"), floors, strict=True)
    )
    chance = Curve([(max(floors), max(floors)), (1.0, 1.0)], "guide")
    curves = [Curve(_steps(r["roc"]), style[key]) for key, r in reports.items() if r.get("roc")]
    caption = "Both axes logarithmic; the left edge is one held-out image. Dashed grey: chance."
    return plot(name, caption, x, y, style, reports, curves=[chance, *curves])


def _steps(points: list[list[float]]) -> list[tuple[float, float]]:
    """The points of an ROC curve as stairs: between two points nothing better than the first is known."""
    stairs = [(points[0][0], points[0][1])]
    for x, y in points[1:]:
        stairs += [(x, stairs[-1][1]), (x, y)]
    return stairs


def _power(comparison: dict[str, Any]) -> list[Figure]:
    """What each of many attacks costs, and how well it tells members."""
    attacks = [part for part in of_type(comparison, "membership") if next(iter(part[1].values()))["queries"]]
    if len(attacks) <= FEW:
        return []
    style, found = style_of(comparison), []
    for arm in comparison["arms"]:
        marks = []
        for name, by_arm in attacks:
            auc = by_arm[arm]["estimates"]["auc"] if arm in by_arm else {"value": None}
            if auc["value"] is not None:
                ends = (auc["low"], auc["high"])
                marks.append(Mark(by_arm[arm]["queries"], auc["value"], (None, None), ends, style[arm], name))
        if marks:
            values = [value for mark in marks for value in (mark.y, *mark.y_ends) if value is not None]
            most = max(mark.x for mark in marks)
            ticks = tuple((float(t), f"{t}") for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= 2 * most)
            x = Axis("queries an image", 0.8, 2.0 * most, ticks, math.log10)
            y = linear("AUC", [0.5, *values])
            chance = Curve([(x.low, 0.5), (x.high, 0.5)], "guide")
            caption = "Evaluations of the audited model an image; those of shadow models come on top. Dashed: chance."
            found.append(plot(f"Power by cost, {arm}", caption, x, y, style, [arm], curves=[chance], marks=marks))
    return found


def _exposure(comparison: dict[str, Any]) -> list[Figure]:
    """How far inserted canaries stand out, by their copies."""
    style, found = style_of(comparison), []
    for attack, reports in of_type(comparison, "canaries"):
        curves, marks, copies = [], [], set()
        for arm, report in reports.items():
            points = {
                int(name.partition("[")[2].rstrip("]")): estimate
                for name, estimate in report["estimates"].items()
                if name.startswith("exposure[") and estimate["value"] is not None
            }
            copies |= set(points)
            curves.append(Curve([(float(k), e["value"]) for k, e in points.items()], style[arm]))
            ends = {k: (e["low"], e["high"]) for k, e in points.items()}
            marks += [Mark(k, e["value"], (None, None), ends[k], style[arm], "") for k, e in points.items()]
        if len(copies) > 1:
            ticks = tuple((float(k), f"{k}") for k in sorted(copies))
            x = Axis("copies in the training set", min(copies), max(copies), ticks, math.log2)
            y = linear("exposure, bits", [0.0, *(e for mark in marks for e in (mark.y, *mark.y_ends) if e is not None)])
            chance = Curve([(x.low, 1.0), (x.high, 1.0)], "guide")
            caption = "Median over inserted canaries, among those left out. Dashed: one bit, chance."
            curves = [curve for curve in curves if curve.points]
            found.append(
                plot(f"Exposure by {attack}", caption, x, y, style, reports, curves=[chance, *curves], marks=marks)
            )
    return found
