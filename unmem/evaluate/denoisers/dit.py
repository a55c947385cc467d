"""A class-conditional transformer on the latents of a VAE (DiT, Peebles & Xie 2023, arXiv 2212.09748; DiTPipeline)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unmem.evaluate.denoisers.latents import LatentDenoiser
from unmem.evaluate.denoisers.pixels import class_numbers


class DiT(LatentDenoiser):
    """See :class:`~unmem.evaluate.matrix.denoiser.Denoiser`."""

    conditioning: Literal["none", "class", "text"] = "class"

    def __init__(self, pipeline: Any, device: torch.device | str) -> None:
        """Args: a pipeline with ``transformer`` (DiTTransformer2DModel), ``vae``, ``scheduler``; where to compute."""
        super().__init__(pipeline, pipeline.transformer, device)

    def condition(self, count: int, labels: np.ndarray | None, captions: tuple[str, ...] | None) -> Tensor:
        """Class numbers, int64 [count]; without labels the null class, whose number is that of the classes."""
        return class_numbers(count, labels, int(self.network.config.num_embeds_ada_norm), self._device)

    def predict(self, z_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The network's own prediction, [n, c, h, w], without the variance that it may have learnt beside it."""
        predicted: Tensor = self.network(z_t, timestep=t, class_labels=condition).sample
        return predicted[:, : z_t.shape[1]]
