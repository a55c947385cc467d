"""Near-copies, as they come about in scraped data."""

from __future__ import annotations

import io
from typing import Literal, get_args

import numpy as np

Variant = Literal["exact", "reencoded", "shifted", "brightness", "mixed"]
_IN_TURN = tuple(variant for variant in get_args(Variant) if variant != "mixed")


def near_copy(image: np.ndarray, variant: Variant, k: int, rng: np.random.Generator) -> np.ndarray:
    """The k-th near-copy of an image.

    Args:
        image: uint8 [h, w, c].
        variant: ``exact``; ``reencoded`` (JPEG, quality 50 to 90); ``shifted`` (by a sixteenth of each side, at least
            one pixel, edges repeated); ``brightness`` (times 0.8 to 1.2); ``mixed``: these four in turn, by ``k``.
        k: the copy's number.
        rng: randomness of quality, direction and factor.

    Returns:
        uint8 [h, w, c].
    """
    if variant == "mixed":
        variant = _IN_TURN[k % len(_IN_TURN)]
    if variant == "reencoded":
        return _reencoded(image, quality=int(rng.integers(50, 91)))
    if variant == "shifted":
        return _shifted(image, rng.choice([-1, 1], size=2))
    if variant == "brightness":
        return np.clip(np.round(image * rng.uniform(0.8, 1.2)), 0, 255).astype(np.uint8)
    return image.copy()


def _reencoded(image: np.ndarray, quality: int) -> np.ndarray:
    """Through JPEG and back."""
    from PIL import Image

    grey = image.shape[2] == 1
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if grey else image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).reshape(image.shape)


def _shifted(image: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Moved along both axes, edges repeated."""
    height, width = image.shape[:2]
    down, right = max(1, height // 16) * int(direction[0]), max(1, width // 16) * int(direction[1])
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return np.asarray(image[rows][:, columns])
