"""Runs with shadow models and canaries, from recipe to report: who was trained on what, kills, refuted guarantees.

Jobs are done in this process, which saves their start; the slow tests have them in processes of their own.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import REPOSITORY, Asked
from tests.recipes.test_cli import unmem
from tests.recipes.test_run import killed_at_random, outcome
from tests.recipes.test_run import unmem as unmem_process
from unmem import rundir
from unmem.evaluate import results
from unmem.evaluate.attacks.gradient import Gradient
from unmem.evaluate.attacks.lira import LiRA
from unmem.evaluate.audit import Audit
from unmem.evaluate.denoisers.opening import open_denoiser
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.results import CanaryScores, Scores
from unmem.evaluate.rows import Rows
from unmem.recipes import fleet, runner
from unmem.recipes.arm import Arm
from unmem.recipes.fleet import Job
from unmem.recipes.recipe import load
from unmem.recipes.runner import arm_of
from unmem.rng import derive
from unmem.train import trainer
from unmem.train.imageset import ImageSet

RECIPE = """
schema: 1
seed: 3
data:
  kind: digits
  members: 48
  nonmembers: 48
  planted: {images: 2, copies: 4}
  canaries: {images: 12, source: noise, copies: [1, 3]}
model: {kind: unet, channels: [8, 16], layers: 1, conditioning: class}
train: {images: 160, batch: 32, lr: 3e-3, ema: 0.9, noise_schedule: cosine, threads: 1, checkpoint_seconds: 0}
sampling: {steps: 2}
arms:
  plain: []
  deduplicated: [{kind: exact_duplicates}]
shadows: {count: 4}
matrix: {batch: 64, generated: 16}
attacks:
  - {kind: loss, timesteps: [100], draws: 2}
  - {kind: lira, base: {kind: loss, timesteps: [100], draws: 2}}
  - {kind: rmia, base: {kind: loss, timesteps: [100], draws: 2}}
  - {kind: gradient, timesteps: 1}
  - {kind: canary_audit, base: {kind: loss, timesteps: [100], draws: 2}}
compare: {against: plain, tpr_at_fpr: [0.25]}
"""
ARMS, COUNT = ("plain", "deduplicated"), 4


def trained_by(root: Path, arm: str, number: int | None = None) -> Path:
    """The folder of a model's training: the arm's own, or a shadow's."""
    return root / "arms" / arm / ("" if number is None else f"shadows/{number:02d}") / "train"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(RECIPE)
    return file


@contextmanager
def jobs_in_here() -> Iterator[pytest.MonkeyPatch]:
    """One job after the other, in this process."""

    def run(jobs: list[Job], *_: Any) -> None:
        for job in jobs:
            runner.run_job(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet, "run", run)
        yield patch


@dataclass
class Watched:
    """A run, and what was seen of it.

    Attributes:
        root: its directory.
        trained: what the trainer was given: ids and seed, by folder.
        targets: what the arms' attacks were given, in the arms' order.
    """

    root: Path
    trained: dict[Path, tuple[tuple[str, ...], int]] = field(default_factory=dict)
    targets: list[Any] = field(default_factory=list)

    @property
    def audit(self) -> Audit:
        return Audit.open(self.root)

    def target(self, arm: str) -> Any:
        return self.targets[ARMS.index(arm)]

    def ids(self, arm: str, number: int | None = None) -> set[str]:
        return set(self.trained[trained_by(self.root, arm, number)][0])


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    watched = Watched(tmp_path_factory.mktemp("runs") / "whole")
    train, attack = trainer.train, LiRA.run

    def seen_train(data: Any, model: Any, config: Any, rule: Any, directory: Path, **options: Any) -> None:
        watched.trained[directory] = data.ids, options["seed"]
        train(data, model, config, rule, directory, **options)

    def seen_attack(self: LiRA, target: Any, audit: Audit, seed: int) -> Scores:
        watched.targets.append(target)
        return attack(self, target, audit, seed)

    with jobs_in_here() as patch:
        patch.setattr(trainer, "train", seen_train)
        patch.setattr(LiRA, "run", seen_attack)
        code, _, err = unmem("run", recipe, "--out", watched.root)
    assert code == 0, err
    return watched


# who was trained on what ----------------------------------------------------------------------------------------------


def test_every_arm_has_its_shadows_and_every_attack_its_figures(whole: Watched) -> None:
    comparison = json.loads((whole.root / "comparison.json").read_text())
    assert comparison["shadows"] == COUNT
    assert comparison["unfinished"] == []
    for arm in ARMS:
        shadows = sorted((whole.root / "arms" / arm / "shadows").iterdir())
        assert [shadow.name for shadow in shadows] == ["00", "01", "02", "03"]
        for shadow in shadows:
            assert (shadow / "train" / "pipeline" / "model_index.json").exists()
            assert not (shadow / "train" / "state").exists()
        found = comparison["arms"][arm]
        assert list(found["attacks"]) == ["loss", "lira", "rmia", "gradient", "canary_audit"]
        assert found["attacks"]["gradient"]["queries"] == 1
        assert found["attacks"]["lira"]["queries"] == found["attacks"]["loss"]["queries"] == 2
        assert found["seconds"]["shadows"] > 0
        assert found["measured"] == []  # nothing is proven
    assert {"lira.auc", "rmia.auc", "gradient.auc"} <= set(comparison["differences"]["deduplicated"])


@pytest.mark.parametrize("arm", ARMS)
def test_each_image_is_inside_half_of_the_shadows(whole: Watched, arm: str) -> None:
    shadows, audit = whole.target(arm).shadows, whole.audit
    assert len(shadows) == COUNT
    for group, names in (("members", audit.members), ("nonmembers", audit.nonmembers), ("canaries", audit.canaries)):
        inside = np.array([getattr(shadow.inside, group) for shadow in shadows])
        assert inside.shape == (COUNT, len(names))
        assert (inside.sum(0) == COUNT // 2).all()
        assert (inside.mean(1) < 1).all()
        assert len(np.unique(inside, axis=1).T) > 2  # not all of them together


@pytest.mark.parametrize("arm", ARMS)
def test_the_attacks_know_what_each_shadow_was_trained_on(whole: Watched, arm: str) -> None:
    audit = whole.audit
    for number, shadow in enumerate(whole.target(arm).shadows):
        trained = {audit.copies.get(name, name) for name in whole.ids(arm, number)}
        told = {
            name
            for group in ("members", "nonmembers", "canaries")
            for name, inside in zip(getattr(audit, group), getattr(shadow.inside, group), strict=True)
            if inside
        }
        assert trained == told
        assert shadow.matrix == whole.root / "arms" / arm / "shadows" / f"{number:02d}" / "matrix"


def test_copies_go_with_their_originals(whole: Watched) -> None:
    audit, seen = whole.audit, set()
    assert len(audit.copies) == 2 * 3 + 6 * 2
    for number in range(COUNT):
        trained = whole.ids("plain", number)
        for copy, original in audit.copies.items():
            assert (copy in trained) == (original in trained)
            seen.add((original, original in trained))
    assert len(seen) == 2 * (2 + 6)  # each was inside of some and outside of others
    own = whole.ids("plain")
    assert {copy for copy in audit.copies if copy in own} == {
        copy for copy, original in audit.copies.items() if original in own
    }


def test_shadows_are_trained_with_the_mitigations_of_their_arm(whole: Watched) -> None:
    audit = whole.audit
    for number, (plain, other) in enumerate(
        zip(whole.target("plain").shadows, whole.target("deduplicated").shadows, strict=True)
    ):
        for group in ("members", "nonmembers", "canaries"):
            np.testing.assert_array_equal(getattr(plain.inside, group), getattr(other.inside, group))
        everything = whole.ids("plain", number)
        ledgers = [
            json.loads((trained_by(whole.root, arm, number).parent / "data" / "ledger.json").read_text())
            for arm in ARMS
        ]
        assert ledgers[0] == {"kept": len(everything), "dropped": []}
        dropped = {entry["id"] for entry in ledgers[1]["dropped"]}
        assert {entry["mitigation"] for entry in ledgers[1]["dropped"]} == {"exact_duplicates"}
        assert whole.ids("deduplicated", number) == everything - dropped
        assert ledgers[1]["kept"] == len(everything) - len(dropped)
        assert len(dropped) == sum(copy in everything for copy in audit.copies)


@pytest.mark.parametrize("arm", ARMS)
def test_the_audited_model_is_none_of_its_shadows(whole: Watched, arm: str) -> None:
    audit, target = whole.audit, whole.target(arm)
    own = {audit.copies.get(name, name) for name in whole.ids(arm)}
    inserted = {name for name, coin in zip(audit.canaries, audit.inserted, strict=True) if coin}
    assert own == set(audit.members) | inserted
    assert 0 < len(inserted) < len(audit.canaries)
    for number in range(COUNT):
        assert {audit.copies.get(name, name) for name in whole.ids(arm, number)} != own
    assert target.matrix not in [shadow.matrix for shadow in target.shadows]
    models = [None, *range(COUNT)]
    assert len({whole.trained[trained_by(whole.root, arm, number)][1] for number in models}) == len(models)
    weights = [
        (trained_by(whole.root, arm, number) / "pipeline/unet/diffusion_pytorch_model.safetensors").read_bytes()
        for number in models
    ]
    assert len(set(weights)) == len(models)


# the scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_scores_are_those_of_the_saved_models_asked_on_the_spot(whole: Watched, arm: str) -> None:
    audit, seed = whole.audit, derive(3, "matrix")
    drawn = np.load(whole.root / "arms" / arm / "samples" / "images.npy")
    assert len(drawn) == 16

    def asked(number: int | None, **more: Any) -> Asked:
        denoiser = open_denoiser(trained_by(whole.root, arm, number) / "pipeline", "cpu")
        return Numbered(denoiser, audit, generated=drawn, seed=seed, batch=50, **more)

    insides = [shadow.inside for shadow in whole.target(arm).shadows]
    target = asked(None, shadows=[asked(number, inside=inside) for number, inside in enumerate(insides)])
    for name, attack in arm_of(whole.root, arm).recipe.attacks.items():
        found = attack.run(target, audit, derive(3, "attack", name))
        known = results.load(whole.root / "arms" / arm / "attacks" / name / "scores.npz")
        if isinstance(known, CanaryScores):
            np.testing.assert_allclose(found.scores, known.scores, rtol=1e-4)
            np.testing.assert_array_equal(known.inserted, audit.inserted)
            np.testing.assert_array_equal(known.copies, audit.canary_copies)
            continue
        assert isinstance(known, Scores)
        for group, size in (("members", 48), ("nonmembers", 48), ("canaries", 12), ("generated", 16)):
            values = getattr(known, group)
            assert values.shape == (size,)
            assert_near(name, getattr(found, group), values)


def assert_near(attack: str, found: np.ndarray, known: np.ndarray) -> None:
    """Equal up to the order of float sums; rmia's scores are ranks, of which a few may change places."""
    close = np.isclose(found, known, rtol=1e-3, atol=1e-3 * np.ptp(known))
    assert close.mean() > (0.9 if attack == "rmia" else 0.999)


class Numbered(Asked):
    """Samples have the classes that they were drawn for."""

    def _ask(self, name: str, data: ImageSet, reading: Reading) -> np.ndarray:
        if name == "generated":
            data = replace(data, labels=np.arange(len(data)) % 10)
        return super()._ask(name, data, reading)


@dataclass(frozen=True)
class Rounded:
    """A model whose gradients are rounded in another way."""

    model: Any
    seed: int

    @property
    def inside(self) -> Rows:
        return self.model.inside

    @property
    def shadows(self) -> list[Rounded]:
        return [Rounded(shadow, number + 1) for number, shadow in enumerate(self.model.shadows)]

    def read(self, reading: Reading) -> Rows:
        rng = np.random.default_rng(self.seed)

        def other(norms: np.ndarray) -> np.ndarray:
            zero = norms < 1e-6 * norms.max(1, keepdims=True)
            assert zero.all(0).any()  # of biases that the next normalisation takes away
            return np.where(zero, norms * rng.uniform(0, 2, norms.shape), norms).astype(np.float32)

        return self.model.read(reading).map(other)


@pytest.mark.parametrize("classifier", ["logistic", "trees"])
def test_the_rounding_of_zero_gradients_is_no_evidence(whole: Watched, classifier: Any) -> None:
    attack, target = Gradient(timesteps=1, classifier=classifier), whole.target("plain")
    known, found = (attack.run(model, whole.audit, 0) for model in (target, Rounded(target, 0)))
    for group in ("members", "nonmembers", "canaries", "generated"):
        np.testing.assert_array_equal(getattr(found, group), getattr(known, group))


class Killed(BaseException):
    """Stands for kill -9."""


@contextmanager
def killed_after(writes: int) -> Iterator[None]:
    """The program dies before it has written so many files and one more."""
    left, real = [writes], rundir.atomic

    @contextmanager
    def counted(path: Path) -> Iterator[Path]:
        if not left[0]:
            raise Killed
        left[0] -= 1
        with real(path) as partial:
            yield partial

    with pytest.MonkeyPatch.context() as patch:
        for module in [module for name, module in sys.modules.items() if name.startswith("unmem.")]:
            if getattr(module, "atomic", None) is real:
                patch.setattr(module, "atomic", counted)
        yield


def test_a_run_that_is_killed_again_and_again_comes_to_the_same(recipe: Path, whole: Watched, tmp_path: Path) -> None:
    loaded, rng, deaths = load(str(recipe)), random.Random(0), 0
    with jobs_in_here():
        while True:
            try:
                with killed_after(rng.randrange(20, 60)):
                    runner.run(loaded, tmp_path / "run", (), [])
                break
            except Killed:
                deaths += 1
    assert deaths >= 5
    assert outcome(tmp_path / "run") == outcome(whole.root)


@pytest.mark.slow
def test_kill_9_of_a_run_with_shadows(recipe: Path, whole: Watched, tmp_path: Path) -> None:
    """Processes of their own, at random moments; and they come to what one process comes to."""
    rng = random.Random(1)
    killed_at_random(recipe, tmp_path / "run", [rng.uniform(8, 40) for _ in range(5)])
    done = unmem_process("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == outcome(whole.root)


# what has to be done again --------------------------------------------------------------------------------------------


def keys(recipe: Path, *settings: str) -> dict[str, str]:
    """The keys of all stages of all arms and shadows of a changed recipe."""
    loaded = load(str(recipe), settings=settings)
    found = {}
    for name in loaded.arms:
        arm = Arm(loaded, name, Path("nowhere"), "upstream")
        found |= {f"{name}/{stage}": entry.key for stage, entry in arm.stages.items()}
        for shadow in arm.shadows:
            found |= {f"{name}/{shadow.number}/{stage}": entry.key for stage, entry in shadow.stages.items()}
    return found


def changed(recipe: Path, *settings: str) -> set[str]:
    before, after = keys(recipe), keys(recipe, *settings)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def of(stage: str, arms: tuple[str, ...] = ARMS) -> set[str]:
    """Names of a stage of every shadow."""
    return {f"{arm}/{number}/{stage}" for arm in arms for number in range(COUNT)}


@pytest.mark.parametrize(
    "settings",
    [
        ("attacks.lira.mode=offline",),
        ("attacks.rmia.gamma=2.0",),
        ("attacks.gradient.classifier=trees",),
        ("attacks.canary_audit.delta=0.01",),
        ("compare.confidence=0.9",),
    ],
)
def test_an_attacks_own_field_asks_no_model_again(recipe: Path, settings: tuple[str, ...]) -> None:
    found = changed(recipe, *settings)
    assert found  # something depends on it
    assert not [name for name in found if name.endswith(("/data", "/train", "/samples", "/matrix"))]


@pytest.mark.parametrize(
    "settings",
    [("attacks.lira.base.draws=3",), ("attacks.gradient.timesteps=2",), ("attacks.rmia=null",), ("matrix.batch=32",)],
)
def test_what_attacks_read_trains_no_model_again(recipe: Path, settings: tuple[str, ...]) -> None:
    found = changed(recipe, *settings)
    assert not [name for name in found if name.endswith(("/data", "/train", "/samples"))]
    assert (of("matrix") <= found) == (settings != ("attacks.rmia=null",))  # which reads what others read


def test_what_a_shadow_depends_on_trains_it_again(recipe: Path) -> None:
    assert of("train") <= changed(recipe, "train.lr=1e-3")
    assert of("train") <= changed(recipe, "seed=4")
    assert of("train") <= changed(recipe, "shadows.count=6")
    other = changed(recipe, "arms.deduplicated=[{kind: near_duplicates}]")
    assert of("train", ("deduplicated",)) <= other
    assert not other & of("train", ("plain",))
    assert not changed(recipe, "shadows.count=6") & {"plain/train", "plain/matrix", "plain/attacks/loss"}


# mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("shadows=null", "attacks.rmia=null", "attacks.gradient=null"),
            "tiny.yaml: attacks.lira: needs shadow models; add a section shadows: {count: 16}",
        ),
        (
            ("attacks.lira=null", "attacks.rmia=null", "attacks.gradient=null"),
            "tiny.yaml: shadows: no attack needs shadow models; leave the section out",
        ),
        (("data.canaries=null",), "tiny.yaml: attacks.canary_audit: needs canaries; add data.canaries: {images: 1000"),
        (("shadows.count=1",), "tiny.yaml: shadows.count: input should be greater than or equal to 2; got 1"),
        (("shadows.number=8",), "tiny.yaml: shadows.number: unknown field"),
        (("compare=null",), "tiny.yaml: compare: needs a mapping of against, "),
        (("data.canaries.images=0",), "tiny.yaml: data.canaries.images: input should be greater than 0; got 0"),
    ],
)
def test_mistakes_are_one_message(recipe: Path, tmp_path: Path, settings: tuple[str, ...], message: str) -> None:
    changes = [part for setting in settings for part in ("--set", setting)]
    code, out, err = unmem("run", recipe, *changes, "--out", tmp_path / "run")
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert out == ""


@pytest.mark.parametrize("beside", [True, False])
def test_a_finished_model_has_no_shadows(recipe: Path, whole: Watched, tmp_path: Path, beside: bool) -> None:
    """Alone, and beside an arm."""
    pipeline = trained_by(whole.root, "plain") / "pipeline"
    settings = [f"targets={{old: {{kind: pipeline, path: '{pipeline}'}}}}", "attacks=[{kind: lira}]", "shadows=null"]
    file = tmp_path / "finished.yaml"
    lines = RECIPE.splitlines()
    if not beside:
        lines = [line for line in lines if not line.startswith(("model:", "train:", "arms:", "  plain", "  dedup"))]
        settings.append("compare.against=old")
    file.write_text("\n".join(lines))
    changes = [part for setting in settings for part in ("--set", setting)]
    code, _, err = unmem("run", file, *changes, "--out", tmp_path / "run")
    assert code == 2
    assert err.startswith("error: finished.yaml: attacks.lira: needs shadow models, trained as the audited one was")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_too_few_shadows_are_named(recipe: Path, tmp_path: Path) -> None:
    """Online, an image must be inside and outside of two."""
    changes = ("--set", "shadows.count=2", "--set", "train.images=32", "--arm", "plain")
    with jobs_in_here():
        code, _, err = unmem("run", recipe, *changes, "--out", tmp_path / "run")
    assert code == 2
    assert "attacks.lira: some image is inside only 1 of 2 shadow models" in err
    assert "Traceback" not in err


# guarantees that an audit refutes -------------------------------------------------------------------------------------

WISHFUL = '''
"""A guarantee that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unmem.component import PositiveFloat, component
from unmem.mitigations.dp.plan import DPPlan
from unmem.train.config import Train
from unmem.train.imageset import ImageSet
from unmem.train.update import Plain


@component
class Wishful:
    """Ordinary training, with the statement of DP-SGD.

    Attributes:
        epsilon: what is claimed.
    """

    epsilon: PositiveFloat

    def update_rule(self, data: ImageSet, train: Train, holds_for: str, state: Path, seed: int) -> Plain:
        plan = DPPlan.calibrate(
            epsilon=self.epsilon, delta=1e-5, n=len(data), expected_batch=train.batch, steps=10, clip=1.0
        )
        rule = _Claimed(len(data), train, 0)
        rule.statement = plan.spent(holds_for=holds_for, void=None).as_json()
        return rule


class _Claimed(Plain):
    """Plain training that states more than it does."""

    statement: dict[str, Any]

    def finish(self) -> dict[str, Any]:
        return self.statement
'''
CLAIMED = """
schema: 1
seed: 3
data: {kind: digits, members: 4, nonmembers: 4, canaries: {images: 64, source: out_of_distribution}}
model: {kind: unet, channels: [16, 32], layers: 1, conditioning: class}
train: {images: 64, batch: 32, lr: 1e-2, ema: 0.9, noise_schedule: cosine, prediction: v_prediction, threads: 1}
sampling: {steps: 2}
arms:
  honest: [{kind: dp_sgd, epsilon: 1, delta: 1e-5, batch: 16, images: 64, engine: bookkeeping}]
  wishful: [{kind: wishful_lab.wishful, epsilon: 0.1}]
matrix: {generated: 0}
attacks:
  - {kind: canary_audit, base: {kind: loss, timesteps: [50, 100, 200], draws: 8}}
compare: {against: honest}
"""


@pytest.fixture
def claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A recipe of two guarantees, one of them a component of the user's own."""
    (tmp_path / "wishful_lab").mkdir()
    (tmp_path / "wishful_lab" / "wishful.py").write_text(WISHFUL)
    file = tmp_path / "claimed.yaml"
    file.write_text(CLAIMED)
    importlib.invalidate_caches()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    for name in [name for name in sys.modules if name.startswith("wishful_lab")]:
        del sys.modules[name]


def assert_refuted(root: Path, err: str) -> None:
    """What a user is told of it."""
    assert "wishful: REFUTED. canary_audit measures an epsilon of at least" in err
    assert "at delta 1e-05, above the proven 0.1 (" in err
    assert "honest" not in err
    assert "Traceback" not in err
    arm = json.loads((root / "comparison.json").read_text())["arms"]["wishful"]
    (measured,) = arm["measured"]
    assert measured["contradicts"] is True
    assert measured["epsilon"]["value"] > arm["privacy"]["epsilon"]
    for file in ("report.md", "report.html"):
        assert "REFUTED" in (root / file).read_text()


def rescored(root: Path, arm: str, change: Callable[[CanaryScores], np.ndarray]) -> None:
    """Other scores in a run that has no comparison yet."""
    file = root / "arms" / arm / "attacks" / "canary_audit" / "scores.npz"
    found = results.load(file)
    assert isinstance(found, CanaryScores)
    results.save(replace(found, scores=change(found)), file)
    (root / "comparison.json").unlink(missing_ok=True)


def test_a_refuted_guarantee_makes_the_run_fail(claimed: Path, tmp_path: Path) -> None:
    """The scores are put in the place of those of a model that knows its canaries by heart."""
    root = tmp_path / "run"
    with jobs_in_here():
        code, out, err = unmem("run", claimed, "--out", root)
        assert (code, err) == (0, "")
        assert "honest: proven epsilon 1 at delta 1e-05" in out
        assert "wishful: proven epsilon 0.1 at delta 1e-05" in out
        rescored(root, "wishful", lambda found: np.where(found.inserted, 1.0, -1.0) + 0.1 * found.scores)
        for _ in range(2):  # a run that is finished is refuted still
            code, out, err = unmem("run", claimed, "--out", root)
            assert code == 1
            assert_refuted(root, err)
            assert "wishful: REFUTED." in out
        code, _, err = unmem("check", root, "--arm", "wishful", "--max", "epsilon=8")
        assert code == 1
        rescored(root, "wishful", lambda found: np.where(found.inserted, -1.0, 1.0))  # wrong guesses refute nothing
        code, _, err = unmem("run", claimed, "--out", root)
        assert (code, err) == (0, "")


def test_a_void_guarantee_cannot_be_refuted(claimed: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    change = "arms.honest.dp_sgd.known_seed=7"
    with jobs_in_here():
        assert unmem("run", claimed, "--set", change, "--arm", "honest", "--out", root)[0] == 0
        rescored(root, "honest", lambda found: np.where(found.inserted, 1.0, -1.0))
        code, out, err = unmem("run", claimed, "--set", change, "--arm", "honest", "--out", root)
    assert (code, err) == (0, "")
    assert "honest: no guarantee" in out
    assert "REFUTED" not in out


@pytest.mark.slow
def test_canaries_that_are_learnt_by_heart_refute_a_guarantee(claimed: Path, tmp_path: Path) -> None:
    """Nothing is put in anybody's place: each job is a process, and the model memorizes."""
    root, long = tmp_path / "run", ("--set", "train.images=12800", "--set", "arms.honest.dp_sgd.images=640")
    honest = unmem_process("run", claimed, *long, "--arm", "honest", "--out", root, cwd=claimed.parent)
    assert honest.returncode == 0, honest.stderr
    done = unmem_process("run", claimed, *long, "--out", root, cwd=claimed.parent)
    assert done.returncode == 1, done.stderr
    assert_refuted(root, done.stderr)


# other places to work in ----------------------------------------------------------------------------------------------

SMALL = """
schema: 1
seed: 3
data: {kind: digits, members: 48, nonmembers: 48, planted: {images: 2, copies: 4}}
model: {kind: unet, channels: [8, 16], layers: 1, conditioning: class}
train: {images: 320, batch: 32, lr: 3e-3, ema: 0.9, noise_schedule: cosine, threads: 1}
sampling: {steps: 2}
arms: {plain: []}
shadows: {count: 2}
matrix: {batch: 64, generated: 16}
attacks:
  - {kind: loss, timesteps: [100], draws: 2}
  - {kind: rmia, base: {kind: loss, timesteps: [100], draws: 2}}
  - {kind: gradient, timesteps: 1}
compare: {against: plain, tpr_at_fpr: [0.25]}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe with two shadows, and its finished run."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(SMALL)
    with jobs_in_here():
        code, _, err = unmem("run", folder / "small.yaml", "--out", folder / "run")
    assert code == 0, err
    return folder / "small.yaml", folder / "run"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_a_cluster_comes_to_the_same_scores(small: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, known = small
    done = unmem_process("run", recipe, "--ray", "local", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == outcome(known)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_a_cluster_passes_on_what_is_wrong(small: tuple[Path, Path], tmp_path: Path) -> None:
    change = ("--set", "model.channels=[7, 16]")
    done = unmem_process("run", small[0], *change, "--ray", "local", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "error: arm plain" in done.stderr
    assert done.stderr.endswith(": model.norm_groups: 8 does not divide channels [7]\n")
    assert "Traceback" not in done.stderr


def test_ray_that_is_not_installed(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = unmem("run", recipe, "--ray", "local", "--out", tmp_path / "run")
    assert code == 2
    assert err == "error: --ray: ray is not installed; run pip install 'unmem[cluster]'\n"


@pytest.mark.slow
def test_two_processes_together_come_to_the_same_scores(small: tuple[Path, Path], tmp_path: Path) -> None:
    """Over gloo: shadows too are trained by both, so that scores agree up to the order of float sums."""
    recipe, known = small
    environment = dict(os.environ, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "unmem", "run", str(recipe), "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    for _ in range(2):  # then all of it is finished
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=500, check=False, env=environment, cwd=REPOSITORY
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["processes"] == 2
    folders = [root / "arms" / "plain" for root in (tmp_path / "run", known)]
    for name in ("loss", "gradient", "rmia"):
        found, same = (results.load(folder / "attacks" / name / "scores.npz") for folder in folders)
        assert isinstance(found, Scores) and isinstance(same, Scores)
        for group in ("members", "nonmembers", "generated"):
            assert_near(name, getattr(found, group), getattr(same, group))
    for number in range(2):
        ledgers = [(folder / "shadows" / f"{number:02d}" / "data" / "ledger.json").read_text() for folder in folders]
        assert ledgers[0] == ledgers[1]
