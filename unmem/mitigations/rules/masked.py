"""Plain training that skips images with losses far below the average at their timestep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unmem.mitigations.rules.skipping import Skipping
from unmem.train.config import Train
from unmem.train.update import StepLosses


class Averages(nn.Module):
    """What the rule carries from step to step.

    Attributes:
        loss: float32 [ranges of timesteps], the moving averages; 0 where there was no loss yet.
        skipped: int64, images skipped so far.
    """

    loss: Tensor
    skipped: Tensor

    def __init__(self, ranges: int) -> None:
        super().__init__()
        self.register_buffer("loss", torch.zeros(ranges))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))


class Masked(Skipping):
    """The rule of :class:`~unmem.mitigations.loss_mask.LossMask`.

    Images are judged by the averages before the step, so the mask depends neither on how the batch is shared out among
    processes nor on micro-batches; all processes move the averages by the losses of the whole batch.
    """

    memory: Averages

    def __init__(
        self, n: int, config: Train, seed: int, *, ratio: float, decay: float, width: int, record: Path
    ) -> None:
        """Args: those of plain training, the component's fields, and where the record goes."""
        super().__init__(n, config, seed, record)
        self._ratio, self._decay, self._width = ratio, decay, width
        self.memory = Averages(-(-config.timesteps // width))

    def update(self, step: int, size: int, losses: StepLosses) -> float:
        """One AdamW step on the losses that are not skipped; returns this process's part of the mean of all."""
        loss = self.memory.loss
        # on the CPU, where sums always add up in the same order
        seen = torch.zeros(3, len(loss))

        def masked(slots: np.ndarray) -> Tensor:
            each = losses(slots)
            # a pretrained pipeline may have more timesteps than the recipe says: they fall into the last range
            ranges = (losses.timesteps(slots)[:, 0].cpu() // self._width).clamp(max=len(loss) - 1)
            values = each.detach().cpu()
            skipped = self._ratio * values < loss[ranges]
            seen.index_add_(1, ranges, torch.stack([values, torch.ones_like(values), skipped.float()]))
            return each.masked_fill(skipped.to(each.device), 0.0)

        self.descend(size, masked)
        part = float(seen[0].sum()) / size
        self._move(seen)
        return part

    def _move(self, seen: Tensor) -> None:
        """Move the averages by all processes' sums of losses, their numbers, and those of skipped ones, by range."""
        total = self._accelerator.reduce(seen.to(self._accelerator.device), "sum").cpu()
        sums, counts, skipped = total
        loss, found = self.memory.loss, counts > 0
        mean = sums[found] / counts[found]
        before = torch.where(loss[found] == 0, mean, loss[found])
        loss[found] = self._decay * before + (1 - self._decay) * mean
        self.memory.skipped += int(skipped.sum())
