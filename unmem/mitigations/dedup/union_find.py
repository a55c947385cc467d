"""Connected components from edges that arrive a batch at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit


class UnionFind:
    """Components of a graph on ``n`` nodes, in 8 bytes a node; edges come in batches and are not kept.

    A component's root is its smallest member, so the labels do not depend on the order of the edges. Trees are
    flattened by path halving (Tarjan and van Leeuwen 1984).
    """

    def __init__(self, n: int) -> None:
        if n < 0:
            raise ValueError(f"n must be at least 0, got {n}")
        self._parent = np.arange(n, dtype=np.int64)

    def add(self, edges: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Join the two ends of each edge, in the order given.

        Args:
            edges: int64 [m, 2], nodes from 0 to n - 1.

        Returns:
            bool [m]: whether the edge joined two components. Over all batches, those edges are a spanning forest.

        Raises:
            ValueError: the edges have another type or shape, or name a node that is not there.
        """
        if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype != np.int64:
            raise ValueError(f"edges must be int64 [m, 2], got {list(edges.shape)} of {edges.dtype}")
        n = len(self._parent)
        if len(edges) and not 0 <= (least := int(edges.min())) <= (most := int(edges.max())) < n:
            raise ValueError(f"edges must name nodes from 0 to {n - 1}, got {least if least < 0 else most}")
        joined = np.empty(len(edges), np.bool_)
        _join(self._parent, edges, joined)
        return joined

    def labels(self) -> npt.NDArray[np.int64]:
        """int64 [n]: the smallest member of each node's component."""
        _flatten(self._parent)
        return self._parent.copy()


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _root(parent: npt.NDArray[np.int64], node: int) -> int:
    """The root above a node, halving the path to it."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _join(parent: npt.NDArray[np.int64], edges: npt.NDArray[np.int64], joined: npt.NDArray[np.bool_]) -> None:
    """Hang the larger root of each edge below the smaller."""
    for edge in range(len(edges)):
        left, right = _root(parent, edges[edge, 0]), _root(parent, edges[edge, 1])
        joined[edge] = left != right
        parent[max(left, right)] = min(left, right)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _flatten(parent: npt.NDArray[np.int64]) -> None:
    """Point each node at its root: parents are never above their children, so one ascending pass does."""
    for node in range(len(parent)):
        parent[node] = parent[parent[node]]
