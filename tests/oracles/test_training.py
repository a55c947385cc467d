"""The trainer and the sampler: exact resume, per-seed samples, and the loss written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.processes import Killed
from unmem.component import UserError
from unmem.train.config import Sampling, Train
from unmem.train.diffusion import Diffusion, make_scheduler, to_images, to_model
from unmem.train.imageset import ImageSet
from unmem.train.models.unet import UNet
from unmem.train.sampling import open_pipeline, sample, sample_to_disk
from unmem.train.trainer import make_accelerator, train
from unmem.train.update import Plain, shares

MODEL = UNet(channels=(8, 16), layers=1, conditioning="class")


class Interrupted(Plain):
    """A plain rule that dies before a given step."""

    die_at = 0

    def update(self, step: int, size: int, losses: Any) -> float:
        if step == self.die_at:
            raise Killed
        return super().update(step, size, losses)


def fit(
    data: ImageSet, config: Train, directory: Path, *, die_at: int = -1, key: str = "k", model: UNet = MODEL
) -> None:
    rule = Interrupted(len(data), config, seed=0)
    rule.die_at = die_at
    train(data, model, config, rule, directory, key=key, seed=0, accelerator=make_accelerator(config))


def weights(directory: Path) -> bytes:
    return (directory / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def data(digits: ImageSet) -> ImageSet:
    return digits.take(np.arange(50))


@pytest.fixture
def often(small_train: Train) -> Train:
    from dataclasses import replace

    return replace(small_train, checkpoint_seconds=0.0, flip=True)


def test_a_run_that_died_anywhere_ends_in_the_same_bits(data: ImageSet, often: Train, tmp_path: Path) -> None:
    fit(data, often, tmp_path / "whole")
    for die_at in (0, 1, 5):
        broken = tmp_path / str(die_at)
        with pytest.raises(Killed):
            fit(data, often, broken, die_at=die_at)
        with pytest.raises(Killed):  # and once more, at once
            fit(data, often, broken, die_at=die_at)
        fit(data, often, broken)
        assert weights(broken) == weights(tmp_path / "whole")
        assert (broken / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_dropout_is_a_function_of_position_too(data: ImageSet, often: Train, tmp_path: Path) -> None:
    dropping = UNet(channels=(8, 16), layers=1, conditioning="class", dropout=0.3)
    fit(data, often, tmp_path / "whole", model=dropping)
    torch.randn(1000)  # somebody else draws from the global generator
    with pytest.raises(Killed):
        fit(data, often, tmp_path / "broken", die_at=3, model=dropping)
    fit(data, often, tmp_path / "broken", model=dropping)
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


def test_micro_batches_change_float_order_alone(data: ImageSet, small_train: Train, tmp_path: Path) -> None:
    """Compared by losses: Adam blows a rounding of a gradient near zero up to a whole step of one weight."""
    from dataclasses import replace

    fit(data, small_train, tmp_path / "whole")
    fit(data, replace(small_train, micro_batch=5), tmp_path / "micro")
    curves = [
        [json.loads(row)["loss"] for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "micro")
    ]
    assert len(curves[0]) == 8
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-3)


def test_a_damaged_or_foreign_checkpoint_is_refused(data: ImageSet, often: Train, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(data, often, tmp_path, die_at=3)
    with pytest.raises(UserError, match="belongs to another configuration"):
        fit(data, often, tmp_path, key="other")
    file = tmp_path / "state" / "checkpoint.safetensors"
    whole = file.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"x" * 100, whole[:8] + b"\x00" * 64 + whole[72:]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"checkpoint\.safetensors: damaged checkpoint .*remove it"):
            fit(data, often, tmp_path)
    file.unlink()
    fit(data, often, tmp_path)


def test_the_pipeline_is_a_normal_diffusers_folder(data: ImageSet, small_train: Train, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    fit(data, small_train, tmp_path)
    files = {file.name for file in tmp_path.rglob("*") if file.is_file()} - {"checkpoint.safetensors"}
    assert files == {
        "metrics.jsonl",
        "model_index.json",
        "config.json",
        "scheduler_config.json",
        "diffusion_pytorch_model.safetensors",
    }
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipeline.scheduler.config.beta_schedule == "squaredcos_cap_v2"


@pytest.mark.parametrize("scheduler", ["ddim", "dpm_solver++"])
def test_sample_k_is_the_same_image_at_any_batch_size(
    data: ImageSet, small_train: Train, tmp_path: Path, scheduler: Any
) -> None:
    fit(data, small_train, tmp_path)
    pipeline = open_pipeline(tmp_path / "pipeline")
    config = Sampling(scheduler=scheduler, steps=6, guidance=2.0, batch=16)
    whole = sample(pipeline, config, np.arange(32), 0, "cpu")
    odd = sample(pipeline, Sampling(scheduler=scheduler, steps=6, guidance=2.0, batch=5), np.arange(32), 0, "cpu")
    assert np.abs(whole.astype(int) - odd).max() <= 1  # one grey level: float order may tip a rounding
    picked = sample(pipeline, config, np.array([30, 3]), 0, "cpu")
    assert np.abs(picked.astype(int) - whole[[30, 3]]).max() <= 1
    assert len({image.tobytes() for image in whole}) == 32
    other = sample(pipeline, config, np.arange(32), 1, "cpu")
    assert not np.array_equal(whole, other)


def test_sampling_resumes_part_by_part(
    data: ImageSet, small_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmem.train.sampling.PART", 8)
    fit(data, small_train, tmp_path)
    pipeline, config, accelerator = (
        open_pipeline(tmp_path / "pipeline"),
        Sampling(steps=2),
        make_accelerator(small_train),
    )
    sample_to_disk(pipeline, config, 20, tmp_path / "whole", seed=0, accelerator=accelerator)
    np.save(tmp_path / "marker.npy", np.full((8, 8, 8, 1), 7, np.uint8))
    (tmp_path / "broken").mkdir()
    (tmp_path / "marker.npy").rename(tmp_path / "broken" / "part-00001.npy")
    sample_to_disk(pipeline, config, 20, tmp_path / "broken", seed=0, accelerator=accelerator)
    whole, broken = (np.load(tmp_path / name / "images.npy") for name in ("whole", "broken"))
    assert whole.shape == (20, 8, 8, 1)
    assert (broken[8:16] == 7).all()  # the part that was there was not drawn again
    assert np.array_equal(broken[:8], whole[:8])
    assert np.array_equal(broken[16:], whole[16:])
    assert [file.name for file in (tmp_path / "whole").iterdir()] == ["images.npy"]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_loss_is_the_papers(digits: ImageSet, schedule: str, prediction: str) -> None:
    """Against diffusers' own add_noise and get_velocity, example by example."""
    scheduler = make_scheduler(schedule, prediction, 1000)
    diffusion, network = Diffusion.of(scheduler), UNet(channels=(8, 16), layers=1).build((8, 8, 1), None).eval()
    x0 = to_model(digits.images(slice(0, 5)))
    eps, t = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 500, 998, 999])
    with torch.no_grad():
        losses = diffusion.losses(network, x0, t, eps, None)
        for i in range(5):
            one = slice(i, i + 1)
            out = network(scheduler.add_noise(x0[one], eps[one], t[one]), t[one]).sample
            target = eps[one] if prediction == "epsilon" else scheduler.get_velocity(x0[one], eps[one], t[one])
            assert float(losses[i]) == pytest.approx(float((out - target).square().mean()), rel=1e-4)


def test_pixels_survive_the_way_to_the_model_and_back() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = to_model(images)
    assert (float(x.min()), float(x.max())) == (-1, 1)
    np.testing.assert_array_equal(to_images(x), images)


def test_epochs_see_every_image_once(data: ImageSet, small_train: Train) -> None:
    rule = Plain(50, small_train, seed=3)
    row = np.concatenate([rule.positions(step) for step in range(25)])
    for epoch in range(16):
        assert sorted(row[epoch * 50 : (epoch + 1) * 50]) == list(range(50))
    assert not np.array_equal(row[:50], row[50:100])
    np.testing.assert_array_equal(rule.positions(7), Plain(50, small_train, seed=3).positions(7))


@pytest.mark.parametrize("size", [0, 1, 7, 64])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_part_a_batch(size: int, processes: int) -> None:
    parts = [list(shares(size, p, processes, most=5)) for p in range(processes)]
    assert sorted(np.concatenate([slots for chunks in parts for slots in chunks]).tolist()) == list(range(size))
    assert all(len(slots) <= 5 for chunks in parts for slots in chunks)
    assert all(chunks for chunks in parts)  # nobody is left without a turn: others would wait for ever


@pytest.mark.parametrize(
    ("model", "shape", "classes", "message"),
    [
        (UNet(channels=(8, 8, 8, 8, 8)), (8, 8, 1), None, r"model\.channels: 5 levels halve 4 times"),
        (UNet(channels=(8, 12)), (8, 8, 1), None, r"model\.norm_groups: 8 does not divide channels \[12\]"),
        (UNet(channels=(8, 16), attention=(16,)), (8, 8, 1), None, r"model\.attention: .* \[8, 4\]; got \[16\]"),
        (UNet(channels=(8, 16), conditioning="class"), (8, 8, 1), None, "needs a data set with labels"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(model: UNet, shape: Any, classes: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.build(shape, classes)


def test_a_loss_that_is_not_finite_stops_training(data: ImageSet, small_train: Train, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match=r"the loss is nan.*lower train\.lr"):
        fit(data, replace(small_train, lr=1e30, images=3200, max_grad_norm=1e30), tmp_path)


def test_tensorboard_by_one_line(data: ImageSet, small_train: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from dataclasses import replace

    config = replace(small_train, trackers=("tensorboard",))
    rule = Plain(len(data), config, 0)
    train(data, MODEL, config, rule, tmp_path, key="k", seed=0, accelerator=make_accelerator(config, tmp_path))
    assert list(tmp_path.rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("tracker", "message"), [("tensorbord", "unknown 'tensorbord'; have"), ("aim", "not installed")]
)
def test_a_tracker_that_cannot_be_had_is_one_message(small_train: Train, tracker: str, message: str) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match=message):
        make_accelerator(replace(small_train, trackers=(tracker,)))
