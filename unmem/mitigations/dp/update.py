"""The private step: Poisson batch, clip by example, sum, noise, step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmem.mitigations.dp.choice import choose
from unmem.mitigations.dp.engine import Engine
from unmem.mitigations.dp.plan import DPPlan
from unmem.rng import derive, torch_stream
from unmem.rundir import read_json, write_json
from unmem.train.imageset import ImageSet
from unmem.train.update import Losses, UpdateRule, shares


class PrivateUpdate:
    """An :class:`~unmem.train.update.UpdateRule` with a guarantee.

    All processes draw the same batch and the same noise from a common secret: the batch is shared out among them, the
    sums are added up, and the noise comes in once.
    """

    memory: nn.Module | None = None

    def __init__(
        self,
        plan: DPPlan,
        *,
        secret: int,
        lr: float,
        physical_batch: int,
        holds_for: str,
        multiplicity: int = 1,
        engine: str = "auto",
        chosen: Path | None = None,
        warmup: tuple[ImageSet, UpdateRule] | None = None,
        void: str | None = None,
    ) -> None:
        """Args: the plan, the secret of its randomness, rate, memory bound in rows, and what the statement says.

        ``multiplicity``, ``engine`` and ``warmup`` are those of :class:`~unmem.mitigations.dp_sgd.DPSGD`; ``chosen`` is
        a file that keeps the choice and its self-check, which a resumed run must not make anew.
        """
        self.plan, self.lr, self.multiplicity, self.warmup = plan, lr, multiplicity, warmup
        self.steps, self.batch = plan.steps, plan.expected_batch
        # A loss's noise must not tell which other images were drawn, so it comes from the secret too
        self.seed = derive(secret, "losses")
        self.skipped = 0
        self._secret, self._holds_for, self._void = secret, holds_for, void
        self._wanted, self._chosen = engine, chosen
        self._most = max(1, physical_batch // multiplicity)
        self._engine: Engine | None = None
        self._self_check: dict[str, Any] | None = None

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Any) -> nn.Module:
        """Every process keeps a whole model, and sums are reduced by hand before the noise."""
        self._accelerator, self._optimizer, self._model = accelerator, optimizer, model
        # on a GPU its 10 bits would let a clipped sum and the norms that it was clipped by differ by a thousandth
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._sums = {p: torch.zeros_like(p, dtype=torch.float32) for p in model.parameters() if p.requires_grad}
        return model

    def rehearse(self, size: int, losses: Losses) -> None:
        """Check and choose the engine, and attach it."""
        first = self._first_choice()
        precision = torch.bfloat16 if self._accelerator.mixed_precision == "bf16" else torch.float32
        self._engine, record = choose(
            self._wanted if first is None else str(first["engine"]),
            self._model,
            losses,
            min(size, self._most),
            multiplicity=self.multiplicity,
            precision=precision,
            accelerator=self._accelerator,
        )
        self._accelerator.wait_for_everyone()  # until all have looked whether there was a choice
        if first is None and self._chosen is not None and self._accelerator.is_main_process:
            write_json(self._chosen, record)
        self._self_check = first or record

    def positions(self, step: int) -> np.ndarray:
        """The step's Poisson batch, drawn by every process alike from the common secret; it may be empty."""
        return self.plan.batch(self._secret, step)

    def update(self, step: int, size: int, losses: Losses) -> float:
        """One noisy step; an empty batch is a step of noise alone, and counts."""
        total = self.sum_clipped(size, losses)
        # the same draw on every process: one noise of the right scale, and equal weights everywhere
        generator = torch_stream(self._secret, "noise", step, device=self._accelerator.device)
        for parameter, clipped in self._sums.items():
            noise = torch.randn(clipped.shape, generator=generator, device=clipped.device)
            noisy = clipped.add_(noise, alpha=self.plan.noise_multiplier * self.plan.clip)
            parameter.grad = (noisy / self.plan.expected_batch).to(parameter.dtype)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total / self.plan.expected_batch

    def finish(self) -> dict[str, Any] | None:
        """Detach the engine; the statement."""
        if self._engine is not None:
            self._engine.detach()
        if self._self_check is None:  # no step was left to a resumed run
            self._self_check = self._first_choice()
        statement = self.plan.spent(holds_for=self._holds_for, void=self._void)
        skipped = self._accelerator.reduce(torch.tensor(self.skipped, device=self._accelerator.device), "sum")
        return {
            **statement.as_json(),
            "examples_without_finite_gradient": int(skipped),
            "self_check": self._self_check,
        }

    def sum_clipped(self, size: int, losses: Losses) -> float:
        """Leave all processes' clipped gradients, summed, in ``_sums``; returns the sum of this process's losses."""
        assert self._engine is not None, "rehearse() chooses the engine"
        total = 0.0
        for clipped in self._sums.values():
            clipped.zero_()
        process, processes = self._accelerator.process_index, self._accelerator.num_processes
        for slots in shares(size, process, processes, self._most):
            if len(slots) == 0:
                continue  # diffusers' attention cannot reshape an empty batch
            done = self._engine.clip(losses, slots, self.plan.clip, self._add)
            self.skipped += int((~done.norms.isfinite()).sum())
            total += float(done.losses.nan_to_num().sum())
        for parameter, clipped in self._sums.items():
            self._sums[parameter] = self._accelerator.reduce(clipped, "sum")
        return total

    def _first_choice(self) -> dict[str, Any] | None:
        """The record of the check before the very first step, which names the engine; None before it."""
        if self._chosen is None or not self._chosen.exists():
            return None
        record: dict[str, Any] = read_json(self._chosen)
        return record

    def _add(self, parameter: nn.Parameter, part: Tensor) -> None:
        """Add a clipped sum of some examples."""
        self._sums[parameter] += part.view_as(parameter)
