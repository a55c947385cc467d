"""One arm, from its mitigations to its figures: a chain of stages, each keyed by what it depends on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmem.evaluate.audit import Audit
from unmem.recipes.asked import takes_texts
from unmem.recipes.probing import generated_set, matrix_stage, readings_of
from unmem.recipes.recipe import Recipe
from unmem.recipes.training import data_stage, left_by, saved_in, train_stage
from unmem.rng import derive
from unmem.rundir import Stage
from unmem.train.imageset import ImageSet

DENOISER = frozenset({"samples", "predictions", "gradients"})  # what a model gives that says nothing else


@dataclass(frozen=True)
class Arm:
    """One arm of a run: a model that is trained here, or a finished one.

    Attributes:
        recipe: the checked recipe, with the arm's own model and settings of training.
        name: the arm's.
        root: the run's directory.
        upstream: the key of the run's data stage.
    """

    recipe: Recipe
    name: str
    root: Path
    upstream: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe", self.recipe.of_arm(self.name))

    @property
    def directory(self) -> Path:
        """The arm's own directory."""
        return self.root / "arms" / self.name

    @property
    def finished_model(self) -> Any:
        """The target component, where the model is somebody's finished one."""
        return self.recipe.targets.get(self.name)

    @property
    def is_control(self) -> bool:
        """Whether it is no model at all, but one of the controls that say what an attack can find."""
        return bool(getattr(self.finished_model, "is_control", False))

    @property
    def mitigations(self) -> tuple[Any, ...]:
        """The arm's mitigations."""
        return self.recipe.arms.get(self.name, ())

    @property
    def plain_mitigations(self) -> list[dict[str, Any]]:
        """The same as plain data."""
        spec = self.recipe.resolved.get("arms", {}).get(self.name, [])
        plain: list[dict[str, Any]] = spec["mitigations"] if isinstance(spec, dict) else spec
        return plain

    @property
    def shadows(self) -> list[Shadow]:
        """The arm's shadow models; none where no attack needs them."""
        if self.recipe.shadows is None or not self.shadow_attacks:
            return []
        return [Shadow(self, number) for number in range(self.recipe.shadows.count)]

    @property
    def shadow_attacks(self) -> list[Any]:
        """The attacks that need shadow models."""
        return [attack for attack in self.recipe.attacks.values() if "shadows" in attack.needs]

    @property
    def finished(self) -> bool:
        """Whether every stage is done, its shadows' too."""
        return all(stage.finished for stage in self.stages.values()) and all(s.finished for s in self.shadows)

    @property
    def has_answered(self) -> bool:
        """Whether the stages up to the model's answers are done."""
        return all(stage.finished for stage in self.model_stages.values())

    @property
    def model_stages(self) -> dict[str, Stage]:
        """The stages up to the model's answers, by name, in order, each key holding its upstream's."""
        recipe, plain, seed = self.recipe, self.recipe.resolved, self.recipe.seed
        chain: dict[str, Stage] = {}
        if self.finished_model is None:
            data = data_stage(
                self.directory, self.mitigations, self.plain_mitigations, upstream=self.upstream, seed=seed
            )
            train = train_stage(self.directory, recipe, self.mitigations, self.plain_mitigations, data.key, seed)
            chain |= {"data": data, "train": train}
            model: Any = train.key
        else:
            model = [self.upstream, self.finished_model.fingerprint()]
        samples = {"upstream": model, "seed": seed, "sampling": plain["sampling"]}
        if self.prompted:
            assert recipe.prompts is not None
            samples |= {"prompts": plain["prompts"], "file": recipe.prompts.fingerprint(), "data": self.upstream}
        else:
            samples["count"] = self.samples
        for section, way in (("rules", "sampling_rule"), ("prompt_rules", "prompt_rule")):
            parts = zip(self.plain_mitigations, self.mitigations, strict=True)
            if rules := [settings for settings, part in parts if hasattr(part, way)]:
                samples[section] = rules
        chain["samples"] = self._stage("samples", **samples)
        for (name, attack), settings in zip(recipe.attacks.items(), plain["attacks"], strict=True):
            if hasattr(attack, "draw"):
                drawn = {"upstream": chain["samples"].key, "seed": seed, "sampling": plain["sampling"]}
                chain[f"drawn/{name}"] = self._stage(f"drawn/{name}", component=settings, **_files(attack), **drawn)
        if readings_of(recipe.attacks.values()):
            attacks = list(recipe.attacks.values())
            chain["matrix"] = matrix_stage(self.directory, recipe, attacks, [chain["samples"].key])
        return chain

    @property
    def stages(self) -> dict[str, Stage]:
        """All stages but the shadows', in order."""
        chain, plain = self.model_stages, self.recipe.resolved
        shadows = [shadow.stages["matrix"].key for shadow in self.shadows]
        for section in ("attacks", "quality"):
            for (name, part), settings in zip(getattr(self.recipe, section).items(), plain[section], strict=True):
                upstream = [chain["samples"].key]
                if getattr(part, "readings", ()):
                    upstream.append(chain["matrix"].key)
                if section == "attacks" and f"drawn/{name}" in chain:
                    upstream.append(chain[f"drawn/{name}"].key)
                if "shadows" in getattr(part, "needs", ()):
                    upstream += shadows
                inputs = {"upstream": upstream, "seed": self.recipe.seed, "compare": plain["compare"]}
                chain[f"{section}/{name}"] = self._stage(
                    f"{section}/{name}", component=settings, **_files(part), **inputs
                )
        chain["gallery"] = self._stage("gallery", upstream=[stage.key for stage in chain.values()])
        return chain

    @property
    def samples(self) -> int:
        """How many images are drawn from a model without prompts; none from one that our sampler does not know."""
        return self.recipe.samples if "samples" in self.access else 0

    @property
    def access(self) -> frozenset[str]:
        """What the arm's model gives an attack."""
        shadows = frozenset({"shadows"} if self.recipe.shadows is not None else ())
        if self.finished_model is None:
            given = frozenset(getattr(self.recipe.model, "access", DENOISER)) | shadows
        else:
            given = self.finished_model.access
        if not self.takes_texts:
            return given
        return given | {"samples", "prompts"} if self.prompted else given - {"samples"}

    @property
    def takes_texts(self) -> bool:
        """Whether the model draws what a prompt asks for."""
        return takes_texts(self.recipe.model if self.finished_model is None else self.finished_model)

    @property
    def prompted(self) -> bool:
        """Whether its samples are asked for by prompts."""
        return self.recipe.prompts is not None and self.takes_texts

    @property
    def pipeline(self) -> Path:
        """Where the model lies."""
        if self.finished_model is None:
            return self.directory / "train" / saved_in(self.recipe.model)
        return Path(self.finished_model.path)

    @property
    def pipelines(self) -> tuple[Path, ...]:
        """Where it lies, and the further stages of a cascade."""
        return (self.pipeline, *getattr(self.finished_model, "then", ()))

    @property
    def images(self) -> Path:
        """Where the images drawn from it lie."""
        return self.directory / "samples" / "images.npy"

    def training_set(self, audit: Audit) -> ImageSet:
        """What the arm trains on, once its data stage is done."""
        return left_by(self.directory / "data", audit.training)

    def dropped_members(self, audit: Audit) -> frozenset[str]:
        """Members of which neither the image nor a planted copy was trained on."""
        if self.finished_model is not None:
            return frozenset()
        left = {audit.copies.get(name, name) for name in self.training_set(audit).ids}
        return frozenset(name for name in audit.members if name not in left)

    def sample_classes(self, audit: Audit) -> int:
        """Classes that samples are drawn of in turn; 0 without."""
        if self.finished_model is not None:
            classes: int = self.finished_model.classes
            return classes
        return len(audit.data.label_names) if self.recipe.conditional else 0

    def generated(self, audit: Audit) -> ImageSet | None:
        """The model's own samples as a third class, once they are drawn."""
        return generated_set(self.images, self.recipe.matrix.generated, self.sample_classes(audit))

    def _stage(self, name: str, **inputs: Any) -> Stage:
        """A stage below the arm's directory."""
        return Stage(self.directory / name, {"stage": name, **inputs})


@dataclass(frozen=True)
class Shadow:
    """One shadow model of an arm: trained with its mitigations, on half of the pool.

    Attributes:
        arm: whose.
        number: which of them.
    """

    arm: Arm
    number: int

    @property
    def directory(self) -> Path:
        """The shadow's own directory."""
        return self.arm.directory / "shadows" / f"{self.number:02d}"

    @property
    def seed(self) -> int:
        """Of its weights and batches."""
        return derive(self.arm.recipe.seed, "shadow", self.number)

    @property
    def finished(self) -> bool:
        """Whether its answers are there."""
        return all(stage.finished for stage in self.stages.values())

    @property
    def stages(self) -> dict[str, Stage]:
        """Its stages by name, in order."""
        arm, recipe = self.arm, self.arm.recipe
        parts, plain = arm.mitigations, arm.plain_mitigations
        which = {"upstream": arm.upstream, "seed": self.seed, "number": self.number}
        data = data_stage(self.directory, parts, plain, **which, shadows=recipe.resolved["shadows"])
        train = train_stage(self.directory, recipe, parts, plain, data.key, self.seed)
        upstream = [train.key, arm.model_stages["samples"].key]
        return {
            "data": data,
            "train": train,
            "matrix": matrix_stage(self.directory, recipe, arm.shadow_attacks, upstream),
        }


def _files(part: Any) -> dict[str, str]:
    """A digest of the files that an attack or a measure reads, beside what the recipe says; nothing without."""
    found = part.fingerprint() if hasattr(part, "fingerprint") else ""
    return {"files": found} if found else {}
