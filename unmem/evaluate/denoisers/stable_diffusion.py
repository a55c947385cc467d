"""Text-to-image latent diffusion (Rombach et al. 2022, arXiv 2112.10752): Stable Diffusion 1 and 2, and its kin."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unmem.evaluate.denoisers.latents import LatentDenoiser, frozen
from unmem.evaluate.denoisers.quiet import quiet

TEXTS = 64  # captions that are encoded at once
KEPT = 1024  # encoded captions in memory, about a quarter of a megabyte each


class StableDiffusion(LatentDenoiser):
    """See :class:`~unmem.evaluate.matrix.denoiser.Denoiser`."""

    conditioning: Literal["none", "class", "text"] = "text"

    def __init__(self, pipeline: Any, device: torch.device | str) -> None:
        """Args: a StableDiffusionPipeline, or one with the same parts; where to compute."""
        super().__init__(pipeline, pipeline.unet, device)
        self._pipeline = pipeline
        for name in ("text_encoder", "text_encoder_2"):
            if hasattr(pipeline, name):
                frozen(getattr(pipeline, name), device)
        self._known: dict[str, Tensor] = {}

    def condition(self, count: int, labels: np.ndarray | None, captions: tuple[str, ...] | None) -> Tensor:
        """The captions as the text encoder gives them, float32 [count, tokens, d]; without captions the empty text."""
        wanted = ("",) * count if captions is None else captions
        new = [text for text in dict.fromkeys(wanted) if text not in self._known]
        with torch.autocast(self._device.type, enabled=False):  # the same whatever the network's precision
            for start in range(0, len(new), TEXTS):
                part = new[start : start + TEXTS]
                self._known.update(zip(part, self._encoded(part), strict=True))
            found = torch.stack([self._known[text] for text in wanted])
        for text in list(self._known)[:-KEPT]:
            del self._known[text]
        return found

    def predict(self, z_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The network's own prediction, [n, c, h, w]."""
        predicted: Tensor = self.network(z_t, t, encoder_hidden_states=condition).sample
        return predicted[:, : z_t.shape[1]]

    def _encoded(self, captions: list[str]) -> Tensor:
        """float32 [n, tokens, d]: tokenized, cut short and encoded as the pipeline itself does it."""
        found: Tensor = self._prompt(captions)[0]
        return found

    def _prompt(self, captions: list[str]) -> tuple[Any, ...]:
        """What the pipeline makes of texts, without a word about long ones."""
        with quiet(texts=True):
            found: tuple[Any, ...] = self._pipeline.encode_prompt(
                captions, device=self._device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        return found
