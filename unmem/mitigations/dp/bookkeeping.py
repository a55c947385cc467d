"""Clipped sums in one backward pass (book-keeping; Bu et al. 2023, arXiv 2210.00038), whatever the number of draws.

Trainable layers run through a function of our own, whose backward pass hands on the gradient at the input and keeps
what the weights' gradients need. When it has come through the whole network every example's norm is known, and each
layer's clipped sum is one weighted contraction: no gradient is formed by example where a norm is cheaper, and none
twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmem.mitigations.dp.engine import Add, Clipped, Unsupported, clip_factors
from unmem.mitigations.dp.layers import Findings, Gradients, Tap, squared, tap_for
from unmem.train.update import Losses


class Bookkeeping:
    """An :class:`~unmem.mitigations.dp.engine.Engine` for convolutions, linear, norm and embedding layers."""

    name = "bookkeeping"

    def __init__(self, model: nn.Module, multiplicity: int) -> None:
        """Args: the model, and how many rows an example has.

        Raises:
            Unsupported: naming the first trainable parameter that stands in another kind of layer, or in two.
        """
        self._taps = _taps(model)
        self._examples = 0
        self._found: dict[Tap, Findings] = {}
        device = next(model.parameters()).device
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        for tap in self._taps:
            tap.layer.forward = partial(self._run, tap)

    def detach(self) -> None:
        """Give the layers their own forward back."""
        for tap in self._taps:
            del tap.layer.forward

    def clip(self, losses: Losses, slots: np.ndarray, bound: float, add: Add) -> Clipped:
        """See :class:`~unmem.mitigations.dp.engine.Engine`."""
        self._examples, self._found = len(slots), {}
        each = losses(slots)
        each.sum().backward()
        with torch.no_grad():
            norms = torch.stack([found.squared for found in self._found.values()]).sum(0).sqrt()
            factors, bad = clip_factors(norms, bound)
            while self._found:
                self._sum(*self._found.popitem(), factors, bad, add)
        self._examples = 0
        return Clipped(each.detach(), norms)

    def _sum(self, tap: Tap, found: Findings, factors: Tensor, bad: Tensor | None, add: Add) -> None:
        """Hand over a layer's clipped sums."""
        if bad is not None:
            _silence(found, bad)
        for parameter, gradient in found.kept.items():
            add(parameter, torch.tensordot(factors, gradient, 1))
        if found.ghost is not None:
            x, g = found.ghost
            rows = factors.repeat_interleave(len(g) // len(factors)).view(-1, *[1] * (g.dim() - 1))
            add(tap.layer.weight, tap.weight_gradient(x, g * rows))

    def _run(self, tap: Tap, x: Tensor) -> Any:
        """A tapped layer's forward pass."""
        if self._examples == 0 or not torch.is_grad_enabled():
            return type(tap.layer).forward(tap.layer, x)
        return _Tapped.apply(x, self._anchor, tap, self._note)

    def _note(self, tap: Tap, x: Tensor, g: Tensor, *extra: Tensor) -> None:
        """Keep what one use of a layer gave; a layer that is used again gives the sum."""
        n = self._examples
        x, g = (x.float() if x.is_floating_point() else x), g.float()
        if (earlier := self._found.get(tap)) is None:
            self._found[tap] = tap.findings(x, g, n, *extra)
            return
        total: Gradients = tap.gradients(x, g, n, *extra)
        before = earlier.kept if earlier.ghost is None else tap.gradients(*earlier.ghost, n)
        total = {parameter: gradient + before[parameter] for parameter, gradient in total.items()}
        self._found[tap] = Findings(squared(total, n, g.device), total)


class _Tapped(torch.autograd.Function):
    """A layer without weight gradients; ``anchor`` makes it part of the graph even where its input has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, tap: Tap, note: Callable[..., None]) -> Tensor:
        output, *extra = tap.forward(x)
        ctx.save_for_backward(x, *extra)
        ctx.tap, ctx.note = tap, note
        return output

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, *extra = ctx.saved_tensors
        ctx.note(ctx.tap, x, g, *extra)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        return ctx.tap.input_gradient(x.to(g.dtype), g, *extra), None, None, None


def _taps(model: nn.Module) -> list[Tap]:
    """A tap for each layer with trainable parameters."""
    taps: list[Tap] = []
    owner: dict[nn.Parameter, str] = {}
    for name, layer in model.named_modules():
        own = [(f"{name}.{key}", p) for key, p in layer.named_parameters(recurse=False) if p.requires_grad]
        if not own:
            continue
        if (tap := tap_for(layer)) is None:
            raise Unsupported(f"{own[0][0]} stands in a {type(layer).__name__}, which has no tap")
        for path, parameter in own:
            if parameter in owner:
                raise Unsupported(f"{path} is {owner[parameter]} again")
            owner[parameter] = path
        taps.append(tap)
    return taps


def _silence(found: Findings, bad: Tensor) -> None:
    """Take the rows of these examples out, so that no NaN times zero enters a sum."""
    for gradient in found.kept.values():
        gradient[bad] = 0
    if found.ghost is not None:
        x, g = (part.clone() for part in found.ghost)
        rows = bad.repeat_interleave(len(g) // len(bad))
        x[rows], g[rows] = 0, 0
        found.ghost = x, g
