"""Exact search within a Hamming radius: every pair is compared, by population counts over tiles.

A row is held against a block of columns at once: the least distance over the block is one vectorised loop of
XOR, population count and minimum, and only a block whose least distance is within the radius is looked at pair by
pair. numba compiles for the processor that it runs on, so the population count is AVX-512's where there is one
(VPOPCNTDQ), and else what LLVM makes of it with AVX2, NEON or plain instructions: no build decides that.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.extending import intrinsic

from unmem.mitigations.dedup.distinct import first_equal
from unmem.mitigations.dedup.pairs import Pairs
from unmem.mitigations.dedup.union_find import UnionFind

Words = npt.NDArray[np.uint64]  # [w, n]: word by word, so that a block of columns is contiguous
Hits = npt.NDArray[np.int64]  # [m, 3]: left, right, bits
Edges = npt.NDArray[np.int64]  # [m, 2]
T = TypeVar("T")
S = TypeVar("S")

ROOM = 2**16  # hits that a task gathers before it hands them on
_ROWS, _COLUMNS = 2**15, 2**11  # a tile: its columns stay in a core's own cache while the rows pass
_BLOCK, _STEP = 1024, 64  # columns behind one minimum; and behind each finer one where that is within the radius


def within(codes: npt.NDArray[np.uint64], radius: int, *, threads: int | None = None) -> Pairs:
    """All pairs of codes that differ in at most ``radius`` bits: n²/2 comparisons, no index, no misses.

    Args:
        codes: uint64 [n] or [n, w], of 64 (w = 1) or 256 bits (w = 4).
        radius: most differing bits, 0 to the number of bits.
        threads: how many to use; None is one per core.

    Returns:
        The pairs, left < right, in lexicographic order, with their distances in bits. They take tens of bytes
        each: where whole clusters may be equal, ``forest`` needs no more memory than the codes.

    Raises:
        ValueError: the codes have another type or shape, or the radius or the threads are out of range.
    """
    words = to_words(codes)
    return collect(_Tiles(words, words, check_radius(words, radius), upper=True), threads)


def between(
    left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64], radius: int, *, threads: int | None = None
) -> Pairs:
    """All pairs of one code from each set that differ in at most ``radius`` bits.

    Args:
        left: uint64 [n] or [n, w], as in ``within``.
        right: uint64 [m] or [m, w], equally wide.
        radius: most differing bits.
        threads: how many to use; None is one per core.

    Returns:
        The pairs in lexicographic order, with their distances in bits.

    Raises:
        ValueError: as in ``within``; or the widths differ.
    """
    return collect(_Tiles(*_equally_wide(left, right, radius), radius, upper=False), threads)


def forest(codes: npt.NDArray[np.uint64], radius: int, *, threads: int | None = None) -> Edges:
    """A spanning forest of the graph whose edges are the pairs of ``within``.

    Equal codes are searched once, and hits go through a union-find as they come, so memory grows with the
    number of codes and never with that of pairs. The answer depends on neither threads nor timing.

    Args:
        codes: uint64 [n] or [n, w], as in ``within``.
        radius: most differing bits.
        threads: how many to use; None is one per core.

    Returns:
        int64 [m, 2], m < n: pairs within the radius, left < right, in lexicographic order.

    Raises:
        ValueError: as in ``within``.
    """
    words = to_words(codes)
    check_radius(words, radius)
    return forest_of_distinct(words, lambda some: _Tiles(some, some, radius, upper=True), threads)


def forest_between(
    left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64], radius: int, *, threads: int | None = None
) -> Edges:
    """A spanning forest of the graph whose edges are the pairs of ``between``, in memory as ``forest``.

    Args:
        left: uint64 [n] or [n, w], as in ``within``.
        right: uint64 [m] or [m, w], equally wide.
        radius: most differing bits.
        threads: how many to use; None is one per core.

    Returns:
        int64 [edges, 2], fewer than n + m: positions in ``left`` and in ``right``, in lexicographic order.

    Raises:
        ValueError: as in ``between``.
    """
    both = _equally_wide(left, right, radius)
    leaders = [first_equal(words.T) for words in both]
    distinct = [np.flatnonzero(leader == np.arange(len(leader))) for leader in leaders]
    few, others = (words[:, rows] for words, rows in zip(both, distinct, strict=True))
    found = span(_Tiles(few, others, radius, upper=False), threads)
    first, second = distinct[0][found[:, 0]], distinct[1][found[:, 1] - len(distinct[0])]
    edges = [np.stack([first, second], 1)]
    for side, (near_end, far_end) in enumerate(((first, second), (second, first))):
        leader = leaders[side]
        partner = np.full(len(leader), -1)  # what a leader is joined to, its copies are too
        partner[near_end] = far_end
        copies = np.flatnonzero((leader != np.arange(len(leader))) & (partner[leader] >= 0))
        pair = [copies, partner[leader[copies]]]
        edges.append(np.stack(pair if side == 0 else pair[::-1], 1))
    return in_order(np.concatenate(edges))


def distances(code: npt.NDArray[np.uint64], codes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint16]:
    """Differing bits between one code and each of many.

    Args:
        code: uint64 [] or [w].
        codes: uint64 [n] or [n, w].

    Returns:
        uint16 [n].

    Raises:
        ValueError: as in ``within``; or the widths differ.
    """
    words = to_words(codes)
    one = to_words(np.reshape(code, (1, -1)))
    if len(one) != len(words):
        raise ValueError(f"code and codes must be equally wide, got {64 * len(one)} and {64 * len(words)} bits")
    out = np.empty(words.shape[1], np.uint16)
    _distances(one, words, out)
    return out


class Search(Protocol):
    """A search in parts: what it yields is the same whoever runs the parts."""

    nodes: int  # of the graph; a search between two sets numbers the right one after the left

    @property
    def shift(self) -> int:
        """What is added to the right end of a hit to have its node."""

    def tasks(self) -> Iterable[Any]:
        """The parts."""

    def hits(self, task: Any) -> Iterator[Hits]:
        """What one part finds, in arrays of some ``ROOM`` rows, at least one."""


class _Tile(NamedTuple):
    """Rows ``top`` to ``bottom`` against columns ``begin`` to ``end``."""

    top: int
    bottom: int
    begin: int
    end: int


class _Tiles:
    """All rows against all columns; with ``upper``, only against later ones."""

    def __init__(self, left: Words, right: Words, radius: int, *, upper: bool) -> None:
        self.left, self.right, self.radius, self.upper = left, _aligned(right), radius, upper
        self.n, self.m = left.shape[1], right.shape[1]
        self.shift = 0 if upper else self.n
        self.nodes = self.shift + self.m

    def tasks(self) -> Iterator[_Tile]:
        for begin in range(0, self.m, _COLUMNS):
            end = min(begin + _COLUMNS, self.m)
            rows = end - 1 if self.upper else self.n
            for top in range(0, rows, _ROWS):
                yield _Tile(top, min(top + _ROWS, rows), begin, end)

    def hits(self, task: _Tile) -> Iterator[Hits]:
        head = head_words(self.left, self.radius)
        room = np.empty((ROOM, 3), np.int64)
        row = task.top
        while True:
            row, count = _tile(self.left, self.right, row, *task[1:], self.radius, head, self.upper, room)
            yield room[:count].copy()
            if row == task.bottom:
                return


def collect(search: Search, threads: int | None) -> Pairs:
    """All that a search finds."""
    found = list(in_turn(lambda task: np.concatenate(list(search.hits(task))), search.tasks(), threads))
    hits = np.concatenate([np.empty((0, 3), np.int64), *found])
    return Pairs.sort(hits[:, 0], hits[:, 1], hits[:, 2])


def span(search: Search, threads: int | None) -> Edges:
    """A spanning forest, int64 [m, 2] of nodes, of all that a search finds."""
    union = UnionFind(search.nodes)
    edges = [np.empty((0, 2), np.int64)]
    for some in in_turn(lambda task: _thinned(search, task), search.tasks(), threads):
        edges.append(some[union.add(some)])
    return np.concatenate(edges)


def _thinned(search: Search, task: Any) -> Edges:
    """What a part finds; where it is more than one array, a spanning forest of that."""
    arrays = (np.ascontiguousarray(hits[:, :2] + (0, search.shift)) for hits in search.hits(task))
    kept = [next(arrays)]
    union: UnionFind | None = None
    for edges in arrays:
        if union is None:
            union = UnionFind(search.nodes)
            kept = [kept[0][union.add(kept[0])]]
        kept.append(edges[union.add(edges)])
    return np.concatenate(kept)


def forest_of_distinct(words: Words, search: Callable[[Words], Search], threads: int | None) -> Edges:
    """The forest of a search among distinct codes, with each copy hung to the first of its kind."""
    leader = first_equal(words.T)
    first = leader == np.arange(len(leader))
    rows, copies = np.flatnonzero(first), np.flatnonzero(~first)
    edges = rows[span(search(words[:, rows]), threads)]
    return in_order(np.concatenate([edges, np.stack([leader[copies], copies], 1)]))


def in_order(edges: Edges) -> Edges:
    """Edges in lexicographic order."""
    return edges[np.lexsort(edges.T[::-1])]


def in_turn(function: Callable[[T], S], tasks: Iterable[T], threads: int | None) -> Iterator[S]:
    """The function of each task, in the order of tasks, a few ahead of what was taken."""
    count = (os.cpu_count() or 1) if threads is None else threads
    if count < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if count == 1:
        yield from map(function, tasks)
        return
    rest = iter(tasks)
    with ThreadPoolExecutor(count) as pool:
        ahead: deque[Future[S]] = deque(pool.submit(function, task) for task in islice(rest, 4 * count))
        while ahead:
            done = ahead.popleft().result()
            ahead.extend(pool.submit(function, task) for task in islice(rest, 1))
            yield done


def to_words(codes: npt.NDArray[np.uint64]) -> Words:
    """Checked codes, uint64 [w, n]."""
    codes = np.asarray(codes)
    if codes.dtype != np.uint64 or codes.ndim not in (1, 2) or (codes.ndim == 2 and codes.shape[1] not in (1, 4)):
        raise ValueError(f"codes must be uint64 [n], [n, 1] or [n, 4], got {list(codes.shape)} of {codes.dtype}")
    return np.ascontiguousarray(codes[None] if codes.ndim == 1 else codes.T)


def check_radius(words: Words, radius: int) -> int:
    """The radius, if the codes have so many bits."""
    if not 0 <= radius <= 64 * len(words):
        raise ValueError(f"radius must be 0 to {64 * len(words)}, the number of bits, got {radius}")
    return radius


def _equally_wide(left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64], radius: int) -> tuple[Words, Words]:
    """Both sets, checked."""
    first, second = to_words(left), to_words(right)
    if len(first) != len(second):
        raise ValueError(f"left and right must be equally wide, got {64 * len(first)} and {64 * len(second)} bits")
    check_radius(first, radius)
    return first, second


def head_words(words: Words, radius: int) -> int:
    """How many words already tell nearly all pairs apart: 128 random bits are 45 or fewer apart once in 1,900."""
    return 2 if len(words) == 4 and radius <= 45 else len(words)


def _aligned(words: Words) -> Words:
    """The same where each word's first column begins a cache line, which saves a fifth of the time; then padding."""
    w, n = words.shape
    stride = -(-n // 8) * 8
    memory = np.empty(w * stride + 8, np.uint64)
    skip = -memory.ctypes.data // 8 % 8
    out = memory[skip : skip + w * stride].reshape(w, stride)
    out[:, :n] = words
    return out


@intrinsic  # type: ignore[untyped-decorator]
def ones(_context: Any, _number: Any) -> Any:
    """The number of bits set in a uint64: LLVM's ctpop, which it vectorises as the processor allows."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@njit(nogil=True, cache=True, forceinline=True)  # type: ignore[untyped-decorator]
def _least(left: Words, row: int, right: Words, begin: int, end: int, words: int) -> np.uint64:
    """The least distance of a row from some columns over the first 1, 2 or 4 words."""
    least = np.uint64(256)
    a, columns = left[0, row], right[0, begin:end]
    if words == 1:
        for j in range(len(columns)):
            least = min(least, ones(a ^ columns[j]))
        return least
    b, second = left[1, row], right[1, begin:end]
    if words == 2:
        for j in range(len(columns)):
            least = min(least, ones(a ^ columns[j]) + ones(b ^ second[j]))
        return least
    c, third, d, fourth = left[2, row], right[2, begin:end], left[3, row], right[3, begin:end]
    for j in range(len(columns)):
        bits = ones(a ^ columns[j]) + ones(b ^ second[j]) + ones(c ^ third[j]) + ones(d ^ fourth[j])
        least = min(least, bits)
    return least


@njit(nogil=True, cache=True, forceinline=True)  # type: ignore[untyped-decorator]
def near(
    left: Words, row: int, right: Words, begin: int, end: int, radius: int, head: int, hits: Hits, count: int
) -> int:
    """Write a row's hits among some columns behind the ``count`` that are there, and return the new count."""
    for block in range(begin, end, _BLOCK):
        last = min(block + _BLOCK, end)
        if last - block > _STEP and _least(left, row, right, block, last, head) > radius:
            continue
        for low in range(block, last, _STEP):
            high = min(low + _STEP, last)
            if high - low == _STEP and _least(left, row, right, low, high, len(left)) > radius:
                continue
            for column in range(low, high):
                bits = np.uint64(0)
                for word in range(len(left)):
                    bits += ones(left[word, row] ^ right[word, column])
                if bits <= radius:
                    hits[count, 0], hits[count, 1], hits[count, 2] = row, column, bits
                    count += 1
    return count


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _tile(
    left: Words,
    right: Words,
    row: int,
    bottom: int,
    begin: int,
    end: int,
    radius: int,
    head: int,
    upper: bool,
    hits: Hits,
) -> tuple[int, int]:
    """Hits of rows against columns until there may be no room for a row's; the row that is next, and their count."""
    count = 0
    while row < bottom and count + end - begin <= len(hits):
        start = max(begin, row + 1) if upper else begin
        count = near(left, row, right, start, end, radius, head, hits, count)
        row += 1
    return row, count


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _distances(one: Words, words: Words, out: npt.NDArray[np.uint16]) -> None:
    """Distances of one code from each."""
    out[:] = 0
    for word in range(len(words)):
        for column in range(len(out)):
            out[column] += ones(one[word, 0] ^ words[word, column])
