"""A comparison in plain words: what each arm gives away, what it is worth, and what the figures cannot say."""

from __future__ import annotations

import math
from typing import Any

GUESSABLE = 0.55  # blind AUC above which a split counts as guessable; nearer to a half is the classifier's own scatter


def verdict(comparison: dict[str, Any]) -> list[str]:
    """Sentences, the most important first; every number in them stands in the comparison."""
    sentences = []
    for name, arm in comparison["arms"].items():
        sentences += _arm(name, arm, comparison)
    sentences += _cautions(comparison)
    if comparison["unfinished"]:
        sentences.append(f"Not finished, and so not in this report: {', '.join(comparison['unfinished'])}.")
    return sentences


def _arm(name: str, arm: dict[str, Any], comparison: dict[str, Any]) -> list[str]:
    """What one arm gives away."""
    data, parts = comparison["data"], []
    for attack_name, attack in arm["attacks"].items():
        figures = attack["estimates"]
        if attack["type"] == "extraction":
            text = f"{figures['extracted']['n']['successes']} of {data['members']} training images can be extracted"
            if "extracted_planted" in figures:
                planted = figures["extracted_planted"]["n"]
                text += f" ({planted['successes']} of the {planted['trials']} planted)"
            false = figures["false_positives"]["n"]
            parts.append(f"{text}; the same rule matches {false['successes']} of {false['trials']} held-out images")
        elif attack["type"] == "membership" and attack["kind"] != "blind":
            auc = figures["auc"]
            leak = "membership shows" if auc["low"] > 0.5 else "membership does not show"
            parts.append(f"{leak} ({attack_name} AUC {auc['value']:.2f}, {auc['low']:.2f} to {auc['high']:.2f})")
    sentences = [f"{name}: {'; '.join(parts)}."] if parts else []
    if (spent := arm["privacy"]) is not None:
        sentences.append(_proven(name, spent, data))
    return sentences


def _proven(name: str, spent: dict[str, Any], data: dict[str, Any]) -> str:
    """What is proven, and for whom it is not."""
    if spent["void"]:
        return f"{name}: no guarantee ({spent['void']})."
    text = f"{name}: proven epsilon {_upward(spent['epsilon'])} at delta {spent['delta']:g} for one image"
    copies = data["copies"]
    if data["planted"] and copies > 1 and spent["training_images"] == data["training_images"]:
        text += f"; an image that stands {copies} times in the set is {copies} units, {_group(spent, copies)}"
    return text + f". It holds for {spent['holds_for']}."


def _group(spent: dict[str, Any], k: int) -> str:
    """What group privacy gives k copies: k epsilon at delta k e^((k-1) epsilon) delta."""
    exponent = (k - 1) * spent["epsilon"] + math.log(k * spent["delta"])
    if exponent >= 0:
        return "for which nothing is proven"
    return f"for which epsilon {_upward(k * spent['epsilon'])} at delta {math.exp(exponent):.1g} is proven"


def _doubts(name: str, spent: dict[str, Any]) -> list[str]:
    """What speaks against an epsilon, by the run's own checks."""
    doubts = []
    if not (checks := spent.get("checks", {"agrees": True}))["agrees"]:
        doubts.append(
            f"Caution: for {name} two accountants differ by more than they should ({checks['accountant']} says "
            f"epsilon {_upward(checks['pld_epsilon'])}); the larger epsilon is stated."
        )
    if not (spent.get("self_check") or {"passed": True})["passed"]:
        doubts.append(
            f"Caution: for {name} the clipping of gradients failed its check before training; its epsilon may not hold."
        )
    return doubts


def _upward(epsilon: float) -> str:
    """An upper bound, rounded up."""
    return f"{math.ceil(100 * epsilon) / 100:.2f}".rstrip("0").rstrip(".")


def _cautions(comparison: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the above."""
    cautions = []
    for name, arm in comparison["arms"].items():
        cautions += _doubts(name, arm["privacy"] or {})
        for attack in arm["attacks"].values():
            figures = attack["estimates"]
            if attack["kind"] == "blind" and figures["auc"]["low"] > 0.5 and figures["auc"]["value"] > GUESSABLE:
                cautions.append(
                    "Caution: members can be told from held-out images without any model "
                    f"(blind AUC {figures['auc']['value']:.2f}); membership figures say little about the model."
                )
            if attack["type"] == "extraction" and (false := figures["false_positives"]["n"])["successes"]:
                cautions.append(
                    f"Caution: in {name} the extraction rule also matches {false['successes']} of {false['trials']} "
                    "held-out images, which no model has seen: at that rate, extracted images may be chance too."
                )
    return list(dict.fromkeys(cautions))
