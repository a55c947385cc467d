"""A finished run held against limits: what a team's pipeline asks before a model goes out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from unmem.component import UserError, suggest

By = Literal["value", "interval"]


@dataclass(frozen=True)
class Limit:
    """A figure, as the user names it, and its limit."""

    figure: str
    limit: float

    @classmethod
    def parse(cls, option: str, text: str) -> Limit:
        """``tpr_at_fpr[0.01]=0.05``; the option is for messages.

        Raises:
            UserError: without a name, or a number behind it.
        """
        figure, _, number = text.rpartition("=")
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if not figure or math.isnan(limit):
            raise UserError(f"{option} {text}: needs a name and a number, such as tpr_at_fpr[0.01]=0.05")
        return cls(figure, limit)


@dataclass(frozen=True)
class Finding:
    """A figure of an arm beside its limit.

    Attributes:
        arm: whose.
        figure: ``attack.figure``, ``epsilon`` for what is proven, or a quality measure.
        value, low, high: the estimate; counts where an extraction is counted.
        limit: the most it may be, or the least; None where there is nothing to hold against it.
        passed: whether it keeps it.
        reason: why not, in words; empty if it does.
    """

    arm: str
    figure: str
    value: float | None
    low: float | None
    high: float | None
    limit: float | None
    passed: bool
    reason: str

    def __str__(self) -> str:
        """One line."""
        shown = "" if self.value is None else f" {self.value:.4g}"
        if self.low is not None and self.high is not None:
            shown += f" ({self.low:.4g} to {self.high:.4g})"
        what = f"{self.arm}: {self.figure}" if self.figure else self.arm
        return f"{what}{shown}: {self.reason or f'within {self.limit:g}'}"

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def check(
    comparison: dict[str, Any],
    most: list[Limit],
    quality: list[Limit],
    *,
    only: tuple[str, ...] = (),
    by: By = "value",
) -> list[Finding]:
    """Every figure that a limit speaks of.

    Args:
        comparison: a run's ``comparison.json``.
        most: figures of attacks, which may be at most so large.
        quality: measures, which must be at least so good, in their own direction.
        only: arms; all when empty, and then none may be unfinished.
        by: what is held against a limit: the value, or the worse end of its interval.

    Raises:
        UserError: for arms and figures that no arm has.
    """
    if not most and not quality:
        raise UserError("nothing to check: give --max or --min-quality")
    arms = _chosen(comparison, only)
    found = [
        Finding(name, "", None, None, None, None, False, "is not finished")
        for name in comparison["unfinished"]
        if not only or name in only
    ]
    for limit in most:
        _check_known("--max", limit.figure, {name for arm in arms.values() for name in _names(arm)})
        for name, arm in arms.items():
            found += list(_held(name, arm, limit, by)) or [_missing(name, limit)]
    for limit in quality:
        _check_known("--min-quality", limit.figure, {name for arm in arms.values() for name in arm["quality"]})
        for name, arm in arms.items():
            measure = arm["quality"].get(limit.figure)
            found.append(
                _missing(name, limit)
                if measure is None
                else _compared(name, limit.figure, measure["estimate"], limit.limit, by, measure["better"])
            )
    return found


def _chosen(comparison: dict[str, Any], only: tuple[str, ...]) -> dict[str, Any]:
    """The arms to check."""
    known = [*comparison["arms"], *comparison["unfinished"]]
    for name in only:
        if name not in known:
            raise UserError(f"--arm {name}: no such arm{suggest(name, known)}; have {', '.join(known)}")
    return {name: arm for name, arm in comparison["arms"].items() if not only or name in only}


def _check_known(option: str, figure: str, known: set[str]) -> None:
    """Refuse what no arm has, and a limit that would let through what it is to stop."""
    if figure not in known:
        bare = sorted(name for name in known if "." not in name.partition("[")[0])
        further = ", each also as ATTACK.FIGURE" if len(bare) < len(known) else ""
        have = f"have {', '.join(bare)}{further}"
        raise UserError(f"{option} {figure}: no such figure{suggest(figure, sorted(known))}; {have}")
    if "p_value" in figure:
        raise UserError(f"{option} {figure}: the smaller a p-value, the surer the leak; limit another figure")


def _names(arm: dict[str, Any]) -> Iterator[str]:
    """What figures of an arm may be called."""
    yield "epsilon"
    for attack, report in arm["attacks"].items():
        yield from report["estimates"]
        yield from (f"{attack}.{figure}" for figure in report["estimates"])


def _held(name: str, arm: dict[str, Any], limit: Limit, by: By) -> Iterator[Finding]:
    """The figures of an arm that a limit speaks of; without an attack's name, those of all that see the model."""
    if limit.figure == "epsilon":
        yield from _proven(name, arm, limit)
        return
    for attack, report in arm["attacks"].items():
        for figure, estimate in report["estimates"].items():
            full = f"{attack}.{figure}"
            if limit.figure == full or (limit.figure == figure and report["kind"] != "blind"):
                counted = _counted(estimate) if report["type"] == "extraction" else estimate
                yield _compared(name, full, counted, limit.limit, by)


def _proven(name: str, arm: dict[str, Any], limit: Limit) -> Iterator[Finding]:
    """The proven epsilon: what is not proven has no upper bound, and what an audit contradicts is not proven."""
    privacy = arm["privacy"]
    if privacy is None or privacy["void"]:
        reason = "nothing is proven" if privacy is None else f"no guarantee ({privacy['void']})"
        yield Finding(name, "epsilon", None, None, None, limit.limit, False, reason)
        return
    figure = f"epsilon at delta {privacy['delta']:g}"
    yield _compared(name, figure, _exact(privacy["epsilon"]), limit.limit, "value")
    for measured in arm["measured"]:
        if measured["contradicts"]:
            yield _compared(name, f"{measured['attack']}.epsilon", measured["epsilon"], privacy["epsilon"], "value")


def _exact(value: float) -> dict[str, Any]:
    """A number that was not estimated, as an estimate."""
    return {"value": value, "low": None, "high": None, "note": ""}


def _counted(estimate: dict[str, Any]) -> dict[str, Any]:
    """A rate as a count."""
    trials = estimate["n"]["trials"]
    ends = {end: None if estimate[end] is None else estimate[end] * trials for end in ("low", "high")}
    return {**estimate, **ends, "value": None if estimate["value"] is None else estimate["n"]["successes"]}


def _compared(name: str, figure: str, estimate: dict[str, Any], limit: float, by: By, better: str = "lower") -> Finding:
    """An estimate, or the worse end of its interval, against a limit; what is withheld keeps none."""
    worse, side, beyond = ("high", "upper", "above") if better == "lower" else ("low", "lower", "below")
    held = estimate[worse if by == "interval" else "value"]
    passed, reason = False, ""
    if estimate["value"] is None:
        reason = f"withheld: {estimate['note'].removeprefix('withheld: ')}"
    elif held is None:
        reason = f"has no {side} end; check its value"
    elif not (passed := held <= limit if better == "lower" else held >= limit):
        reason = f"{f'{side} end ' if by == 'interval' else ''}{beyond} the limit {limit:g}"
    return Finding(name, figure, estimate["value"], estimate["low"], estimate["high"], limit, passed, reason)


def _missing(name: str, limit: Limit) -> Finding:
    """An arm that lacks a figure which others have."""
    return Finding(name, limit.figure, None, None, None, limit.limit, False, "this arm has no such figure")
