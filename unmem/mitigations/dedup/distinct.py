"""Equal rows: the exact stages, and what spares the searches from comparing equal things."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def first_equal(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """int64 [n]: the position of the first row that equals each row of ``words`` (uint64 [n, w])."""
    first = np.arange(len(words))
    if len(words) < 2:
        return first
    order = np.lexsort(words.T)  # stable: within equal rows, the first stays first
    ordered = words[order]
    starts = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)]))
    first[order] = np.repeat(order[starts], np.diff(np.append(starts, len(words))))
    return first


def number(first: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Number distinct rows in the order of their first appearance, so that rows added later change no number.

    Args:
        first: int64 [n], as :func:`first_equal` gives it.

    Returns:
        int64 [u], the positions of the distinct rows; int64 [n], each row's number among them.
    """
    is_first = first == np.arange(len(first))
    return np.flatnonzero(is_first), (np.cumsum(is_first) - 1)[first]
