"""Flows as attacks see them: against closed forms, diffusers' own flow matching, and direct calls of the networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import more_pipelines
from tests.oracles.test_denoisers import CAPTIONS, TIMES, edit, grey, like
from unmem.component import UserError
from unmem.evaluate.attacks.loss import Loss
from unmem.evaluate.denoisers.flow import FlowDenoiser, as_diffusion, shift_of, times_of
from unmem.evaluate.denoisers.opening import check_images, open_denoiser
from unmem.evaluate.matrix.batch import Batch
from unmem.evaluate.matrix.compute import ask
from unmem.train.imageset import ImageSet
from unmem.train.opening import open_any

MAKERS: dict[str, Callable[[Path], Path]] = {
    "sd3": more_pipelines.stable_diffusion_3,
    "sd3 without t5": lambda path: more_pipelines.stable_diffusion_3(path, t5=False),
    "flux": more_pipelines.flux,
    "guided flux": lambda path: more_pipelines.flux(path, guided=True),
    "if": lambda path: more_pipelines.deep_floyd(path)[0],
}
FLOWS = [name for name in MAKERS if name != "if"]
SIZE = (8, 8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: make(root / name) for name, make in MAKERS.items()}


def opened(path: Path) -> Any:
    return open_denoiser(path, "cpu", SIZE)


# Closed forms


class OnePoint(FlowDenoiser):
    """The best network of a flow whose images are all one: v = (x_s - x0) / s."""

    def __init__(self, x0: torch.Tensor, times: torch.Tensor) -> None:
        self.x0, self._times, self.diffusion = x0, times, as_diffusion(times)

    def _velocity(self, x_s: torch.Tensor, s: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return (x_s - self.x0) / s.view(-1, 1, 1, 1)


class Normal(OnePoint):
    """The best network of a flow whose images are N(mean, 1): v = E[eps - x0 | x_s], linear in x_s."""

    def _velocity(self, x_s: torch.Tensor, s: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        s = s.view(-1, 1, 1, 1)
        return (2 * s - 1) / ((1 - s).square() + s.square()) * (x_s - (1 - s) * self.x0) - self.x0


def schedule(**config: Any) -> Any:
    return more_pipelines.flow(**config)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_one_point_has_no_loss_and_its_noise_is_found(shift: float) -> None:
    torch.manual_seed(0)
    x0, eps = torch.randn(1, 4, 4, 4), torch.randn(5, 4, 4, 4)
    denoiser = OnePoint(x0, times_of(schedule(shift=shift), 16))
    z_t = denoiser.diffusion.noised(x0.expand(5, -1, -1, -1), TIMES, eps)
    found = denoiser.diffusion.eps(denoiser.predict(z_t, TIMES, torch.empty(0)), z_t, TIMES)
    torch.testing.assert_close(found[1:], eps[1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[:1], eps[:1], atol=2e-3 / shift, rtol=0)  # s is about 0.001, in float32
    other = denoiser.diffusion.noised(x0 + 1, TIMES, eps)  # another image is no such point
    wrong = (denoiser.predict(other, TIMES, torch.empty(0)) - eps).square().mean((1, 2, 3))
    assert bool((wrong[:-1] > 0.01).all())  # in pure noise, at last, there is nothing of it


def test_steps_end_at_the_point_and_begin_at_the_noise() -> None:
    torch.manual_seed(0)
    x0, eps = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    denoiser = OnePoint(x0, times_of(schedule(shift=3.0), 16))
    at, to = torch.tensor([900, 500]), torch.tensor([3, 800])
    z = denoiser.diffusion.noised(x0, at, eps)
    moved = denoiser.diffusion.moved(z, denoiser.predict(z, at, torch.empty(0)), at, to)
    torch.testing.assert_close(moved, denoiser.diffusion.noised(x0, to, eps), atol=1e-4, rtol=1e-4)


def test_the_mean_noise_of_a_normal() -> None:
    """E[eps | x_t] = sqrt(1 - alpha_bar) (x_t - sqrt(alpha_bar) mean) where images have unit variance."""
    torch.manual_seed(0)
    mean, z_t = torch.randn(1, 4, 4, 4), torch.randn(5, 4, 4, 4)
    denoiser = Normal(mean, times_of(schedule(shift=3.0), 16))
    signal, noise = (x.view(-1, 1, 1, 1) for x in _scales(denoiser.diffusion.alphas_cumprod[TIMES]))
    expected = noise * (z_t - signal * mean)
    torch.testing.assert_close(denoiser.predict(z_t, TIMES, torch.empty(0)), expected, atol=1e-5, rtol=1e-4)


def _scales(alpha_bar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()


# Diffusers' own flow matching


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noising_is_diffusers(shift: float) -> None:
    scheduler = schedule(shift=shift)
    times = times_of(scheduler, 16)
    torch.testing.assert_close(times.float(), scheduler.sigmas.flip(0))
    torch.manual_seed(0)
    x0, eps, at = torch.randn(4, 4, 4, 4), torch.randn(4, 4, 4, 4), torch.tensor([0, 99, 500, 999])
    own = scheduler.scale_noise(x0, scheduler.timesteps.flip(0)[at], eps)
    ours = as_diffusion(times).noised(x0, at, eps)
    s = times[at].float().view(-1, 1, 1, 1)
    torch.testing.assert_close(ours * ((1 - s) ** 2 + s**2).sqrt(), own)


def test_a_step_is_diffusers() -> None:
    """A deterministic step of the diffusion is an Euler step of the flow, which is exact along a straight line."""
    torch.manual_seed(0)
    x0, eps = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    scheduler = schedule(shift=3.0)
    times = times_of(scheduler, 16)
    denoiser = OnePoint(x0 + 0.3, times)
    scheduler.set_timesteps(sigmas=times[[899, 399]].tolist())
    s, after = scheduler.sigmas[:2]
    index = [int((times - value).abs().argmin()) for value in (s, after)]
    denoiser._times[index] = torch.stack([s, after]).double()
    denoiser.diffusion = as_diffusion(denoiser._times)
    x_s = (1 - s) * x0 + s * eps
    stepped = scheduler.step((x_s - x0 - 0.3) / s, scheduler.timesteps[0], x_s).prev_sample
    at, to = (torch.tensor([i]) for i in index)
    z = x_s / ((1 - s) ** 2 + s**2).sqrt()
    moved = denoiser.diffusion.moved(z, denoiser.predict(z, at, torch.empty(0)), at, to)
    torch.testing.assert_close(moved * ((1 - after) ** 2 + after**2).sqrt(), stepped, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_the_shift_that_depends_on_resolution_is_the_pipelines(kind: str) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = schedule(use_dynamic_shifting=True, time_shift_type=kind)
    for patches in (16, 256, 1024, 4096):
        mu = calculate_shift(patches)
        assert shift_of(scheduler.config, patches) == pytest.approx(mu)
        strength = np.exp(mu) if kind == "exponential" else mu
        even = np.arange(1, 1001) / 1000
        np.testing.assert_allclose(times_of(scheduler, patches), strength / (strength + 1 / even - 1), rtol=1e-5)
    assert bool((times_of(scheduler, 4096) > times_of(scheduler, 16))[:-1].all())


# Networks


def velocity(name: str, pipeline: Any, x_s: torch.Tensor, s: torch.Tensor, captions: tuple[str, ...]) -> torch.Tensor:
    """What the network says by the pipeline's own way of encoding, packing and unpacking."""
    if name.startswith("sd3"):
        tokens, _, pooled, _ = pipeline.encode_prompt(list(captions), None, None, do_classifier_free_guidance=False)
        found: torch.Tensor = pipeline.transformer(
            x_s, timestep=1000 * s, encoder_hidden_states=tokens, pooled_projections=pooled
        ).sample
        return found
    tokens, pooled, text_ids = pipeline.encode_prompt(list(captions))
    count, channels, height, width = x_s.shape
    found = pipeline.transformer(
        pipeline._pack_latents(x_s, count, channels, height, width),
        timestep=s,
        guidance=torch.ones(count) if name.startswith("guided") else None,
        encoder_hidden_states=tokens,
        pooled_projections=pooled,
        txt_ids=text_ids,
        img_ids=pipeline._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", torch.float32),
    ).sample
    return pipeline._unpack_latents(found, 2 * height, 2 * width, 2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", FLOWS)
def test_predictions_are_the_transformers(saved: dict[str, Path], name: str) -> None:
    denoiser, pipeline = opened(saved[name]), open_any(saved[name])
    z = like(torch.empty(5, 4, 4, 4))
    s = times_of(pipeline.scheduler, 4)[TIMES].float()
    wide = s.view(-1, 1, 1, 1)
    x_s = z * ((1 - wide) ** 2 + wide**2).sqrt()
    with torch.no_grad():
        direct = x_s + (1 - wide) * velocity(name, pipeline, x_s, s, CAPTIONS)
    found = denoiser.predict(z, TIMES, denoiser.condition(5, None, CAPTIONS))
    torch.testing.assert_close(found, direct, atol=1e-5, rtol=1e-4)
    assert (denoiser.conditioning, denoiser.shape, denoiser.diffusion.prediction) == ("text", (8, 8, 1), "epsilon")
    other = denoiser.predict(z, TIMES, denoiser.condition(5, None, CAPTIONS[1:] + CAPTIONS[:1]))
    assert float((other - found).abs().max()) > 1e-4  # words matter


def test_predictions_are_the_first_stages(saved: dict[str, Path]) -> None:
    denoiser, pipeline = opened(saved["if"]), open_any(saved["if"])
    z = like(torch.empty(5, 3, 8, 8))
    with torch.no_grad():
        tokens, _ = pipeline.encode_prompt(list(CAPTIONS), do_classifier_free_guidance=False)
        direct = pipeline.unet(z, TIMES, encoder_hidden_states=tokens).sample
    condition = denoiser.condition(5, None, CAPTIONS)
    torch.testing.assert_close(condition, tokens, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(denoiser.predict(z, TIMES, condition), direct[:, :3])
    assert direct.shape[1] == 6 and denoiser.shape == (8, 8, 3)
    torch.testing.assert_close(denoiser.diffusion.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
    assert denoiser.encode(z) is z and denoiser.decode(z) is z


def test_conditions_are_what_the_pipeline_encodes(saved: dict[str, Path]) -> None:
    for name in FLOWS:
        denoiser, pipeline = opened(saved[name]), open_any(saved[name])
        condition = denoiser.condition(5, None, CAPTIONS)
        if name.startswith("sd3"):
            tokens, _, pooled, _ = pipeline.encode_prompt(list(CAPTIONS), None, None)
        else:
            tokens, pooled, _ = pipeline.encode_prompt(list(CAPTIONS))
        torch.testing.assert_close(condition[:, :-1], tokens, atol=1e-4, rtol=1e-4)  # one batch has no repeats
        torch.testing.assert_close(condition[:, -1, : pooled.shape[1]], pooled)
        torch.testing.assert_close(denoiser.condition(1, None, None), condition[1:2])


@pytest.mark.parametrize("name", FLOWS)
def test_latents_are_the_vaes(saved: dict[str, Path], name: str) -> None:
    denoiser, pipeline = opened(saved[name]), open_any(saved[name])
    x = like(torch.empty(3, 1, 8, 8)).clamp(-1, 1)
    with torch.no_grad():
        raw = pipeline.vae.encode(x).latent_dist.mean
        torch.testing.assert_close(denoiser.encode(x), (raw - 0.06) * 1.5)
        torch.testing.assert_close(denoiser.decode(denoiser.encode(x)), pipeline.vae.decode(raw).sample)


@pytest.mark.parametrize("name", FLOWS)
def test_the_loss_attack_reads_the_flows_training_loss(saved: dict[str, Path], name: str) -> None:
    """(1 - s)^2 times the squared error of the velocity, by a loop over images with diffusers' noising."""
    denoiser, pipeline = opened(saved[name]), open_any(saved[name])
    attack, captions = Loss(timesteps=(0, 100, 900), draws=1), ("a", "b c", "a")
    batch = Batch(denoiser, grey(3), None, captions, start=0, place=("test",), seed=0)
    columns = ask(batch, [attack.reading])[attack.reading.key].numpy()
    times = times_of(pipeline.scheduler, 4).float()
    for i in range(3):
        for column, t in enumerate((0, 100, 900)):
            s, z, eps = times[t : t + 1], batch.z[i : i + 1], batch.noise("loss", t, 0)[i : i + 1]
            with torch.no_grad():
                v = velocity(name, pipeline, (1 - s) * z + s * eps, s, captions[i : i + 1])
            expected = float((1 - s) ** 2 * (v - (eps - z)).square().mean())
            assert columns[i, column] == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("name", list(MAKERS))
def test_answers_do_not_depend_on_the_batch_and_have_gradients(saved: dict[str, Path], name: str) -> None:
    denoiser = opened(saved[name])
    z, rows = like(torch.empty(5, *((3, 8, 8) if name == "if" else (4, 4, 4)))), [4, 2, 0, 1, 3]

    def answers(rows: list[int]) -> torch.Tensor:
        condition = denoiser.condition(len(rows), None, tuple(CAPTIONS[row] for row in rows))
        found: torch.Tensor = denoiser.predict(z[rows], TIMES[rows], condition)
        return found

    whole = answers([0, 1, 2, 3, 4])
    torch.testing.assert_close(answers(rows), whole[rows], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat([answers([row]) for row in range(5)]), whole, atol=1e-5, rtol=1e-4)
    denoiser.network.requires_grad_(True)
    found = torch.autograd.grad(answers(rows).square().mean(), list(denoiser.network.parameters()), allow_unused=True)
    assert any(grad is not None and bool(grad.any()) for grad in found)


def test_a_network_for_any_size_is_asked_about_the_images(saved: dict[str, Path]) -> None:
    denoiser = open_denoiser(saved["flux"], "cpu", (16, 24))
    assert denoiser.shape == (16, 24, 1)
    assert open_denoiser(saved["flux"], "cpu").shape == (256, 256, 1)  # the pipeline's own
    for size, shift in (((16, 24), 24), ((8, 8), 4)):
        again = open_denoiser(saved["flux"], "cpu", size)
        expected = as_diffusion(times_of(open_any(saved["flux"]).scheduler, shift)).alphas_cumprod
        torch.testing.assert_close(again.diffusion.alphas_cumprod, expected)
    odd = ImageSet.of(np.zeros((2, 10, 8, 1), dtype=np.uint8), ["a", "b"])
    with pytest.raises(UserError, match="is for 8x8 images with 1 channel; these are 10x8"):
        check_images(open_denoiser(saved["flux"], "cpu", (10, 8)), odd, saved["flux"])


# What cannot be used


def test_folders_that_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    inverted = more_pipelines.stable_diffusion_3(tmp_path / "inverted", invert_sigmas=True)
    with pytest.raises(UserError, match=r"inverted/scheduler: invert_sigmas is set; a flow from noise to images"):
        opened(inverted)
    edit(inverted / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    with pytest.raises(UserError, match=r"scheduler: is a DDIMScheduler; .*needs a FlowMatchEulerDiscreteScheduler"):
        opened(inverted)
    with pytest.raises(UserError, match=r"UNet2DConditionModel has class_embed_type 'timestep'; such inputs"):
        opened(saved["if"].parent / "second")
    unclip = more_pipelines.unclip(tmp_path / "unclip")
    with pytest.raises(UserError, match=r"a KandinskyV22CombinedPipeline of .*; of others, such as unCLIP, samples"):
        opened(unclip)
