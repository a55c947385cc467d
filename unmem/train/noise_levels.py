"""How often training sees each noise level.

Karras et al. 2022 (arXiv 2206.00364) train a denoiser D(y; sigma) of y = x0 + sigma eps at ln sigma ~ N(P_mean,
P_std^2), with D = c_skip y + c_out F(c_in y) and a loss that weighs the error of F alike at all sigma. That is
v-prediction with unit weights and levels so drawn, on any schedule. With sigma_t = sqrt((1 - alpha_bar_t) /
alpha_bar_t) the network's input x_t is c_in y, since at sigma_data = 1

    c_in = 1 / sqrt(sigma^2 + 1) = sqrt(alpha_bar_t),    c_skip = 1 / (sigma^2 + 1) = alpha_bar_t,
    c_out = sigma / sqrt(sigma^2 + 1) = sqrt(1 - alpha_bar_t),

and the image that a predicted v stands for, sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v, is c_skip y + c_out F
with F = -v. Its squared error is c_out^2 that of v, and lambda(sigma) = (sigma^2 + 1) / sigma^2 = 1 / c_out^2 takes
this factor off. So ``prediction: v_prediction`` with ``noise_levels: lognormal`` is their loss, and what it trains is
read by every diffusers sampler.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmem.train.config import Train
from unmem.train.diffusion import Diffusion


@dataclass(frozen=True)
class NoiseLevels:
    """A distribution over the timesteps of a schedule.

    Attributes:
        timesteps: T, how many there are.
        cumulative: float32 [T], the distribution function; None where all are equally likely.
    """

    timesteps: int
    cumulative: Tensor | None

    @classmethod
    def of(cls, config: Train, diffusion: Diffusion) -> NoiseLevels:
        """What the recipe asks for, on this schedule."""
        timesteps, cumulative = len(diffusion.alphas_cumprod), None
        if config.noise_levels == "lognormal":
            chances = lognormal(diffusion, config.lognormal_mean, config.lognormal_std)
            cumulative = chances.cumsum(0).to(diffusion.alphas_cumprod.device, torch.float32)
        return cls(timesteps, cumulative)

    def draw(self, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Timesteps, int64 of this size, on the generator's device."""
        if self.cumulative is None:
            return torch.randint(self.timesteps, size, generator=generator, device=generator.device)
        uniform = torch.rand(size, generator=generator, device=generator.device)
        return torch.searchsorted(self.cumulative, uniform, right=True).clamp_(max=self.timesteps - 1)


def lognormal(diffusion: Diffusion, mean: float, std: float) -> Tensor:
    """Each timestep's probability, float64 [T], on the CPU: ln sigma_t is N(mean, std^2), as far as the schedule goes.

    The normal density at ln sigma_t times the spacing of ln sigma there.
    """
    log_sigma = diffusion.sigmas.cpu().log()
    (spacing,) = torch.gradient(log_sigma)
    # by logarithms: far outside the schedule every density is zero, and the nearest level is meant
    return torch.softmax(-0.5 * ((log_sigma - mean) / std) ** 2 + spacing.log(), 0)
