"""Class names to class numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def number(classes: Sequence[str | int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """int64 [n] labels of n images, and the names of the classes that occur: numbers in order, then words."""
    names = sorted({str(name) for name in classes}, key=_order)
    where = {name: label for label, name in enumerate(names)}
    return np.array([where[str(name)] for name in classes], dtype=np.int64), tuple(names)


def _order(name: str) -> tuple[bool, int, str]:
    """10 after 9, and both before "cat"."""
    return (False, int(name), name) if name.isdecimal() else (True, 0, name)
