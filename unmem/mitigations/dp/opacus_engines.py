"""Opacus's three ways to per-example gradients: the reference for our own, and the way for layers that it lacks.

Opacus 1.6 unfolds a convolution's input as if it were contiguous, and diffusers' attention blocks hand on channels-last
input: gradients are silently wrong there, and ghost clipping then exceeds its bound (docs/upstream/). The samplers are
guarded here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleHooks
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
from torch import Tensor, nn

from unmem.mitigations.dp.engine import Add, Clipped, Unsupported, clip_factors
from unmem.train.update import Losses


def _guarded(samplers: dict[type, Any]) -> dict[type, Any]:
    """Opacus's samplers, with contiguous convolution input."""

    def guard(sampler: Any) -> Any:
        return lambda layer, inputs, gradients: sampler(layer, [inputs[0].contiguous()], gradients.contiguous())

    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {kind: guard(sampler) if kind in convolutions else sampler for kind, sampler in samplers.items()}


class Hooks(GradSampleHooks):  # type: ignore[misc]
    """Opacus's per-example gradient hooks, right for any memory format."""

    GRAD_SAMPLERS = _guarded(GradSampleHooks.GRAD_SAMPLERS)


class GhostHooks(GradSampleHooksFastGradientClipping):  # type: ignore[misc]
    """Opacus's norm hooks, right for any memory format."""

    GRAD_SAMPLERS = _guarded(GradSampleHooksFastGradientClipping.GRAD_SAMPLERS)


class OpacusHooks:
    """An :class:`~unmem.mitigations.dp.engine.Engine` that forms every row's gradient of every parameter."""

    name = "opacus-hooks"
    force_functorch = False

    def __init__(self, model: nn.Module, multiplicity: int) -> None:
        """Args: the model, and how many rows an example has."""
        self._hooks = _attach(Hooks, model, force_functorch=self.force_functorch)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._multiplicity = multiplicity

    def clip(self, losses: Losses, slots: np.ndarray, bound: float, add: Add) -> Clipped:
        """See :class:`~unmem.mitigations.dp.engine.Engine`."""
        each = losses(slots)
        with _quiet():
            each.sum().backward()
        gradients = [self._by_example(p) for p in self._parameters]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        factors, bad = clip_factors(norms, bound)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if bad is not None:
                gradient[bad] = 0
            add(parameter, torch.tensordot(factors, gradient, 1))
        return Clipped(each.detach(), norms)

    def detach(self) -> None:
        """Remove the hooks."""
        self._hooks.cleanup()

    def _by_example(self, parameter: Any) -> Tensor:
        """The draws' gradients summed, float32 [examples, ...]; Opacus's own are let go."""
        if parameter.grad_sample is None:
            raise Unsupported(f"a parameter of shape {tuple(parameter.shape)} has no gradient: it is not used")
        rows: Tensor = parameter.grad_sample.float()
        parameter.grad_sample = parameter.grad = None
        if self._multiplicity == 1:
            return rows
        return rows.view(-1, self._multiplicity, *parameter.shape).sum(1)


class Functorch(OpacusHooks):
    """The same with torch.func for every layer: for any layer at all."""

    name = "functorch"
    force_functorch = True


class OpacusGhost:
    """An :class:`~unmem.mitigations.dp.engine.Engine` with norms first, and a second backward pass for the sum."""

    name = "opacus-ghost"

    def __init__(self, model: nn.Module, multiplicity: int) -> None:
        """Args: the model, and how many rows an example has.

        Raises:
            Unsupported: for several draws an image: the norms would be those of draws.
        """
        if multiplicity > 1:
            raise Unsupported("opacus-ghost takes the norms of rows, and cannot average an image's draws")
        self._hooks = _attach(GhostHooks, model)
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def clip(self, losses: Losses, slots: np.ndarray, bound: float, add: Add) -> Clipped:
        """See :class:`~unmem.mitigations.dp.engine.Engine`."""
        try:
            each = losses(slots)
            with _quiet():
                each.sum().backward(retain_graph=True)
            norms = self._hooks.get_norm_sample().float()
        except (NotImplementedError, AttributeError) as error:  # a layer used twice, or not at all
            raise Unsupported(str(error).split("\n")[0]) from None
        factors, bad = clip_factors(norms, bound)
        self._forget()
        self._hooks.disable_hooks()
        again = each if bad is None else losses(slots[~bad.cpu().numpy()])
        if len(again):
            with _quiet():
                (again * (factors if bad is None else factors[~bad])).sum().backward()
            for parameter in self._parameters:
                assert parameter.grad is not None
                add(parameter, parameter.grad.float())
        self._hooks.enable_hooks()
        self._forget()
        return Clipped(each.detach(), norms)

    def detach(self) -> None:
        """Remove the hooks."""
        self._hooks.cleanup()

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def _attach(kind: Any, model: nn.Module, **settings: Any) -> Any:
    """Opacus's hooks on a model; what it refuses, and what it would not notice, we name."""
    if any(getattr(layer, "gradient_checkpointing", False) for layer in model.modules()):
        raise Unsupported("Opacus's hooks do not take gradient checkpointing, which runs layers twice")
    try:
        return kind(model, loss_reduction="sum", **settings)
    except NotImplementedError as error:
        raise Unsupported(str(error).split("\n")[0]) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without remarks, at every hook, that images need no gradient, and that float32 is no precision to autocast to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        warnings.filterwarnings("ignore", message="In CPU autocast, but the target dtype")
        yield
