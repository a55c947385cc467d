"""DP-SGD against slow references, simulations of its randomness, and controls that must be rejected."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleHooks
from opacus.utils.per_sample_gradients_utils import check_per_sample_gradients_are_correct
from scipy import stats
from torch import nn

from unmem.mitigations.dp.opacus_engines import Hooks
from unmem.mitigations.dp.plan import DPPlan
from unmem.mitigations.dp.update import PrivateUpdate
from unmem.train.diffusion import Diffusion, make_scheduler
from unmem.train.models.unet import UNet

ALONE = SimpleNamespace(
    process_index=0,
    num_processes=1,
    is_main_process=True,
    device="cpu",
    mixed_precision="no",
    reduce=lambda x, how: x,
    wait_for_everyone=lambda: None,
)


def private(plan: DPPlan, secret: int = 5, physical_batch: int = 256, engine: str = "bookkeeping") -> PrivateUpdate:
    return PrivateUpdate(plan, secret=secret, lr=0.1, physical_batch=physical_batch, engine=engine, holds_for="a test")


def step_on(rule: PrivateUpdate, model: nn.Module, losses, size: int, step: int = 0) -> dict[str, torch.Tensor]:
    """One step by plain gradient descent of rate 1; returns the noisy mean gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    forward = rule.prepare(model, optimizer, ALONE)
    rule.rehearse(2, lambda slots: losses(forward, slots))
    rule.update(step, size, lambda slots: losses(forward, slots))
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}


def unet_losses(n: int):
    """Losses of n real-shaped examples under fixed noise, for a small attention U-Net."""
    diffusion = Diffusion.of(make_scheduler("cosine", "epsilon", 1000))
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand((n, 1, 8, 8), generator=g) * 2 - 1
    eps, t = torch.randn((n, 1, 8, 8), generator=g), torch.randint(1000, (n,), generator=g)
    labels = torch.arange(n) % 10

    def losses(model: nn.Module, slots: np.ndarray) -> torch.Tensor:
        return diffusion.losses(model, x0[slots], t[slots], eps[slots], labels[slots])

    return losses


def unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet(channels=(8, 16), layers=1, attention=(8, 4), conditioning="class").build((8, 8, 1), 10)


def clipped_sum(model: nn.Module, losses, n: int, clip: float) -> dict[str, torch.Tensor]:
    """The slow reference: one backward pass an example."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(n):
        model.zero_grad()
        losses(model, np.array([i])).sum().backward()
        grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
        for name, g in grads.items():
            total[name] += g * min(1.0, clip / norm)
    model.zero_grad()
    return total


@pytest.mark.parametrize("engine", ["bookkeeping", "opacus-hooks", "opacus-ghost", "functorch"])
@pytest.mark.parametrize("physical_batch", [2, 3, 256])
def test_the_noiseless_step_is_the_mean_of_clipped_gradients(physical_batch: int, engine: str) -> None:
    n, clip = 6, 0.05
    losses, model = unet_losses(n), unet()
    expected = clipped_sum(model, losses, n, clip)
    plan = DPPlan(n=100, expected_batch=10, steps=1, clip=clip, noise_multiplier=0.0, delta=1e-3)
    got = step_on(private(plan, physical_batch=physical_batch, engine=engine), model, losses, n)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name] / 10, atol=2e-7, rtol=1e-3, msg=name)


def test_opacus_is_wrong_on_channels_last_input_and_the_guard_is_not() -> None:
    x = torch.randn(4, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    layer = nn.Conv2d(8, 5, 3, padding=1)
    reference = []
    for example in x:
        layer.zero_grad()
        layer(example[None]).square().sum().backward()
        reference.append(layer.weight.grad.clone())
    for hooks, right in ((GradSampleHooks, False), (Hooks, True)):
        layer.zero_grad()
        attached = hooks(layer, loss_reduction="sum")
        layer(x).square().sum().backward()
        assert torch.allclose(layer.weight.grad_sample, torch.stack(reference), atol=1e-4) is right
        attached.cleanup()
        layer.weight.grad_sample = None
    assert not check_per_sample_gradients_are_correct(x, nn.Conv2d(8, 5, 3, padding=1), batch_first=True)


def test_one_image_changes_the_sum_by_at_most_the_clip() -> None:
    """Neighbouring sets, replayed with the same randomness: the released sums differ by at most C."""
    n, clip = 6, 0.05
    losses = unet_losses(n)
    plan = DPPlan(n=100, expected_batch=1, steps=1, clip=clip, noise_multiplier=0.0, delta=1e-3)
    whole = step_on(private(plan), unet(), losses, n)
    for left_out in range(n):
        rest = np.delete(np.arange(n), left_out)
        without = step_on(private(plan), unet(), lambda m, slots, r=rest: losses(m, r[slots]), n - 1)
        moved = math.sqrt(sum(float((whole[name] - without[name]).double().square().sum()) for name in whole))
        assert 0 < moved <= clip * (1 + 1e-6)


def noise_of(sigma: float, clip: float, batch: int, steps: int) -> np.ndarray:
    """The noise of steps without any example, back on the scale of the sum over sigma."""
    draws = []
    for step in range(steps):
        model = nn.Linear(40, 25)
        plan = DPPlan(n=100, expected_batch=batch, steps=steps, clip=clip, noise_multiplier=sigma, delta=1e-3)
        moved = step_on(private(plan), model, lambda m, slots: m(torch.zeros(len(slots), 40)).sum(1), 0, step)
        draws.append(torch.cat([g.flatten() for g in moved.values()]) * batch / clip)
    return torch.cat(draws).double().numpy()


def accepts(noise: np.ndarray, sigma: float) -> bool:
    """A two-sided chi-square test of the variance at the 1e-6 level."""
    statistic = float((noise**2).sum() / sigma**2)
    return 1e-6 < stats.chi2.cdf(statistic, len(noise)) < 1 - 1e-6


def test_the_noise_has_the_right_scale_and_wrong_scales_are_rejected() -> None:
    noise = noise_of(sigma=1.7, clip=0.3, batch=12, steps=5)
    assert accepts(noise, 1.7)
    assert not accepts(noise, 1.7 * 2 / 3)
    assert not accepts(noise, 1.7 * 3 / 2)
    assert stats.kstest(noise / 1.7, "norm").pvalue > 1e-6


def test_noise_differs_from_step_to_step_and_from_secret_to_secret() -> None:
    plan = DPPlan(n=100, expected_batch=1, steps=2, clip=1.0, noise_multiplier=1.0, delta=1e-3)
    draws = [
        step_on(private(plan, secret), nn.Linear(3, 3), lambda m, slots: m(torch.zeros(len(slots), 3)).sum(1), 0, step)
        for secret, step in ((5, 0), (5, 1), (6, 0))
    ]
    assert not torch.equal(draws[0]["weight"], draws[1]["weight"])
    assert not torch.equal(draws[0]["weight"], draws[2]["weight"])


def test_an_empty_batch_is_a_step_of_noise_alone() -> None:
    plan = DPPlan(n=100, expected_batch=10, steps=1, clip=1.0, noise_multiplier=1.0, delta=1e-3)
    moved = step_on(private(plan), unet(), unet_losses(2), 0)
    assert all(float(g.abs().sum()) > 0 for g in moved.values())


@pytest.mark.parametrize("engine", ["bookkeeping", "opacus-hooks", "opacus-ghost"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_an_example_that_is_not_finite_contributes_nothing_and_is_counted(poison: float, engine: str) -> None:
    n, clip = 4, 0.05
    losses, model = unet_losses(n), unet()
    expected = clipped_sum(unet(), lambda m, slots: losses(m, np.array([0, 1, 3])[slots]), 3, clip)

    def poisoned(m: nn.Module, slots: np.ndarray) -> torch.Tensor:
        return losses(m, slots) * torch.where(torch.from_numpy(slots) == 2, poison, 1.0)

    plan = DPPlan(n=100, expected_batch=1, steps=1, clip=clip, noise_multiplier=0.0, delta=1e-3)
    rule = private(plan, engine=engine)
    got = step_on(rule, model, poisoned, n)
    assert rule.skipped == 1
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-7, rtol=1e-3)


def test_a_choice_of_engine_is_kept(tmp_path: Path) -> None:
    """Another engine sums in another order: a resumed run would end in other bits."""
    plan = DPPlan(n=100, expected_batch=10, steps=1, clip=1.0, noise_multiplier=1.0, delta=1e-3)
    file, model, losses = tmp_path / "engine.json", unet(), unet_losses(3)

    def rehearsed() -> str:
        rule = PrivateUpdate(plan, secret=5, lr=0.1, physical_batch=8, holds_for="a test", chosen=file)
        forward = rule.prepare(model, torch.optim.SGD(model.parameters()), ALONE)
        rule.rehearse(3, lambda slots: losses(forward, slots))
        statement = rule.finish()
        assert statement is not None
        return str(statement["self_check"]["engine"])

    assert rehearsed() == "bookkeeping"
    first = file.read_text()
    for parameter in model.parameters():
        parameter.data *= 1.01  # as a resumed run finds it: the statement keeps the check before the first step
    assert rehearsed() == "bookkeeping" and file.read_text() == first
    file.write_text('{"engine": "functorch"}')
    assert rehearsed() == "functorch"


def test_poisson_batches_are_independent_coins() -> None:
    plan = DPPlan(n=400, expected_batch=60, steps=500, clip=1.0, noise_multiplier=1.0, delta=1e-3)
    seen = np.zeros((plan.steps, plan.n), dtype=bool)
    for step in range(plan.steps):
        seen[step, plan.batch(7, step)] = True
    q = plan.sample_rate
    assert stats.binomtest(int(seen.sum()), seen.size, q).pvalue > 1e-6
    # by image, by batch, and for pairs of steps and of images: variances of independent coins
    for counts, trials in ((seen.sum(0), plan.steps), (seen.sum(1), plan.n)):
        statistic = float(((counts - trials * q) ** 2).sum() / (trials * q * (1 - q)))
        assert 1e-6 < stats.chi2.cdf(statistic, len(counts)) < 1 - 1e-6
    both = int((seen[:-1] & seen[1:]).sum())
    assert stats.binomtest(both, (plan.steps - 1) * plan.n, q * q).pvalue > 1e-6
    fixed_size = np.full(plan.steps, plan.expected_batch)  # the negative control: batches of constant size
    statistic = float(((fixed_size - plan.n * q) ** 2).sum() / (plan.n * q * (1 - q)))
    assert not 1e-6 < stats.chi2.cdf(statistic, plan.steps) < 1 - 1e-6
