"""Before the first private step: an engine's clipped sum on the user's own model, against one example at a time.

All engines make assumptions about layers, shapes, memory formats and precision, and a wrong one is silent: training
goes on, with gradients or norms that are not those of the examples. So they are tried, on made-up images, and on
convolution weights that are stored channels-last too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmem.component import UserError
from unmem.mitigations.dp.engine import Engine
from unmem.train.update import Losses

EXAMPLES = 3
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float64: 1e-6}
FLOOR = 0.01  # of the whole gradient, added to what a layer's error is measured against: some are zero but for rounding

Build = Callable[[nn.Module, int], Engine]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        memory_format: of the model's weights.
        norm_error: largest relative error of an example's gradient norm.
        sum_error: largest relative error of a parameter's clipped sum.
        layer: the parameter with that error.
        passed: whether both are within the tolerance of the precision.
    """

    memory_format: str
    norm_error: float
    sum_error: float
    layer: str
    passed: bool


class Reference:
    """Every example's gradient by itself, in each memory format: the slow and certain way."""

    def __init__(self, model: nn.Module, losses: Losses, size: int, precision: torch.dtype = torch.float32) -> None:
        """Args: a model without an engine, losses of at least one made-up image, and the precision of the forward pass.

        Raises:
            UserError: for layers that mix the images of a batch.
        """
        refuse_coupling(model)
        self._model, self._losses, self._precision = model, losses, precision
        self._slots = np.arange(min(EXAMPLES, size))
        self._expected = {}
        for name in FORMATS:
            with _tried(model, name):
                self._expected[name] = [self._one(int(i)) for i in self._slots]

    @property
    def unused(self) -> list[str]:
        """Trainable parameters that no loss depends on."""
        used = {name for each in self._expected.values() for gradients in each for name in gradients}
        return [name for name, p in self._model.named_parameters() if p.requires_grad and name not in used]

    def check(self, build: Build, multiplicity: int) -> list[Case]:
        """Try an engine; it is taken off the model again.

        Raises:
            Unsupported: when the engine cannot take the model.
        """
        cases = []
        engine = build(self._model, multiplicity)
        try:
            for name, expected in self._expected.items():
                with _tried(self._model, name):
                    cases.append(self._compare(engine, name, expected))
        finally:
            engine.detach()
            self._model.zero_grad()
        return cases

    def _one(self, slot: int) -> dict[str, Tensor]:
        """One example's gradient by parameter, from an ordinary backward pass."""
        self._model.zero_grad()
        self._losses(np.array([slot])).sum().backward()
        found = {n: p.grad.double() for n, p in self._model.named_parameters() if p.grad is not None}
        self._model.zero_grad()
        return found

    def _compare(self, engine: Engine, name: str, expected: list[dict[str, Tensor]]) -> Case:
        """The engine's norms and clipped sums against the reference's, with a bound that clips some examples."""
        norms = torch.stack([_norm(gradients.values()) for gradients in expected])
        bound = float(norms.median()) * 0.75
        sums = {p: torch.zeros_like(p, dtype=torch.float64) for p in self._model.parameters() if p.requires_grad}

        def add(parameter: nn.Parameter, part: Tensor) -> None:
            sums[parameter] += part.view_as(parameter)

        clipped = engine.clip(self._losses, self._slots, bound, add)
        norm_error = float(((clipped.norms.double().to(norms.device) - norms) / norms).abs().max())
        errors, whole = {}, []
        for parameter, p in self._model.named_parameters():
            if p.requires_grad:
                right = torch.zeros_like(sums[p])
                for gradients, norm in zip(expected, norms, strict=True):
                    right += gradients.get(parameter, right.new_zeros(())) * min(1.0, bound / float(norm))
                errors[parameter] = (sums[p] - right).norm(), right.norm()
                whole.append(right.norm())
        tolerance = TOLERANCE[self._precision]
        floor = FLOOR * torch.stack(whole).norm()
        relative = {parameter: float(wrong / (right + floor)) for parameter, (wrong, right) in errors.items()}
        layer = max(relative, key=lambda parameter: _nan_last(relative[parameter]))
        passed = relative[layer] <= tolerance and norm_error <= tolerance
        return Case(name, norm_error, relative[layer], layer, passed)


def refuse_coupling(model: nn.Module) -> None:
    """Refuse layers that make one image's gradient depend on the other images.

    Raises:
        UserError: naming the layer and the reason.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"dp_sgd: {name} is a {type(layer).__name__}: it normalises by the other images of the batch, so that "
                "no gradient is that of one image; use group or layer normalisation"
            )
        if getattr(layer, "track_running_stats", False):
            raise UserError(f"dp_sgd: {name} keeps statistics of the training images without noise; switch that off")


def as_json(engine: str, cases: list[Case], precision: torch.dtype) -> dict[str, Any]:
    """The check as the privacy statement shows it."""
    worst = max(cases, key=lambda case: _nan_last(case.sum_error))
    return {
        "passed": all(case.passed for case in cases),
        "engine": engine,
        "precision": str(precision).removeprefix("torch."),
        "tolerance": TOLERANCE[precision],
        "cases": [asdict(case) for case in cases],
        "worst": {"layer": worst.layer, "error": worst.sum_error},
    }


def complaint(engine: str, cases: list[Case]) -> str:
    """What is wrong, in words, naming the layer."""
    worst = max(cases, key=lambda case: max(_nan_last(case.sum_error), _nan_last(case.norm_error)))
    return (
        f"{engine} gives wrong gradients by example on this model (weights {worst.memory_format}): {worst.layer} is "
        f"off by {worst.sum_error:.2g} of its size, norms by {worst.norm_error:.2g}; either this layer is not what the "
        "engine takes it for, or the loss mixes the images of a batch"
    )


@contextmanager
def _tried(model: nn.Module, memory_format: str) -> Iterator[None]:
    """The model as it is tried: no dropout, nothing exactly zero, weights in a memory format; then as it was."""
    weights = [(p, p.data) for p in model.parameters()]
    # layers without weights of their own: where dropout lives, be it of features or of labels
    resting = [m for m in model.modules() if m.training and next(m.parameters(recurse=False), None) is None]
    generator = torch.Generator().manual_seed(0)
    for p, data in weights:
        if p.requires_grad and not data.any():  # as LoRA's second factor: its partner would have no gradient to compare
            p.data = torch.randn(data.shape, generator=generator).mul(0.02).to(data)
    for layer in resting:
        layer.training = False
    model.to(memory_format=FORMATS[memory_format])
    try:
        yield
    finally:
        for p, data in weights:
            p.data = data
        for layer in resting:
            layer.training = True


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """The L2 norm of all of them together."""
    return torch.stack([torch.linalg.vector_norm(t) for t in tensors]).square().sum().sqrt()


def _nan_last(value: float) -> float:
    """NaN as the largest."""
    return value if value == value else float("inf")
