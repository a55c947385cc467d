"""The private step: Opacus's per-example gradients and clipping, on our batches and our noise streams.

Opacus 1.6's own loop would share its generator with the rest of the program, crash on an empty Poisson batch, let one
NaN example poison the weights, and compute wrong convolution gradients on channels-last input, which diffusers'
attention blocks produce; each is mended here, in a line or two.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from unmem.mitigations.dp.plan import DPPlan
from unmem.rng import derive, torch_stream
from unmem.train.update import Losses, shares


def _contiguous_first(sampler: Any) -> Any:
    """Opacus's unfold reads memory as if it were contiguous; make it so."""
    return lambda layer, inputs, gradients: sampler(layer, [inputs[0].contiguous()], gradients.contiguous())


class Hooks(GradSampleHooks):  # type: ignore[misc]
    """Opacus's per-example gradient hooks, right for any memory format."""

    GRAD_SAMPLERS = {  # noqa: RUF012 (Opacus's own attribute)
        kind: _contiguous_first(sampler) if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) else sampler
        for kind, sampler in GradSampleHooks.GRAD_SAMPLERS.items()
    }


class PrivateUpdate:
    """An :class:`~unmem.train.update.UpdateRule`: Poisson batch, clip, sum, noise, step."""

    def __init__(
        self, plan: DPPlan, *, secret: int, lr: float, physical_batch: int, holds_for: str, void: str | None = None
    ) -> None:
        """Args: the plan, the secret of its randomness, rate and memory bound, and what the statement says besides."""
        self.plan, self.lr, self._secret = plan, lr, secret
        self._holds_for, self._void = holds_for, void
        self.steps, self.batch = plan.steps, plan.expected_batch
        # A loss's noise must not tell which other images were drawn, so it comes from the secret too
        self.seed = derive(secret, "losses")
        self._physical_batch, self.multiplicity = physical_batch, 1
        self.skipped = 0

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Any) -> nn.Module:
        """Attach the hooks; every process keeps a whole model, and sums are reduced by hand before the noise."""
        self._accelerator = accelerator
        self._hooks = Hooks(model, loss_reduction="sum")
        self._optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=self.plan.noise_multiplier,
            max_grad_norm=self.plan.clip,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        return model

    def rehearse(self, size: int, losses: Losses) -> None:
        """Nothing to try."""

    def positions(self, step: int) -> np.ndarray:
        """The step's Poisson batch, drawn by every process alike from the common secret; it may be empty."""
        return self.plan.batch(self._secret, step)

    def update(self, step: int, size: int, losses: Losses) -> float:
        """One noisy step; an empty batch is a step of noise alone, and counts."""
        total = self._sum_clipped(size, losses)
        for parameter in self._optimizer.params:
            parameter.summed_grad = self._accelerator.reduce(parameter.summed_grad, "sum")
        # the same draw on every process: one noise of the right scale, and equal weights everywhere
        self._optimizer.generator = torch_stream(self._secret, "noise", step, device=self._accelerator.device)
        self._optimizer.add_noise()
        for parameter in self._optimizer.params:
            parameter.grad /= self.plan.expected_batch
        self._optimizer.original_optimizer.step()
        self._optimizer.zero_grad()
        return total / self.plan.expected_batch

    def finish(self) -> dict[str, Any] | None:
        """Detach the hooks; the statement."""
        self._hooks.cleanup()
        statement = self.plan.spent(holds_for=self._holds_for, void=self._void)
        skipped = self._accelerator.reduce(torch.tensor(self.skipped, device=self._accelerator.device), "sum")
        return {**statement.as_json(), "examples_without_finite_gradient": int(skipped)}

    def _sum_clipped(self, size: int, losses: Losses) -> float:
        """Sum this process's clipped gradients into ``summed_grad``; returns the sum of its losses."""
        total = 0.0
        for parameter in self._optimizer.params:
            parameter.summed_grad = torch.zeros_like(parameter)
        process, processes = self._accelerator.process_index, self._accelerator.num_processes
        for slots in shares(size, process, processes, self._physical_batch):
            if len(slots) == 0:
                continue  # diffusers' attention cannot reshape an empty batch
            each = losses(slots)
            with warnings.catch_warnings():  # images need no gradient; torch remarks on that at every hook
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                each.sum().backward()
            self.skipped += self._zero_non_finite()
            self._optimizer.clip_and_accumulate()
            for parameter in self._optimizer.params:
                parameter.grad_sample = None
            total += float(each.detach().nan_to_num().sum())
        return total

    def _zero_non_finite(self) -> int:
        """Give an example whose gradient is not finite no part in the sum; norms are taken in float32."""
        gradients: list[Tensor] = [parameter.grad_sample.float() for parameter in self._optimizer.params]
        # a sum is finite only if its terms are, and takes one pass where isfinite takes five
        bad = ~torch.stack([g.flatten(1).sum(1) for g in gradients]).isfinite().all(0)
        for parameter, gradient in zip(self._optimizer.params, gradients, strict=True):
            parameter.grad_sample = gradient
            if bad.any():
                gradient[bad] = 0
        return int(bad.sum())
