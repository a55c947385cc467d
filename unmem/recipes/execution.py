"""The work of an arm's stages: its model, its shadow models, and the attacks on it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unmem.component import UserError
from unmem.evaluate import results
from unmem.evaluate.analysis import analyse
from unmem.evaluate.attacked import Attacked, TrainedShadow
from unmem.evaluate.audit import Audit
from unmem.evaluate.shadows import inside
from unmem.recipes import gallery
from unmem.recipes.arm import Arm, Shadow
from unmem.recipes.chain import Step, Work, run_steps
from unmem.recipes.cost import metered
from unmem.recipes.probing import ask_all
from unmem.recipes.prompting import ask_by_prompts
from unmem.recipes.recipe import Recipe, kind_of
from unmem.recipes.training import mitigate, train_on
from unmem.rng import derive
from unmem.rundir import write_json


def run_model(arm: Arm) -> None:
    """Run, or resume, an arm up to its model's answers; under ``accelerate launch`` on all processes together.

    Raises:
        UserError: when an attack needs what the model does not give.
    """
    _check_access(arm)
    audit, accelerator = Audit.open(arm.root), _accelerator(arm.recipe, arm.directory)
    sample = partial(_sample, arm, audit, accelerator)
    is_drawn = not hasattr(arm.finished_model, "collect")  # else the images are there already, and cost nothing here
    works: dict[str, Work] = {
        "data": partial(mitigate, audit.training, arm.mitigations, arm.recipe.seed, ("mitigation", arm.name)),
        "train": metered(partial(_train, arm, audit, accelerator), "train", accelerator),
        "samples": metered(sample, "samples", accelerator) if is_drawn else sample,
        "matrix": partial(_ask, arm, audit, accelerator),
    }
    works |= {f"drawn/{name}": partial(_draw, arm, part, accelerator) for name, part in arm.recipe.attacks.items()}
    stages = arm.model_stages.items()
    run_steps({name: Step(stage, works[name], together=name != "data") for name, stage in stages}, accelerator)


def run_shadow(shadow: Shadow) -> None:
    """Run, or resume, one shadow model: its training, and its answers once the arm's model has drawn its samples."""
    arm, recipe, stages = shadow.arm, shadow.arm.recipe, shadow.stages
    audit, accelerator = Audit.open(arm.root), _accelerator(recipe, shadow.directory)
    assert recipe.shadows is not None
    half = audit.training_of(inside(audit, recipe.shadows, shadow.number, recipe.seed))

    def train(directory: Path) -> None:
        train_on(half, stages["data"].directory, recipe, arm.mitigations, shadow.seed, accelerator, directory)

    def ask(directory: Path) -> None:
        from unmem.evaluate.denoisers.opening import open_denoiser

        denoiser = open_denoiser(stages["train"].directory / "pipeline", accelerator.device)
        ask_all(denoiser, recipe, audit, arm.generated(audit), arm.shadow_attacks, accelerator, directory)

    names = ("mitigation", arm.name, "shadow", shadow.number)
    steps = {
        "data": Step(stages["data"], partial(mitigate, half, arm.mitigations, recipe.seed, names)),
        "train": Step(stages["train"], train, together=True),
    }
    if arm.model_stages["samples"].finished:
        steps["matrix"] = Step(stages["matrix"], ask, together=True)
    run_steps(steps, accelerator)


def run_attacks(arm: Arm) -> None:
    """Run, or resume, all that follows an arm's model and its shadows: attacks, quality, pictures."""
    recipe, audit, accelerator = arm.recipe, Audit.open(arm.root), _accelerator(arm.recipe, arm.directory)
    target = _attacked(arm, audit)
    works: dict[str, Work] = {}
    works |= {f"attacks/{name}": partial(_attack, arm, audit, target, part) for name, part in recipe.attacks.items()}
    works |= {f"quality/{name}": partial(_measure, arm, audit, target, part) for name, part in recipe.quality.items()}
    works["gallery"] = partial(gallery.make, arm.directory, audit)
    stages = arm.stages
    run_steps({name: Step(stages[name], work) for name, work in works.items()}, accelerator)


def _check_access(arm: Arm) -> None:
    """Refuse an attack that asks the model for what it does not give, before anything is computed."""
    for name, attack in arm.recipe.attacks.items():
        if missing := attack.needs - arm.access - {"canaries", "captions"}:  # which the recipe and its data answer for
            raise UserError(f"attacks.{name}: needs {', '.join(sorted(missing))}, which {arm.name} does not give")


def _accelerator(recipe: Recipe, directory: Path) -> Any:
    """accelerate's view of devices and processes, with the recipe's threads."""
    from unmem.train.trainer import make_accelerator

    if recipe.threads is not None:
        import torch

        torch.set_num_threads(recipe.threads)
    return make_accelerator(recipe.train, directory / "train")


def _train(arm: Arm, audit: Audit, accelerator: Any, directory: Path) -> None:
    """Train on what the data mitigations left."""
    given, seed = audit.training, arm.recipe.seed
    train_on(given, arm.directory / "data", arm.recipe, arm.mitigations, seed, accelerator, directory)


def _sample(arm: Arm, audit: Audit, accelerator: Any, directory: Path) -> None:
    """Draw what the prompts ask for, or as many images as attacks and measures want at most, by the arm's own rules."""
    from unmem.train.sampling import open_pipeline, sample_to_disk

    if arm.prompted:
        ask_by_prompts(arm, audit, accelerator, directory)
    elif hasattr(arm.finished_model, "collect"):  # images that are there already
        if accelerator.is_main_process:
            arm.finished_model.collect(directory, audit.data.shape)
    elif hasattr(arm.finished_model, "sample_to_disk"):  # a control, made of the audit's images
        if arm.samples:
            arm.finished_model.sample_to_disk(
                audit, arm.recipe.sampling, arm.samples, directory, seed=arm.recipe.seed, accelerator=accelerator
            )
    elif arm.finished_model is None and hasattr(arm.recipe.model, "sample_to_disk"):
        if arm.samples:
            arm.recipe.model.sample_to_disk(
                arm.pipeline, arm.recipe.sampling, arm.samples, directory,
                seed=arm.recipe.seed, accelerator=accelerator,
            )  # fmt: skip
    elif arm.samples and getattr(arm.finished_model, "called", False):
        from unmem.train.numbered import call_to_disk

        call_to_disk(
            arm.pipeline, arm.recipe.sampling, arm.samples, directory, classes=arm.sample_classes(audit),
            shape=audit.data.shape, seed=arm.recipe.seed, accelerator=accelerator,
        )  # fmt: skip
    elif arm.samples:
        ruling = [part for part in arm.mitigations if hasattr(part, "sampling_rule")]
        rules = [part.sampling_rule(arm.training_set(audit), directory) for part in ruling]
        sample_to_disk(
            open_pipeline(arm.pipeline), arm.recipe.sampling, arm.samples, directory,
            seed=arm.recipe.seed, accelerator=accelerator, rules=rules,
        )  # fmt: skip


def _draw(arm: Arm, attack: Any, accelerator: Any, directory: Path) -> None:
    """Let an attack draw from the model what it will look at."""
    recipe = arm.recipe
    attack.draw(
        arm.pipeline, arm.images.parent, recipe.sampling, directory,
        seed=derive(recipe.seed, "drawn", directory.name), accelerator=accelerator,
    )  # fmt: skip


def _ask(arm: Arm, audit: Audit, accelerator: Any, directory: Path) -> None:
    """Ask the arm's model all that the attacks read."""
    from unmem.evaluate.denoisers.opening import check_images, open_denoiser

    denoiser = open_denoiser(arm.pipeline, accelerator.device, audit.data.shape[:2])
    check_images(denoiser, audit.data, arm.pipeline)
    attacks = list(arm.recipe.attacks.values())
    ask_all(denoiser, arm.recipe, audit, arm.generated(audit), attacks, accelerator, directory)


def _attacked(arm: Arm, audit: Audit) -> Attacked:
    """The arm's model, as attacks see it."""
    shadows = []
    for shadow in arm.shadows:
        assert arm.recipe.shadows is not None
        half = inside(audit, arm.recipe.shadows, shadow.number, arm.recipe.seed)
        shadows.append(TrainedShadow(half, shadow.directory / "matrix"))
    return Attacked(arm.access, arm.images, arm.directory / "matrix", tuple(shadows))


def _attack(arm: Arm, audit: Audit, target: Attacked, attack: Any, directory: Path) -> None:
    """Attack, write the scores, then analyse what was written."""
    seed = derive(arm.recipe.seed, "attack", directory.name)
    target = replace(target, drawn=arm.directory / "drawn" / directory.name)
    results.save(attack.run(target, audit, seed), directory / "scores.npz")
    scores = results.load(directory / "scores.npz")
    report = analyse(scores, audit, arm.dropped_members(audit), arm.recipe.compare, seed)
    queries = sum({reading.probe: reading.probe.queries for reading in attack.readings}.values())
    write_json(directory / "report.json", {"kind": kind_of(attack), "queries": queries, **report})


def _measure(arm: Arm, audit: Audit, target: Attacked, measure: Any, directory: Path) -> None:
    """Measure quality."""
    samples = target.samples(measure.samples)
    classes = arm.sample_classes(audit)
    labels = np.arange(len(samples)) % classes if classes else None
    seed = derive(arm.recipe.seed, "quality", directory.name)
    measured = measure.measure(samples, labels, audit, seed)
    write_json(directory / "report.json", {"kind": kind_of(measure), **measured.as_json()})
