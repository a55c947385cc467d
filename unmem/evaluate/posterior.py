"""The denoiser that no training can beat on its training set, in closed form."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmem.train.diffusion import Diffusion, to_model


class PosteriorMean(nn.Module):
    """E[eps | x_t] where x0 is one of some images, each as likely; it is called as a diffusers UNet2DModel is.

    Attributes:
        config: what a sampler asks of such a network.
    """

    x0: Tensor

    def __init__(self, images: np.ndarray, scheduler: Any) -> None:
        """Args: uint8 [n, h, w, c]; the diffusers scheduler whose timesteps it is asked at."""
        super().__init__()
        height, width, channels = images.shape[1:]
        self.config = SimpleNamespace(num_class_embeds=None, in_channels=channels, sample_size=(height, width))
        # in double precision: weights are exponentials of differences between large numbers
        self.register_buffer("x0", to_model(images).flatten(1).double())
        self._logs = Diffusion.of(scheduler).sigmas.log().numpy()

    def forward(self, x: Tensor, t: Tensor, class_labels: None = None) -> SimpleNamespace:
        """``sample`` [n, c, h, w]: the noise in x_t, for one t of all, perhaps between two timesteps."""
        sigma = math.exp(np.interp(float(t), np.arange(len(self._logs)), self._logs))
        y = x.flatten(1).double() * math.sqrt(1 + sigma**2)  # x0 + sigma eps
        # -|y - x0|^2 / 2, but for |y|^2, on which the weights do not depend
        weights = torch.softmax((y @ self.x0.T - self.x0.square().sum(1) / 2) / sigma**2, dim=1)
        eps = (y - weights @ self.x0) / sigma
        return SimpleNamespace(sample=eps.view_as(x).to(x.dtype))
