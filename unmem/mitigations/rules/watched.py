"""Plain training that ends when the loss on held-out images rises above that on the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmem import progress
from unmem.rng import stream
from unmem.rundir import write_json
from unmem.train.config import Train
from unmem.train.imageset import ImageSet
from unmem.train.update import Plain, StepLosses, evaluating, shares

CHECK = -1  # the step whose randomness all checks share
CHUNK = 256  # losses that are computed at once, where the recipe has no bound


class Checks(nn.Module):
    """What the rule carries from step to step.

    Attributes:
        found: float64 [checks, 3]: loss on images that are trained on, loss on held-out ones, standard error of the
            relative gap; NaN before the check.
    """

    found: Tensor

    def __init__(self, checks: int) -> None:
        super().__init__()
        self.register_buffer("found", torch.full((checks, 3), torch.nan, dtype=torch.float64))


class Watched(Plain):
    """The rule of :class:`~unmem.mitigations.early_stopping.EarlyStopping`."""

    memory: Checks

    def __init__(
        self,
        data: ImageSet,
        held_out: ImageSet,
        config: Train,
        seed: int,
        *,
        gap: float,
        patience: int,
        every: int,
        most: int,
        draws: int,
        record: Path,
    ) -> None:
        """Args: images to train on and held-out ones, plain training's, the component's fields, the record's place."""
        super().__init__(len(data), config, seed)
        size = min(len(data), len(held_out), most)
        self._sides = [side.take(_some(len(side), size, seed)) for side in (data, held_out)]
        self._held_out, self._planned = len(held_out), self.steps
        self._gap, self._patience, self._draws, self._record = gap, patience, draws, record
        self._every = max(1, round(every / config.batch))
        self.memory = Checks(self._planned // self._every)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Any) -> nn.Module:
        """As plainly; a resumed run may have ended already."""
        self.steps = self._end()
        return super().prepare(model, optimizer, accelerator)

    def update(self, step: int, size: int, losses: StepLosses) -> float:
        """One AdamW step, and a check where one is due."""
        part = super().update(step, size, losses)
        number, rest = divmod(step + 1, self._every)
        if rest == 0:
            self.memory.found[number - 1] = self._check(losses)
            self.steps = self._end()
            if self.steps < self._planned and self._accelerator.is_main_process:
                progress.say(f"early stopping: {self._said(number - 1)}")
        return part

    def finish(self) -> dict[str, Any] | None:
        """Write the record; there is no statement."""
        record = {
            "stopped": self.steps < self._planned,
            "images": self.steps * self.batch,
            "planned": self._planned * self.batch,
            "held_out": self._held_out,
            "looked_at": len(self._sides[0]),
            "gap": self._gap,
            "patience": self._patience,
            "checks": [self._row(number) for number in range(self.steps // self._every)],
        }
        if self._accelerator.is_main_process:
            write_json(self._record, record)
        return None

    def _check(self, losses: StepLosses) -> Tensor:
        """A row of the memory: both losses and the standard error of their relative gap."""
        with evaluating(self._model), torch.no_grad():
            trained, held_out = (self._by_image(side, losses) for side in self._sides)
        gap = (held_out.mean() - trained.mean()) / trained.mean()
        # of a ratio of means of pairs: image i of each side has the same noise
        residuals = held_out - (1 + gap) * trained
        error = residuals.std() / trained.mean() / len(trained) ** 0.5
        return torch.stack([trained.mean(), held_out.mean(), error])

    def _by_image(self, images: ImageSet, losses: StepLosses) -> Tensor:
        """float64 [images]: each one's loss, the mean over its draws; the same on every process."""
        accelerator, positions = self._accelerator, np.tile(np.arange(len(images)), self._draws)
        asked, found = losses.of(images, positions, CHECK), torch.zeros(len(positions))
        most = self._config.micro_batch or CHUNK
        for slots in shares(len(positions), accelerator.process_index, accelerator.num_processes, most):
            if len(slots):
                found[torch.from_numpy(slots)] = asked(slots).cpu()
        whole: Tensor = accelerator.reduce(found.to(accelerator.device), "sum").cpu().double()
        return whole.view(self._draws, len(images)).mean(0)

    def _end(self) -> int:
        """The step that training ends with, by the checks so far."""
        trained, held_out, _ = self.memory.found.T
        run = 0
        for number, wide in enumerate((held_out > (1 + self._gap) * trained).tolist()):
            run = run + 1 if wide else 0
            if run == self._patience:
                return (number + 1) * self._every
        return self._planned

    def _row(self, number: int) -> dict[str, float | int]:
        """A check as plain data."""
        trained, held_out, error = self.memory.found[number].tolist()
        images = (number + 1) * self._every * self.batch
        gap = held_out / trained - 1
        return {"images": images, "trained_on": trained, "held_out": held_out, "gap": gap, "standard_error": error}

    def _said(self, number: int) -> str:
        """What was decided, in a line."""
        row = self._row(number)
        return (
            f"ends after {row['images']:,} of {self._planned * self.batch:,} images: held-out loss "
            f"{row['held_out']:.4f}, loss on images trained on {row['trained_on']:.4f}, gap {row['gap']:.1%}"
        )


def _some(n: int, size: int, seed: int) -> np.ndarray:
    """``size`` of ``n`` positions, drawn at random."""
    return np.sort(stream(seed, "early stopping", n).permutation(n)[:size])
