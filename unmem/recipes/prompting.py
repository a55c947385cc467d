"""The samples of a model that takes texts: prompts are chosen, and asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unmem import progress
from unmem.component import UserError
from unmem.evaluate.audit import Audit
from unmem.evaluate.prompting import Chosen, Prompts
from unmem.recipes.arm import Arm
from unmem.recipes.recipe import Recipe
from unmem.rundir import write_json
from unmem.train.text import printable


def ask_by_prompts(arm: Arm, audit: Audit, accelerator: Any, directory: Path) -> None:
    """Draw what the recipe's prompts ask the arm's model for, by the arm's own rules.

    Writes what :meth:`unmem.train.asking.Asking.run` does, ``chosen.json`` (how many prompts are whose), and
    ``quarantine.json`` (captions and lines that cannot be asked).

    Raises:
        UserError: when there are too few prompts, or the model cannot be asked.
    """
    from unmem.train.asking import Asking
    from unmem.train.cascade import open_drawing
    from unmem.train.prompted import Prompted

    prompts = arm.recipe.prompts
    assert prompts is not None
    chosen = chosen_by(arm.recipe, prompts, audit)
    if accelerator.is_main_process:
        _record(chosen, directory)
    given = arm.training_set(audit) if arm.finished_model is None else None
    rules = [part.sampling_rule(given, directory) for part in arm.mitigations if hasattr(part, "sampling_rule")]
    rewriting = [part.prompt_rule(given, directory) for part in arm.mitigations if hasattr(part, "prompt_rule")]
    sampler = Prompted(
        open_drawing(arm.pipelines, accelerator.device), arm.recipe.sampling, arm.recipe.seed, accelerator.device,
        prompt_rules=rewriting, sampling_rules=rules, size=audit.data.shape[:2],
    )  # fmt: skip
    stopping = None if prompts.stop is None else prompts.stop.rule(prompts.each)
    Asking(sampler, chosen.texts, prompts.each, directory, accelerator).run(audit.data.shape, stopping)


def chosen_by(recipe: Recipe, prompts: Prompts, audit: Audit) -> Chosen:
    """The prompts of a recipe, all that its attacks and measures want.

    Raises:
        UserError: when there are none, or too few.
    """
    chosen = prompts.chosen(audit)
    certain = len(chosen.texts) * prompts.first
    if recipe.wanted > certain:
        early = f" ({prompts.first} of one that is given up)" if prompts.first < prompts.each else ""
        raise UserError(
            f"prompts: {len(chosen.texts)} prompts with {prompts.each} samples each{early}: {certain} samples are "
            f"certain, and attacks or quality measures want {recipe.wanted}; raise members or each"
        )
    return chosen


def _record(chosen: Chosen, directory: Path) -> None:
    """Write down what is asked, and what cannot be."""
    own = 0 if chosen.members else len(chosen.texts)
    whose = {"members": chosen.members, "nonmembers": chosen.nonmembers, "own": own}
    write_json(directory / "chosen.json", {**whose, "quarantined": len(chosen.rejected)})
    listed = [{"source": printable(r.source), "reason": r.reason} for r in chosen.rejected]
    write_json(directory / "quarantine.json", listed)
    if listed:
        progress.say(f"{len(listed)} prompts cannot be asked; they are listed in samples/quarantine.json")
