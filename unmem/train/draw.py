"""A step's global batch with its randomness, from which every process computes the losses of its own part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmem.rng import torch_stream
from unmem.train.config import Train
from unmem.train.diffusion import Diffusion, to_model
from unmem.train.imageset import ImageSet
from unmem.train.noise_levels import NoiseLevels
from unmem.train.update import UpdateRule

REHEARSED = 64  # made-up images at most


def made_up(data: ImageSet, batch: int) -> ImageSet:
    """Noise of the data's shape with random labels: what a rule rehearses on, since the data may be private."""
    random, size = np.random.default_rng(0), min(batch, REHEARSED)
    labels = None if data.labels is None else random.integers(max(len(data.label_names), 1), size=size)
    images = random.integers(256, size=(size, *data.shape), dtype=np.uint8)
    return ImageSet.of(images, [f"made up {i}" for i in range(size)], labels, data.label_names)


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
        num_classes: int | None,
        rule: UpdateRule,
        step: int,
    ) -> None:
        self.data, self.positions, self.config, self.num_classes = data, positions, config, num_classes
        self.levels, self.rule = levels, rule
        self.seed, self.step, self.multiplicity = rule.seed, step, rule.multiplicity
        self._block: tuple[int, tuple[Tensor, ...]] = (-1, ())

    def losses(self, diffusion: Diffusion, model: nn.Module, accelerator: Any, slots: np.ndarray) -> Tensor:
        """Un-reduced losses, float32 [len(slots)], each the mean over its image's draws.

        The model sees an image's draws one after the other: row r belongs to slot r // multiplicity.
        """
        device = accelerator.device
        t, eps, flips, dropped = self._drawn(slots, device)
        mine = self.positions[slots]
        x0 = to_model(self.data.images(mine), device).repeat_interleave(self.multiplicity, 0)
        if self.config.flip:
            x0 = torch.where(flips.view(-1, 1, 1, 1), x0.flip(-1), x0)
        labels = None
        if self.num_classes is not None and self.data.labels is not None:
            labels = torch.from_numpy(self.data.labels[mine]).to(device).repeat_interleave(self.multiplicity)
            labels = torch.where(dropped, self.num_classes, labels)
        with accelerator.autocast():
            each = diffusion.losses(model, x0, t, eps, labels)
        return each if self.multiplicity == 1 else each.view(-1, self.multiplicity).mean(1)

    def timesteps(self, slots: np.ndarray, device: torch.device) -> Tensor:
        """int64 [len(slots), multiplicity], as :meth:`losses` has them."""
        return self._drawn(slots, device)[0].view(-1, self.multiplicity)

    def _drawn(self, slots: np.ndarray, device: torch.device) -> list[Tensor]:
        """Timesteps, noise, flips and dropped labels of these slots' draws, one row a draw."""
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
            height, width, channels = self.data.shape
            t = self.levels.draw(size, generator)
            eps = torch.randn((*size, channels, height, width), generator=generator, device=device)
            flips = torch.rand(size, generator=generator, device=device) < 0.5
            dropped = torch.rand(size, generator=generator, device=device) < self.config.label_dropout
            self._block = block, (t, eps, flips, dropped)
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

    def of(self, data: ImageSet, positions: np.ndarray, step: int) -> NetworkLosses:
        """Another batch's."""
        draw = self.draw
        other = Draw(data, positions, draw.config, draw.levels, draw.num_classes, draw.rule, step)
        return replace(self, draw=other)
