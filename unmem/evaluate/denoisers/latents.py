"""A UNet2DModel on the latents of a VAE: latent diffusion, unconditional or class-conditional (LDMPipeline)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unmem.evaluate.denoisers.pixels import class_numbers
from unmem.train.diffusion import Diffusion
from unmem.train.latent_space import LatentSpace
from unmem.train.sampling import image_size, null_class


class LatentDenoiser:
    """A network on the latents of a pipeline's VAE, scaled as it was trained on them; the VAE is always in float32.

    See :class:`~unmem.evaluate.matrix.denoiser.Denoiser`, of which this is all but the condition and the prediction.
    """

    def __init__(
        self, pipeline: Any, network: Any, device: torch.device | str, diffusion: Diffusion | None = None
    ) -> None:
        """Args: a pipeline with ``vae`` or ``vqvae``; its network; where to compute; the scheduler's, if not given."""
        self.network = frozen(network, device)
        self.diffusion = Diffusion.of(pipeline.scheduler, device) if diffusion is None else diffusion
        self._space, self._device = LatentSpace(vae_of(pipeline), device), torch.device(device)
        height, width = image_size(self.network)
        factor = self._space.factor
        self.shape = (factor * height, factor * width, int(vae_of(pipeline).config.in_channels))

    def encode(self, x: Tensor) -> Tensor:
        """Images [n, c, h, w] in [-1, 1] -> latents [n, c', h', w'], the mode where they are a distribution."""
        return self._space.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """Latents [n, c', h', w'] -> images [n, c, h, w] in about [-1, 1]."""
        return self._space.decode(z)


class Latents(LatentDenoiser):
    """See :class:`~unmem.evaluate.matrix.denoiser.Denoiser`."""

    def __init__(self, pipeline: Any, device: torch.device | str) -> None:
        """Args: a pipeline with ``unet`` (UNet2DModel), ``vae`` or ``vqvae``, and ``scheduler``; where to compute."""
        super().__init__(pipeline, pipeline.unet, device)
        self._null = null_class(self.network)
        self.conditioning: Literal["none", "class", "text"] = "none" if self._null is None else "class"

    def condition(self, count: int, labels: np.ndarray | None, captions: tuple[str, ...] | None) -> Tensor | None:
        """Class numbers, int64 [count]; without labels the null class."""
        return None if self._null is None else class_numbers(count, labels, self._null, self._device)

    def predict(self, z_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The network's own prediction, [n, c, h, w], without the variance that it may have learnt beside it."""
        predicted: Tensor = self.network(z_t, t, class_labels=condition).sample
        return predicted[:, : z_t.shape[1]]


def vae_of(pipeline: Any) -> Any:
    """The pipeline's VAE; None without."""
    return getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)


def frozen(module: Any, device: torch.device | str) -> Any:
    """The module (``nn.Module``) there, in evaluation mode, without gradients."""
    return module.to(device).eval().requires_grad_(False)
