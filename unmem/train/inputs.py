"""What a network is given of an image: a point in the space that it is trained in, and what it is conditioned on."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from unmem.train.diffusion import to_model
from unmem.train.imageset import ImageSet


class Inputs(Protocol):
    """How a network is fed, and what it is saved with.

    All is a function of the image alone, but for rounding, and the same on every process.

    Attributes:
        null: one row of the condition that stands for none; None where nothing is conditioned on.
    """

    null: Tensor | None

    def shape(self, data: ImageSet) -> tuple[int, int, int]:
        """Channels, height and width of a point."""

    def points(self, data: ImageSet, positions: np.ndarray, *, mirrored: bool) -> Tensor:
        """float32 [k, c, h, w] of the images at these positions, or of their mirror images, on the device."""

    def conditions(self, data: ImageSet, positions: np.ndarray, chance: Tensor | None) -> Tensor | None:
        """What the network is told of the images at these positions, a row each, on the device; None where nothing.

        ``chance``, float [k] in [0, 1), chooses among an image's texts; it is there where the data have alternatives.
        """

    def pipeline(self, network: Any, scheduler: Any) -> Any:
        """The diffusers pipeline that a trained network is saved as."""


class Pixels:
    """Images as they are, in [-1, 1], and their classes, where the network takes these."""

    def __init__(self, classes: int | None, device: torch.device | str) -> None:
        """Args: number of classes, which is the null class; None for an unconditional network. Where to compute."""
        self.null = None if classes is None else torch.tensor([classes], device=device)
        self._device = device

    def shape(self, data: ImageSet) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        height, width, channels = data.shape
        return channels, height, width

    def points(self, data: ImageSet, positions: np.ndarray, *, mirrored: bool) -> Tensor:
        """The images."""
        x0 = to_model(data.images(positions), self._device)
        return x0.flip(-1) if mirrored else x0

    def conditions(self, data: ImageSet, positions: np.ndarray, chance: Tensor | None) -> Tensor | None:
        """int64 [k]: the classes."""
        if self.null is None or data.labels is None:
            return None
        return torch.from_numpy(data.labels[positions]).to(self._device)

    def pipeline(self, network: Any, scheduler: Any) -> Any:
        """What draws pixels."""
        from diffusers import DDPMPipeline

        return DDPMPipeline(unet=network, scheduler=scheduler)
