"""Exact Jaccard similarities of short texts' character n-grams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

from unmem.mitigations.dedup.minhash import Bytes, Ints, Text, check_size, first_shingle, next_shingle

# A hash set of n-grams with open addressing is int64 [slots, 5], by columns: the turn in which the slot was filled (it
# is empty in any other), the last one in which it was hit, start and end of its n-gram in the text, and its key.
_FILLED, _HIT, _START, _END, _KEY = range(5)


class Jaccard:
    """Similarities among some texts: the n-grams of one in a hash set, compared byte by byte on a hit, so exact.

    N-grams are never stored, only how many a text has, so this takes 24 bytes a text beside the text itself.
    """

    def __init__(self, texts: Sequence[str], size: int) -> None:
        check_size(size)
        self._text, self._size = Text.of(texts), size
        longest = int(np.diff(self._text.bounds).max(initial=0))
        self._set = np.zeros((_mask(longest) + 1, 5), np.int64)
        self._counts = np.full((len(texts), 2), -1, np.int64)
        self._turn = 0

    def of(self, pairs: npt.NDArray[np.int64], threshold: float = 0.0) -> npt.NDArray[np.float64]:
        """Compute each pair's similarity: |common n-grams| / |all n-grams|, 1 where there are none.

        Args:
            pairs: int64 [m, 2], positions of texts; fastest if those with one left come together.
            threshold: Where the similarity is less than this it may be given as 0, which saves most of the work.

        Returns:
            float64 [m].
        """
        used = np.unique(pairs)
        new = used[self._counts[used, 0] < 0]
        found = np.empty(len(pairs))
        known = (*self._text, self._size, self._set, self._counts)
        self._turn = _count(*known, new, self._turn)
        self._turn = _jaccards(*known, pairs, threshold, self._turn, found)
        return found


@njit(inline="always")  # type: ignore[untyped-decorator]
def _slot(data: Bytes, start: int, end: int, table: Ints, mask: int, turn: int) -> np.int64:
    """Where the n-gram ``data[start:end]`` is, or else the empty slot where it belongs."""
    key = np.uint64(0)
    for k in range(start, end):
        key = (key << np.uint64(8) | key >> np.uint64(56)) ^ np.uint64(data[k])
    key *= np.uint64(0x9E3779B97F4A7C15)
    at = np.int64(key >> np.uint64(32)) & mask
    while table[at, _FILLED] == turn:
        if table[at, _KEY] == np.int64(key) and table[at, _END] - table[at, _START] == end - start:
            same = 0
            while same < end - start and data[table[at, _START] + same] == data[start + same]:
                same += 1
            if same == end - start:
                return at
        at = (at + 1) & mask
    table[at, _KEY] = np.int64(key)
    return at


@njit(inline="always", cache=True)  # type: ignore[untyped-decorator]
def _mask(bytes_: int) -> int:
    """One less than a power of two that is at least twice as large: no text has more n-grams than bytes."""
    mask = 1
    while mask < 2 * bytes_:
        mask = 2 * mask + 1
    return mask


@njit(inline="always")  # type: ignore[untyped-decorator]
def _fill(data: Bytes, start: int, stop: int, size: int, table: Ints, turn: int) -> tuple[int, int]:
    """Put the n-grams of ``data[start:stop]`` into the emptied set; return how many are distinct, and how many."""
    mask = _mask(stop - start)
    distinct, every = 0, 0
    end = first_shingle(data, start, stop, size)
    while start < stop:
        at = _slot(data, start, end, table, mask, turn)
        if table[at, _FILLED] != turn:
            table[at, _FILLED], table[at, _HIT], table[at, _START], table[at, _END] = turn, turn, start, end
            distinct += 1
        every += 1
        start, end = next_shingle(data, start, end, stop)
    return distinct, every


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _count(data: Bytes, bounds: Ints, size: int, table: Ints, counts: Ints, which: Ints, turn: int) -> int:
    """Write down how many n-grams some texts have, distinct and in all; return the set's last turn."""
    for i in which:
        turn += 1
        counts[i, 0], counts[i, 1] = _fill(data, bounds[i], bounds[i + 1], size, table, turn)
    return turn


@njit(inline="always")  # type: ignore[untyped-decorator]
def _common(
    data: Bytes, start: int, stop: int, size: int, table: Ints, mask: int, filled: int, turn: int, spare: float
) -> int:
    """How many of the set's n-grams are in ``data[start:stop]``; 0 as soon as more than ``spare`` others are."""
    common = 0
    end = first_shingle(data, start, stop, size)
    while start < stop:
        at = _slot(data, start, end, table, mask, filled)
        if table[at, _FILLED] != filled:
            spare -= 1
            if spare < 0:
                return 0
        elif table[at, _HIT] != turn:
            table[at, _HIT] = turn
            common += 1
        start, end = next_shingle(data, start, end, stop)
    return common


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _jaccards(
    data: Bytes,
    bounds: Ints,
    size: int,
    table: Ints,
    counts: Ints,
    pairs: Ints,
    threshold: float,
    turn: int,
    found: npt.NDArray[np.float64],
) -> int:
    """Write each pair's similarity, or 0 where it cannot reach the threshold; return the set's last turn."""
    filled, current = turn, -1
    for p in range(len(pairs)):
        left, right = pairs[p, 0], pairs[p, 1]
        both = counts[left, 0] + counts[right, 0]
        # J = common / (both - common), so J >= threshold needs as many; the slack keeps rounding on the safe side.
        needed = threshold / (1 + threshold) * both - 1e-6
        if min(counts[left, 0], counts[right, 0]) < needed:
            found[p] = 0.0
            continue
        turn += 1
        if left != current:
            _fill(data, bounds[left], bounds[left + 1], size, table, turn)
            filled, current = turn, left
            turn += 1
        mask = _mask(bounds[left + 1] - bounds[left])
        spare = counts[right, 1] - needed
        common = _common(data, bounds[right], bounds[right + 1], size, table, mask, filled, turn, spare)
        found[p] = common / (both - common) if both else 1.0
    return turn
