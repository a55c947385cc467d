"""The first stage of a cascade on pixels by text: DeepFloyd IF, after Imagen (Saharia et al., arXiv 2205.11487)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmem.evaluate.denoisers.latents import frozen
from unmem.evaluate.denoisers.texts import TextDenoiser
from unmem.train.diffusion import Diffusion
from unmem.train.sampling import image_size


class DeepFloyd(TextDenoiser):
    """See :class:`~unmem.evaluate.matrix.denoiser.Denoiser`.

    Captions are taken as they are, in small letters: the cleaning that IF's own script does by default needs further
    packages, and falls back to this without them.
    """

    def __init__(self, pipeline: Any, device: torch.device | str) -> None:
        """Args: an IFPipeline, or one with the same parts; where to compute."""
        self.network = frozen(pipeline.unet, device)
        self.diffusion = Diffusion.of(pipeline.scheduler, device)
        self.shape = (*image_size(self.network), int(self.network.config.in_channels))
        self.take_texts(pipeline, device)

    def encode(self, x: Tensor) -> Tensor:
        """Pixels are what it works on."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Pixels are what it works on."""
        return z

    def predict(self, z_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The network's own prediction, [n, c, h, w], without the variance that it has learnt beside it."""
        predicted: Tensor = self.network(z_t, t, encoder_hidden_states=condition).sample
        return predicted[:, : z_t.shape[1]]

    def _prompt(self, captions: list[str], **options: Any) -> tuple[Any, ...]:
        """Without the empty text beside each."""
        return super()._prompt(captions, do_classifier_free_guidance=False, **options)
