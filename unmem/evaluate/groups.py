"""Copies collapsed into groups, and neighbours counted by group: a ruler that duplicates cannot bend.

Carlini et al. 2023 divide a distance by the mean over the n nearest training images. Copies of one image would fill
that list and shrink the mean until the copied image no longer counts as extracted, so groups are counted instead.
"""

from __future__ import annotations

import numpy as np

from unmem.neighbors import top_k


def group_images(points: np.ndarray, threshold: float) -> np.ndarray:
    """int64 [n]: each image's group, named by its first member's position.

    Args:
        points: float32 [n, d], pixels in [0, 1].
        threshold: images whose L2 over sqrt(d) is at most this are one group; chains join.
    """
    n, k = len(points), 2
    limit = threshold * np.sqrt(points.shape[1])
    while True:  # widen until every row's list reaches past the threshold
        k = min(k, n)
        near = top_k(points, points, k)
        inside = near.distances <= limit
        if k == n or not inside[:, -1].any():
            break
        k *= 4
    rows = np.repeat(np.arange(n), inside.sum(1))
    return _components(n, rows, near.indices[inside])


def merge_groups(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int64 [n]: the groups of two groupings joined, named by their first member's position.

    Args:
        first: int64 [n], a name for each position; equal names are one group.
        second: likewise.
    """
    n = len(first)
    named = [start[member] for start, member in (_first_and_member(first), _first_and_member(second))]
    return _components(n, np.tile(np.arange(n), 2), np.concatenate(named))


def nearest_groups(
    queries: np.ndarray, points: np.ndarray, group: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` nearest groups of each query.

    Args:
        queries: float32 [q, d].
        points: float32 [n, d].
        group: int64 [n], each point's group.
        count: groups wanted; at most the number of groups.

    Returns:
        float64 [q, count] distances (L2 over sqrt(d)) to each group's nearest point, ascending, and the groups'
        names, int64 [q, count].
    """
    assert count <= len(np.unique(group))
    distances = np.empty((len(queries), count))
    names = np.empty((len(queries), count), np.int64)
    open_rows, k = np.arange(len(queries)), min(2 * count, len(points))
    while len(open_rows):  # rows whose list holds too few groups get a longer one
        near = top_k(queries[open_rows], points, k)
        labels = group[near.indices]
        first = _first_of_each(labels)
        done = first.sum(1) >= count
        for row in np.flatnonzero(done):
            chosen = np.flatnonzero(first[row])[:count]
            distances[open_rows[row]] = near.distances[row, chosen]
            names[open_rows[row]] = labels[row, chosen]
        open_rows, k = open_rows[~done], min(4 * k, len(points))
    return distances / np.sqrt(points.shape[1]), names


def _components(n: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """int64 [n]: connected components of these edges, named by their first member's position."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    start, member = _first_and_member(label)
    return np.asarray(start[member], dtype=np.int64)


def _first_and_member(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each distinct name stands first, and which distinct name each position has."""
    _, first, member = np.unique(names, return_index=True, return_inverse=True)
    return first, member


def _first_of_each(labels: np.ndarray) -> np.ndarray:
    """bool, like ``labels``: where a value stands for the first time in its row."""
    order = np.argsort(labels, axis=1, kind="stable")
    ordered = np.take_along_axis(labels, order, axis=1)
    new = np.ones_like(ordered, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty_like(new)
    np.put_along_axis(first, order, new, axis=1)
    return first
