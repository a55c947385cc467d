"""Exact nearest neighbors in Euclidean distance, in bounded memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

_DTYPES = ("uint8", "float16", "float32", "float64")
_LIMIT = 1e15  # a row's squares, each below its square, add up far below float32's overflow


class Neighbors(NamedTuple):
    """The nearest points of each query, nearest first: a row per query, a column per rank."""

    distances: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int64]


def top_k(
    queries: npt.NDArray[Any],
    points: npt.NDArray[Any],
    k: int,
    *,
    memory: int = 2**30,
    device: str = "cpu",
) -> Neighbors:
    """Find the ``k`` points nearest to each query by plain Euclidean distance.

    A float32 matrix product ranks all points and keeps a few more than ``k`` of them; their distances are then
    computed from the differences, in float64. The product comes with a proven bound on its rounding error, and
    a query for which the bound cannot rule out that a point left out is among the nearest is done again with a
    float64 product, then, if that does not settle it either, from the differences to every point. So the answer
    is exact, however far from the origin the data lies; only points whose distances are equal to within
    float32 rounding may stand in for each other. Neighbors at equal distances come in order of index, and an
    exact duplicate is at distance 0.

    Args:
        queries: [q, d], uint8, float16, float32 or float64; may be a memory map.
        points: [n, d], likewise, in the same units; the types may differ.
        k: How many neighbors to find, 1 to n.
        memory: The most bytes to hold beyond inputs and outputs (a matrix library's own workspace, a few MiB,
            comes on top). On another device than the CPU it pays for a copy of ``points`` there, if that
            takes no more than half of it.
        device: Where to compute, as torch names it: ``cpu``, ``cuda``, ``cuda:1``.

    Returns:
        ``distances``, float32 [q, k], ascending, in the units of the data, and ``indices``, int64 [q, k].

    Raises:
        ValueError: ``k`` is not in 1 to n; an input is not two-dimensional, has no columns, another type, a
            negative stride, or a value that is NaN, infinite or 1e15 or more in magnitude; the widths differ;
            or ``memory`` is too small to work in.
    """
    import torch

    for name, array in (("queries", queries), ("points", points)):
        if array.ndim != 2 or not array.shape[1] or array.dtype not in _DTYPES or min(array.strides) < 0:
            raise ValueError(
                f"{name} must be [rows, columns] of {', '.join(_DTYPES)}, without negative strides, "
                f"got {list(array.shape)} of {array.dtype}, strides {array.strides}"
            )
    (q, d), n = queries.shape, len(points)
    if points.shape[1] != d:
        raise ValueError(f"queries and points must be equally wide, got {d} and {points.shape[1]} columns")
    if not 1 <= k <= n:
        raise ValueError(f"k must be 1 to {n}, the number of points, got {k}")
    kept = min(n, k + max(8, k // 4))  # more of them settle more queries at once, but each costs a distance
    least = 64 * d + 256 * kept + 16 * q + 256
    if memory < least:
        raise ValueError(f"memory must be at least {least} bytes for this q, d and k, got {memory}")

    where = torch.device(device)
    asked, given = _wrap(queries), _wrap(points)
    if where.type != "cpu" and points.nbytes <= min(memory // 2, memory - least):
        given = given.to(where)
        memory -= points.nbytes
    # Elementwise work goes chunk by chunk, each small enough to stay in a processor's cache.
    chunk = max(d, min(2**20 if where.type == "cpu" else 2**24, memory // 128))
    _mean("queries", asked, chunk)
    origin = _mean("points", given, chunk).to(where)

    distances, indices = np.empty((q, k), np.float32), np.empty((q, k), np.int64)
    pending = torch.arange(q)
    with _full_precision(), torch.inference_mode(), torch.autocast(where.type, enabled=False):
        for dtype, product in ((torch.float32, True), (torch.float64, True), (torch.float64, False)):
            size = _tile(len(pending), n, d, kept, dtype.itemsize, memory - 32 * chunk - 16 * q)
            unsettled = []
            for rows in pending.split(size[0]):
                block = asked[rows].to(where)
                near, others = _scan(block, given, kept, size[1], origin.to(dtype), product, chunk)
                exact, near = _rank(block, given, near, chunk)
                distances[rows], indices[rows] = exact[:, :k].float().cpu(), near[:, :k].cpu()
                unsettled.append(rows[(exact[:, k - 1] * (1 - 2**-24) > others).cpu()])
            pending = torch.cat(unsettled)
            if not len(pending):
                break
    return Neighbors(distances, indices)


def _wrap(array: npt.NDArray[Any]) -> torch.Tensor:
    """The array as a tensor, not copied."""
    import torch

    with warnings.catch_warnings():  # torch warns that a read-only array must not be written to: it is not
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Have float32 multiplied as float32: with TF32 or bfloat16 the error bound does not hold."""
    import torch

    matmuls = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    if not all(hasattr(matmul, "fp32_precision") for matmul in matmuls):  # before torch 2.9
        legacy = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(legacy)
        return
    before = [matmul.fp32_precision for matmul in matmuls]
    try:
        for matmul in matmuls:
            matmul.fp32_precision = "ieee"
        yield
    finally:
        for matmul, precision in zip(matmuls, before, strict=True):
            matmul.fp32_precision = precision


def _mean(name: str, rows: torch.Tensor, chunk: int) -> torch.Tensor:
    """The mean row in float32, once every value is known to be fit for use."""
    total = rows.new_zeros(rows.shape[1]).float()
    for part in rows.split(max(1, chunk // rows.shape[1])):
        part = part.float()
        low, high = part.aminmax()
        if not (low > -_LIMIT and high < _LIMIT):
            bad = part[~(part.abs() < _LIMIT)][0].item()
            raise ValueError(f"{name} must be finite and below {_LIMIT:g} in magnitude, got {bad:g}")
        total += part.sum(0)
    return total / max(1, len(rows))


def _tile(q: int, n: int, d: int, kept: int, itemsize: int, memory: int) -> tuple[int, int]:
    """How many queries and how many points to multiply at a time."""
    row = d * (itemsize + 8) + 80 * kept + 64
    side = int((math.sqrt(row**2 + itemsize * memory) - row) / itemsize)  # side² itemsize + 2 side row = memory
    rows = max(1, min(q, side))
    return rows, max(1, min(n, (memory - rows * row) // (rows * itemsize + row)))


def _center(rows: torch.Tensor, origin: torch.Tensor, out: torch.Tensor, chunk: int) -> torch.Tensor:
    """Write the rows as seen from the origin to ``out``, and return their squared lengths, in float64."""
    import torch

    step = max(1, chunk // len(origin))
    squares = torch.empty(len(rows), dtype=torch.float64, device=out.device)
    for part, target, square in zip(rows.split(step), out.split(step), squares.split(step), strict=True):
        torch.sub(part.to(out.device), origin, out=target)
        torch.linalg.vector_norm(target, dim=1, dtype=torch.float64, out=square).square_()
    return squares


def _scan(
    block: torch.Tensor,
    points: torch.Tensor,
    kept: int,
    columns: int,
    origin: torch.Tensor,
    product: bool,
    chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose ``kept`` candidates for each query, and a distance below which there is no other point.

    With a and b a query and a point as seen from the origin, in d dimensions and arithmetic of unit roundoff u,
    the computed |b|² - 2ab is off by at most s (|b|² + 2|a||b|), s = (d + 8) u / (1 - (d + 8) u), whatever the
    order of summation and with the rounding of a, b and |b|² included; as 2|a||b| is at most |a|² + |b|²,
    subtracting s (|a|² + 2|b|²) makes a lower bound on the true |a - b|² - |a|², by which points are chosen.
    """
    import torch

    (rows, d), n = block.shape, len(points)
    if not product:
        origin = torch.zeros_like(origin)  # from here even the differences to the mean could round
    finfo = torch.finfo(origin.dtype)
    slack = (d + 8) * (2**-24 if origin.dtype == torch.float32 else 2**-52)
    slack = slack / (1 - slack) if slack < 1 else math.inf
    a, b, keys = (origin.new_empty(size) for size in ((rows, d), (columns, d), (rows * columns)))
    a_squares = _center(block, origin, a, chunk)
    if product:
        a *= -2
    best = origin.new_empty(rows, 0)
    near = torch.empty(rows, 0, dtype=torch.int64, device=origin.device)
    for start, part in zip(range(0, n, columns), points.split(columns), strict=True):
        width = len(part)
        b_squares = _center(part, origin, b[:width], chunk)
        if product:
            key = keys[: rows * width].view(rows, width)
            if key.is_cpu:  # NumPy's BLAS is the faster one on AMD, and no setting makes it round to bfloat16
                np.matmul(a.numpy(), b[:width].numpy().T, out=key.numpy())
            else:
                torch.mm(a, b[:width].T, out=key)
            key += (b_squares * (1 - slack)).to(key)
        else:
            key = torch.cdist(a, b[:width], compute_mode="donot_use_mm_for_euclid_dist")
        key, at = key.topk(min(kept, width), largest=False, sorted=False)
        best, near = torch.cat([best, key], 1), torch.cat([near, at.add_(start)], 1)
        best, at = best.topk(min(kept, best.shape[1]), largest=False, sorted=False)
        near = near.gather(1, at)
    if kept == n or not product:
        return near, torch.full_like(a_squares, math.inf)
    others = best.amax(1).double() + a_squares * (1 - slack) - d * finfo.tiny
    return near, others.clamp_(min=0).sqrt_()


def _rank(
    block: torch.Tensor, points: torch.Tensor, near: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The candidates' distances, from the differences in float64, ascending, and the candidates in that order."""
    import torch

    near = near.sort(dim=1).values
    exact = torch.empty(near.shape, dtype=torch.float64, device=near.device)
    d = block.shape[1]
    wide = min(near.shape[1], max(1, chunk // d))
    tall = max(1, chunk // (wide * d))
    # Written to again and again: fresh memory would cost more than the arithmetic.
    taken = points.new_empty(tall * wide, d)
    differences = exact.new_empty(tall * wide, d)
    for i in range(0, len(block), tall):
        query = block[i : i + tall, None].double()
        for j in range(0, near.shape[1], wide):
            chosen = near[i : i + tall, j : j + wide]
            count = chosen.numel()
            torch.index_select(points, 0, chosen.flatten().to(points.device), out=taken[:count])
            shape = (*chosen.shape, d)
            difference = torch.sub(
                taken[:count].view(shape).to(query.device), query, out=differences[:count].view(shape)
            )
            exact[i : i + tall, j : j + wide] = torch.linalg.vector_norm(difference, dim=2)
    exact, order = exact.sort(dim=1, stable=True)
    return exact, near.gather(1, order)
