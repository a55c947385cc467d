"""Training on from a saved pipeline: what is trained, what stays, and what is saved."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.oracles.test_training import fit, weights
from tests.processes import Killed
from unmem.component import Problem, UserError, validate
from unmem.train import lora
from unmem.train.config import Train
from unmem.train.imageset import ImageSet
from unmem.train.models.pretrained import Pretrained
from unmem.train.models.unet import UNet
from unmem.train.sampling import open_pipeline

ATTENTIVE = UNet(channels=(8, 16), layers=1, attention=(4,), conditioning="class")


@pytest.fixture(scope="module")
def data(digits: ImageSet) -> ImageSet:
    return digits.take(np.arange(50))


@pytest.fixture(scope="module")
def saved(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with attention that was trained a little."""
    folder = tmp_path_factory.mktemp("saved")
    config = Train(images=128, batch=32, lr=3e-3, prediction="v_prediction", noise_schedule="cosine", timesteps=500)
    fit(data, config, folder, model=ATTENTIVE)
    return folder / "pipeline"


@pytest.fixture
def plain() -> Train:
    """Schedule and prediction type are left to the pipeline."""
    return Train(images=128, batch=32, lr=3e-3, ema=0.5, checkpoint_seconds=0.0)


def from_(saved: Path, **fields: Any) -> Pretrained:
    return Pretrained(init_from=saved, public_data="digits", **fields)


def state(pipeline: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = open_pipeline(pipeline).unet.state_dict()
    return found


def predicted(network: nn.Module) -> torch.Tensor:
    x = torch.randn((5, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: torch.Tensor = network.eval()(x, torch.arange(5), class_labels=torch.arange(5)).sample
    return found


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({}, lambda name: True),
        ({"trainable": "attention"}, lambda name: "attentions" in name),
        ({"trainable": "lora"}, lambda name: "attentions" in name and "to_" in name and name.endswith("weight")),
        (
            {"trainable": "lora", "rank": 2, "lora_targets": ("conv1",)},
            lambda name: "conv1" in name and name.endswith("weight"),
        ),
    ],
    ids=["all", "attention", "lora", "lora on conv1"],
)
def test_what_is_not_trained_stays_bit_for_bit(
    data: ImageSet, saved: Path, plain: Train, tmp_path: Path, fields: dict[str, Any], changed: Any
) -> None:
    fit(data, plain, tmp_path, model=from_(saved, **fields))
    before, after = state(saved), state(tmp_path / "pipeline")
    assert before.keys() == after.keys()
    for name, value in after.items():
        if changed(name):
            assert not torch.equal(value, before[name]) or "to_k.bias" in name, name
        else:
            assert torch.equal(value, before[name]), name


def test_the_pipeline_keeps_its_schedule(data: ImageSet, saved: Path, plain: Train, tmp_path: Path) -> None:
    fit(data, plain, tmp_path, model=from_(saved))
    scheduler = open_pipeline(tmp_path / "pipeline").scheduler
    torch.testing.assert_close(scheduler.alphas_cumprod, open_pipeline(saved).scheduler.alphas_cumprod)
    assert (scheduler.config.prediction_type, len(scheduler.alphas_cumprod)) == ("v_prediction", 500)


@pytest.mark.parametrize("field", [{"prediction": "v_prediction"}, {"noise_schedule": "cosine"}, {"timesteps": 500}])
def test_a_schedule_may_be_said_again_but_not_otherwise(saved: Path, plain: Train, field: dict[str, Any]) -> None:
    from_(saved).scheduler(replace(plain, **field))
    with pytest.raises(UserError, match=r"train\.timesteps: 400 is not the pretrained pipeline's, 500; leave it out"):
        from_(saved).scheduler(replace(plain, timesteps=400))


@pytest.mark.parametrize("targets", [(), ("conv1", "to_q", "time_emb_proj")], ids=str)
def test_merged_additions_give_the_same_outputs(saved: Path, targets: tuple[str, ...], tmp_path: Path) -> None:
    """And the saved folder opens without peft."""
    from diffusers import DDPMPipeline

    model = from_(saved, trainable="lora", lora_targets=targets)
    torch.manual_seed(0)
    network: Any = model.build((8, 8, 1), 10)
    torch.testing.assert_close(predicted(network), predicted(open_pipeline(saved).unet))  # zero at first
    trained = [p for p in network.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in trained) < sum(p.numel() for p in network.parameters()) / 4
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.3 * torch.randn_like(parameter)
    adapted = predicted(network)
    assert float((adapted - predicted(open_pipeline(saved).unet)).abs().max()) > 1e-2
    merged: Any = model.plain(network)
    torch.testing.assert_close(predicted(merged), adapted, atol=1e-5, rtol=1e-5)
    DDPMPipeline(unet=merged, scheduler=open_pipeline(saved).scheduler).save_pretrained(tmp_path)
    assert not any("lora" in name for name in state(tmp_path))
    torch.testing.assert_close(predicted(open_pipeline(tmp_path).unet), adapted, atol=1e-5, rtol=1e-5)


def test_additions_that_did_not_move_are_no_result(saved: Path) -> None:
    model = from_(saved, trainable="lora")
    network = model.build((8, 8, 1), 10)
    with pytest.raises(UserError, match=r"additions to \d+ of \d+ layers .* did not move; raise train\.lr"):
        model.plain(network)


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_a_run_that_died_ends_in_the_same_bits(
    data: ImageSet, saved: Path, plain: Train, tmp_path: Path, trainable: Any
) -> None:
    model = from_(saved, trainable=trainable)
    fit(data, plain, tmp_path / "whole", model=model)
    with pytest.raises(Killed):
        fit(data, plain, tmp_path / "broken", die_at=2, model=model)
    fit(data, plain, tmp_path / "broken", model=model)
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


def test_without_attention_lora_takes_the_residual_blocks(data: ImageSet, plain: Train, tmp_path: Path) -> None:
    fit(data, plain, tmp_path / "first", model=UNet(channels=(8, 16), layers=1))
    model = from_(tmp_path / "first" / "pipeline", trainable="lora")
    assert model.conditioning == "none"
    network = model.build((8, 8, 1), 10)
    added = {name.split(".lora")[0].split(".")[-1] for name, p in network.named_parameters() if p.requires_grad}
    assert added == {"conv1", "conv2", "time_emb_proj"}
    with pytest.raises(UserError, match=r"model\.trainable: 'attention' needs a network with attention"):
        replace(model, trainable="attention").build((8, 8, 1), 10)


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((16, 16, 1), 10, r"is for 8x8 images; these are 16x16"),
        ((8, 8, 3), 10, r"has 1 channels in and 1 out; these images have 3"),
        ((8, 8, 1), 7, r"knows 10 classes and a null class; this data set has 7 classes"),
        ((8, 8, 1), None, r"this data set has no classes"),
    ],
)
def test_a_network_for_other_images_is_refused(saved: Path, shape: Any, classes: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_(saved).build(shape, classes)


def test_what_cannot_be_had_is_one_message(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"model\.lora_targets: no layer is called 'to_z'; have .*to_out\.0, to_q"):
        from_(saved, trainable="lora", lora_targets=("to_z",)).build((8, 8, 1), 10)
    with pytest.raises(UserError, match=r"model\.lora_targets: Target module GroupNorm"):
        from_(saved, trainable="lora", lora_targets=("norm1",)).build((8, 8, 1), 10)
    network = open_pipeline(saved).unet
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'lora needs peft; run pip install "unmem\[lora\]"'):
        lora.add(network, 4, ("to_q",))
    monkeypatch.undo()
    missing = from_(tmp_path / "nowhere")
    for ask in (lambda: missing.conditioning, missing.fingerprint, lambda: missing.build((8, 8, 1), 10)):
        with pytest.raises(UserError, match="nowhere"):
            ask()


def test_a_pipeline_comes_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = Pretrained(init_from=Path("digits8"), public_data="digits")
    assert given.conditioning == "class"
    assert given.build((8, 8, 1), 10).config.num_class_embeds == 11
    (tmp_path / "digits8").mkdir()  # a folder of the user's own comes first
    assert given.folder == Path("digits8")


def test_other_predictions_are_refused(saved: Path, plain: Train, tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    scheduler = DDPMScheduler(prediction_type="sample")
    DDPMPipeline(unet=open_pipeline(saved).unet, scheduler=scheduler).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"predicts 'sample'; needs epsilon or v_prediction"):
        from_(tmp_path).scheduler(plain)


def test_the_key_of_a_training_depends_on_the_contents(saved: Path, tmp_path: Path) -> None:
    """And the key of a training from nothing holds what it always did."""
    from unmem.recipes.arm import Arm
    from unmem.recipes.recipe import check

    def stage(model: dict[str, Any]) -> Any:
        plain = {"schema": 1, "data": {"kind": "digits", "members": 4, "nonmembers": 4}, "train": {"images": 1}}
        recipe = check({**plain, "model": model, "arms": {"baseline": []}}, "test")
        assert recipe is not None
        return Arm(recipe, "baseline", tmp_path, "key").stages["train"]

    tuned = stage({"kind": "pretrained", "init_from": str(saved), "public_data": "digits"})
    assert tuned.inputs["initial"] == from_(saved).fingerprint()
    assert set(stage({"kind": "unet", "channels": [8, 16]}).inputs) == {
        "stage", "upstream", "seed", "model", "train", "rule",
    }  # fmt: skip


def test_the_fingerprint_is_of_the_contents(saved: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "elsewhere"
    shutil.copytree(saved, copy)
    assert from_(copy).fingerprint() == from_(saved).fingerprint()
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert from_(copy).fingerprint() != from_(saved).fingerprint()


def test_fields_without_a_reader_are_refused(tmp_path: Path) -> None:
    problems: list[Problem] = []
    options = {"init_from": str(tmp_path), "public_data": "digits", "rank": 8}
    assert validate(Pretrained, options, "model", problems) is None
    assert str(problems[0]) == "model: rank: 8 goes with trainable: lora alone; leave it out"
    assert validate(Pretrained, {"init_from": str(tmp_path), "public_data": ""}, "model", problems) is None


def test_lora_moves_with_the_gradient(saved: Path) -> None:
    """One step of gradient descent changes the outputs: the additions in use are those that are trained."""
    torch.manual_seed(0)
    network = open_pipeline(saved).unet
    lora.add(network, 4, ("to_q", "to_v"))
    before = predicted(network)
    trained = [p for p in network.parameters() if p.requires_grad]
    x = torch.randn(5, 1, 8, 8)
    network(x, torch.arange(5), class_labels=torch.arange(5)).sample.square().mean().backward()
    torch.optim.SGD(trained, lr=10.0).step()
    assert float((predicted(network) - before).abs().max()) > 1e-4
