"""A step's global batch with its randomness, from which every process computes the losses of its own part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmem.rng import torch_stream
from unmem.train.config import Train
from unmem.train.diffusion import Diffusion
from unmem.train.imageset import ImageSet
from unmem.train.inputs import Inputs
from unmem.train.noise_levels import NoiseLevels
from unmem.train.update import UpdateRule, evaluating

REHEARSED = 64  # made-up images at most


def made_up(data: ImageSet, batch: int) -> ImageSet:
    """Noise of the data's shape, random labels, and texts: what a rule rehearses on, since the data may be private."""
    random, size = np.random.default_rng(0), min(batch, REHEARSED)
    labels = None if data.labels is None else random.integers(max(len(data.label_names), 1), size=size)
    images = random.integers(256, size=(size, *data.shape), dtype=np.uint8)
    names = [f"made up {i}" for i in range(size)]
    return ImageSet.of(images, names, labels, data.label_names, None if data.captions is None else tuple(names))


class Draw:
    """One step's global batch with its randomness; each process computes the losses of its own slots.

    Noise is drawn for blocks of slots, each from a generator of its own, so that it depends neither on how slots are
    shared out nor, in memory, on the size of the batch.
    """

    BLOCK = 64

    def __init__(
        self,
        data: ImageSet,
        positions: np.ndarray,
        config: Train,
        levels: NoiseLevels,
        inputs: Inputs,
        rule: UpdateRule,
        step: int,
    ) -> None:
        self.data, self.positions, self.config, self.inputs = data, positions, config, inputs
        self.levels, self.rule = levels, rule
        self.seed, self.step, self.multiplicity = rule.seed, step, rule.multiplicity
        self._block: tuple[int, tuple[Tensor, ...]] = (-1, ())

    def losses(self, diffusion: Diffusion, model: nn.Module, accelerator: Any, slots: np.ndarray) -> Tensor:
        """Un-reduced losses, float32 [len(slots)], each the mean over its image's draws.

        The model sees an image's draws one after the other: row r belongs to slot r // multiplicity.
        """
        x0, t, eps, condition = self._rows(slots, accelerator.device)
        with accelerator.autocast():
            each = diffusion.losses(model, x0, t, eps, condition)
        return self._by_image(each)

    def text_noise(
        self, diffusion: Diffusion, model: nn.Module, accelerator: Any, slots: np.ndarray, level: float
    ) -> Tensor:
        """|| eps(x_t, text) - eps(x_t, no text) ||, float32 [len(slots)] (Wen et al. 2024, arXiv 2407.21720).

        With the noise of the slot's draws, at one timestep; 0 where the text is dropped.
        """
        x0, t, eps, condition = self._rows(slots, accelerator.device)
        assert condition is not None and self.inputs.null is not None, "a network that is told nothing"
        t = torch.full_like(t, round(level * (len(diffusion.alphas_cumprod) - 1)))
        x_t = diffusion.noised(x0, t, eps)
        with torch.no_grad(), evaluating(model), accelerator.autocast():
            told = model(x_t, t, class_labels=condition).sample.float()
            untold = model(x_t, t, class_labels=self.inputs.null.expand_as(condition)).sample.float()
        noise = diffusion.eps(told, x_t, t) - diffusion.eps(untold, x_t, t)
        return self._by_image(noise.flatten(1).norm(dim=1))

    def timesteps(self, slots: np.ndarray, device: torch.device) -> Tensor:
        """int64 [len(slots), multiplicity], as :meth:`losses` has them."""
        return self._drawn(slots, device)[0].view(-1, self.multiplicity)

    def _rows(self, slots: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Points, timesteps, noise and conditions of these slots' draws, one row a draw."""
        t, eps, flips, dropped, *chance = self._drawn(slots, device)
        mine, inputs = self.positions[slots], self.inputs
        x0 = inputs.points(self.data, mine, mirrored=False).repeat_interleave(self.multiplicity, 0)
        if self.config.flip:
            mirrored = inputs.points(self.data, mine, mirrored=True).repeat_interleave(self.multiplicity, 0)
            x0 = torch.where(flips.view(-1, 1, 1, 1), mirrored, x0)
        condition = inputs.conditions(self.data, mine.repeat(self.multiplicity), chance[0] if chance else None)
        if condition is not None and inputs.null is not None:
            condition = torch.where(dropped.view(-1, *[1] * (condition.dim() - 1)), inputs.null, condition)
        return x0, t, eps, condition

    def _by_image(self, each: Tensor) -> Tensor:
        """The mean over an image's draws, [len(slots)]."""
        return each if self.multiplicity == 1 else each.view(-1, self.multiplicity).mean(1)

    def _drawn(self, slots: np.ndarray, device: torch.device) -> list[Tensor]:
        """Timesteps, noise, flips, dropped conditions and, where texts are chosen, chances, one row a draw."""
        found: list[tuple[Tensor, ...]] = []
        for block in np.unique(slots // self.BLOCK).tolist() or [0]:  # an empty chunk has shapes, too
            inside = torch.from_numpy(slots[slots // self.BLOCK == block] - block * self.BLOCK).to(device)
            found.append(tuple(part[inside].flatten(0, 1) for part in self._drawn_block(block, device)))
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def _drawn_block(self, block: int, device: torch.device) -> tuple[Tensor, ...]:
        """The randomness of one block of slots, [slots, multiplicity, ...]; the last one is kept for the next chunk."""
        if self._block[0] != block:
            generator = torch_stream(self.seed, "loss", self.step, *([block] if block else []), device=device)
            size = min(self.BLOCK, len(self.positions) - block * self.BLOCK), self.multiplicity
            t = self.levels.draw(size, generator)
            eps = torch.randn((*size, *self.inputs.shape(self.data)), generator=generator, device=device)
            flips = torch.rand(size, generator=generator, device=device) < 0.5
            dropped = torch.rand(size, generator=generator, device=device) < self.config.label_dropout
            drawn = [t, eps, flips, dropped]
            if self.data.alternatives is not None:
                drawn.append(torch.rand(size, generator=generator, device=device))
            self._block = block, tuple(drawn)
        return self._block[1]


@dataclass(frozen=True)
class NetworkLosses:
    """The :class:`~unmem.train.update.StepLosses` of a draw by one network."""

    draw: Draw
    diffusion: Diffusion
    network: nn.Module
    accelerator: Any

    def __call__(self, slots: np.ndarray) -> Tensor:
        """float32 [len(slots)]."""
        return self.draw.losses(self.diffusion, self.network, self.accelerator, slots)

    def timesteps(self, slots: np.ndarray) -> Tensor:
        """int64 [len(slots), multiplicity]."""
        return self.draw.timesteps(slots, self.accelerator.device)

    def text_noise(self, slots: np.ndarray, level: float) -> Tensor:
        """float32 [len(slots)]."""
        return self.draw.text_noise(self.diffusion, self.network, self.accelerator, slots, level)

    def of(self, data: ImageSet, positions: np.ndarray, step: int) -> NetworkLosses:
        """Another batch's."""
        draw = self.draw
        other = Draw(data, positions, draw.config, draw.levels, draw.inputs, draw.rule, step)
        return replace(self, draw=other)
