"""Text-to-image latent diffusion (Rombach et al. 2022, arXiv 2112.10752): Stable Diffusion 1 and 2, and its kin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmem.evaluate.denoisers.latents import LatentDenoiser
from unmem.evaluate.denoisers.texts import TextDenoiser


class StableDiffusion(TextDenoiser, LatentDenoiser):
    """See :class:`~unmem.evaluate.matrix.denoiser.Denoiser`."""

    def __init__(self, pipeline: Any, device: torch.device | str) -> None:
        """Args: a StableDiffusionPipeline, or one with the same parts; where to compute."""
        super().__init__(pipeline, pipeline.unet, device)
        self.take_texts(pipeline, device)

    def predict(self, z_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The network's own prediction, [n, c, h, w]."""
        predicted: Tensor = self.network(z_t, t, encoder_hidden_states=condition).sample
        return predicted[:, : z_t.shape[1]]

    def _prompt(self, captions: list[str], **options: Any) -> tuple[Any, ...]:
        """Without the empty text beside each."""
        return super()._prompt(captions, do_classifier_free_guidance=False, **options)
