"""The report of a run, from its JSON files alone: ``report.html``, ``report.md``, and a table for the terminal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from unmem.component import UserError
from unmem.recipes import defences, pareto
from unmem.recipes.arms_table import of_arms, of_controls, of_costs
from unmem.recipes.copies_figures import copies_figures, of_copies
from unmem.recipes.figures import figures, style_of
from unmem.recipes.membership_figures import membership_figures
from unmem.recipes.membership_tables import of_canaries, of_membership, of_membership_controls, of_screens, of_sets
from unmem.recipes.pages import html, markdown
from unmem.recipes.statement import laid_out
from unmem.recipes.tables import NOTHING, cell, counts, epsilon, title
from unmem.rundir import read_json, write_text

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
        UserError: when ``comparison.json`` is missing, or a file is damaged or of another version.
    """
    with of_this_version(root / "comparison.json"):
        run = _read(root)
        view = _view(_redacted(run) if redact else run, redact)
        texts = [
            environment.get_template(f"report.{suffix}.j2").render(view)
            for suffix, environment in (("html", html()), ("md", markdown()))
        ]
    name = "report-redacted" if redact else "report"
    written = [root / f"{name}.html", root / f"{name}.md"]
    for path, text in zip(written, texts, strict=True):
        write_text(path, text)
    return written


def table(comparisons: dict[str, dict[str, Any]]) -> str:
    """The arms of several runs in one aligned table of plain text.

    Args:
        comparisons: run directory -> its ``comparison.json``.

    Raises:
        UserError: when one of them is no comparison, or one of another version.
    """
    rows, facts, kinds = [], [], set()
    for run, comparison in comparisons.items():
        with of_this_version(Path(run) / "comparison.json"):
            check_schema(comparison)
            rows += [{"run": run, "arm": arm, **_brief(found)} for arm, found in comparison["arms"].items()]
            facts.append(f"{run}: {_facts(comparison['data'])}")
            kinds.add(_same(comparison["data"]))
    heads = list(dict.fromkeys(head for row in rows for head in row)) or ["run", "arm"]
    last = [head for head in heads if head.startswith("epsilon")]
    heads = [head for head in heads if head not in last] + last
    lines = [heads, *([row.get(head, NOTHING) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    texts = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    texts.insert(1, "  ".join("-" * width for width in widths))
    if len(kinds) > 1:
        texts.append(f"\nThe runs differ in data, so their rows are not comparable ({'; '.join(facts)}).")
    return "\n".join(texts)


def _brief(figures_of_arm: dict[str, Any]) -> dict[str, str]:
    """One arm's row of the terminal's table."""
    row = {"trained on": f"{figures_of_arm['training_images']:,}"} if figures_of_arm["trained"] else {}
    for name, report in figures_of_arm["attacks"].items():
        estimates = report["estimates"]
        if report["type"] == "extraction":
            found = {figure: counts(estimate) for figure, estimate in estimates.items()}
            planted = f" ({found['extracted_planted']})" if "extracted_planted" in found else ""
            shown = f"{found['extracted']}{planted} | {found['false_positives']}"
            row[f"{name}: extracted (planted) | false positives"] = shown
        elif report["type"] == "membership":
            row[f"{name} AUC"] = cell(estimates["auc"]).inline
    for name, measure in figures_of_arm["quality"].items():
        row[f"{name} ({measure['better']} is better)"] = cell(measure["estimate"]).inline
    return {**row, "epsilon": epsilon(figures_of_arm["privacy"]).inline}


# What is read.


@dataclass(frozen=True)
class Run:
    """What the JSON files of a run directory hold."""

    comparison: dict[str, Any]
    provenance: dict[str, Any]
    quarantine: list[dict[str, str]]
    galleries: dict[str, dict[str, Any]]


_EMPTY: dict[str, Any] = {"samples": [], "pairs": [], "groups": [], "groups_in_all": 0}
_MALFORMED = (KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError, UndefinedError)


@contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """Turn what a comparison of another form makes fail into a user error that names its file."""
    try:
        yield
    except UserError:
        raise
    except _MALFORMED as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: not a comparison of this version ({what})") from error


def check_schema(comparison: dict[str, Any]) -> None:
    """Refuse a comparison of another schema."""
    if comparison["schema"] != 1:
        raise ValueError(f"schema {comparison['schema']!r}")


def _read(root: Path) -> Run:
    """Read a run directory; files that unfinished runs lack count as empty."""
    comparison = read_json(root / "comparison.json")
    check_schema(comparison)

    def optional(path: Path, missing: Any) -> Any:
        return read_json(path) if path.exists() else missing

    files = {arm: root / "arms" / arm / "gallery" / "gallery.json" for arm in comparison["arms"]}
    galleries = {arm: optional(file, _EMPTY) for arm, file in files.items()}
    for arm, gallery in galleries.items():
        if not isinstance(gallery, dict) or gallery.keys() != _EMPTY.keys():
            raise UserError(f"{files[arm]}: not a gallery of this version")
    return Run(comparison, optional(root / "provenance.json", {}), optional(root / "quarantine.json", []), galleries)


# What the templates are given.


def _view(run: Run, redacted: bool) -> dict[str, Any]:
    """All that the templates print."""
    comparison = run.comparison
    arms = list(comparison["arms"])
    cautions = [text for text in comparison["verdict"] if text.startswith(("Caution", "Not finished"))]
    return {
        "comparison": comparison,
        "facts": _facts(comparison["data"]),
        "times": _times(comparison["data"]),
        "redacted": redacted,
        "arms": arms,
        "shadows": comparison["shadows"],
        "style": style_of(comparison),
        "verdict": [_spoken(text, arms) for text in comparison["verdict"] if text not in cautions],
        "cautions": cautions,
        "tables": {
            "arms": of_arms(comparison),
            "costs": of_costs(comparison),
            "controls": of_controls(comparison),
            "copies": of_copies(comparison),
            "membership": of_membership(comparison),
            "membership_controls": of_membership_controls(comparison),
            "sets": of_sets(comparison),
            "screens": of_screens(comparison),
            "canaries": of_canaries(comparison),
        },
        "defences": defences.lines(comparison),
        "access": defences.ACCESS,
        "fronts": _fronts(comparison),
        "pareto_rule": pareto.RULE,
        "differences": _differences(comparison),
        "estimates": _estimates(comparison),
        "figures": [*membership_figures(comparison), *copies_figures(comparison), *figures(comparison)],
        "extracted": _extracted(run),
        "samples": {arm: gallery["samples"] for arm, gallery in run.galleries.items() if gallery["samples"]},
        "dropped": _dropped(run),
        "private": {arm: laid_out(found["privacy"]) for arm, found in comparison["arms"].items() if found["privacy"]},
        "quarantine": run.quarantine,
        "reasons": Counter(entry["reason"] for entry in run.quarantine).most_common(),
        "provenance": run.provenance,
        "stages": list(dict.fromkeys(s for arm in comparison["arms"].values() for s in arm["seconds"])),
        "listed": LISTED,
    }


def _facts(data: Mapping[str, Any]) -> str:
    """The data in one line."""
    planted = f", {data['planted']:,} planted {_times(data)} times" if data["planted"] else ""
    shape = " \N{MULTIPLICATION SIGN} ".join(str(side) for side in data["shape"])
    return f"{data['kind']}, {shape}: {data['members']:,} members, {data['nonmembers']:,} held out{planted}"


def _times(data: Mapping[str, Any]) -> str:
    """How often a planted image is in the training set."""
    fewest, most = data.get("fewest_copies", data["copies"]), data["copies"]  # earlier runs have one number
    return str(most) if fewest == most else f"{fewest} to {most}"


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
            arm: (cell(found[name]), _sign(found[name]), counts(found[name]))
            for arm, found in arms.items()
            if name in found
        }
        shared = {counted for _, _, counted in cells.values()}
        one = shared.pop() if len(shared) == 1 else ""
        rows.append({"attack": attack, "figure": title(figure), "counts": one, "cells": cells})
    return rows


def _fronts(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """The Pareto fronts that have two arms to choose from, as words."""
    shown = []
    for entry in comparison.get("pareto", []):  # earlier runs have none
        if len(entry["front"]) + len(entry["dominated"]) > 1:
            beaten = [f"{arm} (by {', '.join(others)})" for arm, others in entry["dominated"].items()]
            leak = f"{entry['attack']}: {title(entry['figure'])}"
            shown.append({**entry, "leak": leak, "beaten": ", ".join(beaten)})
    return shown


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
        rows += [{"arm": arm, "name": name, "cell": cell(e), "counts": counts(e)} for name, e in named.items()]
    return rows


def _extracted(run: Run) -> list[dict[str, Any]]:
    """For each arm and extraction attack what was extracted, with pictures of the first."""
    found = []
    for arm, figures_of_arm in run.comparison["arms"].items():
        for attack, report in figures_of_arm["attacks"].items():
            if report["type"] == "extraction":
                pairs = [pair for pair in run.galleries[arm]["pairs"] if pair["attack"] == attack]
                eidetic = report.get("eidetic", [])
                found.append(
                    {"arm": arm, "attack": attack, "matches": report["matches"], "pairs": pairs, "eidetic": eidetic}
                )
    return found


def _dropped(run: Run) -> list[dict[str, Any]]:
    """Groups that mitigations reduced to one image; arms that dropped the same ones share an entry."""
    found: list[dict[str, Any]] = []
    for arm, gallery in run.galleries.items():
        total, groups, in_all = run.comparison["arms"][arm]["dropped"], gallery["groups"], gallery["groups_in_all"]
        same = next((entry for entry in found if (entry["groups"], entry["total"]) == (groups, total)), None)
        if same is not None:
            same["arms"].append(arm)
        elif total:
            inside = sum(group["dropped"] for group in groups)
            found.append({"arms": [arm], "groups": groups, "in_all": in_all, "total": total, "inside": inside})
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
        own = {section: without_texts(found) for section, found in arm.get("own", {}).items()}
        arms[name] = {**arm, "attacks": attacks, "mitigations": mitigations, "own": own}
    galleries = {
        name: {
            **gallery,
            "samples": [],
            "pairs": [],
            "groups": [_without_pictures(group) for group in gallery["groups"]],
        }
        for name, gallery in run.galleries.items()
    }
    provenance = run.provenance and {**run.provenance, "command": [*run.provenance["command"][:2], LEFT_OUT]}
    quarantine = [
        {"source": "", "reason": next((known for known in _REASONS if known in entry["reason"]), "another reason")}
        for entry in run.quarantine
    ]
    return Run({**run.comparison, "arms": arms}, provenance, quarantine, galleries)


def without_texts(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings whose texts, which may be paths, are left out."""
    return {key: value for key, value in settings.items() if key == "kind" or isinstance(value, (bool, int, float))}


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
