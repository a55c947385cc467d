"""A UNet2DModel on pixels, unconditional or class-conditional: our own models, any saved DDPM or DDIM pipeline."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unmem.component import UserError
from unmem.train.diffusion import Diffusion
from unmem.train.sampling import image_size, null_class


class Pixels:
    """See :class:`~unmem.evaluate.matrix.denoiser.Denoiser`."""

    def __init__(self, pipeline: Any, device: torch.device | str) -> None:
        """Args: a pipeline with ``unet`` (UNet2DModel) and ``scheduler``; where to compute."""
        self.network = pipeline.unet.to(device).eval().requires_grad_(False)
        self.diffusion = Diffusion.of(pipeline.scheduler, device)
        self._null, self._device = null_class(self.network), device
        self.conditioning: Literal["none", "class", "text"] = "none" if self._null is None else "class"
        self.shape = (*image_size(self.network), int(self.network.config.in_channels))

    def encode(self, x: Tensor) -> Tensor:
        """Pixels are what it works on."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Pixels are what it works on."""
        return z

    def condition(self, count: int, labels: np.ndarray | None, captions: tuple[str, ...] | None) -> Tensor | None:
        """Class numbers, int64 [count]; without labels the null class."""
        if self._null is None:
            return None
        return class_numbers(count, labels, self._null, self._device)

    def predict(self, z_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The network's own prediction, [n, c, h, w], without the variance that it may have learnt beside it."""
        predicted: Tensor = self.network(z_t, t, class_labels=condition).sample
        return predicted[:, : z_t.shape[1]]


def class_numbers(count: int, labels: np.ndarray | None, null: int, device: torch.device | str) -> Tensor:
    """The labels, int64 [count], for a network with so many classes and the null class after them.

    Raises:
        UserError: for a label that is no class.
    """
    given = np.full(count, null) if labels is None else labels
    if unknown := given[(given < 0) | (given > null)].tolist():
        raise UserError(f"label {unknown[0]} is not among the network's classes, 0 to {null - 1}")
    return torch.from_numpy(given).to(device)
