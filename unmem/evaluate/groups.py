"""Copies collapsed into groups, and neighbours counted by group: a ruler that duplicates cannot bend.

Carlini et al. 2023 divide a distance by the mean over the n nearest training images. Copies of one image would fill
that list and shrink the mean until the copied image no longer counts as extracted, so groups are counted instead.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unmem.neighbors import top_k

PAIRS = 1024  # whose distances are computed at once
PROBES = 64  # queries that tell how long lists of neighbours must be
SAMPLE, DIRECTIONS = 256, 64  # points that give the main directions, and how many of those are looked along
ROWS, COLUMNS = 1024, 2048  # of a block of pairs
CROWD = 0.005  # share of a block's pairs from which on looking along all directions costs less than each distance


def group_images(points: np.ndarray, threshold: float) -> np.ndarray:
    """int64 [n]: each image's group, named by its first member's position.

    Args:
        points: float32 [n, d], pixels in [0, 1].
        threshold: images whose L2 over sqrt(d) is at most this are one group; chains join.
    """
    limit = threshold * np.sqrt(points.shape[1])
    group = np.arange(len(points))
    for rows, columns in _candidates(points, limit):
        while len(rows):
            apart = group[rows] != group[columns]  # of what is one group no more pairs are needed
            rows, columns = rows[apart], columns[apart]
            i, j = rows[:PAIRS], columns[:PAIRS]
            near = np.sqrt(np.square(points[i] - points[j]).sum(1, dtype=np.float64)) <= limit
            if near.any():
                names = np.arange(len(points))
                group = _components(len(points), np.concatenate([names, i[near]]), np.concatenate([group, j[near]]))
            rows, columns = rows[PAIRS:], columns[PAIRS:]
    return group


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
        queries: uint8 [q, d], pixels; of other types they are searched for, too, but not as fast.
        points: uint8 [n, d], likewise.
        group: int64 [n], each point's group.
        count: groups wanted; at most the number of groups.

    Returns:
        float64 [q, count] distances (L2 over sqrt(d), in the units of the data) to each group's nearest point,
        ascending, and the groups' names, int64 [q, count].
    """
    assert count <= len(np.unique(group))
    distances = np.empty((len(queries), count))
    names = np.empty((len(queries), count), np.int64)
    open_rows, k = np.arange(len(queries)), _list_length(queries, points, group, count)
    while len(open_rows):  # rows whose list holds too few groups get a longer one
        near = top_k(queries if len(open_rows) == len(queries) else queries[open_rows], points, k)
        labels = group[near.indices]
        first = _first_of_each(labels)
        done = first.sum(1) >= count
        chosen = np.argsort(~first[done], axis=1, kind="stable")[:, :count]
        distances[open_rows[done]] = np.take_along_axis(near.distances[done], chosen, axis=1)
        names[open_rows[done]] = np.take_along_axis(labels[done], chosen, axis=1)
        open_rows, k = open_rows[~done], min(4 * k, len(points))
    return distances / np.sqrt(points.shape[1]), names


def _list_length(queries: np.ndarray, points: np.ndarray, group: np.ndarray, count: int) -> int:
    """How many neighbours hold ``count`` groups for nearly all queries, as a few of them show."""
    most = min(2 * count, len(points))
    some = queries[:: max(1, len(queries) // PROBES)][:PROBES]
    held = _first_of_each(group[top_k(some, points, most).indices]).cumsum(1)
    needed = np.minimum(1 + (held < count).sum(1), most)
    return int(np.quantile(needed, 0.95, method="higher"))


def _candidates(points: np.ndarray, limit: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions, block by block, among them all that are at most ``limit`` apart, and few others.

    Seen along some directions at right angles points are no further apart than they are. So pairs that are too far
    apart along the main ones, as most are, need no more than that; where too many are left, all directions are seen.
    """
    n = len(points)
    sample = points[:: -(-n // SAMPLE)]
    centre = sample.mean(0, dtype=np.float64)
    apart = sample - centre
    main = np.linalg.eigh(apart @ apart.T)[1][:, : -DIRECTIONS - 1 : -1]
    basis = np.linalg.qr(apart.T @ main)[0]
    along = np.empty((n, basis.shape[1]), np.float32)
    for start in range(0, n, ROWS):
        along[start : start + ROWS] = (points[start : start + ROWS] - centre) @ basis
    for top in range(0, n, ROWS):
        for left in range(top, n, COLUMNS):
            above, beside = slice(top, top + ROWS), slice(left, left + COLUMNS)
            rows, columns = _within(along[above], along[beside], limit)
            if len(rows) > CROWD * ROWS * COLUMNS:
                a, b = ((points[part] - centre).astype(np.float32) for part in (above, beside))
                rows, columns = _within(a, b, limit)
            rows, columns = rows + top, columns + left
            once = rows < columns
            yield rows[once], columns[once]


def _within(a: np.ndarray, b: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions in ``a`` and ``b``, float32 [n, d], of the pairs that rounding lets be at most ``limit`` apart."""
    a_squares, b_squares = (np.square(x).sum(1, dtype=np.float64) for x in (a, b))
    slack = (
        (a.shape[1] + 96) * 2.0**-23 * (a_squares.max() + b_squares.max() + limit**2)
    )  # of products, sums and squares
    # |a - b|^2 <= limit^2, halved, with all that belongs to one side brought there
    most = ((limit**2 + slack - a_squares) / 2).astype(np.float32)
    halves = a @ b.T
    np.subtract((b_squares / 2).astype(np.float32), halves, out=halves)
    some = np.flatnonzero(halves.min(1) <= most)
    rows, columns = np.nonzero(halves[some] <= most[some, None])
    return some[rows], columns


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
