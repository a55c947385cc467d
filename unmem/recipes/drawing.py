"""Drawing: axes, curves and marks as plain SVG; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 440, 290
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 14, 46
STYLES = 7  # colours that the style sheet knows: c0 to c6

Ends = tuple[float | None, float | None]


@dataclass(frozen=True)
class Figure:
    """A drawing with what is written around it.

    Attributes:
        title: above it.
        caption: how to read it.
        svg: the drawing.
        legend: arm -> CSS class of its colour.
    """

    title: str
    caption: str
    svg: Markup
    legend: dict[str, str]


@dataclass(frozen=True)
class Axis:
    """One axis: where a value lies between 0 and 1; values beyond its ends are drawn at the ends."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    scale: Callable[[float], float] = float

    def place(self, value: float) -> float:
        """The place of a value, from 0 to 1."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(min(max(value, self.low), self.high)) - low) / (high - low)


@dataclass(frozen=True)
class Curve:
    """A line through points (x, y), with its CSS classes."""

    points: list[tuple[float, float]]
    css: str


@dataclass(frozen=True)
class Mark:
    """A point with error bars, its CSS classes and its name; without a name nothing is written beside it."""

    x: float
    y: float
    x_ends: Ends
    y_ends: Ends
    css: str
    name: str


def plot(
    title: str, caption: str, x: Axis, y: Axis, style: dict[str, str], arms: Iterable[str], *,
    curves: list[Curve], marks: list[Mark] | None = None,
) -> Figure:  # fmt: skip
    """Draw, and keep the legend of the arms that appear."""
    return Figure(title, caption, _draw(title, x, y, curves, marks or []), {arm: style[arm] for arm in arms})


def linear(label: str, values: list[float], *, percent: bool = False) -> Axis:
    """An axis that ends on round numbers around the values."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    numbers = range(math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6) + 1)
    ticks = [round(i * step, 12) for i in numbers]
    texts = [f"{100 * tick:g}%" if percent else f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in ticks]
    return Axis(label, ticks[0], ticks[-1], tuple(zip(ticks, texts, strict=True)))


def counts(label: str, most: int) -> Axis:
    """A logarithmic axis that has a zero."""
    high = max(1.0, float(most))
    ticks = [0, *(m * 10**k for k in range(8) for m in (1, 2, 5))]
    return Axis(label, 0.0, high, tuple((tick, f"{tick:,}") for tick in ticks if tick <= high), math.log1p)


def log_ticks(low: float) -> tuple[tuple[float, str], ...]:
    """Powers of ten up to 1; with 2 and 5 between them where there are few."""
    steps = (1,) if low < 1e-2 else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), 1)
    ticks = sorted(m * 10.0**k for k in decades for m in steps)
    return tuple((tick, f"{tick:.6g}") for tick in ticks if low * (1 - 1e-9) <= tick <= 1)


def _draw(title: str, x: Axis, y: Axis, curves: list[Curve], marks: list[Mark]) -> Markup:
    """The SVG element."""

    def at(value_x: float, value_y: float) -> tuple[float, float]:
        return LEFT + x.place(value_x) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y.place(value_y) * (
            HEIGHT - TOP - BOTTOM
        )

    drawn = [_frame(x, y, at)]
    for curve in curves:
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(*point) for point in curve.points))
        drawn.append(Markup('<polyline class="line {}" points="{}"/>').format(curve.css, points))
    drawn += [_mark(mark, at) for mark in marks]
    drawn += _names(marks, at)
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)
    return head + Markup("\n").join(drawn) + Markup("</svg>")


Place = Callable[[float, float], tuple[float, float]]


def _frame(x: Axis, y: Axis, at: Place) -> Markup:
    """Grid lines, tick labels and axis labels."""
    left, bottom, right, top = LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, TOP
    drawn = []
    for value, text in x.ticks:
        px, _ = at(value, y.low)
        drawn.append(Markup('<path class="grid" d="M{0:.1f} {1}V{2}"/>').format(px, bottom, top))
        drawn.append(Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(px, bottom + 16, text))
    for value, text in y.ticks:
        _, py = at(x.low, value)
        drawn.append(Markup('<path class="grid" d="M{0} {1:.1f}H{2}"/>').format(left, py, right))
        drawn.append(Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(left - 7, py + 3.8, text))
    drawn.append(Markup('<path class="axis" d="M{} {}V{}H{}"/>').format(left, top, bottom, right))
    middle = (left + right) / 2, (top + bottom) / 2
    drawn.append(
        Markup('<text class="label" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            middle[0], HEIGHT - 8, x.label
        )
    )
    drawn.append(
        Markup(
            '<text class="label" transform="translate(13 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
        ).format(middle[1], y.label)
    )
    return Markup("").join(drawn)


def _mark(mark: Mark, at: Place) -> Markup:
    """A point with its error bars."""
    px, py = at(mark.x, mark.y)
    bars = ""
    if None not in mark.x_ends:
        low, high = (at(float(end or 0), mark.y)[0] for end in mark.x_ends)
        bars += f"M{low:.1f} {py:.1f}H{high:.1f}"
    if None not in mark.y_ends:
        low, high = (at(mark.x, float(end or 0))[1] for end in mark.y_ends)
        bars += f"M{px:.1f} {low:.1f}V{high:.1f}"
    return Markup('<path class="line {0}" d="{1}"/><circle class="dot {0}" cx="{2:.1f}" cy="{3:.1f}" r="4.5"/>').format(
        mark.css, bars, px, py
    )


def _names(marks: list[Mark], at: Place) -> list[Markup]:
    """The marks' names beside them, the lowest first, moved up where two would overlap."""
    drawn: list[Markup] = []
    taken: list[tuple[float, float, float]] = []
    for mark in sorted((m for m in marks if m.name), key=lambda m: m.y):
        px, py = at(mark.x, mark.y)
        late, width = px > WIDTH * 0.7, 8.0 + 7 * len(mark.name)
        left, right = (px - width, px) if late else (px, px + width)
        py -= 7
        while any(left < end and start < right and abs(py - height) < 12 for start, end, height in taken):
            py -= 2
        taken.append((left, right, py))
        side, x = ("end", px - 8) if late else ("start", px + 8)
        text = '<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>'
        drawn.append(Markup(text).format(x, py, side, mark.name))
    return drawn
