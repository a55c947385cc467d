"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952): two text encoders, and the size of the image as given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmem.evaluate.denoisers.stable_diffusion import StableDiffusion
from unmem.evaluate.denoisers.texts import packed


class StableDiffusionXL(StableDiffusion):
    """See :class:`~unmem.evaluate.matrix.denoiser.Denoiser`.

    A condition is one tensor [n, tokens + 1, d]: the tokens of both encoders, and as its last row the pooled text,
    filled up with zeros. Size and crop (section 2.2) are those of an uncropped image of the network's own size.
    """

    def __init__(self, pipeline: Any, device: torch.device | str) -> None:
        """Args: a StableDiffusionXLPipeline, or one with the same parts; where to compute."""
        super().__init__(pipeline, device)
        height, width, _ = self.shape
        self._sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=device)
        self._pooled = int(pipeline.text_encoder_2.config.projection_dim)

    def predict(self, z_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The network's own prediction, [n, c, h, w]."""
        added = {"text_embeds": condition[:, -1, : self._pooled], "time_ids": self._sizes.expand(len(z_t), -1)}
        predicted: Tensor = self.network(
            z_t, t, encoder_hidden_states=condition[:, :-1], added_cond_kwargs=added
        ).sample
        return predicted[:, : z_t.shape[1]]

    def _encoded(self, captions: list[str]) -> Tensor:
        """float32 [n, tokens + 1, d]; the empty text is all zeros where the pipeline says so."""
        tokens, _, pooled, _ = self._prompt(captions)
        found = packed(tokens, pooled)
        if self._pipeline.config.force_zeros_for_empty_prompt:
            found[[not text for text in captions]] = 0
        return found
