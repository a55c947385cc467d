"""A model card for Hugging Face, from a run's JSON alone: what is proven, what was measured, what neither covers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmem.component import UserError, suggest
from unmem.recipes import defences
from unmem.recipes.pages import markdown
from unmem.recipes.report import check_schema, of_this_version, without_texts
from unmem.recipes.statement import laid_out
from unmem.recipes.tables import HEADLINES, cell, counts, said, title
from unmem.rundir import read_json, write_text

NAME = "MODEL_CARD.md"
MORE = (
    "extracted_at_10x", "extracted_by_copies", "auc_generated", "balanced_accuracy", "p_value", "p_value_control",
    "epsilon",
)  # fmt: skip
WHITE_BOX = {"predictions": "what the network predicts", "gradients": "the network's gradients"}


def write(root: Path, arm: str | None = None, out: Path | None = None) -> Path:
    """Write the card of one arm. It holds no id and no file name, and of settings no text.

    Args:
        root: the run's directory.
        arm: whose; where there is one alone, that.
        out: the file; ``arms/ARM/MODEL_CARD.md`` in the run's directory when unset.

    Returns:
        The file written.

    Raises:
        UserError: when the run is not finished, there is no such arm or no choice among several, or ``out`` exists.
    """
    comparison = read_json(root / "comparison.json")
    with of_this_version(root / "comparison.json"):
        check_schema(comparison)
        arm = _chosen(root, comparison["arms"], arm)
        if out is not None and out.exists():
            raise UserError(f"{out}: exists already; it is left as it is")
        provenance = root / "provenance.json"
        view = _view(comparison, arm, read_json(provenance) if provenance.exists() else {})
        text = markdown().get_template("model_card.md.j2").render(view)
    file = out or root / "arms" / arm / NAME
    write_text(file, text)
    return file


def _chosen(root: Path, arms: Mapping[str, Any], arm: str | None) -> str:
    """The arm that is asked for, or the only one."""
    have = ", ".join(arms) or "none"
    if arm is None and len(arms) == 1:
        return next(iter(arms))
    if arm is None:
        raise UserError(f"{root}: has {len(arms)} finished arms; choose one by --arm: {have}")
    if arm not in arms:
        raise UserError(f"--arm {arm}: no such finished arm{suggest(arm, arms)}; have {have}")
    return arm


def _view(comparison: Mapping[str, Any], name: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """All that the template prints."""
    arm = comparison["arms"][name]
    model = arm.get("model") or {}
    is_proven = arm["privacy"] is not None and not arm["privacy"]["void"]
    return {
        "comparison": comparison,
        "data": comparison["data"],
        "name": name,
        "arm": arm,
        "is_pipeline": model.get("saved_as") == "pipeline",
        "task": "text-to-image" if model.get("conditioning") == "text" else "unconditional-image-generation",
        "is_proven": is_proven,
        "statement": laid_out(arm["privacy"]) if arm["privacy"] else None,
        "measured": _measured(arm),
        "cautions": [text for text in comparison["verdict"] if text.startswith("Caution") and _is_of(text, name)],
        "uncovered": _uncovered(arm, comparison["shadows"], is_proven),
        "defences": [line for line in defences.lines(comparison) if line["arm"] == name],
        "settings": [said(without_texts(part)) for part in arm["mitigations"]],
        "own": {section: said(without_texts(found)) for section, found in arm.get("own", {}).items()},
        "quality": {measure: (found, cell(found["estimate"])) for measure, found in arm["quality"].items()},
        "provenance": provenance,
        "cost": arm.get("cost", {}),
    }


def _measured(arm: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each figure of each attack that says something of privacy."""
    return [
        {"attack": attack, "figure": title(figure), "cell": cell(estimate), "counts": counts(estimate)}
        for attack, report in arm["attacks"].items()
        for figure, estimate in report["estimates"].items()
        if figure.partition("[")[0] in (*HEADLINES, *MORE)
    ]


def _is_of(caution: str, name: str) -> bool:
    """Whether a caution is about this arm, or about all."""
    words = caution.partition(" in ")
    return not words[1] or words[2].startswith((f"{name},", f"{name} ")) or f"for {name} " in caution


def _uncovered(arm: Mapping[str, Any], shadows: int, is_proven: bool) -> list[str]:
    """What neither the proof nor the attacks say."""
    needs = {access for report in arm["attacks"].values() for access in report.get("needs", ())}
    words = ["An attack that finds nothing shows that this attack found nothing here; another may find more."]
    if "samples" not in needs:
        words.append("No attack looked at samples: whether training images can be generated was not measured.")
    words += [f"No attack asked for {what}." for access, what in WHITE_BOX.items() if access not in needs]
    if "shadows" not in needs:
        words.append("No attacker who trains models of the same kind was tried.")
    guards = [line["kind"] for line in arm.get("defences", []) if line["acts_on"] == "sampling"]
    if guards:
        kinds = " and ".join(guards)
        words.append(f"{kinds} steps into sampling and is no part of the weights: whoever has these runs them without.")
    if is_proven:
        words += [f"Not under the guarantee: {what}." for what in arm["privacy"]["not_covered"]]
    if shadows and "shadows" in needs:
        words.append(f"The {shadows} shadow models were trained on halves of the same pool, not on other data.")
    return words
