"""Multi-index search within a Hamming radius: only codes that nearly agree in some band are compared. No misses.

A code of B bits is cut into b bands of B / b. Let band i (from 0) be searched within ``(radius - i) // b`` bits. Two
codes that are farther apart than that in every band differ in at least ``radius + 1`` bits in all, since these bounds,
one more each, add up to ``radius + 1``. So the bands together miss nothing, and a negative bound means that its band
is not needed. This is multi-index hashing (Norouzi, Punjani and Fleet 2012, arXiv 1307.2982) with the tighter
pigeonhole bounds of GPH (Qin et al. 2018).

On one machine codes are sorted by a band and each bucket meets the buckets whose numbers are within the bound
(``within``, ``forest``). Where buckets are filed and grouped by key elsewhere, ``bucket_keys`` has the keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from unmem.mitigations.dedup.hamming import (
    ROOM,
    Edges,
    Hits,
    Words,
    check_radius,
    collect,
    forest_of_distinct,
    head_words,
    near,
    ones,
    to_words,
)
from unmem.mitigations.dedup.pairs import Pairs

_PARTS = 16  # tasks that a band's buckets are dealt to


def within(
    codes: npt.NDArray[np.uint64], radius: int, *, bands: int | None = None, threads: int | None = None
) -> Pairs:
    """All pairs of codes that differ in at most ``radius`` bits: the pairs of ``hamming.within``, by bands.

    Args:
        codes: uint64 [n] or [n, w], of 64 (w = 1) or 256 bits (w = 4).
        radius: most differing bits.
        bands: a power of two that leaves 1 to 16 bits a band; None takes 8 or 16 bits, what should cost less.
        threads: how many to use; None is one per core.

    Returns:
        The pairs, left < right, in lexicographic order, with their distances in bits.

    Raises:
        ValueError: as in ``hamming.within``; or there can be no such bands.
    """
    words = to_words(codes)
    return collect(_Bands(words, check_radius(words, radius), bands), threads)


def forest(
    codes: npt.NDArray[np.uint64], radius: int, *, bands: int | None = None, threads: int | None = None
) -> Edges:
    """A spanning forest of the pairs of ``within``, in memory that grows with the number of codes only.

    Args:
        codes: uint64 [n] or [n, w], as in ``within``.
        radius: most differing bits.
        bands: as in ``within``.
        threads: how many to use; None is one per core.

    Returns:
        int64 [m, 2], m < n: pairs within the radius, left < right, in lexicographic order.

    Raises:
        ValueError: as in ``within``.
    """
    words = to_words(codes)
    check_radius(words, radius)
    return forest_of_distinct(words, lambda some: _Bands(some, radius, bands), threads)


def keys(codes: npt.NDArray[np.uint64], bands: int) -> npt.NDArray[np.uint64]:
    """One key a band: two codes share one where they agree in that band, and nowhere else.

    The number of the band is part of the key, so that different bands never meet. Keys are mixed by a bijection
    (the finaliser of SplitMix64): distinct ones stay distinct, and any bits or remainder of them are even.

    Args:
        codes: uint64 [n] or [n, w], of 64 or 256 bits.
        bands: a power of two that leaves 1 to 32 bits a band.

    Returns:
        uint64 [n, bands].

    Raises:
        ValueError: the codes have another type or shape, or there can be no such bands.
    """
    return bucket_keys(codes, bands - 1, bands)


def bucket_keys(
    codes: npt.NDArray[np.uint64], radius: int, bands: int | None = None, *, parts: int | None = None
) -> npt.NDArray[np.uint64]:
    """Keys to file codes under: any two codes within the radius share at least one.

    A band that may differ in t bits is cut into parts, and there is a key for each choice of t parts to leave out:
    differing bits lie in t parts at most, so one choice leaves out all of them. More parts make more keys of more
    bits each, so fewer chance meetings. By default, for 256 bits:

    ========  =======  =========================
    radius    keys     bits compared in each key
    ========  =======  =========================
    0 to 7    1 to 8   32
    15        24       21
    23        120      21
    31        448      20
    ========  =======  =========================

    Args:
        codes: uint64 [n] or [n, w], of 64 or 256 bits.
        radius: most differing bits.
        bands: a power of two that leaves 1 to 32 bits a band; None takes 32 bits where 3 of them may differ at
            most, else 16.
        parts: of a band that may differ in t bits, more than t, at most its bits; None takes as many as leave 5/8
            of the band to compare, where there can be so many.

    Returns:
        uint64 [n, k], mixed as in ``keys``; k depends on the other arguments only.

    Raises:
        ValueError: as in ``keys``; or the radius or the parts are out of range.
    """
    words = to_words(codes)
    bits = 64 * len(words)
    if bands is None:
        bands = bits // 32 if radius < bits // 8 else bits // 16
    width = _width(bits, bands, 32)
    if not 0 <= radius < bits:
        raise ValueError(f"radius must be 0 to {bits - 1}, less than the number of bits, got {radius}")
    columns: list[npt.NDArray[np.uint64]] = []
    for band, allowed in enumerate(_allowances(radius, bands)):
        values = _values(words, band, width)
        pieces = min(max(1, -(-allowed * 8 // 3)), width) if parts is None else parts
        if not allowed < pieces <= width:
            raise ValueError(
                f"parts must be {allowed + 1} to {width} where {allowed} of {width} bits may differ, got {pieces}"
            )
        edges = [piece * width // pieces for piece in range(pieces + 1)]
        for left_out in combinations(range(pieces), allowed):
            mask = sum((1 << edges[piece + 1]) - (1 << edges[piece]) for piece in left_out)
            kept = values & np.uint64((1 << width) - 1 - mask)
            columns.append(_mixed(kept | np.uint64(len(columns) << 32)))
    return np.stack(columns, 1)


def _mixed(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _width(bits: int, bands: int, most: int) -> int:
    """Bits a band; with a power of two no band lies across two words."""
    if bands < 1 or bands & (bands - 1) or not 1 <= bits // bands <= most:
        raise ValueError(f"bands must be a power of two from {bits // most} to {bits}, got {bands}")
    return bits // bands


def _allowances(radius: int, bands: int) -> list[int]:
    """How many bits each band may differ in, for as many bands as are needed."""
    return [(radius - band) // bands for band in range(min(bands, radius + 1))]


def _values(words: Words, band: int, width: int) -> npt.NDArray[np.uint64]:
    """uint64 [n]: one band of each code."""
    word, shift = divmod(band * width, 64)
    band_values: npt.NDArray[np.uint64] = (words[word] >> np.uint64(shift)) & np.uint64((1 << width) - 1)
    return band_values


def _cheapest(bits: int, radius: int, n: int) -> int:
    """Bands of 8 or of 16 bits: visits to buckets and chance meetings in them, counted alike."""
    costs = {}
    for width in (8, 16):
        bands = bits // width
        probes = sum(sum(comb(width, k) for k in range(allowed + 1)) for allowed in _allowances(radius, bands))
        costs[bands] = probes * (min(n, 2**width) + n * n / 2**width)
    return min(costs, key=lambda bands: costs[bands])


class _Table(NamedTuple):
    """Codes sorted by a band: bucket v has the columns ``starts[v]`` to ``starts[v + 1]`` of ``words``."""

    band: int
    order: npt.NDArray[np.int64]
    words: Words
    starts: npt.NDArray[np.int64]
    masks: npt.NDArray[np.int64]  # between a bucket and those it meets


class _Bands:
    """A self-join, band after band (a ``hamming.Search``)."""

    shift = 0

    def __init__(self, words: Words, radius: int, bands: int | None) -> None:
        self.words, self.radius = words, radius
        self.nodes = words.shape[1]
        bits = 64 * len(words)
        chosen = _cheapest(bits, radius, self.nodes) if bands is None else bands
        self.width = _width(bits, chosen, 16)
        self.allowances = np.array(_allowances(radius, chosen))

    def tasks(self) -> Iterator[tuple[_Table, int, int]]:
        """Ranges of buckets; a table is made when its first is asked for."""
        for band in range(len(self.allowances)):
            table = self._table(band)
            cuts = np.searchsorted(table.starts, np.linspace(0, self.nodes, _PARTS + 1)[1:-1])
            cuts = np.concatenate([[0], cuts, [len(table.starts) - 1]])
            yield from ((table, int(begin), int(end)) for begin, end in pairwise(cuts))

    def hits(self, task: tuple[_Table, int, int]) -> Iterator[Hits]:
        """Those that no earlier band has had."""
        table, begin, end = task
        head = head_words(self.words, self.radius)
        room = np.empty((ROOM + int(np.diff(table.starts).max()), 3), np.int64)
        at = np.array([begin, 0, 0])
        while True:
            count = _meet(table.words, table.starts, table.masks, at, end, self.radius, head, room)
            count = _first_met(table.words, table.band, self.width, self.allowances, room[:count])
            ends = table.order[room[:count, :2]]
            yield np.concatenate([np.sort(ends, axis=1), room[:count, 2:]], axis=1)
            if at[0] == end:
                return

    def _table(self, band: int) -> _Table:
        values = _values(self.words, band, self.width).astype(np.uint16)
        order = np.argsort(values, kind="stable")
        starts = np.zeros(2**self.width + 1, np.int64)
        np.cumsum(np.bincount(values, minlength=2**self.width), out=starts[1:])
        masks = np.arange(2**self.width)
        masks = masks[np.bitwise_count(masks) <= self.allowances[band]]
        return _Table(band, order, np.ascontiguousarray(self.words[:, order]), starts, masks)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _meet(
    words: Words,
    starts: npt.NDArray[np.int64],
    masks: npt.NDArray[np.int64],
    at: npt.NDArray[np.int64],
    end: int,
    radius: int,
    head: int,
    hits: Hits,
) -> int:
    """Hits of buckets against those they meet, each two buckets once; stops, and says so in ``at``, for want of room.

    ``at`` is the bucket, the mask and the row within the bucket that are next.
    """
    count = 0
    while at[0] < end:
        bucket = at[0]
        rows = starts[bucket + 1] - starts[bucket]
        while rows and at[1] < len(masks):
            other = bucket ^ masks[at[1]]
            begin, stop = starts[other], starts[other + 1]
            if other >= bucket and begin < stop:
                for row in range(at[2], rows):
                    if count + stop - begin > len(hits):
                        at[2] = row
                        return count
                    first = starts[bucket] + row
                    later = first + 1 if other == bucket else begin
                    count = near(words, first, words, later, stop, radius, head, hits, count)
                at[2] = 0
            at[1] += 1
        at[1] = 0
        at[0] += 1
    return count


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _first_met(words: Words, band: int, width: int, allowances: npt.NDArray[np.int64], hits: Hits) -> int:
    """Move hits that agree in no earlier band to the front, and return their count."""
    count = 0
    mask = np.uint64((1 << width) - 1)
    for hit in range(len(hits)):
        left, right = hits[hit, 0], hits[hit, 1]
        known = False
        for earlier in range(band):
            word, shift = earlier * width // 64, np.uint64(earlier * width % 64)
            apart = ones(((words[word, left] ^ words[word, right]) >> shift) & mask)
            known = known or apart <= allowances[earlier]
        if not known:
            hits[count] = hits[hit]
            count += 1
    return count
