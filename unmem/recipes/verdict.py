"""A comparison in plain words: what each arm gives away, what it is worth, and what the figures cannot say."""

from __future__ import annotations

import math
from typing import Any

from unmem.recipes.figures import FEW

SURELY = 0.01  # p-value below which a set counts as used
GUESSABLE = 0.55  # blind AUC above which a split counts as guessable; nearer to a half is the classifier's own scatter


def verdict(comparison: dict[str, Any]) -> list[str]:
    """Sentences, the most important first; every number in them stands in the comparison."""
    sentences = contradictions(comparison)
    for name, arm in comparison["arms"].items():
        sentences += _arm(name, arm, comparison)
    sentences += _cautions(comparison)
    if comparison["unfinished"]:
        sentences.append(f"Not finished, and so not in this report: {', '.join(comparison['unfinished'])}.")
    return sentences


def contradictions(comparison: dict[str, Any]) -> list[str]:
    """Guarantees that an audit has refuted: the training is not what its statement says."""
    sentences = []
    for name, arm in comparison["arms"].items():
        for audit in arm["measured"]:
            if audit["contradicts"]:
                bound, spent = audit["epsilon"], arm["privacy"]
                sentences.append(
                    f"{name}: REFUTED. {audit['attack']} measures an epsilon of at least {_downward(bound['value'])} "
                    f"at delta {spent['delta']:g}, above the proven {_upward(spent['epsilon'])} "
                    f"({bound['n']['correct']} of {bound['n']['guesses']} guesses right): "
                    "the training is broken, or its statement is."
                )
    return sentences


def _arm(name: str, arm: dict[str, Any], comparison: dict[str, Any]) -> list[str]:
    """What one arm gives away."""
    data, parts = comparison["data"], []
    by = _named(arm["attacks"])
    for attack_name, attack in arm["attacks"].items():
        figures = attack["estimates"]
        if attack["type"] == "extraction":
            found = figures["extracted"]["n"]
            asked = "" if found["trials"] == data["members"] else " that were asked for"
            text = f"{found['successes']} of {found['trials']} training images{asked} can be extracted"
            text += f" by{by[attack_name]}" if attack_name in by else ""
            if "extracted_planted" in figures:
                planted = figures["extracted_planted"]["n"]
                text += f" ({planted['successes']} of the {planted['trials']} planted)"
            false = figures["false_positives"]["n"]
            parts.append(f"{text}; the same rule matches {false['successes']} of {false['trials']} held-out images")
            if "flagged" in figures:
                flagged = figures["flagged"]["n"]
                parts.append(f"{flagged['successes']} of {flagged['trials']} prompts give like images again and again")
    parts += _copies(arm["attacks"])
    parts += _membership(arm["attacks"], comparison["confidence"])
    sentences = [f"{name}: {'; '.join(parts)}."] if parts else []
    sentences += [f"{name}: {text}" for text in _sets_and_canaries(arm["attacks"])]
    sentences += _refused(name, arm.get("sampling"))
    if (spent := arm["privacy"]) is not None:
        sentences.append(_proven(name, spent, data))
    return sentences


def _named(attacks: dict[str, Any]) -> dict[str, str]:
    """The name, with a space before it, of each extraction attack, where there are several to tell apart."""
    names = [name for name, attack in attacks.items() if attack["type"] == "extraction"]
    return {name: f" {name}" for name in names} if len(names) > 1 else {}


def _copies(attacks: dict[str, Any]) -> list[str]:
    """How many samples are as similar to a training image as held-out images seldom are, beside the control."""
    found = []
    for name, attack in attacks.items():
        if attack["type"] == "similarity":
            mine, control = (attack["estimates"][figure]["n"] for figure in ("copied", "copied_held_out"))
            text = f"{mine['successes']} of {mine['trials']} samples copy a training image by {name}"
            found.append(f"{text}, {control['successes']} a held-out one")
    return found


def _membership(attacks: dict[str, Any], confidence: float) -> list[str]:
    """Whether membership shows: by each of a few attacks, or by how many of many and the best of them."""
    seen = {
        name: attack["estimates"]
        for name, attack in attacks.items()
        if attack["type"] == "membership"
        and attack["kind"] != "blind"
        and attack["estimates"]["auc"]["value"] is not None
    }
    if len(seen) <= FEW:
        return [f"{_shows(found['auc'])} ({name} AUC {_between(found['auc'])})" for name, found in seen.items()]
    level = (1 - confidence) / len(seen)  # of so many attacks the best will look good by chance
    showing = [name for name, found in seen.items() if found["permutation_p_value"]["value"] <= level]
    best = max(seen, key=lambda name: seen[name]["auc"]["value"])
    shown = f"{len(showing)} of {len(seen)} attacks"
    text = f"membership shows by {shown}, most by {best} (AUC {_between(seen[best]['auc'])}"
    for figure, estimate in seen[best].items():
        if figure.startswith("tpr_at_fpr[") and estimate["value"] is not None:
            rate = figure.partition("[")[2].rstrip("]")
            text += f"; at FPR {rate} it finds {100 * estimate['value']:.3g}% of the members"
            break
    return [text + ")"] if showing else [f"membership does not show by any of {len(seen)} attacks"]


def _shows(auc: dict[str, Any]) -> str:
    """Whether an AUC is above chance."""
    return "membership shows" if auc["low"] > 0.5 else "membership does not show"


def _between(estimate: dict[str, Any]) -> str:
    """An estimate with its interval."""
    return f"{estimate['value']:.2f}, {estimate['low']:.2f} to {estimate['high']:.2f}"


def _sets_and_canaries(attacks: dict[str, Any]) -> list[str]:
    """What is known of the set as a whole, and of canaries."""
    sentences = []
    for name, attack in attacks.items():
        figures = attack["estimates"]
        if attack["type"] == "dataset_inference" and figures["p_value"]["value"] is not None:
            used = "was used for training" if figures["p_value"]["value"] < SURELY else "is not shown to have been used"
            sentences.append(f"{name}: the set {used} (p = {figures['p_value']['value']:.2g}).")
        if attack["type"] == "canaries" and figures["epsilon"]["value"] is not None:
            n = figures["epsilon"]["n"]
            sentences.append(
                f"{name} measures an epsilon of at least {_downward(figures['epsilon']['value'])} at delta "
                f"{attack['delta']:g} ({n['correct']} of {n['guesses']} guesses right, of {n['canaries']} canaries)."
            )
    return sentences


def _refused(name: str, sampling: dict[str, Any] | None) -> list[str]:
    """How many samples were kept back."""
    found = (sampling or {}).get("refused")
    if not found or not found["refused"]:
        return []
    text = f"{name}: {found['refused']} of {found['drawn']} draws were refused"
    return [text + (f"; {found['black']} of {found['samples']} samples are black instead." if found["black"] else ".")]


def _unguarded(name: str, arm: dict[str, Any]) -> list[str]:
    """Attacks that never see a sample, on a model whose samples alone are guarded."""
    asking = [
        attack_name
        for attack_name, attack in arm["attacks"].items()
        if attack["type"] in ("membership", "dataset_inference", "canaries") and attack["kind"] != "blind"
    ]
    guards = " and ".join((arm.get("sampling") or {"guards": []})["guards"])
    if not asking or not guards:
        return []
    text = f"Caution: in {name}, {guards} stands before samples alone; {', '.join(asking)} would see the same without"
    return [text + ", since the network itself is asked."]


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


def _fooled(name: str, attacks: dict[str, Any]) -> list[str]:
    """Attacks that take the model's own samples for members more readily than members."""
    fooled = []
    for attack_name, attack in attacks.items():
        figures = attack["estimates"]
        own = figures.get("auc_generated", {"low": None})
        if own["low"] is not None and figures["auc"]["low"] > 0.5 and own["low"] > figures["auc"]["value"]:
            fooled.append(attack_name)
    if not fooled:
        return []
    text = f"Caution: in {name}, {', '.join(fooled)} would rather call the model's own samples members than its members"
    return [text + ": a high score of one image alone is no evidence that it was trained on."]


def _upward(epsilon: float) -> str:
    """An upper bound, rounded up."""
    return f"{math.ceil(100 * epsilon) / 100:.2f}".rstrip("0").rstrip(".")


def _downward(epsilon: float) -> str:
    """A lower bound, rounded down."""
    return f"{math.floor(100 * epsilon) / 100:.2f}".rstrip("0").rstrip(".")


def _cautions(comparison: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the above."""
    cautions = []
    for name, arm in comparison["arms"].items():
        cautions += _doubts(name, arm["privacy"] or {})
        cautions += _fooled(name, arm["attacks"])
        cautions += _unguarded(name, arm)
        by = _named(arm["attacks"])
        for attack_name, attack in arm["attacks"].items():
            figures = attack["estimates"]
            if attack["kind"] == "blind" and figures["auc"]["low"] > 0.5 and figures["auc"]["value"] > GUESSABLE:
                cautions.append(
                    "Caution: members can be told from held-out images without any model "
                    f"(blind AUC {figures['auc']['value']:.2f}); membership figures say little about the model."
                )
            if arm.get("control"):
                continue  # it is there to be matched
            if attack["type"] == "extraction" and (false := figures["false_positives"]["n"])["successes"]:
                rule = f"the extraction rule{f' of{by[attack_name]}' if attack_name in by else ''}"
                cautions.append(
                    f"Caution: in {name} {rule} also matches {false['successes']} of {false['trials']} "
                    "held-out images, which no model has seen: at that rate, extracted images may be chance too."
                )
    return list(dict.fromkeys(cautions))
