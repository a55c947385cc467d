"""Samplers against data whose best denoiser is known, and the law that sample k depends on k alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unmem.component import Problem, dump, validate
from unmem.rng import torch_stream
from unmem.train.config import Sampling
from unmem.train.diffusion import Diffusion, make_scheduler, to_images
from unmem.train.models.unet import UNet
from unmem.train.sampling import sample

MEAN, STD = -0.1, 0.25  # of the pixels in [-1, 1], where clipping is of no account
FIRST_ORDER: list[dict[str, Any]] = [
    {"scheduler": "ddim"},
    {"scheduler": "ddim", "eta": 0.5},
    {"scheduler": "ddim", "eta": 1.0},
    {"scheduler": "euler"},
    {"scheduler": "euler", "karras_sigmas": True},
    {"scheduler": "euler", "churn": 40.0},
]
SECOND_ORDER: list[dict[str, Any]] = [
    {"scheduler": "dpm_solver++"},
    {"scheduler": "heun"},
    {"scheduler": "heun", "karras_sigmas": True},
    {"scheduler": "heun", "churn": 40.0},
    {"scheduler": "heun", "churn": 40.0, "karras_sigmas": True, "churn_min": 0.05, "churn_max": 50.0},
]
STOCHASTIC = [kind for kind in (*FIRST_ORDER, *SECOND_ORDER) if {"eta", "churn"} & set(kind)]


class Gaussian(nn.Module):
    """The best denoiser of independent N(MEAN, STD^2) pixels, with as much of a UNet2DModel as the sampler reads."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(sample_size=16, in_channels=1, num_class_embeds=None)
        diffusion = Diffusion.of(scheduler)
        self._log_sigmas, self._prediction = diffusion.sigmas.log().numpy(), diffusion.prediction

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None) -> Any:
        sigma = float(np.exp(np.interp(float(t), np.arange(len(self._log_sigmas)), self._log_sigmas)))
        signal, noise = 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
        share = signal**2 * STD**2 / (signal**2 * STD**2 + noise**2)
        image = MEAN + share * (x / signal - MEAN)
        eps = (x - signal * image) / noise
        return SimpleNamespace(sample=eps if self._prediction == "epsilon" else signal * eps - noise * image)


def drawn(config: Sampling, count: int, prediction: str = "v_prediction", schedule: str = "cosine") -> np.ndarray:
    scheduler = make_scheduler(schedule, prediction, 1000)
    pipeline = SimpleNamespace(unet=Gaussian(scheduler), scheduler=scheduler)
    return sample(pipeline, config, np.arange(count), 0, "cpu")


def by_diffusers(scheduler: Any, trained: Any, steps: int, count: int, **options: Any) -> np.ndarray:
    """Samples by diffusers' own loop from the same initial noise."""
    network = Gaussian(trained)
    generators = [torch_stream(0, "sample", k) for k in range(count)]
    scheduler.set_timesteps(steps)
    noise = torch.stack([torch.randn((1, 16, 16), generator=generator) for generator in generators])
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        predicted = network(scheduler.scale_model_input(x, t), t, None).sample
        x = scheduler.step(predicted, t, x, generator=generators, **options).prev_sample
    return to_images(x)


def spread(images: np.ndarray) -> float:
    """Standard deviation of the pixels, relative to the right one."""
    return float(images.std() / 127.5 / STD)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", [*FIRST_ORDER, *SECOND_ORDER], ids=str)
def test_samples_are_spread_like_the_data(kind: dict[str, Any], prediction: str, schedule: str) -> None:
    """What is allowed beyond chance (0.4 %, one standard error) is the steps' finite length."""
    first = kind in FIRST_ORDER
    images = drawn(Sampling(steps=500 if first else 150, **kind), 100, prediction, schedule)
    assert spread(images) == pytest.approx(1, abs=0.05 if first else 0.025)
    assert images.mean() / 127.5 - 1 == pytest.approx(MEAN, abs=0.01)


def test_noise_after_the_network_would_show_in_the_spread() -> None:
    """The negative control: diffusers' Euler adds its noise where the network no longer sees it."""
    from diffusers import EulerDiscreteScheduler

    trained = make_scheduler("cosine", "v_prediction", 1000)
    late = by_diffusers(EulerDiscreteScheduler.from_config(trained.config), trained, 500, 100, s_churn=200.0)
    assert spread(late) > 1.15
    assert spread(drawn(Sampling(scheduler="heun", steps=500, churn=200.0), 100)) == pytest.approx(1, abs=0.025)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_without_fresh_noise_the_samplers_are_diffusers_own(prediction: str) -> None:
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    trained = make_scheduler("cosine", prediction, 1000)
    for name, scheduler in (
        ("ddim", DDIMScheduler.from_config(trained.config, clip_sample=True)),
        ("euler", EulerDiscreteScheduler.from_config(trained.config)),
    ):
        theirs = by_diffusers(scheduler, trained, 20, 20)
        ours = drawn(Sampling(scheduler=name, steps=20), 20, prediction)  # type: ignore[arg-type]
        assert np.abs(theirs.astype(int) - ours).max() <= 1


@pytest.mark.parametrize("kind", STOCHASTIC, ids=str)
def test_fresh_noise_makes_other_images(kind: dict[str, Any]) -> None:
    calm = {name: value for name, value in kind.items() if "churn" not in name and name != "eta"}
    change = drawn(Sampling(steps=50, **kind), 20).astype(int) - drawn(Sampling(steps=50, **calm), 20)
    assert np.abs(change).mean() > 2  # of 255 grey levels


def test_churn_stays_within_its_bounds() -> None:
    """Above the highest level and below the lowest there is nothing to churn; S_noise scales what is added."""
    calm = drawn(Sampling(scheduler="euler", steps=20), 20)
    for bounds in ({"churn_min": 1e9}, {"churn_max": 1e-9}):
        np.testing.assert_array_equal(drawn(Sampling(scheduler="euler", steps=20, churn=8.0, **bounds), 20), calm)
    louder = drawn(Sampling(scheduler="heun", steps=150, churn=40.0, churn_noise=1.1), 100)
    assert spread(louder) > 1.04


@pytest.mark.parametrize("kind", [*STOCHASTIC, {"scheduler": "heun"}], ids=str)
def test_a_stochastic_sample_is_the_same_image_at_any_batch_size(kind: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = UNet(channels=(8, 16), layers=1, conditioning="class").build((8, 8, 1), 10)
    pipeline = SimpleNamespace(unet=network, scheduler=make_scheduler("cosine", "v_prediction", 1000))
    whole, odd = (
        sample(pipeline, Sampling(steps=6, guidance=2.0, batch=batch, **kind), np.arange(16), 0, "cpu")
        for batch in (16, 5)
    )
    assert np.abs(whole.astype(int) - odd).max() <= 1  # one grey level: float order may tip a rounding
    picked = sample(pipeline, Sampling(steps=6, guidance=2.0, **kind), np.array([14, 3]), 0, "cpu")
    assert np.abs(picked.astype(int) - whole[[14, 3]]).max() <= 1
    assert len({image.tobytes() for image in whole}) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "euler", "eta": 0.5}, "eta: 0.5 goes with scheduler: ddim alone"),
        ({"scheduler": "dpm_solver++", "eta": 0.5}, "eta: 0.5 goes with scheduler: ddim alone"),
        ({"churn": 1.0}, "churn: 1.0 goes with scheduler: euler or heun alone"),
        ({"karras_sigmas": True}, "karras_sigmas: True goes with scheduler: euler or heun alone"),
        ({"scheduler": "heun", "churn_min": 0.1}, "churn_min: 0.1 goes with churn above 0 alone"),
        (
            {"scheduler": "heun", "churn": 1.0, "churn_min": 2.0, "churn_max": 1.0},
            r"churn_max must be at least churn_min \(2.0\), got 1.0",
        ),
    ],
)
def test_a_field_that_the_sampler_does_not_read_is_refused(options: dict[str, Any], message: str) -> None:
    import re

    problems: list[Problem] = []
    assert validate(Sampling, options, "sampling", problems) is None
    assert re.search(message, str(problems[0]))


def test_defaults_may_be_spelled_out() -> None:
    """A resolved recipe holds every field, and is read again."""
    for kind in (*FIRST_ORDER, *SECOND_ORDER):
        problems: list[Problem] = []
        assert validate(Sampling, dump(Sampling(**kind)), "sampling", problems) == Sampling(**kind), problems
