"""Stable Diffusion 3 (Esser et al. 2024, arXiv 2403.03206): a flow, two CLIP text encoders and, if it is there, T5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmem.evaluate.denoisers.flow import FlowDenoiser
from unmem.evaluate.denoisers.texts import packed


class StableDiffusion3(FlowDenoiser):
    """See :class:`~unmem.evaluate.matrix.denoiser.Denoiser`.

    A condition is one tensor [n, tokens + 1, d]: the tokens of all encoders, and as its last row the pooled text.
    """

    def __init__(self, pipeline: Any, device: torch.device | str) -> None:
        """Args: a StableDiffusion3Pipeline, or one with the same parts; where to compute."""
        super().__init__(pipeline, pipeline.transformer.config.patch_size, device)
        self._pooled = int(pipeline.transformer.config.pooled_projection_dim)
        self._steps = int(pipeline.scheduler.config.num_train_timesteps)

    def _velocity(self, x_s: Tensor, s: Tensor, condition: Tensor) -> Tensor:
        """The network's own prediction, [n, c, h, w]."""
        found: Tensor = self.network(
            x_s,
            timestep=self._steps * s,
            encoder_hidden_states=condition[:, :-1],
            pooled_projections=condition[:, -1, : self._pooled],
        ).sample
        return found

    def _encoded(self, captions: list[str]) -> Tensor:
        """float32 [n, tokens + 1, d]."""
        tokens, _, pooled, _ = self._prompt(captions, prompt_2=None, prompt_3=None, do_classifier_free_guidance=False)
        return packed(tokens, pooled)
