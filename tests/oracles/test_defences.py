"""Defences of training and of data: masks by hand, exact resume, a stop where it belongs, planted outliers."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import grey_set
from tests.processes import Killed, dying
from unmem.component import Problem, UserError
from unmem.evaluate.audit import Audit, Planted, Split, draw
from unmem.mitigations.dedup import embedding
from unmem.mitigations.early_stopping import EarlyStopping
from unmem.mitigations.ledger import Dropped, copies
from unmem.mitigations.loss_mask import LossMask
from unmem.mitigations.outlier_removal import OutlierRemoval
from unmem.recipes import yaml_file
from unmem.recipes.arm import Arm
from unmem.recipes.recipe import Recipe, check
from unmem.recipes.training import left_out_by, mitigate, train_on
from unmem.rng import stream
from unmem.train.config import Train
from unmem.train.diffusion import Diffusion, to_model
from unmem.train.imageset import ImageSet, content_of
from unmem.train.models.unet import UNet
from unmem.train.sampling import open_pipeline
from unmem.train.trainer import make_accelerator, train
from unmem.train.update import Plain

MODEL = UNet(channels=(8, 16), layers=1, conditioning="class")
NOTHING = np.arange(9, dtype=np.uint8)[:, None, None] * np.ones((8, 8), np.uint8)


def fit(rule: Any, data: ImageSet, config: Train, directory: Path, *, die_at: int = -1, model: UNet = MODEL) -> None:
    rule = dying(rule, die_at)
    train(data, model, config, rule, directory, key="k", seed=0, accelerator=make_accelerator(config))


def weights(directory: Path) -> bytes:
    return (directory / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def killed_and_resumed(make: Callable[[Path], Any], data: ImageSet, config: Train, root: Path, record: str) -> Any:
    """The same bits and the same record, wherever a run dies; returns the record."""
    often = replace(config, checkpoint_seconds=0.0)
    fit(make(root / "whole"), data, often, root / "whole")
    for die_at in (1, 3):
        broken = root / str(die_at)
        with pytest.raises(Killed):
            fit(make(broken), data, often, broken, die_at=die_at)
        fit(make(broken), data, often, broken)
        assert weights(broken) == weights(root / "whole")
        for name in ("metrics.jsonl", record):
            assert (broken / name).read_text() == (root / "whole" / name).read_text()
    return json.loads((root / "whole" / record).read_text())


@pytest.fixture(scope="module")
def data(digits: ImageSet) -> ImageSet:
    return digits.take(np.arange(50))


# The mask


class Given:
    """Losses and timesteps by hand, of slots that have one weight each."""

    def __init__(self, weight: Tensor, values: list[float], timesteps: list[int]) -> None:
        self.weight, self.values, self.at = weight, torch.tensor(values), torch.tensor(timesteps)

    def __call__(self, slots: np.ndarray) -> Tensor:
        return self.values[slots] + self.weight[slots] - self.weight[slots].detach()

    def timesteps(self, slots: np.ndarray) -> Tensor:
        return self.at[slots][:, None]


class Group:
    """Processes as threads, which add up what they reduce."""

    def __init__(self, processes: int) -> None:
        self.barrier, self.parts = Barrier(processes), [torch.zeros(0)] * processes
        self.members = [SimpleNamespace(**self._accelerator(i, processes)) for i in range(processes)]

    def _accelerator(self, process: int, processes: int) -> dict[str, Any]:
        def reduce(part: Tensor, how: str) -> Tensor:
            self.parts[process] = part
            self.barrier.wait()
            total = torch.stack(self.parts).sum(0)
            self.barrier.wait()
            return total

        return {
            "device": "cpu", "process_index": process, "num_processes": processes, "is_main_process": process == 0,
            "reduce": reduce, "backward": lambda loss: loss.backward(), "no_sync": lambda model: nullcontext(),
            "clip_grad_norm_": lambda weights, most: None, "prepare_model": lambda model: model,
        }  # fmt: skip


class Slots(nn.Module):
    """A weight for each slot, and an optimizer of it that notes gradients and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.gradients: list[Tensor] = []

    def step(self) -> None:
        assert self.weight.grad is not None
        self.gradients.append(self.weight.grad.clone())

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.weight.grad = None


STEPS = [
    ([1.0, 2.0, 3.0, 0.1], [0, 9, 10, 19]),
    ([0.7, 0.74, 4.0, 1.0], [5, 5, 15, 15]),
    ([0.5, 0.5, 0.5, 0.5], [1, 2, 11, 30]),
]


@pytest.mark.parametrize(("processes", "micro"), [(1, None), (1, 3), (2, 1), (3, None)])
def test_masks_and_averages_by_hand(processes: int, micro: int | None, tmp_path: Path) -> None:
    config = Train(images=12, batch=4, timesteps=25, micro_batch=micro)
    networks = [Slots() for _ in range(processes)]
    rules: list[Any] = [LossMask().update_rule(grey_set(NOTHING), config, "", tmp_path / "state", 0) for _ in networks]

    def work(rule: Any, network: Any, accelerator: Any) -> list[float]:
        rule.prepare(network, network, accelerator)
        return [rule.update(i, 4, Given(network.weight, *given)) for i, given in enumerate(STEPS)]

    with ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(work, rules, networks, Group(processes).members))
    gradients = [torch.stack(step).sum(0) for step in zip(*(network.gradients for network in networks), strict=True)]
    # averages after the first step: (1 + 2) / 2 and (3 + 0.1) / 2; where there was none, nothing is skipped.
    # 2 * 0.7 and 2 * 0.74 are below the one, 2 * 1.0 is above the other; 2 * 0.5 is below what both are then.
    # A timestep past the recipe's falls into the last range, which had no loss before.
    skipped = [[False] * 4, [True, True, False, False], [True, True, True, False]]
    assert [(gradient == 0).tolist() for gradient in gradients] == skipped
    first, second = 0.8 * 1.5 + 0.2 * 0.72, 0.8 * 1.55 + 0.2 * 2.5
    for rule in rules:
        averages = torch.tensor([0.8 * first + 0.2 * 0.5, 0.8 * second + 0.2 * 0.5, 0.5])
        torch.testing.assert_close(rule.memory.loss, averages)
        assert torch.equal(rule.memory.loss, rules[0].memory.loss)
        assert int(rule.memory.skipped) == 5
    means = [np.mean(values) for values, _ in STEPS]  # of all, skipped or not
    np.testing.assert_allclose(np.sum(parts, axis=0), means, rtol=1e-6)


def masked(mask: LossMask, data: ImageSet, config: Train, directory: Path) -> Any:
    return mask.update_rule(data, config, "", directory / "state", 0)


def test_a_mask_that_nothing_falls_under_is_plain_training(data: ImageSet, small_train: Train, tmp_path: Path) -> None:
    fit(masked(LossMask(ratio=1e9), data, small_train, tmp_path / "mask"), data, small_train, tmp_path / "mask")
    fit(Plain(50, small_train, 0), data, small_train, tmp_path / "plain")
    assert weights(tmp_path / "mask") == weights(tmp_path / "plain")
    fit(masked(LossMask(ratio=1.1), data, small_train, tmp_path / "other"), data, small_train, tmp_path / "other")
    assert weights(tmp_path / "other") != weights(tmp_path / "plain")


def test_a_masked_run_that_died_anywhere_ends_in_the_same_bits(
    data: ImageSet, small_train: Train, tmp_path: Path
) -> None:
    record = killed_and_resumed(
        lambda at: masked(LossMask(), data, small_train, at), data, small_train, tmp_path, "loss_mask.json"
    )
    assert 0 < record["skipped"] < record["images"] == 256


# Early stopping


def watched(stop: EarlyStopping, data: ImageSet, config: Train, directory: Path) -> tuple[Any, ImageSet]:
    kept, dropped = stop.apply(data, stream(0, "held out"))
    held_out = data.select([entry.id for entry in dropped])
    return stop.update_rule(kept, config, "", directory / "state", 0, held_out), kept


def test_equal_images_are_held_out_together(audit: Audit) -> None:
    kept, dropped = EarlyStopping(share=0.5).apply(audit.training, stream(0, "any"))
    contents = [{content_of(name) for name in names} for names in (kept.ids, [entry.id for entry in dropped])]
    assert not contents[0] & contents[1]
    assert len(contents[1]) == 20
    assert {entry.kept for entry in dropped} == {None}
    assert copies((entry.id, entry.kept) for entry in dropped) == {}
    everything = EarlyStopping(share=0.999).apply(audit.training, stream(0, "any"))
    assert len(everything[0]) >= 1


def test_too_few_held_out_images_are_refused(audit: Audit, small_train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"early_stopping\.share: 0\.03 of the training images are 1; needs 2"):
        watched(EarlyStopping(share=0.03), audit.member_images, small_train, tmp_path)


def test_training_ends_at_the_check_that_ran_out_of_patience(
    data: ImageSet, small_train: Train, tmp_path: Path
) -> None:
    rule, _ = watched(EarlyStopping(gap=0.5, patience=2, every=64), data, small_train, tmp_path)
    assert len(rule.memory.found) == 4
    rule.memory.found[:, :2] = torch.tensor([[1, 1.6], [1, 1.5], [1, 1.6], [1, 1.6]])
    assert rule._end() == 8  # two in a row, after 8 steps of 32
    rule.memory.found[3, 1] = 1.5
    assert rule._end() == rule._planned == 8
    rule.memory.found[1, 1] = 1.51
    assert rule._end() == 4


def test_a_watched_run_that_died_anywhere_stops_at_the_same_step_with_the_same_bits(
    data: ImageSet, small_train: Train, tmp_path: Path
) -> None:
    stop, hard = EarlyStopping(gap=0.01, patience=2, every=64, draws=2), grey_set(255 - data.images()[:20, ..., 0])
    hard = replace(hard, labels=np.zeros(20, np.int64), label_names=data.label_names)
    record = killed_and_resumed(
        lambda at: stop.update_rule(data, small_train, "", at / "state", 0, hard),
        data, small_train, tmp_path, "early_stopping.json",
    )  # fmt: skip
    assert record["stopped"]
    assert record["images"] == record["checks"][-1]["images"] < record["planned"] == 256
    assert all(row["gap"] > 0.01 for row in record["checks"][-2:])


def test_to_look_changes_nothing(data: ImageSet, small_train: Train, tmp_path: Path) -> None:
    """A watched run without a stop has the weights of plain training, dropout included."""
    model = replace(MODEL, dropout=0.3)
    rule, kept = watched(EarlyStopping(gap=100, every=64, draws=2), data, small_train, tmp_path / "watched")
    fit(rule, kept, small_train, tmp_path / "watched", model=model)
    fit(Plain(len(kept), small_train, 0), kept, small_train, tmp_path / "plain", model=model)
    assert weights(tmp_path / "watched") == weights(tmp_path / "plain")


def test_a_check_is_the_loss_at_fixed_noise(data: ImageSet, small_train: Train) -> None:
    """Against losses asked one draw and one side at a time."""
    rule, kept = watched(EarlyStopping(share=0.3, draws=3, most=9), data, small_train, Path("unused"))
    asked: list[tuple[tuple[str, ...], int]] = []

    class Brightness:
        """A loss that grows with the slot and with the image's brightness."""

        def of(self, images: ImageSet, positions: np.ndarray, step: int) -> Callable[[np.ndarray], Tensor]:
            asked.append((images.ids, step))
            bright = images.flat().mean(1)
            return lambda slots: torch.from_numpy(bright[positions[slots]] * (1 + slots)).float()

    rule._accelerator, rule._model = Group(1).members[0], nn.Dropout()
    trained, held_out, error = rule._check(Brightness()).tolist()
    assert rule._model.training
    (first, step), (second, same) = asked
    assert step == same < 0
    assert len(first) == len(second) == 9
    assert set(first) <= set(kept.ids)
    assert not set(second) & set(kept.ids)
    means = []
    for ids in (first, second):
        bright = data.select(ids).flat().mean(1)
        means.append(np.array([np.mean([bright[i] * (1 + k * 9 + i) for k in range(3)]) for i in range(9)]))
    assert (trained, held_out) == pytest.approx((means[0].mean(), means[1].mean()), rel=1e-5)
    residuals = means[1] - held_out / trained * means[0]
    assert error == pytest.approx(residuals.std(ddof=1) / 3 / trained, rel=1e-4)


# Outliers


def test_planted_far_images_are_left_out_and_copies_are_not(digits: ImageSet) -> None:
    noise = stream(0, "far").integers(0, 256, (6, 8, 8), dtype=np.uint8)
    lonely, crowd = noise[:4], np.repeat(noise[4:], 8, axis=0)  # as far away, but eight of each
    data = grey_set(np.concatenate([digits.images(slice(0, 180))[..., 0], lonely, crowd]))
    kept, dropped = OutlierRemoval(share=0.0201).apply(data, stream(0, "outliers"))
    assert [entry.id for entry in dropped] == [data.ids[i] for i in range(180, 184)]
    assert {(entry.kept, entry.mitigation) for entry in dropped} == {(None, "outlier_removal")}
    assert kept.ids == tuple(name for i, name in enumerate(data.ids) if not 180 <= i < 184)


def test_density_is_that_of_all_pairs(digits: ImageSet) -> None:
    """With as many components as pixels, distances are the pixels'."""
    data = digits.take(np.arange(60))
    points = data.flat().astype(np.float64)
    distances = np.sort(np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1)), axis=1)[:, 1:4].mean(1)
    _, dropped = OutlierRemoval(share=0.2, neighbors=3, components=64).apply(data, stream(0, "outliers"))
    farthest = sorted(np.argsort(-distances)[:12].tolist())
    assert [entry.id for entry in dropped] == [data.ids[i] for i in farthest]
    np.testing.assert_allclose([entry.distance for entry in dropped], distances[farthest], rtol=1e-4)


def test_any_embedding_by_its_path(digits: ImageSet) -> None:
    data = digits.take(np.arange(40))
    by_model = OutlierRemoval(share=0.1, model="tests.oracles.test_duplicates:mean_colour")
    kept, dropped = by_model.apply(data, stream(0, "outliers"))
    assert (len(kept), len(dropped)) == (36, 4)
    vectors = embedding.vectors_of_arrays(data.images(), embedding.load(by_model.model or ""))
    distances = np.sort(np.linalg.norm(vectors[:, None] - vectors[None], axis=2), axis=1)[:, 1:6].mean(1)
    np.testing.assert_allclose(sorted(entry.distance for entry in dropped), np.sort(distances)[-4:], atol=1e-3)


def test_an_image_without_a_stand_in_is_no_copy() -> None:
    entries = [Dropped("a", "b", 0.0, "x"), Dropped("c", None, 1.0, "y"), Dropped("b", None, 2.0, "y")]
    assert copies((entry.id, entry.kept) for entry in entries) == {"a": 2, "b": 2}


# An arm's own settings

PLAIN = """
schema: 1
seed: 3
data: {kind: digits, members: 48, nonmembers: 48}
model: {kind: unet, channels: [8, 16], layers: 1, conditioning: class}
train: {images: 128, batch: 32, threads: 1}
arms:
  plain: []
  other:
    train: {weight_decay: 0.1, flip: true}
    model: {dropout: 0.3, channels: [8]}
    mitigations: []
attacks: [{kind: loss}]
quality: []
compare: {against: plain}
"""


def read(text: str) -> tuple[Recipe | None, list[Problem]]:
    problems: list[Problem] = []
    return check(yaml_file.parse(text, "test"), "test", problems), problems


def test_an_arm_has_its_own_settings_and_key() -> None:
    recipe, problems = read(PLAIN)
    assert recipe is not None, problems
    plain, other = (Arm(recipe, name, Path("nowhere"), "upstream") for name in recipe.arms)
    assert (plain.recipe.train, plain.recipe.model) == (recipe.train, recipe.model)
    assert recipe.train is not None
    assert other.recipe.train == replace(recipe.train, weight_decay=0.1, flip=True)
    assert other.recipe.model == replace(recipe.model, dropout=0.3, channels=(8,))
    inputs = other.model_stages["train"].inputs
    assert (inputs["train"]["flip"], inputs["model"]["channels"], inputs["model"]["kind"]) == (True, [8], "unet")
    assert other.model_stages["train"].key != plain.model_stages["train"].key
    assert other.recipe.of_arm("other").resolved == other.recipe.resolved
    assert read(yaml_file.to_text(recipe.resolved))[0] == recipe


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("train: {weight_decay: -1}", "arms.other.train.weight_decay: input should be greater than or equal to 0"),
        ("train: {weigth_decay: 1}", "arms.other.train.weigth_decay: unknown field, did you mean 'weight_decay'?"),
        ("train: {threads: 2}", "arms.other.train.threads: is one for all arms"),
        ("trian: {flip: true}", "arms.other.trian: unknown field, did you mean 'train'?"),
        ("train: 3", "arms.other.train: needs a mapping of fields; got 3"),
    ],
)
def test_settings_that_cannot_be_are_named(change: str, problem: str) -> None:
    recipe, problems = read(PLAIN.replace("train: {weight_decay: 0.1, flip: true}", change))
    assert recipe is None
    assert problem in "\n".join(map(str, problems))


# In a run


def test_a_run_hands_early_stopping_what_it_held_out(audit: Audit, tmp_path: Path) -> None:
    stopping = "[{kind: exact_duplicates}, {kind: early_stopping, share: 0.2, every: 64, draws: 1}]"
    recipe, problems = read(PLAIN.replace("mitigations: []", f"mitigations: {stopping}"))
    assert recipe is not None, problems
    arm = Arm(recipe, "other", tmp_path, "upstream")
    folder = arm.directory / "data"
    mitigate(audit.training, arm.mitigations, 0, ("test",), folder)
    assert len(left_out_by("early_stopping", folder, audit.training)) == 8
    assert len(left_out_by("exact_duplicates", folder, audit.training)) == 6
    assert len(arm.training_set(audit)) == 32
    stage = arm.model_stages["train"]
    stage.begin()
    accelerator = make_accelerator(arm.recipe.train)
    train_on(audit.training, folder, arm.recipe, arm.mitigations, 0, accelerator, stage.directory)
    record = json.loads((stage.directory / "early_stopping.json").read_text())
    assert (record["held_out"], record["looked_at"], len(record["checks"])) == (8, 8, 2)
    assert not (stage.directory / "state").exists()


# Small real trainings


@pytest.mark.slow
def test_training_stops_where_images_begin_to_be_learnt_and_not_before(digits: ImageSet, tmp_path: Path) -> None:
    """Few images are memorized and the run ends; of four times as many nothing is, in as many steps."""
    torch.set_num_threads(1)
    config = Train(images=40_000, batch=64, lr=3e-3, noise_schedule="cosine", ema=0.99, checkpoint_seconds=3600.0)
    model = UNet(channels=(16, 32), layers=1, conditioning="class")
    records = {}
    for name, size in (("few", 400), ("many", 1600)):
        folder = tmp_path / name
        settings = config if name == "few" else replace(config, images=records["few"]["images"])
        rule, kept = watched(EarlyStopping(), digits.take(np.arange(size)), settings, folder)
        fit(rule, kept, settings, folder, model=model)
        records[name] = json.loads((folder / "early_stopping.json").read_text())
    few, many = records["few"], records["many"]
    assert few["stopped"]
    assert few["images"] > 10 * 360  # it had seen each image more than ten times
    assert not many["stopped"]
    assert many["checks"][-1]["gap"] < few["checks"][-1]["gap"] - 0.03


@pytest.mark.slow
def test_a_mask_keeps_planted_images_from_being_learnt_by_heart(digits: ImageSet, tmp_path: Path) -> None:
    """Losses at fixed noise: higher by half on planted images, and within a tenth elsewhere."""
    torch.set_num_threads(1)
    audit = draw(digits, Split(members=200, nonmembers=400, planted=Planted(images=4, copies=12)), seed=0)
    others = tuple(name for name in audit.members if name not in audit.planted)
    groups = [audit.data.select(tuple(names)) for names in (audit.planted, others, audit.nonmembers)]
    config = Train(images=40_000, batch=64, lr=3e-3, noise_schedule="cosine", ema=0.99, label_dropout=0)
    config, found = replace(config, checkpoint_seconds=3600.0), {}
    for name in ("plain", "mask"):
        folder = tmp_path / name
        rule = Plain(len(audit.training), config, 0)
        if name == "mask":
            rule = masked(LossMask(ratio=1.3), audit.training, config, folder)
        fit(rule, audit.training, config, folder, model=UNet(channels=(16, 32), layers=1, conditioning="class"))
        found[name] = np.array([loss_of(folder, images) for images in groups])
    planted, others_lost, fresh = found["mask"] / found["plain"]
    assert planted > 1.5
    assert max(abs(others_lost - 1), abs(fresh - 1)) < 0.1


def loss_of(directory: Path, images: ImageSet) -> float:
    """The mean loss at four timesteps, with three draws of one noise for all images."""
    pipeline = open_pipeline(directory / "pipeline")
    diffusion, x0, labels = Diffusion.of(pipeline.scheduler), to_model(images.images()), torch.from_numpy(images.labels)
    found = []
    with torch.no_grad():
        for draw_number, t in enumerate([100, 200, 300, 500] * 3):
            eps = torch.randn(x0[:1].shape, generator=torch.Generator().manual_seed(draw_number)).expand(x0.shape)
            found.append(diffusion.losses(pipeline.unet, x0, torch.full((len(x0),), t), eps, labels).mean())
    return float(torch.stack(found).mean())
