"""A network that attacks can ask, whatever pipeline it came in."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor, nn

from unmem.train.diffusion import Diffusion


class Denoiser(Protocol):
    """A denoising network with its own schedule, on one device, in evaluation mode.

    Attributes:
        network: the module that predicts; gradients are taken of its parameters.
        diffusion: schedule and prediction type, read from the pipeline and never declared again.
        conditioning: what its prediction depends on beside x_t and t.
        shape: height, width and channels of the images that it was made for.
    """

    network: nn.Module
    diffusion: Diffusion
    conditioning: Literal["none", "class", "text"]
    shape: tuple[int, int, int]

    def encode(self, x: Tensor) -> Tensor:
        """Images [n, c, h, w] in [-1, 1] -> what the network works on, z [n, c', h', w']; pixels stay as they are."""

    def decode(self, z: Tensor) -> Tensor:
        """The way back, to images [n, c, h, w] in about [-1, 1]."""

    def condition(self, count: int, labels: np.ndarray | None, captions: tuple[str, ...] | None) -> Any:
        """What :meth:`predict` is given for these images: a tensor with one row each, or None without conditioning.

        Args:
            count: n, how many images.
            labels: int64 [n], or None: the null class of a class-conditional network.
            captions: n texts, or None: the empty text of a text-conditional one.
        """

    def predict(self, z_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        """The network's own prediction, [n, c', h', w'], for t int64 [n]."""
