"""MinHash signatures of short texts, interchangeable with datasketch 2.x."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

LONGEST_SHINGLE = 13  # characters: at most 52 bytes of UTF-8, which SHA-1 takes in one block
_LANES = 64  # SHA-1 computations side by side; their state and schedule stay in a first-level cache
_BATCH = 2**20  # bytes of text at a time, for each of which four bytes of hashes are held

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]

_START = np.array([0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0], np.uint32)
_CONSTANTS = np.array([0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xCA62C1D6], np.uint32)
_MIX = np.array([0x85EBCA6B, 0xC2B2AE35], np.uint32)


class Text(NamedTuple):
    """Strings in one buffer.

    Attributes:
        data: uint8 [bytes], the UTF-8 of all strings on end; a lone surrogate is encoded as if it were a character.
        bounds: int64 [n + 1]: string ``i`` is ``data[bounds[i] : bounds[i + 1]]``.
    """

    data: npt.NDArray[np.uint8]
    bounds: npt.NDArray[np.int64]

    @classmethod
    def of(cls, strings: Sequence[str]) -> Text:
        """The strings' text."""
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        bounds = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(each) for each in encoded], out=bounds[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), bounds)


def signatures(strings: Sequence[str], *, num_perm: int = 128, size: int = 5, seed: int = 1) -> npt.NDArray[np.uint32]:
    """Compute the MinHash signature of each string's set of character n-grams.

    A signature equals, bit for bit, the ``hashvalues`` of ``datasketch.MinHash(num_perm, seed)`` (2.x, scheme
    ``affine32``: the first four bytes of SHA-1, MurmurHash3's 32-bit finalizer, then ``a * h + b`` modulo 2^32)
    updated with the UTF-8 bytes of every n-gram. The strings are taken as they are: see ``captions.signatures``.

    Args:
        strings: [n]. One shorter than ``size`` is its own single n-gram, an empty one has none. A lone surrogate
            is encoded as if it were a character (Python's ``surrogatepass``).
        num_perm: Length of a signature, at least 1.
        size: Characters of an n-gram, 1 to 13.
        seed: Of the permutations, 0 to 2^32 - 1.

    Returns:
        uint32 [n, num_perm]; 2^32 - 1 throughout for an empty string.

    Raises:
        ValueError: ``num_perm``, ``size`` or ``seed`` is out of its range.
    """
    check_size(size)
    if num_perm < 1:
        raise ValueError(f"num_perm must be at least 1, got {num_perm}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be 0 to 2^32 - 1, got {seed}")
    random = np.random.RandomState(seed)
    factors = random.randint(0, 2**31, num_perm, np.uint32) * np.uint32(2) + np.uint32(1)
    offsets = random.randint(0, 2**32, num_perm, np.uint32)

    text = Text.of(strings)
    found = np.full((len(strings), num_perm), 2**32 - 1, np.uint32)
    for first, last in _batches(text.bounds):
        bounds = text.bounds[first : last + 1]
        # No string has more n-grams than bytes, so its hashes find room at its own place.
        hashes = np.empty(bounds[-1] - bounds[0], np.uint32)
        counts = _hash_shingles(text.data, bounds, size, hashes)
        _minima(hashes, bounds - bounds[0], counts, factors, offsets, found[first:last])
    return found


def check_size(size: int) -> None:
    """Refuse n-grams of a length that one block of SHA-1 may not hold."""
    if not 1 <= size <= LONGEST_SHINGLE:
        raise ValueError(f"size must be 1 to {LONGEST_SHINGLE} characters, got {size}")


def _batches(bounds: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of strings, each of about as much text."""
    first, n = 0, len(bounds) - 1
    while first < n:
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + _BATCH, "right")) - 1)
        yield first, last
        first = last


@njit(inline="always")  # type: ignore[untyped-decorator]
def next_character(data: Bytes, at: int, stop: int) -> int:
    """The first byte of the character after the one at ``at``."""
    at += 1
    while at < stop and data[at] & 0xC0 == 0x80:
        at += 1
    return at


@njit(inline="always")  # type: ignore[untyped-decorator]
def first_shingle(data: Bytes, start: int, stop: int, size: int) -> int:
    """The end, in bytes, of the n-gram at the start of ``data[start:stop]``."""
    end = start
    for _ in range(size):
        if end < stop:
            end = next_character(data, end, stop)
    return end


@njit(inline="always")  # type: ignore[untyped-decorator]
def next_shingle(data: Bytes, start: int, end: int, stop: int) -> tuple[int, int]:
    """Start and end of the n-gram after that one; past the last, ``stop`` twice."""
    if end == stop:
        return stop, stop
    return next_character(data, start, stop), next_character(data, end, stop)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _hash_shingles(data: Bytes, bounds: Ints, size: int, hashes: Words) -> Ints:
    """Write the mixed hash of each n-gram at its string's place, and return how many each string has."""
    counts = np.zeros(len(bounds) - 1, np.int64)
    places = np.empty(_LANES, np.int64)
    words = np.zeros((80, _LANES), np.uint32)
    state = np.empty((5, _LANES), np.uint32)
    lane = 0
    for i in range(len(counts)):
        start, stop = bounds[i], bounds[i + 1]
        end = first_shingle(data, start, stop, size)
        while start < stop:
            _pack(data, start, end, words, lane)
            places[lane] = bounds[i] - bounds[0] + counts[i]
            counts[i] += 1
            lane += 1
            if lane == _LANES:
                _sha1(words, state)
                _scatter(state, hashes, places, lane)
                words[:16] = 0
                lane = 0
            start, end = next_shingle(data, start, end, stop)
    _sha1(words, state)
    _scatter(state, hashes, places, lane)
    return counts


@njit(inline="always")  # type: ignore[untyped-decorator]
def _pack(data: Bytes, start: int, end: int, words: Words, lane: int) -> None:
    """Write ``data[start:end]`` as a block of SHA-1: big-endian words, a one bit, zeros, and the length in bits."""
    word = np.uint32(0)
    for k in range(end - start):
        word = np.uint32(word << np.uint32(8)) | np.uint32(data[start + k])
        if k & 3 == 3:
            words[k >> 2, lane] = word
    length = end - start
    word = np.uint32(np.uint32(word << np.uint32(8)) | np.uint32(0x80))
    words[length >> 2, lane] = np.uint32(word << np.uint32(24 - 8 * (length & 3)))
    words[15, lane] = np.uint32(8 * length)


@njit  # type: ignore[untyped-decorator]
def _scatter(state: Words, hashes: Words, places: Ints, lanes: int) -> None:
    """Write each lane's hash at its place."""
    for lane in range(lanes):
        hashes[places[lane]] = state[0, lane]


@njit(inline="always")  # type: ignore[untyped-decorator]
def _rotate(x: np.uint32, bits: int) -> np.uint32:
    """``x`` rotated to the left."""
    return np.uint32(np.uint32(x << np.uint32(bits)) | np.uint32(x >> np.uint32(32 - bits)))


@njit(inline="always")  # type: ignore[untyped-decorator]
def _choose(x: np.uint32, y: np.uint32, z: np.uint32) -> Any:
    """Bits of ``y`` where ``x`` has ones, of ``z`` elsewhere."""
    return z ^ (x & (y ^ z))


@njit(inline="always")  # type: ignore[untyped-decorator]
def _parity(x: np.uint32, y: np.uint32, z: np.uint32) -> Any:
    """Whether the bits are odd in number."""
    return x ^ y ^ z


@njit(inline="always")  # type: ignore[untyped-decorator]
def _majority(x: np.uint32, y: np.uint32, z: np.uint32) -> Any:
    """The bit that most have."""
    return (x & y) | (z & (x | y))


def _twenty_rounds(mix: Callable[[np.uint32, np.uint32, np.uint32], np.uint32]) -> Any:
    """A quarter of SHA-1, five rounds at a time: after five, each variable is back in its place."""

    def rounds(words: Words, state: Words, first: int, constant: np.uint32) -> None:
        for t in range(first, first + 20, 5):
            for lane in range(_LANES):
                a, b, c, d, e = state[0, lane], state[1, lane], state[2, lane], state[3, lane], state[4, lane]
                e = np.uint32(_rotate(a, 5) + mix(b, c, d) + e + constant + words[t, lane])
                b = _rotate(b, 30)
                d = np.uint32(_rotate(e, 5) + mix(a, b, c) + d + constant + words[t + 1, lane])
                a = _rotate(a, 30)
                c = np.uint32(_rotate(d, 5) + mix(e, a, b) + c + constant + words[t + 2, lane])
                e = _rotate(e, 30)
                b = np.uint32(_rotate(c, 5) + mix(d, e, a) + b + constant + words[t + 3, lane])
                d = _rotate(d, 30)
                a = np.uint32(_rotate(b, 5) + mix(c, d, e) + a + constant + words[t + 4, lane])
                c = _rotate(c, 30)
                state[0, lane], state[1, lane], state[2, lane], state[3, lane], state[4, lane] = a, b, c, d, e

    return njit(rounds)


_rounds_choose, _rounds_parity, _rounds_majority = map(_twenty_rounds, (_choose, _parity, _majority))


@njit  # type: ignore[untyped-decorator]
def _sha1(words: Words, state: Words) -> None:
    """Turn each lane's block, ``words[:16]``, into its mixed hash, ``state[0]`` (FIPS 180-4, section 6.1)."""
    for t in range(16, 80):
        for lane in range(_LANES):
            word = words[t - 3, lane] ^ words[t - 8, lane] ^ words[t - 14, lane] ^ words[t - 16, lane]
            words[t, lane] = _rotate(word, 1)
    for i in range(5):
        state[i, :] = _START[i]
    _rounds_choose(words, state, 0, _CONSTANTS[0])
    _rounds_parity(words, state, 20, _CONSTANTS[1])
    _rounds_majority(words, state, 40, _CONSTANTS[2])
    _rounds_parity(words, state, 60, _CONSTANTS[3])
    for lane in range(_LANES):
        h = np.uint32(state[0, lane] + _START[0])
        # The digest is big-endian, and its first four bytes are read as little-endian.
        h = np.uint32((_rotate(h, 8) & np.uint32(0x00FF00FF)) | (_rotate(h, 24) & np.uint32(0xFF00FF00)))
        h = np.uint32((h ^ (h >> np.uint32(16))) * _MIX[0])
        h = np.uint32((h ^ (h >> np.uint32(13))) * _MIX[1])
        state[0, lane] = h ^ (h >> np.uint32(16))


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _minima(hashes: Words, starts: Ints, counts: Ints, factors: Words, offsets: Words, found: Words) -> None:
    """Take each permutation's minimum over each string's hashes, four at a time; the last may come repeatedly."""
    for i in range(len(counts)):
        row = found[i]
        last = starts[i] + counts[i] - 1
        for j in range(starts[i], last + 1, 4):
            h0, h1 = hashes[j], hashes[min(j + 1, last)]
            h2, h3 = hashes[min(j + 2, last)], hashes[min(j + 3, last)]
            for k in range(len(factors)):
                a, b = factors[k], offsets[k]
                low = min(np.uint32(a * h0 + b), np.uint32(a * h1 + b))
                high = min(np.uint32(a * h2 + b), np.uint32(a * h3 + b))
                row[k] = min(row[k], min(low, high))
