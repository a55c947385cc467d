"""How often training sees each noise level, and what that makes of the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from unmem.component import Problem, dump, validate
from unmem.train.config import Train
from unmem.train.diffusion import Diffusion, make_scheduler
from unmem.train.noise_levels import NoiseLevels, lognormal

DRAWS = 40_000


def drawn(levels: NoiseLevels) -> np.ndarray:
    return levels.draw((DRAWS,), torch.Generator().manual_seed(0)).numpy()


def fits(t: np.ndarray, chances: np.ndarray) -> float:
    """The p-value of a chi-square test over cells of about 200 expected draws."""
    _, cell = np.unique(np.minimum(np.cumsum(chances) * DRAWS // 200, DRAWS // 200 - 1), return_inverse=True)
    expected = np.bincount(cell, chances * DRAWS)
    observed = np.bincount(cell, np.bincount(t, minlength=len(chances)))
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_levels_are_lognormal(schedule: str) -> None:
    """The density is written out here once more; uniform timesteps and a shifted density are rejected."""
    diffusion = Diffusion.of(make_scheduler(schedule, "v_prediction", 1000))
    ln_sigma = 0.5 * np.log(1 / diffusion.alphas_cumprod.double().numpy() - 1)
    for mean, std in ((-1.2, 1.2), (0.0, 0.7)):
        config = Train(images=1, noise_levels="lognormal", lognormal_mean=mean, lognormal_std=std)
        t = drawn(NoiseLevels.of(config, diffusion))
        density = stats.norm(mean, std).pdf(ln_sigma) * np.gradient(ln_sigma)
        assert fits(t, density / density.sum()) > 1e-3
        shifted = stats.norm(mean + 0.1, std).pdf(ln_sigma) * np.gradient(ln_sigma)
        assert fits(t, shifted / shifted.sum()) < 1e-9
        assert fits(drawn(NoiseLevels.of(Train(images=1), diffusion)), density / density.sum()) < 1e-9
        inside = stats.truncnorm((ln_sigma[0] - mean) / std, (ln_sigma[-1] - mean) / std, mean, std)
        assert ln_sigma[t].mean() == pytest.approx(inside.mean(), abs=0.03)
        assert ln_sigma[t].std() == pytest.approx(inside.std(), abs=0.03)


def test_uniform_levels_are_what_they_were() -> None:
    diffusion = Diffusion.of(make_scheduler("linear", "epsilon", 700))
    levels = NoiseLevels.of(Train(images=1), diffusion)
    old = torch.randint(700, (5, 3), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(levels.draw((5, 3), torch.Generator().manual_seed(1)), old)
    assert fits(drawn(levels), np.full(700, 1 / 700)) > 1e-3


def test_every_draw_is_a_timestep() -> None:
    """Also where the distribution function, rounded, ends below one."""
    diffusion = Diffusion.of(make_scheduler("linear", "epsilon", 10))
    levels = NoiseLevels(10, lognormal(diffusion, 0.0, 1.0).cumsum(0).float() * 0.9)
    t = drawn(levels)
    assert (t.min(), t.max()) == (0, 9)
    far = lognormal(diffusion, 1000.0, 0.1)
    assert float(far[9]) == 1


def test_v_prediction_is_the_preconditioning_of_karras() -> None:
    """The denoiser that v stands for is c_skip y + c_out F(c_in y), and v's loss is lambda(sigma) times D's."""
    diffusion = Diffusion.of(make_scheduler("cosine", "v_prediction", 1000))
    t = torch.tensor([0, 50, 300, 700, 990])
    x0, eps = torch.randn((2, 5, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = diffusion.sigmas[t].view(-1, 1, 1, 1)
    c_in, c_skip, c_out = 1 / (sigma**2 + 1).sqrt(), 1 / (sigma**2 + 1), sigma / (sigma**2 + 1).sqrt()
    y = x0 + sigma * eps
    seen: list[Any] = []

    def network(x: torch.Tensor, t: torch.Tensor, class_labels: None) -> Any:
        from types import SimpleNamespace

        seen.append((x, torch.sin(3 * x)))
        return SimpleNamespace(sample=seen[-1][1])

    losses = diffusion.losses(network, x0, t, eps, None)  # type: ignore[arg-type]
    x, v = seen[0]
    torch.testing.assert_close(x, c_in * y, rtol=1e-4, atol=1e-4)  # alpha_bar is float32
    image = c_skip * y - c_out * v
    weight = (sigma**2 + 1) / sigma**2
    theirs = (weight * (image - x0) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(losses, theirs, rtol=1e-3, atol=1e-3, check_dtype=False)


def test_levels_change_training(digits: Any, small_train: Train, tmp_path: Path) -> None:
    """And only they: the rest of a step's randomness has other streams or comes later."""
    from dataclasses import replace

    from tests.oracles.test_training import fit, weights

    data = digits.take(np.arange(50))
    fit(data, small_train, tmp_path / "uniform")
    fit(data, replace(small_train, noise_levels="lognormal"), tmp_path / "lognormal")
    assert weights(tmp_path / "uniform") != weights(tmp_path / "lognormal")


@pytest.mark.parametrize("field", ["lognormal_mean", "lognormal_std"])
def test_fields_without_a_reader_are_refused(field: str) -> None:
    problems: list[Problem] = []
    assert validate(Train, {"images": 1, field: 0.5}, "train", problems) is None
    assert f"{field}: 0.5 goes with noise_levels: lognormal alone" in str(problems[0])
    assert validate(Train, dump(Train(images=1)), "train", []) == Train(images=1)
