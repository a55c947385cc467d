"""The GAN: networks for every size, exact resume, per-sample seeds, what it learns, and what a recipe may ask of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.processes import Killed
from unmem.component import ConfigError, UserError
from unmem.evaluate.quality.classifier import Classifier
from unmem.recipes.arm import Arm
from unmem.recipes.recipe import Recipe, check, load
from unmem.train import adversarial
from unmem.train.config import Train
from unmem.train.generator import Generator, open_generator, sample, sample_to_disk
from unmem.train.imageset import ImageSet
from unmem.train.models.gan import Gan
from unmem.train.trainer import make_accelerator

MODEL = Gan(channels=8, latent=16, conditioning="class")


def fit(data: ImageSet, config: Train, directory: Path, *, model: Gan = MODEL, key: str = "k") -> Path:
    model.train(data, config, directory, key=key, seed=0, accelerator=make_accelerator(config))
    return directory / "generator"


@pytest.fixture
def data(digits: ImageSet) -> ImageSet:
    return digits.take(np.arange(100))


@pytest.fixture
def often(small_train: Train) -> Train:
    return replace(small_train, checkpoint_seconds=0.0, flip=True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize(
    "size", [(8, 8), (10, 10), (14, 14), (16, 16), (22, 22), (28, 28), (32, 32), (62, 64), (8, 64)]
)
def test_both_networks_take_every_size(size: tuple[int, int], classes: int, channels: int) -> None:
    model = Gan(channels=4, latent=5, conditioning="class" if classes else "none")
    generator, discriminator = model.build((*size, channels), classes or None)
    z, labels = torch.randn(3, 5), torch.tensor([0, 1, 9]) if classes else None
    images = generator(z, labels)
    assert images.shape == (3, channels, *size)
    assert images.abs().max() <= 1
    assert discriminator(images, labels).shape == (3,)
    if labels is not None:  # the class is asked for, and looked at
        other = torch.tensor([5, 1, 9])
        assert not torch.equal(discriminator(images, labels)[0], discriminator(images, other)[0])
        assert not torch.equal(generator.eval()(z, labels)[0], generator.eval()(z, other)[0])


@pytest.mark.parametrize("shape", [(6, 6, 1), (8, 66, 3), (128, 128, 3)])
def test_other_sizes_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match="8 to 64 pixels a side"):
        MODEL.build(shape, 10)


def test_classes_need_labels() -> None:
    with pytest.raises(UserError, match=r"model\.conditioning: 'class' needs a data set with labels"):
        MODEL.build((8, 8, 1), None)


def test_a_run_that_died_anywhere_ends_in_the_same_bits(
    data: ImageSet, often: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(data, often, tmp_path / "whole")
    step = adversarial._Run._step
    for die_at in (0, 1, 5):

        def dying(run: Any, number: int, plain: Any, die_at: int = die_at) -> Any:
            if number == die_at:
                raise Killed
            return step(run, number, plain)

        broken = tmp_path / str(die_at)
        monkeypatch.setattr(adversarial._Run, "_step", dying)
        for _ in range(2):  # and once more, at once
            with pytest.raises(Killed):
                fit(data, often, broken)
        monkeypatch.setattr(adversarial._Run, "_step", step)
        torch.randn(10)  # somebody else draws from the global generator
        folder = fit(data, often, broken)
        assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert (broken / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    rows = [json.loads(row) for row in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == list(range(32, 257, 32))
    assert {"step", "images", "loss", "discriminator_loss", "lr"} == set(rows[0])


def test_a_damaged_or_foreign_checkpoint_is_refused(data: ImageSet, often: Train, tmp_path: Path) -> None:
    fit(data, often, tmp_path)
    with pytest.raises(UserError, match="belongs to another configuration"):
        fit(data, often, tmp_path, key="other")
    (tmp_path / "state" / "checkpoint.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="damaged checkpoint"):
        fit(data, often, tmp_path)


def test_the_seed_decides_the_weights(data: ImageSet, small_train: Train, tmp_path: Path) -> None:
    first = load_file(fit(data, small_train, tmp_path / "first") / "model.safetensors")
    MODEL.train(data, small_train, tmp_path / "x", key="k", seed=1, accelerator=make_accelerator(small_train))
    other = load_file(tmp_path / "x" / "generator" / "model.safetensors")
    assert not torch.equal(first["last.weight"], other["last.weight"])


def test_one_step_changes_one_network_at_a_time(data: ImageSet, small_train: Train, tmp_path: Path) -> None:
    """One optimizer for both: the discriminator's step leaves the generator, and the other way round."""
    accelerator = make_accelerator(small_train)
    run = adversarial._Run(data, MODEL, small_train, tmp_path, "k", 0, accelerator)
    run._optimizer.param_groups[0]["lr"] = 1e-2
    images, labels = torch.zeros(4, 1, 8, 8), torch.arange(4)

    def moved(loss: Any) -> tuple[bool, bool]:
        networks = run._generator, run._critic
        before = [[p.detach().clone() for p in network.parameters()] for network in networks]
        run._update(loss())
        first, second = (
            any(not torch.equal(a, b) for a, b in zip(old, network.parameters(), strict=True))
            for old, network in zip(before, networks, strict=True)
        )
        return first, second

    for _ in range(2):  # the second time with moments
        assert moved(lambda: run._critic_loss(images.clone(), images + 0.5, labels)) == (False, True)
        run._critic.requires_grad_(False)
        assert moved(lambda: -run._critic(run._generator(torch.randn(4, 16), labels), labels).mean()) == (True, False)
        run._critic.requires_grad_(True)


def test_the_penalty_is_the_squared_slope_at_real_images(data: ImageSet, small_train: Train, tmp_path: Path) -> None:
    """Against finite differences of the logit, pixel by pixel."""
    runs = [
        adversarial._Run(data, replace(MODEL, penalty=p), small_train, tmp_path, "k", 0, make_accelerator(small_train))
        for p in (0.0, 3.0)
    ]
    critic = runs[0]._critic.double()
    runs[1]._critic.double().load_state_dict(critic.state_dict())
    real, labels = torch.rand(2, 1, 8, 8, dtype=torch.float64), torch.tensor([3, 7])
    plain, penalised = (float(run._critic_loss(real.clone(), real * 0, labels).detach()) for run in runs)
    squares = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for pixel in range(64):
            step = torch.zeros(64, dtype=torch.float64)
            step[pixel] = 1e-5
            step = step.view(1, 1, 8, 8)
            squares += ((critic(real + step, labels) - critic(real - step, labels)) / 2e-5) ** 2
    assert penalised - plain == pytest.approx(1.5 * float(squares.mean()), rel=1e-5)
    assert penalised > plain


def test_a_sample_depends_on_its_number_alone(data: ImageSet, small_train: Train, tmp_path: Path) -> None:
    folder = fit(data, small_train, tmp_path)
    generator, numbers = open_generator(folder), np.arange(25)
    drawn = sample(generator, numbers, seed=3, device="cpu")
    assert drawn.shape == (25, 8, 8, 1)
    assert drawn.dtype == np.uint8
    for batch in (1, 7):
        again = sample(generator.train(), numbers[::-1], seed=3, device="cpu", batch=batch)[::-1]
        assert np.abs(again.astype(int) - drawn).max() <= 1  # the order of floating-point sums
    assert not np.array_equal(sample(generator, numbers, seed=4, device="cpu"), drawn)
    sample_to_disk(folder, 25, tmp_path, batch=4, seed=3, accelerator=make_accelerator(None))
    assert np.abs(np.load(tmp_path / "images.npy").astype(int) - drawn).max() <= 1


def test_sample_k_is_of_class_k_mod_classes() -> None:
    generator = Generator((8, 8, 1), 3, 4, 5)
    for parameter in generator.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():  # class 2 alone is bright
        assert generator.classes is not None
        generator.classes.weight[2] = 1
        generator.first.weight[:, 5:] = 1
        for module in generator.body:
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.fill_(1)
            if isinstance(module, torch.nn.Conv2d):
                module.weight.fill_(1)
        generator.last.weight.fill_(1)
    bright = sample(generator, np.arange(6), seed=0, device="cpu").reshape(6, -1).mean(1)
    assert (bright[[2, 5]] > 250).all()
    assert (bright[[0, 1, 3, 4]] < 130).all()


def test_a_damaged_generator_is_refused(data: ImageSet, small_train: Train, tmp_path: Path) -> None:
    folder = fit(data, small_train, tmp_path)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="cannot be opened as a generator"):
        open_generator(folder)
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        open_generator(tmp_path / "nowhere")


@pytest.mark.slow
def test_it_learns_digits(digits: ImageSet, tmp_path: Path) -> None:
    """A classifier that learns from samples alone reads real digits; from an untrained generator it cannot."""
    real, held_out = digits.take(np.arange(800)), digits.take(np.arange(800, 1600))
    config = Train(images=48_000, batch=64, lr=2e-3, decay="cosine", ema=0.99, threads=1)
    model = Gan(conditioning="class")
    trained = open_generator(fit(real, config, tmp_path, model=model))
    accuracy = [
        float((read == held_out.labels).mean())
        for read in (
            Classifier(samples=1000, steps=300)._predict(
                sample(generator, np.arange(1000), 0, "cpu"), np.arange(1000) % 10, held_out.images(), 10, 0
            )
            for generator in (trained, model.build((8, 8, 1), 10)[0])
        )
    ]
    assert accuracy[0] > 0.7
    assert accuracy[1] < 0.4


PLAIN: dict[str, Any] = {
    "schema": 1,
    "data": {"kind": "digits", "members": 40, "nonmembers": 40},
    "model": {"kind": "unet", "channels": [8, 16], "conditioning": "class"},
    "train": {"images": 100, "prediction": "v_prediction", "noise_schedule": "cosine", "threads": 1},
    "arms": {
        "diffusion": [],
        "gan": {
            "model": {"kind": "gan", "conditioning": "class"},
            "train": {"lr": 1e-3},
            "mitigations": [{"kind": "exact_duplicates"}],
        },
        "longer": {"train": {"images": 200}},
    },
    "attacks": [{"kind": "nearest_distance", "samples": 20}],
    "compare": {"against": "diffusion"},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """PLAIN with one value set."""
    plain: dict[str, Any] = json.loads(json.dumps(PLAIN))
    place, names = plain, path.split(".")
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = value
    return plain


def built(plain: dict[str, Any]) -> Recipe:
    problems: list[Any] = []
    recipe = check(plain, "test", problems)
    if recipe is None:
        raise ConfigError("test", problems)
    return recipe


def test_an_arm_may_have_a_model_and_settings_of_its_own(tmp_path: Path) -> None:
    recipe = built(PLAIN)
    again = built(recipe.resolved)
    assert (again.resolved, again.own) == (recipe.resolved, recipe.own)
    arms = {name: Arm(recipe, name, tmp_path, "key") for name in recipe.arms}
    gan, longer = arms["gan"].recipe, arms["longer"].recipe
    assert gan.model == Gan(conditioning="class")
    assert gan.train == Train(images=100, lr=1e-3, threads=1)  # what a GAN does not read is not inherited
    assert longer.train is not None and recipe.train is not None
    assert (longer.model, longer.train.images, longer.train.prediction) == (recipe.model, 200, "v_prediction")
    assert arms["diffusion"].recipe == recipe
    assert gan.of_arm("gan") == gan
    assert [part["kind"] for part in arms["gan"].plain_mitigations] == ["exact_duplicates"]
    assert arms["gan"].access == {"samples"}
    assert arms["diffusion"].access == {"samples", "predictions", "gradients"}
    keys = {name: arm.stages["train"].inputs for name, arm in arms.items()}
    assert keys["gan"]["model"]["kind"] == "gan"
    assert "prediction" not in keys["gan"]["train"]
    assert keys["longer"]["train"]["images"] == 200
    assert keys["diffusion"]["train"]["images"] == 100
    other = Arm(built(changed("train.prediction", "epsilon")), "gan", tmp_path, "key").stages["train"]
    assert other.inputs == keys["gan"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("attacks", [{"kind": "loss"}], "attacks.loss: needs predictions, which the model of arm gan does not give"),
        ("attacks", [{"kind": "gradient"}], "attacks.gradient: needs gradients, which the model of arm gan does not"),
        (
            "arms.gan.mitigations",
            [{"kind": "dp_sgd", "epsilon": 1.0, "delta": 1e-5}],
            "arms.gan.mitigations[0]: steps into the training or the sampling of a denoiser, and a gan has its own",
        ),
        ("arms.gan.train.prediction", "v_prediction", "arms.gan.train.prediction: means nothing to a gan"),
        ("arms.gan.train.threads", 2, "arms.gan.train.threads: is one for all arms"),
        ("arms.gan.train.imags", 2, "arms.gan.train.imags: unknown field, did you mean 'images'?"),
        ("arms.gan.train", [1], "arms.gan.train: needs a mapping of fields; got [1]"),
        ("arms.gan.model.conditioning", "none", "arms.gan.model.conditioning: is one for all arms"),
        ("arms.gan.model.channels", 0, "arms.gan.model.channels: input should be greater than 0; got 0"),
        ("arms.gan.model.kind", "gam", "arms.gan.model.kind: unknown kind 'gam', did you mean 'gan'?"),
        ("arms.gan.modle", {}, "arms.gan.modle: unknown field, did you mean 'model'?"),
        ("model", {"kind": "gan", "conditioning": "class"}, "train.prediction: means nothing to a gan; leave it out"),
    ],
)
def test_what_a_recipe_may_not_ask_of_a_gan(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(changed(path, value))
    assert f"test: {message}" in str(error.value)


def test_the_shipped_recipe_differs_in_model_and_rate_alone() -> None:
    recipe = load("gan_vs_diffusion")
    gan = recipe.of_arm("gan")
    assert isinstance(gan.model, Gan)
    assert recipe.train is not None and gan.train is not None
    assert (gan.train.images, gan.train.batch) == (recipe.train.images, recipe.train.batch)
