"""Smaller images."""

from __future__ import annotations

import numpy as np

CHUNK = 4096  # images at once


def reduced(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [n, h, w, c] -> uint8 [n, size, size, c], each pixel the mean over its area; ``size`` at most h and w."""
    import torch

    parts = []
    for start in range(0, len(images), CHUNK):
        x = torch.from_numpy(images[start : start + CHUNK].astype(np.float32)).permute(0, 3, 1, 2)
        mean = torch.nn.functional.interpolate(x, size=(size, size), mode="area")
        parts.append(mean.round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.ascontiguousarray(np.concatenate(parts))
