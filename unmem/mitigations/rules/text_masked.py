"""Plain training that skips images whose texts move the predicted noise far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unmem.mitigations.rules.skipping import Skipping
from unmem.train.config import Train
from unmem.train.update import StepLosses


class Average(nn.Module):
    """What the rule carries from step to step.

    Attributes:
        magnitude: float32, the moving average; 0 before the first step.
        skipped: int64, images skipped so far.
    """

    magnitude: Tensor
    skipped: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("magnitude", torch.zeros(()))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))


class TextMasked(Skipping):
    """The rule of :class:`~unmem.mitigations.text_noise_mask.TextNoiseMask`.

    Images are judged by the average before the step, so the mask depends neither on how the batch is shared out among
    processes nor on micro-batches.
    """

    memory: Average

    def __init__(
        self, n: int, config: Train, seed: int, *, threshold: float, relative: bool, decay: float, level: float,
        record: Path,
    ) -> None:  # fmt: skip
        """Args: those of plain training, the component's fields, and where the record goes."""
        super().__init__(n, config, seed, record)
        self._threshold, self._relative, self._decay, self._level = threshold, relative, decay, level
        self.memory = Average()

    def update(self, step: int, size: int, losses: StepLosses) -> float:
        """One AdamW step on the losses that are not skipped; returns this process's part of the mean of all."""
        limit, total = self._limit(), 0.0
        # on the CPU, where sums always add up in the same order: magnitudes, how many there are, how many are skipped
        seen = torch.zeros(3)

        def masked(slots: np.ndarray) -> Tensor:
            nonlocal total
            magnitudes = losses.text_noise(slots, self._level).cpu()
            told, skipped = magnitudes > 0, magnitudes > limit
            seen.add_(torch.stack([magnitudes.sum(), told.sum(), skipped.sum()]))
            each = losses(slots)
            total += float(each.detach().sum())
            return each.masked_fill(skipped.to(each.device), 0.0)

        self.descend(size, masked)
        self._move(seen)
        return total / size

    def _limit(self) -> float:
        """The magnitude above which an image is skipped; none before there is an average to compare with."""
        if not self._relative:
            return self._threshold
        average = float(self.memory.magnitude)
        return self._threshold * average if average > 0 else float("inf")

    def _move(self, seen: Tensor) -> None:
        """Move the average by all processes' magnitudes, and count."""
        total, count, skipped = self._accelerator.reduce(seen.to(self._accelerator.device), "sum").cpu().tolist()
        if count:
            before, mean = float(self.memory.magnitude), total / count
            self.memory.magnitude.fill_(self._decay * (before or mean) + (1 - self._decay) * mean)
        self.memory.skipped += int(skipped)
