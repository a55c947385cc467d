"""Flow matching (Lipman et al. 2023, arXiv 2210.02747; Esser et al. 2024, arXiv 2403.03206) as attacks see it.

A flow goes straight from images to noise, x_s = (1 - s) x0 + s eps for s from 0 to 1, and its network predicts the
velocity v = eps - x0. Divided by r_s = sqrt((1 - s)^2 + s^2), x_s is what a diffusion with
alpha_bar = (1 - s)^2 / r_s^2 makes of the same x0 and eps, and x_s + (1 - s) v is the noise. So a flow is asked as a
diffusion that predicts noise, and every attack on these works on it. At a given s the error of the noise is 1 - s times
that of the velocity, which changes no order among images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmem.evaluate.denoisers.latents import LatentDenoiser
from unmem.evaluate.denoisers.texts import TextDenoiser
from unmem.train.diffusion import Diffusion
from unmem.train.sampling import image_size


class FlowDenoiser(TextDenoiser, LatentDenoiser, ABC):
    """A transformer on the latents of a VAE that predicts velocities by text, asked as if it predicted noise.

    See :class:`~unmem.evaluate.matrix.denoiser.Denoiser`, of which this is all but the encoded text and the velocity.
    """

    def __init__(self, pipeline: Any, patch: int, device: torch.device | str) -> None:
        """Args: a pipeline with ``transformer``, ``vae``, ``scheduler``; the side of a patch in latents; the device."""
        height, width = image_size(pipeline.transformer)
        times = times_of(pipeline.scheduler, (height // patch) * (width // patch)).to(device)
        super().__init__(pipeline, pipeline.transformer, device, as_diffusion(times))
        self.take_texts(pipeline, device)
        self._times = times

    def predict(self, z_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The noise, [n, c, h, w], that the network's velocity stands for."""
        s = self._times[t].float().view(-1, 1, 1, 1)
        x_s = z_t * scale_of(s)
        return x_s + (1 - s) * self._velocity(x_s, s.flatten(), condition).float()

    @abstractmethod
    def _velocity(self, x_s: Tensor, s: Tensor, condition: Tensor) -> Tensor:
        """The network's own prediction, [n, c, h, w], at times float32 [n]."""


def times_of(scheduler: Any, patches: int) -> Tensor:
    """The times s of a flow's training timesteps, float64 [T], rising; shifted as diffusers shifts them.

    Args:
        scheduler: a FlowMatchEulerDiscreteScheduler.
        patches: tokens that an image is cut into, on which the shift may depend (Esser et al. 2024, section 5.3.2).
    """
    count = scheduler.config.num_train_timesteps
    even = np.linspace(1, 1 / count, count)
    shift = {"mu": shift_of(scheduler.config, patches)} if scheduler.config.use_dynamic_shifting else {}
    own = type(scheduler).from_config(scheduler.config)
    own.set_timesteps(sigmas=even, **shift)
    times: Tensor = own.sigmas[:-1].flip(0).double()
    return times


def shift_of(config: Any, patches: int) -> float:
    """The logarithm mu of the shift for images of so many patches: on the line through two known ones."""
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return float(config.base_shift + slope * (patches - config.base_image_seq_len))


def scale_of(s: Tensor) -> Tensor:
    """r_s, the root of the sum of the squares of what x_s holds of image and of noise."""
    return ((1 - s).square() + s.square()).sqrt()


def as_diffusion(times: Tensor) -> Diffusion:
    """The diffusion that a flow at these times, float64 [T], is but for scale."""
    return Diffusion(((1 - times) / scale_of(times)).square(), "epsilon")
