"""Sampling by noise levels: algorithm 2 of Karras et al. 2022 (arXiv 2206.00364), and its first order, Euler's method.

In their variables: y = x0 + sigma eps, and a trained network sees x_t = y / sqrt(1 + sigma^2). With churn each step
first raises the noise level from sigma to (1 + gamma) sigma by fresh noise and evaluates the network there. (diffusers'
Euler scheduler evaluates it before, so that the step does not take off what it has added: samples come out too noisy.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmem.train.config import Sampling
from unmem.train.diffusion import Diffusion

Predict = Callable[[Tensor, Tensor], Tensor]
"""``predict(x, t)``: what the network predicts at x_t [n, c, h, w], t a number, perhaps between two timesteps."""

RHO, SIGMA_MAX = 7.0, 80.0  # Karras et al. 2022, table 1
MOST_CHURN = math.sqrt(2) - 1  # gamma: no step adds more noise than there is


def by_levels(trained: Any, predict: Predict, x: Tensor, generators: list[torch.Generator], config: Sampling) -> Tensor:
    """From noise to images in [-1, 1], both [n, c, h, w].

    Args:
        trained: the diffusers scheduler that the network was trained with.
        predict: the network.
        x: the initial noise, N(0, I).
        generators: each sample's own, for fresh noise.
        config: the recipe's settings.
    """
    denoiser = _Denoiser(predict, Diffusion.of(trained))
    levels = _levels(trained, denoiser.sigmas, config)
    y = x * math.sqrt(1 + levels[0] ** 2)
    for sigma, following in pairwise(levels):
        raised = max(sigma, min(sigma * (1 + _gamma(sigma, config)), denoiser.sigmas[-1]))
        if raised > sigma:
            fresh = torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators])
            y = y + config.churn_noise * math.sqrt(raised**2 - sigma**2) * fresh.to(y)
        slope = denoiser.slope(y, raised)
        if config.scheduler == "heun" and following:
            ahead = denoiser.slope(y + (following - raised) * slope, following)
            slope = (slope + ahead) / 2
        y = y + (following - raised) * slope
    return y.clamp(-1, 1)


@dataclass(frozen=True)
class _Denoiser:
    """A network as D(y; sigma), at any noise level of its schedule or between two."""

    predict: Predict
    diffusion: Diffusion

    @property
    def sigmas(self) -> np.ndarray:
        """float64 [T], rising."""
        sigmas: np.ndarray = self.diffusion.sigmas.numpy()
        return sigmas

    def slope(self, y: Tensor, sigma: float) -> Tensor:
        """dy / dsigma = (y - D(y; sigma)) / sigma, with D clamped to what images can be."""
        t = np.interp(math.log(sigma), np.log(self.sigmas), np.arange(len(self.sigmas)))
        signal = 1 / math.sqrt(1 + sigma**2)
        predicted = self.predict(signal * y, torch.tensor(t, dtype=torch.float32, device=y.device))
        if self.diffusion.prediction == "epsilon":
            image = y - sigma * predicted
        else:
            image = signal**2 * y - sigma * signal * predicted
        return (y - image.clamp(-1, 1)) / sigma


def _levels(trained: Any, sigmas: np.ndarray, config: Sampling) -> list[float]:
    """The noise levels of the steps, and 0 after the last."""
    from diffusers import EulerDiscreteScheduler

    if config.karras_sigmas:
        ramp = np.linspace(min(SIGMA_MAX, sigmas[-1]) ** (1 / RHO), sigmas[0] ** (1 / RHO), config.steps)
        return [*(ramp**RHO).tolist(), 0.0]
    scheduler = EulerDiscreteScheduler.from_config(trained.config)
    scheduler.set_timesteps(config.steps)
    return [float(sigma) for sigma in scheduler.sigmas]


def _gamma(sigma: float, config: Sampling) -> float:
    """By how much a step raises its noise level."""
    most = math.inf if config.churn_max is None else config.churn_max
    return min(config.churn / config.steps, MOST_CHURN) if config.churn_min <= sigma <= most else 0.0
