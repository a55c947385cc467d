"""Exact nearest neighbors, and all neighbors within a radius, in Euclidean distance and bounded memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unmem import whole_numbers

if TYPE_CHECKING:
    import torch

_DTYPES = ("uint8", "float16", "float32", "float64")
_LIMIT = 1e15  # the squares of a row of smaller numbers add up far below float32's overflow
_FIRST = 16  # neighbors that a search within a radius asks for at first


class Neighbors(NamedTuple):
    """The nearest points of each query, nearest first: a row per query, a column per rank."""

    distances: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int64]


class Near(NamedTuple):
    """All pairs of a query and a point within a radius, in lexicographic order: three arrays of one length."""

    queries: npt.NDArray[np.int64]
    points: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float32]


def top_k(
    queries: npt.NDArray[Any],
    points: npt.NDArray[Any],
    k: int,
    *,
    memory: int = 2**30,
    device: str = "cpu",
) -> Neighbors:
    """Find the ``k`` points nearest to each query by plain Euclidean distance.

    A float32 matrix product ranks all points and keeps a few more than ``k`` of them, whose distances are
    then computed from the differences. The product comes with a proven bound on its rounding error, and a
    query for which the bound cannot rule out that a point left out is among the nearest is done again with a
    float64 product, then, if that does not settle it either, from the differences to every point. So the
    neighbors are the true ones, however far from the origin the data lies: only points whose distances are
    equal to within float32 rounding may stand in for each other. Neighbors at equal distances come in order
    of index, and an exact duplicate is at distance 0. A difference below 1e-18 may count as none.

    Bytes on the CPU are multiplied as bytes (see ``whole_numbers.py``), which is exact and several times as fast, so
    pixels are best handed over as they are.

    Args:
        queries: [q, d], uint8, float16, float32 or float64; may be a memory map.
        points: [n, d], likewise, in the same units; the types may differ.
        k: How many neighbors to find, 1 to n.
        memory: The most bytes to hold beyond inputs and outputs (a matrix library's own workspace, some MiB,
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

    _check_shapes(queries, points)
    (q, d), n = queries.shape, len(points)
    if not 1 <= k <= n:
        raise ValueError(f"k must be 1 to {n}, the number of points, got {k}")
    kept = min(n, k + max(8, k // 4))  # more of them settle more queries at once, but each costs a distance
    least = 256 * d + 512 * kept + 32 * q + 8192
    if memory < least:
        raise ValueError(f"memory must be at least {least} bytes for such q, d and k, got {memory}")

    where = torch.device(device)
    asked, given = _wrap(queries), _wrap(points)
    if whole_numbers.suits(asked, given, where):
        distances, indices = whole_numbers.top_k(asked, given, k, memory)
        return Neighbors(distances.numpy(), indices.numpy())
    if where.type != "cpu" and points.nbytes <= min(memory // 2, memory - least):
        given = given.to(where)
        memory -= points.nbytes
    # Elementwise work goes chunk by chunk, each small enough to stay in a processor's cache.
    chunk = max(d, min(2**22 if where.type == "cpu" else 2**24, memory // 128))
    memory -= 24 * chunk + 16 * q
    _check("queries", asked, chunk)
    _check("points", given, chunk)
    origin = given[:: -(-n * d // chunk)].float().mean(0).to(where)  # a sample's mean is good enough

    found = Neighbors(np.empty((q, k), np.float32), np.empty((q, k), np.int64))
    pending = torch.arange(q)
    with _full_precision(), torch.inference_mode(), torch.autocast(where.type, enabled=False):
        for dtype, product in ((torch.float32, True), (torch.float64, True), (torch.float64, False)):
            if len(pending):
                search = _Search(asked, given, pending, kept, origin.to(dtype), product, chunk, memory)
                pending = search.run(found)
                del search  # its memory is the next one's
    return found


def within(
    queries: npt.NDArray[Any],
    points: npt.NDArray[Any],
    radius: float,
    *,
    memory: int = 2**30,
    device: str = "cpu",
) -> Near:
    """Find every pair of a query and a point at most ``radius`` apart in plain Euclidean distance.

    :func:`top_k` finds a few neighbors of each query; a query whose last one is still within the radius is asked
    for again, with four times as many. So the pairs are the true ones, as they are there: only a distance that is
    equal to ``radius`` to within float32 rounding may count as either.

    Args:
        queries: [q, d], uint8, float16, float32 or float64; may be a memory map.
        points: [n, d], likewise, in the same units; the types may differ.
        radius: 0 or more, in the units of the data.
        memory: The most bytes to hold beyond inputs and the pairs found, while they are gathered and sorted.
        device: Where to compute, as torch names it: ``cpu``, ``cuda``, ``cuda:1``.

    Returns:
        ``queries`` and ``points``, int64 [m], row numbers; ``distances``, float32 [m], in the units of the data.

    Raises:
        ValueError: ``radius`` is negative or NaN, ``memory`` is too small to work in, or :func:`top_k` refuses the
            arrays.
    """
    _check_shapes(queries, points)
    if not radius >= 0:
        raise ValueError(f"radius must be 0 or more, got {radius}")
    (q, d), n = queries.shape, len(points)
    if memory < 2**17 + 2048 * d:
        raise ValueError(f"memory must be at least {2**17 + 2048 * d} bytes for {d} columns, got {memory}")
    memory //= 2  # one half is top_k's, the other holds a block of queries and their neighbors
    most = (memory - memory // 8 - 512 * d - 16384) // 1024  # neighbors that top_k can find in that
    pairs = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    todo = [(np.arange(q), 0, n, _FIRST)] if q and n else []
    while todo:
        rows, start, stop, k = todo.pop()
        k = min(k, stop - start)
        more = []
        step = max(1, memory // (32 * k + d * queries.itemsize + 512))
        for block in np.split(rows, range(step, len(rows), step)):
            found = top_k(queries[block], points[start:stop], k, memory=memory, device=device)
            near = found.distances <= radius
            full = near[:, -1] & (k < stop - start)
            near[full] = False
            i, j = np.nonzero(near)
            pairs.append((block[i], found.indices[i, j] + start, found.distances[i, j]))
            more.append(block[full])
        rows = np.concatenate(more)
        if len(rows) and 4 * k <= most:
            todo.append((rows, start, stop, 4 * k))
        elif len(rows):
            middle = (start + stop) // 2
            todo += [(rows, start, middle, k), (rows, middle, stop, k)]
    i, j, distances = (np.concatenate(part) for part in zip(*pairs, strict=True))
    order = np.lexsort((j, i))
    return Near(i[order], j[order], distances[order])


class _Search:
    """One pass over all points for some of the queries, by matrix products or, without, by differences."""

    def __init__(
        self,
        queries: torch.Tensor,
        points: torch.Tensor,
        pending: torch.Tensor,
        kept: int,
        origin: torch.Tensor,
        product: bool,
        chunk: int,
        memory: int,
    ) -> None:
        import torch

        self.queries, self.points, self.pending, self.kept, self.chunk = queries, points, pending, kept, chunk
        # Without products nothing is gained from an origin amid the points, and taking it off could round.
        self.origin = origin if product else torch.zeros_like(origin)
        self.product = product
        q, n, d, size = len(pending), len(points), len(origin), origin.itemsize
        # Few points to a product, so that what it makes stays in the cache; many to choose from at once.
        self.step = max(1, min(n, 1024, memory // (16 * d * size)))
        memory -= 2 * d * size * self.step
        row = size * 3 * (d + self.step) + queries.itemsize * d + 80 * kept + 64
        self.rows = max(1, min(q, 4096, memory // (2 * row)))
        memory -= row * self.rows
        self.columns = max(1, min(n, 2**14, memory // (size * self.rows + 16 * torch.get_num_threads())))
        self.a, self.b, self.keys = (
            _buffer(origin, *shape) for shape in ((self.rows, d), (self.step, d), (self.rows * self.columns,))
        )

    def run(self, found: Neighbors) -> torch.Tensor:
        """Write down the neighbors of each pending query, and return the queries that are not settled."""
        import torch

        k = found.indices.shape[1]
        work = torch.float64 if torch.float64 in (self.queries.dtype, self.points.dtype) else torch.float32
        unsettled = []
        for rows in torch.split(self.pending, self.rows):
            block = self.queries[rows].to(self.origin.device, work)
            near, others = self._choose(block)
            exact, near = _rank(block, self.points, near, self.chunk)
            found.distances[rows], found.indices[rows] = exact[:, :k].float().cpu(), near[:, :k].cpu()
            settled = exact[:, k - 1] * (1 - 2**-22) <= others
            unsettled.append(rows[~settled.cpu()])
        return torch.cat(unsettled)

    def _choose(self, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Candidates for each query, and a distance below which there is no other point.

        Let a and b be a query and a point as seen from the origin, in d dimensions and arithmetic of unit
        roundoff u. The product, in whatever order it is summed, is off by at most d u |a||b|, to first order;
        everything else that is rounded on the way to |b|² - 2ab, the lengths and a and b themselves included,
        adds less than 96 u (|a|² + |b|²). As 2|a||b| is no more than |a|² + |b|², the true |a - b|² is at
        least (1 - s) |a|² + (1 - s) |b|² - 2ab with s = (d + 96) u / (1 - (d + 96) u). Points are chosen by
        the part of this that depends on them.
        """
        import torch

        n, d = self.points.shape
        a = self.a[: len(block)]
        # float64 counts double: there the lengths are summed in that same precision.
        slack = (d + 96) * (2**-24 if a.dtype == torch.float32 else 2**-52)
        slack = slack / (1 - slack) if slack < 1 else math.inf
        a_squares = self._center(block, a)
        a *= -2 if self.product else 1
        times = _product(a)
        best = self.origin.new_empty(len(block), 0)
        near = torch.empty(best.shape, dtype=torch.int64, device=best.device)
        for start in range(0, n, self.columns):
            width = min(self.columns, n - start)
            keys = self.keys[: len(block) * width].view(len(block), width)
            for part, key in zip(
                torch.split(self.points[start : start + width], self.step),
                torch.split(keys, self.step, 1),
                strict=True,
            ):
                b = self.b[: len(part)]
                b_squares = self._center(part, b)
                if self.product:
                    torch.add(times(b), (b_squares * (1 - slack)).to(key), out=key)
                else:
                    key.copy_(torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist"))
            key, at = keys.topk(min(self.kept, width), sorted=False, largest=False)
            best, near = torch.cat([best, key], 1), torch.cat([near, at.add_(start)], 1)
            best, at = best.topk(min(self.kept, best.shape[1]), sorted=False, largest=False)
            near = near.gather(1, at)
        if self.kept == n or not self.product:
            return near, torch.full_like(a_squares, math.inf)
        underflow = 4 * d * torch.finfo(best.dtype).tiny
        others = best.amax(1).double() + a_squares * (1 - slack) - underflow
        return near, others.clamp_(min=0).sqrt_()

    def _center(self, rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write the rows as seen from the origin to ``out``, and return their squared lengths, in float64."""
        import torch

        step = max(1, self.chunk // len(self.origin))
        squares = []
        for part, target in zip(torch.split(rows, step), torch.split(out, step), strict=True):
            torch.sub(part.to(out.device), self.origin, out=target)
            squares.append(_lengths(target).square_())
        return torch.cat(squares)


def _wrap(array: npt.NDArray[Any]) -> torch.Tensor:
    """The array as a tensor, not copied."""
    import torch

    with warnings.catch_warnings():  # torch warns that a read-only array must not be written to: it is not
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _buffer(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Memory to write to: on the CPU NumPy's, which comes in huge pages, several times sooner in use."""
    import torch

    if like.is_cpu:
        return torch.from_numpy(np.empty(shape, str(like.dtype).removeprefix("torch.")))
    return like.new_empty(shape)


def _product(a: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function of b that is the matrix product of a and b's transpose."""
    import torch

    if a.is_cpu and a.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        packed = a.to_mkldnn()  # on AMD, oneDNN is a fifth faster than the MKL behind torch.mm
        return lambda b: torch.nn.functional.linear(packed, b.to_mkldnn()).to_dense()
    return lambda b: torch.mm(a, b.T)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Have float32 multiplied as float32: with TF32 or bfloat16 the error bound does not hold."""
    import torch

    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        legacy = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(legacy)
        return
    on_cpu: Any = torch.backends.mkldnn  # its stubs lag behind
    backends: list[Any] = [torch.backends.cuda.matmul, on_cpu.matmul]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _check_shapes(queries: npt.NDArray[Any], points: npt.NDArray[Any]) -> None:
    """Refuse arrays that cannot be searched, without a look at their values."""
    for name, array in (("queries", queries), ("points", points)):
        if array.ndim != 2 or not array.shape[1] or array.dtype not in _DTYPES or min(array.strides) < 0:
            raise ValueError(
                f"{name} must be [rows, columns] of {', '.join(_DTYPES)}, without negative strides, "
                f"got {list(array.shape)} of {array.dtype}, strides {array.strides}"
            )
    if points.shape[1] != queries.shape[1]:
        raise ValueError(
            f"queries and points must be equally wide, got {queries.shape[1]} and {points.shape[1]} columns"
        )


def _check(name: str, rows: torch.Tensor, chunk: int) -> None:
    """Refuse values that the arithmetic is not up to."""
    step = max(1, chunk // rows.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step].float()
        low, high = part.aminmax()
        if not (low > -_LIMIT and high < _LIMIT):
            bad = part[~(part.abs() < _LIMIT)][0].item()
            raise ValueError(f"{name} must be finite and below {_LIMIT:g} in magnitude, got {bad:g}")


def _lengths(rows: torch.Tensor) -> torch.Tensor:
    """The rows' lengths: in their own precision over pieces of at most 64, those together in float64."""
    import torch

    pieces = rows.view(*rows.shape[:-1], -1, math.gcd(rows.shape[-1], 64))
    lengths = torch.linalg.vector_norm(pieces, dim=-1)
    whole: torch.Tensor = torch.linalg.vector_norm(lengths, dim=-1, dtype=torch.float64)
    return whole


def _rank(
    block: torch.Tensor, points: torch.Tensor, near: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The candidates' distances, ascending, from the differences, and the candidates in that order."""
    import torch

    near = near.sort(dim=1).values
    exact = torch.empty(near.shape, dtype=torch.float64, device=near.device)
    d = block.shape[1]
    wide = min(near.shape[1], max(1, chunk // d))
    tall = max(1, chunk // (wide * d))
    taken = _buffer(points, tall * wide, d)  # used over and over: fresh memory costs more than the work
    for i in range(0, len(block), tall):
        for j in range(0, near.shape[1], wide):
            chosen = near[i : i + tall, j : j + wide]
            some = taken[: chosen.numel()]
            torch.index_select(points, 0, chosen.flatten().to(points.device), out=some)
            difference = some.to(block).view(*chosen.shape, d).sub_(block[i : i + tall, None])
            exact[i : i + tall, j : j + wide] = _lengths(difference)
    exact, order = exact.sort(dim=1, stable=True)
    return exact, near.gather(1, order)
