"""Nearest neighbors of pixels that are whole numbers: products of bytes are exact, and several times as fast.

All sums fit into 32 bits, so the products leave nothing to be settled: no bound, no second look at the candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WIDEST = 2**31 // (3 * 2**14)  # columns: three squares of 128 in each add up to what 32 bits hold
ROWS, POINTS, COLUMNS = 4096, 1024, 2**14  # queries at once; points to a product; keys to choose from


def suits(queries: torch.Tensor, points: torch.Tensor, where: torch.device) -> bool:
    """Whether both are bytes on the CPU, few enough in a row, and the library for their products is there."""
    import torch

    both = queries.dtype == points.dtype == torch.uint8 and queries.shape[1] <= WIDEST
    return both and where.type == "cpu" and torch.backends.mkldnn.is_available()


def top_k(queries: torch.Tensor, points: torch.Tensor, k: int, memory: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``k`` points nearest to each query.

    Args:
        queries: uint8 [q, d], d at most ``WIDEST``.
        points: uint8 [n, d].
        k: 1 to n.
        memory: the most bytes to hold beyond inputs and outputs, which is taken to be enough for a row of each.

    Returns:
        float32 [q, k] distances, ascending, those that are equal in the order of their points; int64 [q, k] points.
    """
    import torch

    (q, d), n = queries.shape, len(points)
    step = max(1, min(n, POINTS, memory // (32 * d)))
    memory -= 16 * d * step + 4 * n
    row = 4 * d + 8 * step + 64 * k
    rows = max(1, min(q, ROWS, memory // (2 * row)))
    columns = max(step, min(n, COLUMNS, (memory - rows * row) // (8 * rows + 16 * torch.get_num_threads())))
    squares = torch.cat([_squares(_signed(part)) for part in torch.split(points, step)])
    keys = torch.empty(rows * columns, dtype=torch.int32)
    distances, nearest = torch.empty(q, k), torch.empty(q, k, dtype=torch.int64)
    for start in range(0, q, rows):
        a = _signed(queries[start : start + rows])
        best, near = torch.empty(len(a), 0, dtype=torch.int32), torch.empty(len(a), 0, dtype=torch.int64)
        for left in range(0, n, columns):
            some = slice(left, min(left + columns, n))
            key = keys[: len(a) * (some.stop - left)].view(len(a), -1)
            parts = (torch.split(part, step, -1) for part in (squares[some], key))
            for b, known, out in zip(torch.split(points[some], step), *parts, strict=True):
                # |b|² - 2ab: what the squared distance is but for |a|², on which the order does not depend
                torch.add(known, torch._int_mm(a, _signed(b).T), alpha=-2, out=out)
            found, place = key.topk(min(k, key.shape[1]), largest=False, sorted=False)
            best, near = torch.cat([best, found], 1), torch.cat([near, place.add_(left)], 1)
            best, place = best.topk(min(k, best.shape[1]), largest=False, sorted=False)
            near = near.gather(1, place)
        near, order = near.sort(dim=1)
        best, place = best.gather(1, order).sort(dim=1, stable=True)
        nearest[start : start + rows] = near.gather(1, place)
        distances[start : start + rows] = (best.double() + _squares(a)[:, None]).sqrt_().float()
    return distances, nearest


def _signed(rows: torch.Tensor) -> torch.Tensor:
    """Bytes less 128, int8: differences stay what they are."""
    import torch

    return rows.bitwise_xor(128).view(torch.int8)


def _squares(rows: torch.Tensor) -> torch.Tensor:
    """The squared length of each row of int8, int32."""
    import torch

    return torch.cat([part.int().square_().sum(1, dtype=torch.int32) for part in torch.split(rows, 256)])
