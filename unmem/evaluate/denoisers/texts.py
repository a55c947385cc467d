"""Captions as a pipeline encodes them, each once."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from unmem.train.opening import modules_of
from unmem.train.quiet import quiet

TEXTS = 64  # captions that are encoded at once
KEPT = 1 << 28  # bytes of encoded captions in memory: about a thousand of Stable Diffusion 1, thirty of Flux


class TextDenoiser:
    """What denoisers that take texts have in common: their condition, from the pipeline's own text encoders.

    See :class:`~unmem.evaluate.matrix.denoiser.Denoiser`, of which this is the condition alone.
    """

    conditioning: Literal["none", "class", "text"] = "text"

    def take_texts(self, pipeline: Any, device: torch.device | str) -> None:
        """Put the pipeline's text encoders on the device; they are asked from now on."""
        self._pipeline, self._place = pipeline, torch.device(device)
        for name, module in modules_of(pipeline).items():
            if name.startswith("text_encoder"):
                module.to(device).eval().requires_grad_(False)
        self._known: dict[str, Tensor] = {}

    def condition(self, count: int, labels: np.ndarray | None, captions: tuple[str, ...] | None) -> Tensor:
        """The captions as the pipeline encodes them, float32 [count, tokens, d]; without captions the empty text."""
        wanted = ("",) * count if captions is None else captions
        new = [text for text in dict.fromkeys(wanted) if text not in self._known]
        with torch.autocast(self._place.type, enabled=False):  # the same whatever the network's precision
            for start in range(0, len(new), TEXTS):
                part = new[start : start + TEXTS]
                self._known.update(zip(part, self._encoded(part), strict=True))
            found = torch.stack([self._known[text] for text in wanted])
        kept = KEPT // max(1, found[:1].nbytes)
        for text in list(self._known)[: max(0, len(self._known) - kept)]:
            del self._known[text]
        return found

    def _encoded(self, captions: list[str]) -> Tensor:
        """float32 [n, tokens, d]: tokenized, cut short and encoded as the pipeline itself does it."""
        found: Tensor = self._prompt(captions)[0]
        return found

    def _prompt(self, captions: list[str], **options: Any) -> tuple[Any, ...]:
        """What the pipeline makes of texts, without a word about long ones."""
        with quiet(texts=True), torch.no_grad():
            found: tuple[Any, ...] = self._pipeline.encode_prompt(
                captions, device=self._place, num_images_per_prompt=1, **options
            )
        return found


def packed(tokens: Tensor, pooled: Tensor) -> Tensor:
    """Encoded tokens [n, tokens, d] with the pooled text [n, e], e <= d, as a last row, filled up with zeros."""
    return torch.cat([tokens, pad(pooled, (0, tokens.shape[-1] - pooled.shape[-1]))[:, None]], dim=1)
