"""What attacks and quality measures demand of the rest of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmem.component import Problem
from unmem.recipes.asked import takes_texts

ADD_PROMPTS = "add a section prompts: {choose: duplicated, members: 100, each: 50}"


def demands(
    attacks: Mapping[str, Any],
    quality: Mapping[str, Any],
    *,
    model: Any,
    access: Mapping[str, frozenset[str]],
    canaries: bool,
    shadows: bool,
    finished: tuple[str, ...],
    asked: tuple[str, ...] = (),
    prompts: bool = False,
) -> list[Problem]:
    """Every demand that the recipe does not meet; what could not be built (None) demands nothing.

    Args:
        attacks: components by name.
        quality: components by name.
        model: the model that arms train; None where none is trained.
        access: what the models of some arms give, where that is less than a denoiser gives.
        canaries: whether the recipe says something of canaries, right or wrong.
        shadows: whether it says something of shadow models, likewise.
        finished: names of finished models.
        asked: models that take texts: ``an arm's`` where arms train such a one, and names of finished models.
        prompts: whether the recipe says something of prompts, right or wrong.
    """
    needs = {name: attack.needs for name, attack in attacks.items() if attack is not None}
    problems = []
    if not canaries:
        missing = "needs canaries; add data.canaries: {images: 1000, source: out_of_distribution}"
        problems += _of_attacks(needs, "canaries", missing)
    if asked and not prompts:
        missing = f"needs samples, and {', '.join(asked)} model is asked for these by prompts; {ADD_PROMPTS}"
        wanted = [f"attacks.{name}" for name, needed in needs.items() if needed & {"samples", "prompts"}]
        wanted += [f"quality.{name}" for name, measure in quality.items() if measure is not None]
        problems += [Problem(path, missing) for path in wanted]
    if model is not None and not takes_texts(model):
        problems += _of_attacks(needs, "captions", "needs a model that takes texts, which an arm's does not")
        problems += _of_attacks(needs, "prompts", "needs images with prompts, which an arm's model does not draw")
    for arm, given in access.items():
        for need in ("predictions", "gradients"):
            if need not in given:
                why = f"needs {need}, which the model of arm {arm} does not give ({', '.join(sorted(given))} alone)"
                problems += _of_attacks(needs, need, f"{why}; leave the attack out, or the arm")
    if finished:
        why = "needs shadow models, trained as the audited one was; of a finished model that is not known"
        problems += _of_attacks(needs, "shadows", f"{why}: describe its training as an arm, or leave the attack out")
        if shadows:
            problems.append(Problem("shadows", "are trained beside arms, not beside finished models; leave them out"))
    elif not shadows:
        problems += _of_attacks(needs, "shadows", "needs shadow models; add a section shadows: {count: 16}")
    elif not any("shadows" in needed for needed in needs.values()):
        problems.append(Problem("shadows", "no attack needs shadow models; leave the section out"))
    labelled = [name for name, measure in quality.items() if measure is not None and measure.needs_labels]
    if labelled and model is not None and getattr(model, "conditioning", "class") != "class":
        missing = "needs a class-conditional model (model.conditioning: class)"
        problems += [Problem(f"quality.{name}", missing) for name in labelled]
    return problems


def _of_attacks(needs: Mapping[str, frozenset[str]], need: str, message: str) -> list[Problem]:
    """The same problem for each attack with this need."""
    return [Problem(f"attacks.{name}", message) for name, needed in needs.items() if need in needed]
