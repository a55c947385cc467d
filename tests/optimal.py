"""The ideal memorizer: a denoiser in closed form, whose members and strangers are known."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unmem.train.diffusion import Diffusion, make_scheduler, to_model
from unmem.train.imageset import ImageSet


class OptimalDenoiser:
    """The closed-form minimiser of the loss over a training set (Gu et al. 2023), as attacks ask it; it predicts eps.

    Its gradients are those of the training images, the only parameter there is.
    """

    conditioning: Literal["none", "class", "text"] = "none"

    def __init__(self, training: ImageSet, *, schedule: str = "cosine", timesteps: int = 1000) -> None:
        self.diffusion = Diffusion.of(make_scheduler(schedule, "epsilon", timesteps))
        images = training.images()
        self.network = _PosteriorMean(to_model(images), self.diffusion.alphas_cumprod)
        self.shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z

    def condition(self, count: int, labels: np.ndarray | None, captions: tuple[str, ...] | None) -> Any:
        return None

    def predict(self, z_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        predicted: Tensor = self.network(z_t, t)
        return predicted


class _PosteriorMean(nn.Module):
    """E[eps | x_t] where x0 is one of the training images, each as likely as the others unless a prior is given."""

    alphas_cumprod: Tensor

    def __init__(self, x0: Tensor, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.x0 = nn.Parameter(x0.flatten(1).double(), requires_grad=False)
        self.register_buffer("alphas_cumprod", alphas_cumprod.double())

    def forward(self, x_t: Tensor, t: Tensor, prior: Tensor | float = 0.0) -> Tensor:
        """[n, c, h, w]: the noise that leads to x_t from the mean of x0 given x_t; prior: log odds [n, images]."""
        alpha_bar = self.alphas_cumprod[t].unsqueeze(1)
        x = x_t.flatten(1).double()
        # |x - sqrt(alpha_bar) x0|^2, but for |x|^2, on which the weights do not depend
        distance = alpha_bar * self.x0.square().sum(1) - 2 * alpha_bar.sqrt() * x @ self.x0.T
        weights = torch.softmax(prior - distance / (2 * (1 - alpha_bar)), dim=1)
        eps = (x - alpha_bar.sqrt() * weights @ self.x0) / (1 - alpha_bar).sqrt()
        return eps.view_as(x_t).to(x_t.dtype)
