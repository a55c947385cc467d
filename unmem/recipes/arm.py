"""One arm, from its mitigations to its figures: a chain of stages, each keyed by what it depends on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unmem import progress
from unmem.component import UserError
from unmem.evaluate import results
from unmem.evaluate.analysis import analyse
from unmem.evaluate.audit import Audit
from unmem.recipes import gallery
from unmem.recipes.recipe import Recipe, kind_of
from unmem.rng import derive, stream
from unmem.rundir import Stage, read_json, write_json
from unmem.train.imageset import ImageSet

if TYPE_CHECKING:
    from unmem.evaluate.targets.pipeline import Pipeline
    from unmem.train.update import UpdateRule


Work = Callable[[Path], None]
"""What a stage does, given its directory."""


@dataclass(frozen=True)
class Arm:
    """One arm of a run.

    Attributes:
        recipe: the checked recipe.
        name: the arm's.
        root: the run's directory.
        upstream: the key of the run's data stage.
    """

    recipe: Recipe
    name: str
    root: Path
    upstream: str

    @property
    def directory(self) -> Path:
        """The arm's own directory."""
        return self.root / "arms" / self.name

    @property
    def mitigations(self) -> list[dict[str, Any]]:
        """The arm's mitigations as plain data."""
        plain: list[dict[str, Any]] = self.recipe.resolved["arms"][self.name]
        return plain

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return all(stage.finished for stage in self.stages.values())

    @property
    def stages(self) -> dict[str, Stage]:
        """All stages by name, in order, each key holding its upstream's."""
        plain, seed = self.recipe.resolved, self.recipe.seed
        on_data = [p for p, part in zip(self.mitigations, self._parts, strict=True) if hasattr(part, "apply")]
        on_training = [p for p, part in zip(self.mitigations, self._parts, strict=True) if hasattr(part, "update_rule")]
        data = self._stage("data", upstream=self.upstream, seed=seed, mitigations=on_data)
        inputs = {"upstream": data.key, "seed": seed, "model": plain["model"], "train": plain["train"]}
        if hasattr(self.recipe.model, "fingerprint"):  # it starts from files, which the recipe only names
            inputs["initial"] = self.recipe.model.fingerprint()
        train = self._stage("train", **inputs, rule=on_training)
        count = self.recipe.samples
        samples = self._stage("samples", upstream=train.key, seed=seed, sampling=plain["sampling"], count=count)
        chain = {"data": data, "train": train, "samples": samples}
        for section in ("attacks", "quality"):
            for (name, _), part in zip(getattr(self.recipe, section).items(), plain[section], strict=True):
                inputs = {"upstream": samples.key, "seed": seed, "component": part, "compare": plain["compare"]}
                chain[f"{section}/{name}"] = self._stage(f"{section}/{name}", **inputs)
        chain["gallery"] = self._stage("gallery", upstream=[stage.key for stage in chain.values()])
        return chain

    def training_set(self, audit: Audit) -> ImageSet:
        """What the arm trains on, once its data stage is done."""
        gone = {entry["id"] for entry in read_json(self.directory / "data" / "ledger.json")["dropped"]}
        training = audit.training
        return training.take(np.array([i for i, name in enumerate(training.ids) if name not in gone], dtype=np.int64))

    def dropped_members(self, audit: Audit) -> frozenset[str]:
        """Members of which neither the image nor a planted copy was trained on."""
        left = {audit.copies.get(name, name) for name in self.training_set(audit).ids}
        return frozenset(name for name in audit.members if name not in left)

    @property
    def _parts(self) -> tuple[Any, ...]:
        """The arm's mitigations as components."""
        return self.recipe.arms[self.name]

    def _stage(self, name: str, **inputs: Any) -> Stage:
        """A stage below the arm's directory."""
        return Stage(self.directory / name, {"stage": name, **inputs})


def run_arm(arm: Arm) -> None:
    """Run, or resume, every stage of an arm; under ``accelerate launch`` on all processes together."""
    from unmem.train.trainer import make_accelerator

    recipe, audit = arm.recipe, Audit.open(arm.root)
    if recipe.train.threads is not None:
        import torch

        torch.set_num_threads(recipe.train.threads)
    accelerator = make_accelerator(recipe.train, arm.directory / "train")
    target = _target(arm, str(accelerator.device))
    alone: dict[str, Work] = {"data": partial(_mitigate, arm, audit)}
    together: dict[str, Work] = {
        "train": partial(_train, arm, audit, accelerator),
        "samples": partial(_sample, arm, accelerator),
    }
    alone |= {f"attacks/{name}": partial(_attack, arm, audit, target, part) for name, part in recipe.attacks.items()}
    alone |= {f"quality/{name}": partial(_measure, arm, audit, target, part) for name, part in recipe.quality.items()}
    alone["gallery"] = partial(gallery.make, arm.directory, audit)
    for name, stage in arm.stages.items():
        finished = stage.finished
        accelerator.wait_for_everyone()  # nobody may mark it as finished before all have looked
        if finished:
            continue
        if accelerator.is_main_process:
            stage.begin()
        accelerator.wait_for_everyone()
        if name in together:
            together[name](stage.directory)
        elif accelerator.is_main_process:
            alone[name](stage.directory)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            stage.finish()
            progress.say(f"{name}: {stage.seconds:.1f} s")
        accelerator.wait_for_everyone()


def _mitigate(arm: Arm, audit: Audit, directory: Path) -> None:
    """Apply the arm's data mitigations, in order."""
    data, dropped = audit.training, []
    for i, part in enumerate(arm.recipe.arms[arm.name]):
        if hasattr(part, "apply"):
            kept, ledger = part.apply(data, stream(arm.recipe.seed, "mitigation", arm.name, i))
            if sorted([*kept.ids, *(entry.id for entry in ledger)]) != sorted(data.ids):
                raise UserError(f"{kind_of(part)}: its ledger does not account for every image that it was given")
            if not np.array_equal(kept.rows, data.select(kept.ids).rows) or kept.store is not data.store:
                raise UserError(f"{kind_of(part)}: may leave images out, but neither change nor add any")
            data = kept
            dropped += [asdict(entry) for entry in ledger]
    write_json(directory / "ledger.json", {"kept": len(data), "dropped": dropped})


def _train(arm: Arm, audit: Audit, accelerator: Any, directory: Path) -> None:
    """Train on what the data mitigations left."""
    from unmem.train.trainer import train

    data, recipe = arm.training_set(audit), arm.recipe
    # the pipeline is the last file: where it stands, a second training would release a second private model
    if not (directory / "pipeline").exists():
        key = read_json(directory / "key.json")["key"]
        rule = _update_rule(arm, data, directory)
        train(data, recipe.model, recipe.train, rule, directory, key=key, seed=recipe.seed, accelerator=accelerator)
    if accelerator.is_main_process:
        shutil.rmtree(directory / "state", ignore_errors=True)


def _sample(arm: Arm, accelerator: Any, directory: Path) -> None:
    """Draw as many images as the attacks and measures want at most."""
    from unmem.train.sampling import open_pipeline, sample_to_disk

    if arm.recipe.samples:
        pipeline = open_pipeline(arm.directory / "train" / "pipeline")
        sample_to_disk(
            pipeline, arm.recipe.sampling, arm.recipe.samples, directory, seed=arm.recipe.seed, accelerator=accelerator
        )


def _update_rule(arm: Arm, data: ImageSet, directory: Path) -> UpdateRule:
    """The arm's way to train: its training mitigation's, or plain."""
    from unmem.train.update import Plain

    steps = [kind_of(part) for part in arm.recipe.arms[arm.name] if hasattr(part, "apply")]
    holds_for = f"the {len(data)} training images as given"
    if steps:
        holds_for = (
            f"the {len(data)} images that {', '.join(steps)} left; "
            "the choice of these images depends on all images and is not covered"
        )
    if public := getattr(arm.recipe.model, "public_data", None):
        holds_for += f"; the network was trained on {public} before, taken as public and not covered"
    for part in arm.recipe.arms[arm.name]:
        if hasattr(part, "update_rule"):
            rule: UpdateRule = part.update_rule(data, arm.recipe.train, holds_for, directory / "state")
            return rule
    return Plain(len(data), arm.recipe.train, arm.recipe.seed)


def _target(arm: Arm, device: str) -> Pipeline:
    """The trained model, as attacks see it."""
    from unmem.evaluate.targets.pipeline import Pipeline

    images = arm.directory / "samples" / "images.npy"
    return Pipeline(path=str(arm.directory / "train" / "pipeline"), images=str(images), device=device)


def _attack(arm: Arm, audit: Audit, target: Pipeline, attack: Any, directory: Path) -> None:
    """Attack, write the scores, then analyse what was written."""
    if missing := attack.needs - target.access:
        raise UserError(f"attack {kind_of(attack)} needs {', '.join(sorted(missing))}, which the target does not give")
    seed = derive(arm.recipe.seed, "attack", directory.name)
    results.save(attack.run(target, audit, seed), directory / "scores.npz")
    scores = results.load(directory / "scores.npz")
    report = analyse(scores, audit, arm.dropped_members(audit), arm.recipe.compare, seed)
    write_json(directory / "report.json", {"kind": kind_of(attack), **report})


def _measure(arm: Arm, audit: Audit, target: Pipeline, measure: Any, directory: Path) -> None:
    """Measure quality."""
    samples = target.samples(measure.samples)
    conditional = getattr(arm.recipe.model, "conditioning", "none") == "class"
    labels = np.arange(len(samples)) % len(audit.data.label_names) if conditional else None
    seed = derive(arm.recipe.seed, "quality", directory.name)
    measured = measure.measure(samples, labels, audit, seed)
    write_json(directory / "report.json", {"kind": kind_of(measure), **measured.as_json()})
