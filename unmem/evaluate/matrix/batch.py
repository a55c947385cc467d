"""Some images, and their noise: a function of each image's place, whatever the batch it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmem.component import UserError
from unmem.evaluate.matrix.denoiser import Denoiser
from unmem.rng import torch_stream
from unmem.train.diffusion import to_model

BLOCK = 64  # images that share a generator; part of the noise's name


class Batch:
    """What a probe is given: n images that stand one after the other in a group.

    Attributes:
        denoiser: whom to ask.
        x: float32 [n, c, h, w] in [-1, 1], the images.
        captions: n texts, or None.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        images: np.ndarray,
        labels: np.ndarray | None,
        captions: tuple[str, ...] | None,
        *,
        start: int,
        place: tuple[str | int, ...],
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Args: images uint8 [n, h, w, c], labels int64 [n]; the place of the first in its group, and the group's."""
        self.denoiser, self.captions = denoiser, captions
        self.x = to_model(np.ascontiguousarray(images), device)
        self._labels, self._start, self._place, self._seed = labels, start, place, seed

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def z(self) -> Tensor:
        """The images as the network sees them, [n, c', h', w']."""
        with _kept():
            return self.denoiser.encode(self.x)

    @cached_property
    def mirrored(self) -> Tensor:
        """The images mirrored left to right, as the network sees them, [n, c', h', w']."""
        with _kept():
            return self.denoiser.encode(self.x.flip(-1))

    @cached_property
    def condition(self) -> Any:
        """What the network is given beside x_t and t."""
        with _kept():
            return self.denoiser.condition(len(self), self._labels, self.captions)

    def at(self, t: int) -> Tensor:
        """int64 [n]: the timestep, once an image.

        Raises:
            UserError: when the network's schedule has no such timestep.
        """
        known = len(self.denoiser.diffusion.alphas_cumprod)
        if not 0 <= t < known:
            raise UserError(f"timestep {t} is asked for, but the model's schedule has 0 to {known - 1}")
        return torch.full((len(self),), t, device=self.x.device)

    def eps(self, z_t: Tensor, t: int, condition: Any = None) -> Tensor:
        """The noise that the network sees in z_t, [n, c', h', w']; under the images' own condition if none is given."""
        times = self.at(t)
        predicted = self.denoiser.predict(z_t, times, self.condition if condition is None else condition)
        return self.denoiser.diffusion.eps(predicted, z_t, times)

    def noise(self, *name: str | int) -> Tensor:
        """Standard normal noise [n, c', h', w']: a function of the seed, the name and each image's place alone."""
        first, stop = self._start, self._start + len(self)
        blocks = []
        for block in range(first // BLOCK, -(-stop // BLOCK)):
            generator = torch_stream(self._seed, *self._place, block, *name, device=self.x.device)
            # the whole block, always: a shorter draw is no prefix of a longer one
            blocks.append(torch.randn((BLOCK, *self.z.shape[1:]), generator=generator, device=self.x.device))
        skip = first % BLOCK
        return torch.cat(blocks)[skip : skip + len(self)]


@contextmanager
def _kept() -> Iterator[None]:
    """Make tensors that a gradient may be taken of later, which inference mode would not allow; here none is taken."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield
