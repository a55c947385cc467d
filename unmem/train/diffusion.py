"""The forward process and the denoising loss: one function, read by the trainer, by DP-SGD and by the attacks.

Notation of Ho et al. 2020 (arXiv 2006.11239): x0 the image, t the timestep, eps the noise,
x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps (eq. 4); v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x0
(Salimans & Ho 2022, arXiv 2202.00512).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


@dataclass(frozen=True)
class Diffusion:
    """A noise schedule and what the network predicts.

    Attributes:
        alphas_cumprod: float32 [T], alpha_bar_t; float64 where 1 - alpha_bar_t is too small for that.
        prediction: ``epsilon``, ``v_prediction`` or ``sample``.
    """

    alphas_cumprod: Tensor
    prediction: str

    @classmethod
    def of(cls, scheduler: Any, device: torch.device | str = "cpu") -> Diffusion:
        """Read schedule and prediction type from a diffusers scheduler, so that they are never declared twice."""
        return cls(scheduler.alphas_cumprod.to(device, torch.float32), scheduler.config.prediction_type)

    @property
    def sigmas(self) -> Tensor:
        """float64 [T], sqrt((1 - alpha_bar_t) / alpha_bar_t): noise relative to an image that is not scaled down."""
        alpha_bar = self.alphas_cumprod.double()
        return ((1 - alpha_bar) / alpha_bar).sqrt()

    def noised(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t [b, c, h, w] for x0 in [-1, 1], t int64 [b], eps ~ N(0, I)."""
        signal, noise = self._scales(t)
        return signal * x0 + noise * eps

    def losses(self, model: nn.Module, x0: Tensor, t: Tensor, eps: Tensor, labels: Tensor | None) -> Tensor:
        """The un-reduced denoising loss, float32 [b]: squared error of the prediction, mean over pixels."""
        predicted: Tensor = model(self.noised(x0, t, eps), t, class_labels=labels).sample
        return (predicted.float() - self.target(x0, t, eps)).square().flatten(1).mean(1)

    def target(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What the network ought to predict at x_t, [b, c, h, w]."""
        if self.prediction == "epsilon":
            return eps
        if self.prediction == "sample":
            return x0
        signal, noise = self._scales(t)
        return signal * eps - noise * x0

    def eps(self, predicted: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction at x_t [b, c, h, w] stands for."""
        if self.prediction == "epsilon":
            return predicted
        signal, noise = self._scales(t)
        if self.prediction == "sample":
            return (x_t - signal * predicted) / noise
        return noise * x_t + signal * predicted

    def moved(self, x_t: Tensor, eps: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_s [b, c, h, w] by one deterministic step from t to s, up or down (DDIM, Song et al. 2021, eq. 12)."""
        (signal_t, noise_t), (signal_s, noise_s) = self._scales(t), self._scales(s)
        return signal_s * (x_t - noise_t * eps) / signal_t + noise_s * eps

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped for images."""
        alpha_bar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()


def make_scheduler(schedule: str, prediction: str, timesteps: int) -> Any:
    """The diffusers scheduler that is saved with a model."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=timesteps, beta_schedule=SCHEDULES[schedule], prediction_type=prediction)


def make_latent_scheduler(schedule: str, prediction: str, timesteps: int) -> Any:
    """The same for latents, which are not clipped, with the offset that StableDiffusionPipeline's schedules have."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=timesteps, beta_schedule=SCHEDULES[schedule], prediction_type=prediction,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def to_model(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 [n, h, w, c] -> float32 [n, c, h, w] in [-1, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_images(x: Tensor) -> np.ndarray:
    """float [n, c, h, w] in [-1, 1] (clamped) -> uint8 [n, h, w, c]."""
    scaled = x.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()
