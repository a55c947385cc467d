"""Latents and texts: what a network is given within a Stable Diffusion pipeline, whose other parts stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmem.component import UserError
from unmem.train.diffusion import to_model
from unmem.train.imageset import ImageSet
from unmem.train.latent_space import LatentSpace

PIXELS = 1 << 20  # of images that are encoded at once
TEXTS = 64  # that are encoded at once
KEPT = 1 << 30  # bytes of latents, or of encoded texts, of one data set that are kept in memory


class Latents:
    """See :class:`~unmem.train.inputs.Inputs`. VAE and text encoder are frozen, in float32, and left as they are.

    A data set whose latents, or encoded texts, fit in memory is encoded once, in chunks that depend on the data alone,
    so that a resumed run sees the same bits; of a larger one, each batch is encoded when it is asked for.
    """

    null: Tensor | None

    def __init__(self, pipeline: Any, device: torch.device | str) -> None:
        """Args: a StableDiffusionPipeline, of which the network plays no part; where to compute."""
        self._pipeline, self._device = pipeline, torch.device(device)
        pipeline.text_encoder.to(device).float().eval().requires_grad_(False)
        self._space = LatentSpace(pipeline.vae, device)
        self._known: dict[tuple[int, str], tuple[ImageSet, Any]] = {}
        self._empty = self._encoded([""])
        self.null = self._empty

    def shape(self, data: ImageSet) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        height, width, _ = data.shape
        return self._space.channels, height // self._space.factor, width // self._space.factor

    def points(self, data: ImageSet, positions: np.ndarray, *, mirrored: bool) -> Tensor:
        """(mode - shift) * scale of the images' latents."""
        if 4 * len(data) * int(np.prod(self.shape(data))) > KEPT:
            return self._latents(data.images(positions), mirrored)

        def all_of() -> Tensor:
            size = max(1, PIXELS // (data.shape[0] * data.shape[1]))
            chunks = (slice(start, start + size) for start in range(0, len(data), size))
            return torch.cat([self._latents(data.images(chunk), mirrored) for chunk in chunks])

        known: Tensor = self._once(data, "mirrored" if mirrored else "latents", all_of)
        return known[torch.from_numpy(positions).to(self._device)]

    def conditions(self, data: ImageSet, positions: np.ndarray, chance: Tensor | None) -> Tensor:
        """float32 [k, tokens, width]: the texts as the text encoder gives them; without captions the empty text."""
        if data.captions is None:
            return self._empty.expand(len(positions), -1, -1)
        texts = _chosen(data.captions, data.alternatives, positions, chance)
        distinct: dict[str, int] = self._once(data, "distinct", lambda: _numbered(data))
        if 4 * len(distinct) * self._empty.numel() > KEPT:
            return self._encoded(texts)
        known: Tensor = self._once(data, "texts", lambda: self._encoded(list(distinct)))
        return known[torch.tensor([distinct[text] for text in texts], dtype=torch.int64, device=self._device)]

    def pipeline(self, network: Any, scheduler: Any) -> Any:
        """The same pipeline with the trained network."""
        self._pipeline.register_modules(unet=network, scheduler=scheduler)
        return self._pipeline

    @torch.no_grad()
    def _latents(self, images: np.ndarray, mirrored: bool) -> Tensor:
        """float32 [n, c, h, w] of uint8 images."""
        x = to_model(images, self._device)
        return self._space.encode(x.flip(-1) if mirrored else x)

    @torch.no_grad()
    def _encoded(self, texts: list[str]) -> Tensor:
        """float32 [n, tokens, width], cut short and padded as the pipeline itself does it."""
        tokenizer, encoder = self._pipeline.tokenizer, self._pipeline.text_encoder
        found = []
        for start in range(0, len(texts), TEXTS):
            words = tokenizer(
                texts[start : start + TEXTS], padding="max_length", max_length=tokenizer.model_max_length,
                truncation=True, return_tensors="pt",
            ).to(self._device)  # fmt: skip
            mask = words.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
            found.append(encoder(words.input_ids, attention_mask=mask)[0])
        return torch.cat(found) if found else self._empty[:0]

    def _once(self, data: ImageSet, what: str, make: Callable[[], Any]) -> Any:
        """What was made of a data set before, or is made now; the set itself is held on to, since its id is the key."""
        if (id(data), what) not in self._known:
            self._known[id(data), what] = data, make()
        return self._known[id(data), what][1]


def check_captions(data: ImageSet, kind: str) -> None:
    """Refuse images without texts.

    Raises:
        UserError: naming the model's kind.
    """
    if data.captions is None:
        raise UserError(f"model: a {kind} is trained on images with captions; the data set has none")


def _chosen(
    captions: tuple[str, ...],
    alternatives: tuple[tuple[str, ...], ...] | None,
    positions: np.ndarray,
    chance: Tensor | None,
) -> list[str]:
    """The text that stands for each image: its caption, or where it has others one of all by chance."""
    if alternatives is None:
        return [captions[i] for i in positions]
    assert chance is not None
    texts = [(captions[i], *alternatives[i]) for i in positions.tolist()]
    return [choice[int(at * len(choice))] for choice, at in zip(texts, chance.tolist(), strict=True)]


def _numbered(data: ImageSet) -> dict[str, int]:
    """A number for each distinct text of a data set, in the order in which they come."""
    assert data.captions is not None
    others = (text for texts in data.alternatives or () for text in texts)
    return {text: number for number, text in enumerate(dict.fromkeys((*data.captions, *others)))}
