"""Randomness as a function of position: ``stream(seed, *names)`` is the same wherever it is asked for.

Nothing here has state, so a resumed run draws what an unbroken one would have drawn.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the place ``names`` under ``seed`` (SHA-256, so that near names give far seeds)."""
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for a place.

    >>> bool(stream(0, "split").integers(1 << 30) == stream(0, "split").integers(1 << 30))
    True
    >>> bool(stream(0, "split").integers(1 << 30) == stream(0, "noise").integers(1 << 30))
    False
    """
    return np.random.default_rng(derive(seed, *names))


def torch_stream(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for a place; reproducible on one kind of device, not across kinds."""
    import torch

    return torch.Generator(device).manual_seed(derive(seed, *names))


def uniform_of(seed: int, name: str, *, salt: str) -> float:
    """A number in [0, 1) that depends on ``name`` alone: draws by identity, whatever the order of a list."""
    return derive(seed, salt, name) / float(1 << 63)
