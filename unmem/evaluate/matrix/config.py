"""What a recipe may say about how models are asked."""

from __future__ import annotations

from typing import Literal

from unmem.component import NonNegative, Positive, component


@component
class Matrix:
    """How the network is asked.

    Attributes:
        batch: images at once; results depend on it by the order of float sums alone.
        precision: ``no`` is float32; the others through autocast.
        generated: how many of the model's own samples are scored as a control, at most.
    """

    batch: Positive = 256
    precision: Literal["no", "bf16", "fp16"] = "no"
    generated: NonNegative = 512
