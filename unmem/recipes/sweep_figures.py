"""A sweep's figures: what each model gives away and is worth along the axes, and one against the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from unmem.recipes.drawing import STYLES, Axis, Curve, Figure, Mark, linear, plot
from unmem.recipes.sweep_grid import SEED, short
from unmem.recipes.sweep_summary import figures_of
from unmem.recipes.tables import title

DRAWN = {"extraction": ("extracted", "extracted_planted"), "membership": ("auc",), "nearness": ("nearer_to_training",)}
CONTROL = "false_positives"  # of extraction: what it finds among held-out images
QUALITY = ("classifier", "frechet")  # kinds that stand for quality, the first that there is
WIDE = 8  # largest over smallest value, from which on an axis is logarithmic
TICKS = 8  # values that are written under an axis at most
CROWDED = 40  # marks that have error bars at most


@dataclass(frozen=True)
class Measured:
    """One figure of the cells' arms.

    Attributes:
        key: as :func:`figures_of` calls it.
        title: above its drawing.
        label: beside its axis.
        percent: whether it is a rate.
        control: the key of the figure that is its control; empty without.
        guide: what it is by chance, or with real images; None without.
        caption: what is to be known of it.
    """

    key: str
    title: str
    label: str
    percent: bool = False
    control: str = ""
    guide: float | None = None
    caption: str = ""


@dataclass(frozen=True)
class Line:
    """What is drawn in one colour: a name, and a cell's figures of one arm by the value of the axis."""

    name: str
    arm: str
    cells: list[dict[str, Any]]


def sweep_figures(sweep: Mapping[str, Any]) -> list[Figure]:
    """Every figure along the axis, where there are one or two; then leaks against quality over all cells.

    Args:
        sweep: the content of ``sweep.json``.
    """
    paths = [path for path in sweep["grid"] if path != SEED]
    charts = _charts(sweep, paths) if len(paths) in (1, 2) else []
    found = [_along(sweep, paths[0], measured, name, lines) for name, lines in charts for measured in measures(sweep)]
    return [figure for figure in [*found, *_tradeoffs(sweep)] if figure is not None]


def measures(sweep: Mapping[str, Any]) -> list[Measured]:
    """The figures that are drawn, of every attack but the blind one, and of quality."""
    found: dict[str, Measured] = {}
    for arm in _arms(sweep["cells"]):
        for attack, report in arm["attacks"].items():
            found |= {measured.key: measured for measured in _of_attack(attack, report) if measured.key not in found}
        for measure, report in arm["quality"].items():
            label = f"{measure} ({report['better']} is better)"
            caption = f"Dashed: what real images reach ({report['reference_name']})."
            found.setdefault(measure, Measured(measure, measure, label, guide=report["reference"], caption=caption))
    return list(found.values())


def _of_attack(attack: str, report: Mapping[str, Any]) -> list[Measured]:
    """An attack's figures that are drawn: extraction beside its control, others beside chance."""
    if report["kind"] == "blind":
        return []
    rate = report["type"] != "membership"
    control = f"{attack}.{CONTROL}" if CONTROL in report["estimates"] else ""
    caption = "Dashed: held-out images by the same rule." if control else "Dashed: chance."
    return [
        Measured(
            f"{attack}.{figure}",
            f"{title(figure)} by {attack}",
            title(figure),
            percent=rate,
            control=control,
            guide=None if control else 0.5,
            caption=caption,
        )
        for figure in DRAWN.get(report["type"], ())
        if figure in report["estimates"]
    ]


def _charts(sweep: Mapping[str, Any], paths: list[str]) -> list[tuple[str, list[Line]]]:
    """Drawings of each figure: of one axis one, a line an arm; of two one an arm, a line a value of the second."""
    cells = sweep["cells"]
    arms = list(dict.fromkeys(name for cell in cells for name in cell["arms"]))
    if len(paths) == 1:
        return [("", [Line(arm, arm, cells) for arm in arms])]
    second, of_value = paths[1], dict[str, list[dict[str, Any]]]()
    for cell in cells:
        of_value.setdefault(value_text(cell["values"][second]), []).append(cell)
    lines = {
        arm: [Line(f"{short(second, paths)} {value}", arm, its) for value, its in of_value.items()] for arm in arms
    }
    return [(arm if len(arms) > 1 else "", found) for arm, found in lines.items()]


def _along(sweep: Mapping[str, Any], path: str, measured: Measured, name: str, lines: list[Line]) -> Figure | None:
    """One figure along an axis; None where no cell has it."""
    x, place = _axis(sweep, path)
    style = {line.name: f"c{i % STYLES}" for i, line in enumerate(lines)}
    repeated = len(sweep["grid"].get(SEED, ())) > 1
    curves, marks = [], []
    for line in lines:
        found = _points(line, path, measured.key, place)
        curves.append(Curve(_means(found), style[line.name]))
        for at, same in found.items():
            marks += [Mark(at, e["value"], (None, None), (None, None) if repeated else (e["low"], e["high"]),
                           style[line.name], "") for e in same]  # fmt: skip
        if measured.control:
            control = _points(line, path, measured.control, place)
            curves.append(Curve(_means(control), f"{style[line.name]} dashed"))
    if not marks:
        return None
    values = [value for mark in marks for value in (mark.y, *mark.y_ends) if value is not None]
    values += [value for curve in curves for _, value in curve.points]
    guide = [] if measured.guide is None else [measured.guide]
    y = linear(measured.label, [*values, *guide, *([0.0, 0.01] if measured.percent else [])], percent=measured.percent)
    if measured.guide is not None:
        curves.append(Curve([(x.low, measured.guide), (x.high, measured.guide)], "guide"))
    what = "Points: single seeds; line: their mean." if repeated else "Bars: intervals, each of one model."
    heading = f"{measured.title}, {name}" if name else measured.title
    return plot(heading, f"{what} {measured.caption}".strip(), x, y, style, style, curves=curves, marks=marks)


def _points(line: Line, path: str, key: str, place: Mapping[str, float]) -> dict[float, list[dict[str, Any]]]:
    """Place on the axis -> estimates there, one a seed; such as have no value are left out."""
    found: dict[float, list[dict[str, Any]]] = {}
    for cell in line.cells:
        estimate = figures_of(cell["arms"][line.arm]).get(key) if line.arm in cell["arms"] else None
        if estimate is not None and estimate["value"] is not None:
            found.setdefault(place[value_text(cell["values"][path])], []).append(estimate)
    return found


def _means(points: Mapping[float, list[dict[str, Any]]]) -> list[tuple[float, float]]:
    """The mean at each place, from left to right."""
    return [(at, sum(e["value"] for e in same) / len(same)) for at, same in sorted(points.items())]


def _axis(sweep: Mapping[str, Any], path: str) -> tuple[Axis, dict[str, float]]:
    """The axis of a path: numbers at their places, on a logarithmic scale if they differ much; else in their order."""
    values, label = sweep["grid"][path], short(path, sweep["grid"])
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    at = [float(value) if numbers else float(i) for i, value in enumerate(values)]
    low, high = min(at), max(at)
    scale: Any = float
    if numbers and low > 0 and high / low >= WIDE:
        scale = math.log
    elif numbers and low == 0 and high >= WIDE:
        scale = math.log1p
    places = sorted(zip(at, values, strict=True), key=lambda pair: pair[0])
    every = math.ceil(len(places) / TICKS)
    ticks = tuple((position, value_text(value)) for position, value in places[::every])
    if low == high:
        low, high, scale = low - 0.5, high + 0.5, float
    return Axis(label, low, high, ticks, scale), {value_text(value): position for position, value in places}


def value_text(value: Any) -> str:
    """A grid's value as a reader sees it; no two of an axis are the same."""
    if isinstance(value, list):
        return f"[{', '.join(value_text(part) for part in value)}]"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "null" if value is None else str(value)


def _tradeoffs(sweep: Mapping[str, Any]) -> list[Figure]:
    """Each leak against quality: a point a cell and arm."""
    arms = _arms(sweep["cells"])
    kinds = {name: report for arm in arms for name, report in arm["quality"].items()}
    if not kinds:
        return []
    order = {kind: i for i, kind in enumerate(QUALITY)}
    worth = min(kinds, key=lambda name: order.get(kinds[name]["kind"], len(QUALITY)))
    found = [_against(sweep, measured, worth, kinds[worth]) for measured in measures(sweep)
             if measured.key.rpartition(".")[2] in ("extracted", "auc")]  # fmt: skip
    return [figure for figure in found if figure is not None]


def _against(sweep: Mapping[str, Any], measured: Measured, worth: str, quality: Mapping[str, Any]) -> Figure | None:
    """One leak against one measure of quality, coloured by arm, or by the first axis where there is one arm."""
    points = [(named, figures_of(arm).get(measured.key), figures_of(arm).get(worth)) for named, arm in _coloured(sweep)]
    shown = [(named, leak, good) for named, leak, good in points
             if leak and good and leak["value"] is not None and good["value"] is not None]  # fmt: skip
    if not shown:
        return None
    style = {name: f"c{i % STYLES}" for i, name in enumerate(dict.fromkeys(name for name, _, _ in shown))}
    bars = len(shown) <= CROWDED
    marks = [
        Mark(
            good["value"],
            leak["value"],
            (good["low"], good["high"]) if bars else (None, None),
            (leak["low"], leak["high"]) if bars else (None, None),
            style[name],
            "",
        )
        for name, leak, good in shown
    ]
    along, up = ([v for m in marks for v in ends if v is not None] for ends in
                 (_flat((m.x, *m.x_ends) for m in marks), _flat((m.y, *m.y_ends) for m in marks)))  # fmt: skip
    x = linear(f"{worth} ({quality['better']} is better)", [quality["reference"], *along])
    y = linear(measured.label, [0.0 if measured.percent else 0.5, *up], percent=measured.percent)
    side = "right" if quality["better"] == "higher" else "left"
    caption = f"A point a model. Best is at the bottom {side}. Dashed: what real images reach."
    caption += "" if bars else " The intervals stand in the table."
    guide = Curve([(quality["reference"], y.low), (quality["reference"], y.high)], "guide")
    return plot(f"{measured.title}, against {worth}", caption, x, y, style, style, curves=[guide], marks=marks)


def _flat(parts: Iterable[tuple[float | None, ...]]) -> list[float | None]:
    """All of them in one list."""
    return [value for part in parts for value in part]


def _coloured(sweep: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What each arm of each cell is coloured by, and its figures."""
    cells, paths = sweep["cells"], [path for path in sweep["grid"] if path != SEED]
    several = len({name for cell in cells for name in cell["arms"]}) > 1
    return [
        (name if several or not paths else f"{short(paths[0], paths)} {value_text(cell['values'][paths[0]])}", arm)
        for cell in cells
        for name, arm in cell["arms"].items()
    ]


def _arms(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures of every arm of every cell."""
    return [arm for cell in cells for arm in cell["arms"].values()]
