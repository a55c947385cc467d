"""Layer by layer: each example's gradient, or its norm alone, from a layer's input and the gradient at its output.

With a the input and g the gradient at the output, an example's weight gradient is G = sum_t g_t a_t^T over its
positions t. Its norm can be had without it (the ghost norm; Li et al. 2022, arXiv 2110.05679):
||G||^2 = sum_{t,t'} (a_t . a_t') (g_t . g_t'). Each layer takes what is cheaper at its size (Bu et al. 2022, arXiv
2205.10683), with two additions. The Gram matrix of a convolution's patches is summed from shifted windows of the Gram
matrix of its pixels, so that no patch is ever unfolded. And an example's K draws are K times the positions of one
example, so that no gradient is held by draw.

Rows of examples stand one after the other everywhere: row r belongs to example r // K.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOPS_A_FLOAT = 100  # multiply-adds in the time that moving one float of a gradient to or from memory takes
SLACK = 2.0**-20  # what rounding may take from a ghost norm, of the largest value that its terms can have together

Gradients = dict[nn.Parameter, Tensor]
"""By parameter: one gradient an example, float32 [examples, *parameter.shape]."""


@dataclass
class Findings:
    """What one use of a layer gave.

    Attributes:
        squared: float32 [examples], the squared norm of an example's gradients of this layer.
        kept: the gradients that were formed.
        ghost: input and output gradient of the layer, where its weight's gradients were not formed.
    """

    squared: Tensor
    kept: Gradients
    ghost: tuple[Tensor, Tensor] | None = None


class Tap(ABC):
    """One layer: how it runs, and what it gives by example. ``extra`` is what ``forward`` returned after the output."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    @classmethod
    @abstractmethod
    def fits(cls, layer: nn.Module) -> bool:
        """Whether this kind of tap is right for the layer."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The output, and what the gradients need besides the input."""

    @abstractmethod
    def gradients(self, x: Tensor, g: Tensor, examples: int, *extra: Tensor) -> Gradients:
        """Every trainable parameter's gradient by example, in float32 where ``x`` and ``g`` are."""

    def input_gradient(self, x: Tensor, g: Tensor, *extra: Tensor) -> Tensor:
        """The gradient at the input; kinds without it take integers, of which none is asked."""
        raise AssertionError(f"{type(self).__name__} has no gradient at its input")

    def weight_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        """The weight's gradient, summed over all rows; kinds without it have no ghost norm, after which it is asked."""
        raise AssertionError(f"{type(self).__name__} forms all its gradients by example")

    def ghost_norm(self, x: Tensor, g: Tensor, examples: int) -> Tensor | None:
        """The squared norms [examples] of the weight's gradients without them; None where forming them is cheaper."""
        return None

    def bias_gradients(self, g: Tensor, examples: int) -> Gradients:
        """The part of ``gradients`` that costs nothing."""
        return {}

    def findings(self, x: Tensor, g: Tensor, examples: int, *extra: Tensor) -> Findings:
        """Norms by whichever way is cheaper."""
        norms = self.ghost_norm(x, g, examples) if self.layer.weight.requires_grad else None
        if norms is None:
            kept = self.gradients(x, g, examples, *extra)
            return Findings(squared(kept, examples, g.device), kept)
        kept = self.bias_gradients(g, examples)
        return Findings(squared(kept, examples, g.device) + norms, kept, (x, g))


class LinearTap(Tap):
    """nn.Linear on [rows, ..., features]."""

    @classmethod
    def fits(cls, layer: nn.Module) -> bool:
        return type(layer) is nn.Linear

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (F.linear(x, self.layer.weight, self.layer.bias),)

    def input_gradient(self, x: Tensor, g: Tensor, *extra: Tensor) -> Tensor:
        return torch.matmul(g, self.layer.weight.to(g.dtype))

    def gradients(self, x: Tensor, g: Tensor, examples: int, *extra: Tensor) -> Gradients:
        found = self.bias_gradients(g, examples)
        if self.layer.weight.requires_grad:
            found[self.layer.weight] = by_example(g, examples).transpose(1, 2) @ by_example(x, examples)
        return found

    def ghost_norm(self, x: Tensor, g: Tensor, examples: int) -> Tensor | None:
        a, b = by_example(x, examples), by_example(g, examples)
        if not ghost_pays(a.shape[1], a.shape[1], 1, a.shape[2], b.shape[2]):
            return None
        return joined(a @ a.transpose(1, 2), b @ b.transpose(1, 2))

    def bias_gradients(self, g: Tensor, examples: int) -> Gradients:
        return {self.layer.bias: by_example(g, examples).sum(1)} if trainable(self.layer.bias) else {}

    def weight_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return g.flatten(0, -2).T @ x.flatten(0, -2)


class ConvTap(Tap):
    """nn.Conv1d or nn.Conv2d with zero padding, of any stride, dilation, grouping and memory format."""

    @classmethod
    def fits(cls, layer: nn.Module) -> bool:
        return (
            isinstance(layer, (nn.Conv1d, nn.Conv2d))
            and type(layer) in (nn.Conv1d, nn.Conv2d)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        convolve = F.conv1d if isinstance(self.layer, nn.Conv1d) else F.conv2d
        return (convolve(x, self.layer.weight, self.layer.bias, *self._geometry, self.layer.groups),)

    def input_gradient(self, x: Tensor, g: Tensor, *extra: Tensor) -> Tensor:
        return self._backward(x, g, 0)

    def gradients(self, x: Tensor, g: Tensor, examples: int, *extra: Tensor) -> Gradients:
        found = self.bias_gradients(g, examples)
        if self.layer.weight.requires_grad:
            found[self.layer.weight] = self._backward(x, g, 1, examples).view(examples, *self.layer.weight.shape)
        return found

    def ghost_norm(self, x: Tensor, g: Tensor, examples: int) -> Tensor | None:
        draws, kernel = len(x) // examples, self.layer.kernel_size
        padded = math.prod(size + 2 * pad for size, pad in zip(x.shape[2:], self.layer.padding, strict=True))
        positions = draws * padded, draws * math.prod(g.shape[2:])
        if self.layer.groups > 1 or not ghost_pays(*positions, math.prod(kernel), x.shape[1], g.shape[1]):
            return None
        b = by_channel(g, examples)
        return joined(self._patch_gram(x, g.shape[2:], examples), b.transpose(1, 2) @ b)

    def bias_gradients(self, g: Tensor, examples: int) -> Gradients:
        if not trainable(self.layer.bias):
            return {}
        return {self.layer.bias: g.flatten(2).sum(2).view(examples, -1, g.shape[1]).sum(1)}

    def weight_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return self._backward(x, g, 1)

    @property
    def _geometry(self) -> tuple[Any, Any, Any]:
        return self.layer.stride, self.layer.padding, self.layer.dilation

    def _backward(self, x: Tensor, g: Tensor, which: int, examples: int = 1) -> Tensor:
        """The gradient at the input (0) or at the weight (1), by torch's own kernel.

        Weight gradients by example are those of one convolution whose channels are the examples', side by side, and
        whose groups keep them apart; its rows are an example's draws.
        """
        mask, weight = [which == 0, which == 1, False], self.layer.weight.to(g.dtype)
        if examples > 1:
            x, g = (side_by_side(part, examples) for part in (x, g))
            weight = weight.new_empty((examples * weight.shape[0], *weight.shape[1:]))  # only its shape is read
        groups, nothing = examples * self.layer.groups, [0] * (g.dim() - 2)
        found: Tensor = torch.ops.aten.convolution_backward(
            g, x, weight, None, *self._geometry, False, nothing, groups, mask
        )[which]
        return found

    def _patch_gram(self, x: Tensor, out: torch.Size, examples: int) -> Tensor:
        """The Gram matrix [examples, K T, K T] of the patches that the kernel sees."""
        padded = F.pad(x, [pad for size in reversed(self.layer.padding) for pad in (size, size)])
        pixels, draws = by_channel(padded, examples), len(x) // examples
        gram = (pixels.transpose(1, 2) @ pixels).view(examples, draws, *padded.shape[2:], draws, *padded.shape[2:])
        total = gram.new_zeros((examples, draws, *out, draws, *out))
        every = slice(None)
        for shift in itertools.product(*map(range, self.layer.kernel_size)):
            sides = zip(shift, self.layer.dilation, self.layer.stride, out, strict=True)
            window = tuple(slice(s * d, s * d + stride * (size - 1) + 1, stride) for s, d, stride, size in sides)
            total += gram[(every, every, *window, every, *window)]
        return total.view(examples, draws * out.numel(), draws * out.numel())


class NormTap(Tap):
    """nn.GroupNorm and nn.LayerNorm with their affine parameters: gradients by example are two sums."""

    @classmethod
    def fits(cls, layer: nn.Module) -> bool:
        return type(layer) in (nn.GroupNorm, nn.LayerNorm) and layer.weight is not None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x.float() if torch.is_autocast_enabled(x.device.type) else x
        if isinstance(self.layer, nn.LayerNorm):
            shape, layer = list(self.layer.normalized_shape), self.layer
            return tuple(torch.native_layer_norm(x, shape, layer.weight, layer.bias, layer.eps))
        return tuple(torch.native_group_norm(x.contiguous(), *self._affine, *self._sizes(x), self.layer.eps))

    def input_gradient(self, x: Tensor, g: Tensor, *extra: Tensor) -> Tensor:
        mask = [True, False, False]
        if isinstance(self.layer, nn.LayerNorm):
            shape = list(self.layer.normalized_shape)
            found = torch.ops.aten.native_layer_norm_backward(g, x, shape, *extra, *self._affine, mask)
        else:
            inputs = g.contiguous(), x.contiguous(), *extra, self.layer.weight, *self._sizes(x)
            found = torch.ops.aten.native_group_norm_backward(*inputs, mask)
        at_input: Tensor = found[0]
        return at_input

    def gradients(self, x: Tensor, g: Tensor, examples: int, *extra: Tensor) -> Gradients:
        if isinstance(self.layer, nn.LayerNorm):
            mean, scale = extra
            sums = [((x - mean) * scale * g), g]
            sums = [part.reshape(examples, -1, *self.layer.weight.shape).sum(1) for part in sums]
        else:
            mean, scale = (part.repeat_interleave(x.shape[1] // self.layer.num_groups, 1) for part in extra)
            at, along = g.flatten(2).sum(2), (g * x).flatten(2).sum(2)
            sums = [((along - at * mean) * scale), at]
            sums = [part.view(examples, -1, x.shape[1]).sum(1) for part in sums]
        return {p: part for p, part in zip(self._affine, sums, strict=True) if trainable(p)}

    @property
    def _affine(self) -> tuple[Any, Any]:
        return self.layer.weight, self.layer.bias

    def _sizes(self, x: Tensor) -> tuple[int, int, int, int]:
        return x.shape[0], x.shape[1], math.prod(x.shape[2:]), self.layer.num_groups


class EmbeddingTap(Tap):
    """nn.Embedding on integers [rows, ...]: equal indices share a row of the weight."""

    @classmethod
    def fits(cls, layer: nn.Module) -> bool:
        return type(layer) is nn.Embedding and layer.max_norm is None and not layer.scale_grad_by_freq

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (F.embedding(x, self.layer.weight, self.layer.padding_idx),)

    def gradients(self, x: Tensor, g: Tensor, examples: int, *extra: Tensor) -> Gradients:
        each = g.new_zeros((examples, *self.layer.weight.shape))
        rows = torch.arange(examples, device=x.device).repeat_interleave(x.numel() // examples)
        each.index_put_((rows, x.flatten()), self._counted(x, g), accumulate=True)
        return {self.layer.weight: each}

    def ghost_norm(self, x: Tensor, g: Tensor, examples: int) -> Tensor | None:
        indices, b = x.view(examples, -1), self._counted(x, g).view(examples, -1, g.shape[-1])
        return joined((indices.unsqueeze(2) == indices.unsqueeze(1)).to(b.dtype), b @ b.transpose(1, 2))

    def weight_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return torch.zeros_like(self.layer.weight).index_add_(0, x.flatten(), self._counted(x, g))

    def _counted(self, x: Tensor, g: Tensor) -> Tensor:
        """The output's gradient [positions, features], none where the padding index stands."""
        if self.layer.padding_idx is not None:
            g = g * (x != self.layer.padding_idx).unsqueeze(-1)
        return g.flatten(0, -2)


TAPS: tuple[type[Tap], ...] = (LinearTap, ConvTap, NormTap, EmbeddingTap)


def tap_for(layer: nn.Module) -> Tap | None:
    """The tap of a layer; None where there is none for its kind."""
    return next((kind(layer) for kind in TAPS if kind.fits(layer)), None)


def squared(gradients: Gradients, examples: int, device: torch.device) -> Tensor:
    """Squared norms [examples] over all of an example's gradients."""
    total = torch.zeros(examples, device=device)
    for gradient in gradients.values():
        flat = gradient.flatten(1)
        total = total + torch.linalg.vecdot(flat, flat)
    return total


def ghost_pays(positions_in: int, positions_out: int, shifts: int, c_in: int, c_out: int) -> bool:
    """Whether two Gram matrices cost less than to write an example's gradient once and read it twice."""
    products = positions_in**2 * c_in + positions_out**2 * c_out
    moved = positions_in**2 + (2 + 2 * shifts) * positions_out**2
    return products + moved * FLOPS_A_FLOAT < 3 * c_in * c_out * shifts * FLOPS_A_FLOAT


def joined(gram_a: Tensor, gram_g: Tensor) -> Tensor:
    """The ghost norm [examples], with a margin for what rounding may have taken away.

    The terms may cancel, and rounding acts on what they were before: on (sum_t |a_t||g_t|)^2, which the product of the
    traces bounds.
    """
    found = (gram_a * gram_g).flatten(1).sum(1)
    a, g = (gram.diagonal(dim1=1, dim2=2).sum(1) for gram in (gram_a, gram_g))
    return found.clamp(min=0) + SLACK * a * g


def by_example(x: Tensor, examples: int) -> Tensor:
    """[rows, ..., features] -> [examples, positions, features]."""
    return x.reshape(examples, -1, x.shape[-1])


def by_channel(x: Tensor, examples: int) -> Tensor:
    """[rows, channels, ...] -> [examples, channels, positions]."""
    return x.reshape(examples, -1, x.shape[1], math.prod(x.shape[2:])).transpose(1, 2).flatten(2)


def side_by_side(x: Tensor, examples: int) -> Tensor:
    """[rows, channels, ...] -> [draws, examples channels, ...]."""
    return x.reshape(examples, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)


def trainable(parameter: nn.Parameter | None) -> bool:
    """Whether there is one, and it is trained."""
    return parameter is not None and parameter.requires_grad
