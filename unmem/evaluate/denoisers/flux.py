"""Flux (Black Forest Labs 2024): a flow on packed latents, with T5's tokens and CLIP's pooled text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from unmem.evaluate.denoisers.flow import FlowDenoiser
from unmem.evaluate.denoisers.texts import packed

PATCH = 2  # latents along the side of a token
PLAIN = 1.0  # what a network that was distilled from guided ones is told: guidance that changes nothing


class Flux(FlowDenoiser):
    """See :class:`~unmem.evaluate.matrix.denoiser.Denoiser`.

    A condition is one tensor [n, tokens + 1, d]: T5's tokens, and as its last row the pooled text.
    """

    def __init__(self, pipeline: Any, device: torch.device | str) -> None:
        """Args: a FluxPipeline, or one with the same parts; where to compute."""
        super().__init__(pipeline, PATCH, device)
        self._pooled = int(pipeline.transformer.config.pooled_projection_dim)
        self._guided = bool(pipeline.transformer.config.guidance_embeds)
        self._range = pipeline.scheduler.config.num_train_timesteps / 1000  # it multiplies by 1000 itself

    def _velocity(self, x_s: Tensor, s: Tensor, condition: Tensor) -> Tensor:
        """The network's own prediction, [n, c, h, w]."""
        height, width = x_s.shape[-2] // PATCH, x_s.shape[-1] // PATCH
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).to(x_s)
        found: Tensor = self.network(
            pixel_unshuffle(x_s, PATCH).flatten(2).mT,
            timestep=self._range * s,
            guidance=torch.full_like(s, PLAIN) if self._guided else None,
            encoder_hidden_states=condition[:, :-1],
            pooled_projections=condition[:, -1, : self._pooled],
            txt_ids=places.new_zeros(condition.shape[1] - 1, 3),
            img_ids=places,
        ).sample
        return pixel_shuffle(found.mT.unflatten(2, (height, width)), PATCH)

    def _encoded(self, captions: list[str]) -> Tensor:
        """float32 [n, tokens + 1, d]."""
        tokens, pooled, _ = self._prompt(captions)
        return packed(tokens, pooled)
