"""The report's table of arms: what each gives away, what it is worth, what is proven, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unmem.recipes.figures import FEW, parts
from unmem.recipes.tables import (
    HEADLINES,
    NOTHING,
    Cell,
    Column,
    Table,
    arm_rows,
    attack_columns,
    cell,
    epsilon,
    is_blind,
    kind_of_report,
    membership_attacks,
    number,
    seconds,
    table,
)

WIDEST = 13  # columns of a table that a page has room for
RESUMED = "Resumed: seconds and memory are of the last part alone."


def of_arms(comparison: dict[str, Any]) -> Table:
    """What each arm trained on, gives away, is worth, and what is proven; at what cost, if there is room for that."""
    columns, costs = _figures(comparison), _cost_columns(comparison)
    fits = bool(columns) and len(columns) + len(costs) <= WIDEST
    return table("arm", arm_rows(comparison), columns + costs if fits else columns)


def of_costs(comparison: dict[str, Any]) -> Table:
    """What each arm cost, where the table of arms has no room for it."""
    columns, costs = _figures(comparison), _cost_columns(comparison)
    return table("arm", arm_rows(comparison), costs if columns and len(columns) + len(costs) > WIDEST else [])


def _figures(comparison: dict[str, Any]) -> list[Column]:
    """The columns of the table of arms but for the cost."""
    arms = comparison["arms"]
    trains = any(arm["trained"] for arm in arms.values())
    trained = {
        name: Cell(f"{arm['training_images']:,}", f"{arm['dropped']:,} dropped" if arm["dropped"] else "")
        if arm["trained"]
        else Cell(NOTHING)
        for name, arm in arms.items()
    }
    columns = [Column("training", "images", trained)] if trains else []
    crowded = len(membership_attacks(comparison)) > FEW
    extractions = sum(kind_of_report(r) == "extraction" for r in parts(comparison, "attacks").values())
    shown = [name for name in HEADLINES if extractions <= FEW or name != "extracted_planted"]  # there is no room
    for attack, reports in parts(comparison, "attacks").items():
        kind = kind_of_report(reports)
        if kind in ("extraction", "similarity") or (kind == "membership" and not (crowded or is_blind(reports))):
            columns += attack_columns(attack, reports, arms, only=shown)
    columns += _strongest(comparison) if crowded else []
    columns += _quality_columns(comparison)
    if trains and columns and any(arm["privacy"] for arm in arms.values()):
        proven = {name: epsilon(arm["privacy"]) for name, arm in arms.items()}
        columns.append(Column("proven", "\N{GREEK SMALL LETTER EPSILON} for one image", proven))
    return columns


def of_controls(comparison: dict[str, Any]) -> Table:
    """Attacks that say whether the others can be believed."""
    columns = []
    for name, reports in parts(comparison, "attacks").items():
        if is_blind(reports) or kind_of_report(reports) == "nearness":
            columns += attack_columns(name, reports, comparison["arms"], only=HEADLINES)
    return table("arm", arm_rows(comparison), columns)


def _strongest(comparison: dict[str, Any]) -> list[Column]:
    """Of many membership attacks, the one with the largest AUC on each arm; which it is stands in the note."""
    cells = {}
    for name in comparison["arms"]:
        seen = {
            attack: reports[name]["estimates"]["auc"]
            for attack, reports in membership_attacks(comparison).items()
            if name in reports and reports[name]["estimates"]["auc"]["value"] is not None
        }
        best = max(seen, key=lambda attack: seen[attack]["value"]) if seen else None
        shown = cell(seen.get(best) if best else None)
        note = f"The largest of {len(seen)} attacks: {best}. The largest of so many is above a half by chance, too."
        cells[name] = replace(shown, note=note if best else "")
    return [Column("membership", "largest AUC", cells)]


def _quality_columns(comparison: dict[str, Any]) -> list[Column]:
    """Each quality figure beside what real images reach."""
    columns = []
    for name, reports in parts(comparison, "quality").items():
        first = next(iter(reports.values()))
        cells = {arm: cell(reports[arm]["estimate"] if arm in reports else None) for arm in comparison["arms"]}
        below = f"{first['better']} is better; real: {number(first['reference'])}"
        note = f"Real images: {first['reference_name']}."
        cells = {arm: replace(cell, note=f"{note} {cell.note}".strip()) for arm, cell in cells.items()}
        columns.append(Column("quality", name, cells, below))
    return columns


def _cost_columns(comparison: dict[str, Any]) -> list[Column]:
    """Images seen and seconds of training beside the reference's, seconds of sampling, and peak memory."""
    arms = comparison["arms"]
    costs = {name: _costs(arm) for name, arm in arms.items()}
    columns = []
    if any(cost["train"] for cost in costs.values()):
        reference = costs.get(comparison["against"], {}).get("train")
        seen = {name: _images(cost["train"]) for name, cost in costs.items()}
        columns.append(Column("cost", "images seen", seen))
        spent = {name: _beside(cost["train"], reference) for name, cost in costs.items()}
        below = f"times {comparison['against']}'s" if reference and not reference["resumed"] else "s"
        columns.append(Column("cost", "training", spent, below))
    if any(cost["samples"] for cost in costs.values()):
        drawn = {name: _drawn(costs[name]["samples"], arm) for name, arm in arms.items()}
        columns.append(Column("cost", "sampling", drawn, "s"))
    for key, title in (("peak_memory_mib", "memory"), ("peak_gpu_memory_mib", "GPU memory")):
        peaks = {name: _peak(cost, key) for name, cost in costs.items()}
        if any(peak.text != NOTHING for peak in peaks.values()):
            columns.append(Column("cost", title, peaks, "peak, MiB"))
    return columns


def _costs(arm: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured of training and sampling; earlier runs have the seconds of training alone."""
    if "cost" in arm:
        return dict(arm["cost"])
    spent = arm["seconds"].get("train")
    plain = {"images": None, "seconds": spent, "peak_memory_mib": None, "peak_gpu_memory_mib": None, "resumed": False}
    return {"train": None if spent is None else plain, "samples": None}


def _images(cost: Mapping[str, Any] | None) -> Cell:
    """Training images seen, each as often as it was."""
    return Cell(NOTHING if cost is None or cost["images"] is None else f"{cost['images']:,}")


def _beside(cost: Mapping[str, Any] | None, reference: Mapping[str, Any] | None) -> Cell:
    """Seconds of training as a multiple of the reference's; alone where one of both is not of the whole training."""
    if cost is None:
        return Cell(NOTHING)
    spent = f"{seconds(cost['seconds'])} s"
    if cost["resumed"] or reference is None or reference["resumed"] or not reference["seconds"]:
        return Cell(spent, "", RESUMED if cost["resumed"] else "")
    return Cell(f"{cost['seconds'] / reference['seconds']:.2f} \N{MULTIPLICATION SIGN}", spent)


def _drawn(cost: Mapping[str, Any] | None, arm: Mapping[str, Any]) -> Cell:
    """Seconds of sampling, and how many samples that took."""
    if cost is None:
        return Cell(NOTHING)
    below, sampling = f"{cost['images']:,} drawn", arm.get("sampling") or {}
    if found := sampling.get("asked"):
        below = f"{found['drawn']:,} of {found['planned']:,} drawn"
    if found := sampling.get("refused"):
        below = f"{found['refused']:,} of {found['drawn']:,} refused"
    return Cell(seconds(cost["seconds"]), below, RESUMED if cost["resumed"] else "")


def _peak(cost: Mapping[str, Any], key: str) -> Cell:
    """The larger peak of training and sampling."""
    found = [part[key] for part in cost.values() if part and part[key] is not None]
    return Cell(f"{max(found):,.0f}" if found else NOTHING)
