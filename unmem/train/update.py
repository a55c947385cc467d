"""Who owns the batches and turns per-example losses into a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from unmem.rng import stream
from unmem.train.config import Train
from unmem.train.imageset import ImageSet

Losses = Callable[[np.ndarray], Tensor]
"""``losses(slots)``: the un-reduced losses, float32 [len(slots)], of these slots of the step's global batch."""


class StepLosses(Protocol):
    """:data:`Losses` that also say what they are taken at, and can be asked about other images."""

    def __call__(self, slots: np.ndarray, /) -> Tensor:
        """float32 [len(slots)]: the un-reduced losses of these slots of the step's global batch."""

    def timesteps(self, slots: np.ndarray) -> Tensor:
        """int64 [len(slots), K]: the timesteps of these slots' draws."""

    def text_noise(self, slots: np.ndarray, level: float) -> Tensor:
        """float32 [len(slots)]: how far these slots' texts move the predicted noise (L2 norm); without gradient.

        At one timestep for all, ``level`` of the way from the first to the last; 0 where the step drops the text. Of a
        network that takes none there is nothing to ask.
        """

    def of(self, data: ImageSet, positions: np.ndarray, step: int) -> StepLosses:
        """The same network's losses of another batch: these positions of ``data``, with the randomness of ``step``.

        Slot i has the same randomness in every batch of a step, whatever its image. No step of training is negative.
        """


class UpdateRule(Protocol):
    """A way to train: which images a step sees, and what their losses do to the weights.

    Everything is a function of the step's number and of ``memory``, so that a resumed run equals an unbroken one.

    Attributes:
        steps: updates in all; a rule may lower it to the updates done, which ends training.
        batch: images an update (the expectation, where the sampler is random).
        lr: peak learning rate.
        seed: seed of the losses' randomness (timesteps, noise, flips).
        multiplicity: K, the draws of timestep, noise and flip over which an image's loss is averaged.
        warmup: images to train on first, and the rule for them; of the data's shape and ``label_names``. Its statement
            is not written: this rule answers for both.
    """

    steps: int
    batch: int
    lr: float
    seed: int
    multiplicity: int
    warmup: tuple[ImageSet, UpdateRule] | None

    @property
    def memory(self) -> nn.Module | None:
        """What the rule carries from step to step, as buffers, which checkpoints hold; None where it is nothing."""

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Any) -> nn.Module:
        """Take hold of the model before the first step; returns the module whose forward the losses use."""

    def rehearse(self, size: int, losses: StepLosses) -> None:
        """Before the first step of a process: try anything on the losses of ``size`` made-up images; change nothing."""

    def positions(self, step: int) -> np.ndarray:
        """int64: the images of the step's global batch, the same on every process."""

    def update(self, step: int, size: int, losses: StepLosses) -> float:
        """Change the weights by the losses of a global batch of ``size`` slots.

        Returns this process's part of the mean loss: the parts of all processes add up to it.
        """

    def finish(self) -> dict[str, Any] | None:
        """After the last step: give the model back, and the privacy statement, where there is one, as JSON."""


class Plain:
    """Ordinary minibatch gradients: shuffled epochs, mean loss, clipping for stability."""

    warmup: tuple[ImageSet, UpdateRule] | None = None
    memory: nn.Module | None = None

    def __init__(self, n: int, config: Train, seed: int) -> None:
        """Args: the number of training images, the recipe's settings, the experiment's seed."""
        self.n, self.batch, self.lr, self.seed = n, config.batch, config.lr, seed
        self.steps, self.multiplicity = -(-config.images // config.batch), 1
        self._config = config

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Any) -> nn.Module:
        """Wrap for several processes, where there are several."""
        self._accelerator, self._optimizer = accelerator, optimizer
        self._weights = list(model.parameters())
        prepared: nn.Module = accelerator.prepare_model(model)
        self._model = prepared
        return prepared

    def rehearse(self, size: int, losses: Losses) -> None:
        """Nothing to try."""

    def positions(self, step: int) -> np.ndarray:
        """The step's window on an endless row of shuffled epochs."""
        start = step * self.batch
        window = np.arange(start, start + self.batch)
        epochs = {int(e): stream(self.seed, "epoch", int(e)).permutation(self.n) for e in np.unique(window // self.n)}
        return np.array([epochs[i // self.n][i % self.n] for i in window.tolist()], dtype=np.int64)

    def update(self, step: int, size: int, losses: StepLosses) -> float:
        """One AdamW step on the mean loss of the global batch."""
        return self.descend(size, losses)

    def descend(self, size: int, losses: Losses) -> float:
        """The same for any losses of a global batch of ``size`` slots; returns this process's part of their mean."""
        accelerator, total = self._accelerator, 0.0
        chunks = list(shares(size, accelerator.process_index, accelerator.num_processes, self._config.micro_batch))
        for i, slots in enumerate(chunks):
            with accelerator.no_sync(self._model) if i + 1 < len(chunks) else nullcontext():
                # DDP averages over processes, and their shares may differ by one: weigh by the global size
                loss = losses(slots).sum() / size
                accelerator.backward(loss * accelerator.num_processes)
            total += float(loss.detach())
        accelerator.clip_grad_norm_(self._weights, self._config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def finish(self) -> dict[str, Any] | None:
        """No guarantee, no statement."""
        return None


def shares(size: int, process: int, processes: int, most: int | None) -> Iterator[np.ndarray]:
    """This process's part of ``size`` slots, in chunks of at most ``most``; at least one chunk, perhaps empty."""
    mine = np.array_split(np.arange(size), processes)[process]
    most = most or max(len(mine), 1)
    for start in range(0, max(len(mine), 1), most):
        yield mine[start : start + most]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; every module goes back to the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
