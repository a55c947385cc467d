"""Searches within a Hamming radius, by tiles and by bands, and their forests, against comparing all pairs in numpy."""

from __future__ import annotations

import tracemalloc
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from unmem.mitigations.dedup import bands, hamming
from unmem.mitigations.dedup.pairs import Pairs
from unmem.mitigations.dedup.union_find import UnionFind

Codes = npt.NDArray[np.uint64]
Edges = npt.NDArray[np.int64]


def matrix(left: Codes, right: Codes) -> npt.NDArray[np.int64]:
    """All distances."""
    pairs = zip(left.T, right.T, strict=True)
    return np.sum([np.bitwise_count(x[:, None] ^ y[None]).astype(int) for x, y in pairs], axis=0)


def check(found: Pairs, every: npt.NDArray[np.int64], radius: int, *, upper: bool) -> None:
    """The same pairs, in order, with their distances."""
    left, right = np.nonzero(np.triu(every <= radius, 1) if upper else every <= radius)
    np.testing.assert_array_equal(found.left, left)
    np.testing.assert_array_equal(found.right, right)
    np.testing.assert_array_equal(found.distance, every[left, right])
    assert [array.dtype for array in found] == [np.int64, np.int64, np.float32]


def check_forest(edges: Edges, adjacent: npt.NDArray[np.bool_]) -> None:
    """Edges of the graph, in order, without a cycle, that connect what the graph connects."""
    n = len(adjacent)
    assert edges.dtype == np.int64
    assert adjacent[edges[:, 0], edges[:, 1]].all()
    assert edges.tolist() == sorted(edges.tolist())
    count, want = connected_components(adjacent, directed=False)
    of_edges = coo_array((np.ones(len(edges)), edges.T), (n, n))
    _, got = connected_components(of_edges, directed=False)
    assert len(edges) == n - count
    np.testing.assert_array_equal(got, want)


def flip(code: Codes, positions: npt.ArrayLike) -> Codes:
    """A code with some bits flipped."""
    out = code.copy()
    for position in np.asarray(positions).tolist():
        out[position // 64] ^= np.uint64(1 << (position % 64))
    return out


def planted(seed: int, w: int, n: int, distances: list[int]) -> Codes:
    """Random codes, some of which are others with so many bits flipped."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2**64, (n, w), np.uint64)
    for row in range(n // 2, n):
        bits = random.choice(64 * w, distances[row % len(distances)], replace=False)
        codes[row] = flip(codes[random.integers(n // 4)], bits)
    return codes[random.permutation(n)]


def clusters(seed: int, w: int, n: int) -> Codes:
    """Few centres with few bits flipped: long chains, many equal codes and, in all, hits in most blocks."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2**64, (5, w), np.uint64)[random.integers(0, 5, n)]
    for row in range(n):
        codes[row] = flip(codes[row], random.choice(64 * w, random.integers(0, 6), replace=False))
    return codes


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles, many arrays of hits."""
    monkeypatch.setattr(hamming, "_ROWS", 50)
    monkeypatch.setattr(hamming, "_COLUMNS", 70)
    monkeypatch.setattr(hamming, "ROOM", 100)
    monkeypatch.setattr(bands, "ROOM", 10)


@pytest.mark.parametrize("w", [1, 4])
@pytest.mark.parametrize("radius", [0, 3, 10, 31, 60])
@pytest.mark.parametrize(
    "make", [lambda w: planted(1, w, 700, [0, 3, 4, 10, 11, 31, 32]), lambda w: clusters(2, w, 700)]
)
def test_all_pairs(make: object, w: int, radius: int) -> None:
    codes = make(w)  # type: ignore[operator]
    every = matrix(codes, codes)
    check(hamming.within(codes, radius, threads=1), every, radius, upper=True)
    check(hamming.between(codes[:150], codes[100:], radius), every[:150, 100:], radius, upper=False)
    check_forest(hamming.forest(codes, radius), np.triu(every <= radius, 1))
    if w == 4 or radius <= 10:
        check(bands.within(codes, radius), every, radius, upper=True)
        check_forest(bands.forest(codes, radius), np.triu(every <= radius, 1))


@pytest.mark.parametrize("w", [1, 4])
def test_tiles_and_full_arrays_change_nothing(tight: None, w: int) -> None:
    codes = clusters(3, w, 400)
    every = matrix(codes, codes)
    for threads in (1, 2, 3):
        check(hamming.within(codes, 8, threads=threads), every, 8, upper=True)
        check(hamming.between(codes[:150], codes[100:], 8, threads=threads), every[:150, 100:], 8, upper=False)
        check(bands.within(codes, 8, threads=threads), every, 8, upper=True)
    one, *more = (hamming.forest(codes, 8, threads=threads) for threads in (1, 2, 3))
    check_forest(one, np.triu(every <= 8, 1))
    assert all(np.array_equal(one, other) for other in more)
    one, *more = (bands.forest(codes, 8, threads=threads) for threads in (1, 2, 3))
    check_forest(one, np.triu(every <= 8, 1))
    assert all(np.array_equal(one, other) for other in more)


def test_longer_than_a_tile() -> None:
    codes = planted(4, 1, 5000, [0, 10, 11])
    check(hamming.within(codes, 10), matrix(codes, codes), 10, upper=True)


@pytest.mark.parametrize("w", [1, 4])
def test_every_pair_within_all_bits(w: int) -> None:
    codes = np.random.default_rng(5).integers(0, 2**64, (90, w), np.uint64)
    codes[7] = ~codes[6]
    every = matrix(codes, codes)
    assert every[6, 7] == 64 * w
    check(hamming.within(codes, 64 * w), every, 64 * w, upper=True)
    check(bands.within(codes, 64 * w, bands=8 * w), every, 64 * w, upper=True)
    assert len(hamming.within(codes, 64 * w - 1).left) < 90 * 89 // 2


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("shape", [(), (1,), (4,)])
def test_none_and_one(n: int, shape: tuple[int, ...]) -> None:
    codes = np.ones((n, *shape), np.uint64)
    for search in (hamming, bands):
        assert [len(array) for array in search.within(codes, 10)] == [0, 0, 0]
        assert search.forest(codes, 10).shape == (0, 2)
    for left, right in ((codes, codes[:0]), (codes[:0], codes)):
        assert [len(array) for array in hamming.between(left, right, 10)] == [0, 0, 0]
        assert hamming.forest_between(left, right, 10).shape == (0, 2)
    assert len(hamming.between(codes, codes, 0).left) == n
    assert bands.bucket_keys(codes, 7).shape[0] == n
    assert bands.keys(codes, 16).shape == (n, 16)


def test_flat_codes_and_columns() -> None:
    codes = planted(6, 1, 300, [2])
    for search in (hamming, bands):
        flat, column, strided = (search.within(some, 2) for some in (codes[:, 0], codes, np.repeat(codes, 2, 0)[::2]))
        for a, b, c in zip(flat, column, strided, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("w", [1, 4])
@pytest.mark.parametrize("radius", [0, 6, 20])
def test_forest_between(w: int, radius: int) -> None:
    codes = np.concatenate([clusters(7, w, 300), planted(8, w, 100, [0, 6, 7, 20])])
    codes = codes[np.random.default_rng(9).permutation(400)]
    left, right = codes[:170], codes[170:]
    adjacent = np.zeros((400, 400), bool)
    adjacent[:170, 170:] = matrix(left, right) <= radius
    edges = hamming.forest_between(left, right, radius)
    check_forest(edges + np.array([0, 170]), adjacent)


@pytest.mark.parametrize("forest", [hamming.forest, bands.forest])
def test_equal_codes_take_no_memory_of_pairs(forest: object) -> None:
    codes = np.full((20_000, 4), 3, np.uint64)  # 200 million pairs
    codes[1::2, 3] = 2
    tracemalloc.start()
    edges = forest(codes, 31)  # type: ignore[operator]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(np.sort(edges[:, 1]), np.arange(1, 20_000))
    assert peak < 20 * 2**20


def test_one_component_of_distinct_codes_takes_no_memory_of_pairs() -> None:
    codes = np.arange(2**12, dtype=np.uint64)  # 8 million pairs, any two within 12 bits
    tracemalloc.start()
    edges = hamming.forest(codes, 12, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(edges) == 2**12 - 1
    assert peak < 16 * 2**20


@pytest.mark.parametrize("w", [1, 4])
def test_distances(w: int) -> None:
    codes = planted(10, w, 200, [5])
    for one, many in ((codes[3], codes), (codes[3], codes[::2]), (codes[3], codes[:0])):
        found = hamming.distances(one, many)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, matrix(codes[3:4], many)[0])
    np.testing.assert_array_equal(hamming.distances(codes[3, 0], codes[:, 0]), matrix(codes[3:4, :1], codes[:, :1])[0])


@pytest.mark.parametrize("w", [1, 4])
@pytest.mark.parametrize("radius", [3, 15, 31])
@pytest.mark.parametrize("count", [None, "wide", "narrow"])
def test_bands_at_the_radius(w: int, radius: int, count: str | None) -> None:
    if w == 1 and radius > 3:
        radius = radius // 4 + 3
    codes = planted(radius, w, 600, [radius, radius + 1, radius - 1])
    chosen = {None: None, "wide": 4 * w, "narrow": 8 * w}[count]
    every = matrix(codes, codes)
    assert {radius, radius + 1} <= set(np.unique(every))
    check(bands.within(codes, radius, bands=chosen), every, radius, upper=True)


def test_bands_where_all_differences_fall_into_one() -> None:
    code = np.random.default_rng(11).integers(0, 2**64, 4, np.uint64)
    codes = np.stack([code, *(flip(code, np.arange(16 * band, 16 * band + 15)) for band in range(16))])
    every = matrix(codes, codes)
    for radius in (14, 15, 29, 30, 31):
        check(bands.within(codes, radius, bands=16), every, radius, upper=True)


def shares(codes: Codes, radius: int, **options: int) -> npt.NDArray[np.bool_]:
    """Which codes share a bucket key with the first."""
    keys = bands.bucket_keys(codes, radius, **options)
    return (keys[1:] == keys[0]).any(1)


@pytest.mark.parametrize("radius", [1, 2])
def test_bucket_keys_for_every_difference(radius: int) -> None:
    """All codes of 64 bits within the radius of one: with bands of 32 bits, and with few parts."""
    code = np.random.default_rng(12).integers(0, 2**64, 1, np.uint64)
    around = np.stack([code, *(flip(code, bits) for bits in combinations(range(64), radius))])
    for options in ({}, {"bands": 2}, {"bands": 2, "parts": 2}, {"bands": 4, "parts": 3}):
        assert shares(around, radius, **options).all()
    assert not shares(np.stack([code, ~code]), radius).any()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_bucket_keys_lose_nothing(data: st.DataObject) -> None:
    w = data.draw(st.sampled_from([1, 4]))
    radius = data.draw(st.sampled_from([0, 3, 7, 10] if w == 1 else [0, 7, 8, 15, 23, 31, 40]))
    code = np.array(data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=w, max_size=w)), np.uint64)
    start = data.draw(st.integers(0, 64 * w - 1))
    reach = data.draw(st.integers(max(radius, 1), 64 * w))  # close together, or all over the code
    offsets = data.draw(st.sets(st.integers(0, reach - 1), max_size=radius))
    other = flip(code, [(start + offset) % (64 * w) for offset in offsets])
    assert shares(np.stack([code, other]), radius).all()
    if radius <= 15:
        assert len(bands.within(np.stack([code, other]), radius).left) == 1


def test_bucket_keys_tell_most_codes_apart() -> None:
    codes = np.random.default_rng(13).integers(0, 2**64, (2000, 4), np.uint64)
    sizes = {radius: bands.bucket_keys(codes[:1], radius).shape[1] for radius in (0, 7, 15, 23, 31)}
    assert sizes == {0: 1, 7: 8, 15: 24, 23: 120, 31: 448}  # as documented
    for radius, bits in ((7, 32), (15, 21), (31, 20)):
        keys = bands.bucket_keys(codes, radius)
        meetings = sum(len(column) - len(np.unique(column)) for column in keys.T)
        assert meetings <= 1.3 * sizes[radius] * 2000**2 / 2 / 2**bits + 5
        assert len(np.unique(keys)) == keys.size - meetings  # no two columns meet


def test_keys() -> None:
    codes = np.random.default_rng(14).integers(0, 2**64, (300, 4), np.uint64)
    codes[150:, 1] = codes[:150, 1]
    codes[:, 3] = codes[:, 0]
    keys = bands.keys(codes, 8)
    assert (keys[:150] == keys[150:]).all(0).tolist() == [False, False, True, True, False, False, False, False]
    assert len(np.unique(keys)) == keys.size - 300  # equal values in different bands do not meet
    assert np.bincount((keys.ravel() % np.uint64(7)).astype(int)).min() > 0.8 * keys.size / 7


def random_edges(seed: int, n: int, m: int) -> Edges:
    return np.random.default_rng(seed).integers(0, n, (m, 2))


@pytest.mark.parametrize(("n", "m"), [(1, 3), (50, 10), (500, 200), (500, 2000)])
def test_union_find(n: int, m: int) -> None:
    edges = random_edges(m, n, m)
    _, component = connected_components(coo_array((np.ones(m), edges.T), (n, n)), directed=False)
    smallest = np.array([np.flatnonzero(component == it)[0] for it in component])
    for seed in range(4):
        shuffled = np.random.default_rng(seed).permuted(edges, axis=1)[np.random.default_rng(seed).permutation(m)]
        union = UnionFind(n)
        joined = np.concatenate([union.add(some) for some in np.array_split(shuffled, 3)])
        np.testing.assert_array_equal(union.labels(), smallest)
        assert joined.sum() == n - len(np.unique(component))
        again = UnionFind(n)
        assert again.add(shuffled[joined]).all()
        np.testing.assert_array_equal(again.labels(), smallest)


def test_union_find_without_edges_and_after_labels() -> None:
    union = UnionFind(4)
    assert union.add(np.empty((0, 2), np.int64)).tolist() == []
    assert union.labels().tolist() == [0, 1, 2, 3]
    union.labels()[:] = 9  # the caller's own
    assert union.add(np.array([[3, 1], [1, 3]])).tolist() == [True, False]
    assert union.labels().tolist() == [0, 1, 2, 1]
    assert UnionFind(0).labels().tolist() == []


def test_union_find_on_a_long_path() -> None:
    n = 200_000
    path = np.stack([np.arange(n - 1), np.arange(1, n)], 1)
    for edges in (path, path[::-1], path[:, ::-1]):
        union = UnionFind(n)
        assert union.add(np.ascontiguousarray(edges)).all()
        assert not union.labels().any()


FINE = np.zeros((5, 4), np.uint64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hamming.within(FINE.astype(np.int64), 3), r"got \[5, 4\] of int64"),
        (lambda: hamming.within(FINE[:, :2], 3), r"got \[5, 2\] of uint64"),
        (lambda: hamming.within(FINE[None], 3), r"got \[1, 5, 4\]"),
        (lambda: hamming.within(FINE.astype(">u8"), 3), "got .* of >u8"),
        (lambda: hamming.within(FINE, -1), "radius must be 0 to 256, the number of bits, got -1"),
        (lambda: hamming.within(FINE, 257), "radius must be 0 to 256, the number of bits, got 257"),
        (lambda: hamming.forest(FINE[:, 0], 65), "radius must be 0 to 64, the number of bits, got 65"),
        (lambda: hamming.within(FINE, 3, threads=0), "threads must be at least 1, got 0"),
        (lambda: hamming.between(FINE, FINE[:, 0], 3), "equally wide, got 256 and 64 bits"),
        (lambda: hamming.between(FINE, FINE, 300), "radius must be .* got 300"),
        (lambda: hamming.forest_between(FINE[:, :1], FINE, 3), "equally wide, got 64 and 256 bits"),
        (lambda: hamming.distances(FINE[0], FINE[:, 0]), "equally wide, got 256 and 64 bits"),
        (lambda: hamming.distances(FINE[0].astype(float), FINE), "of float64"),
        (lambda: bands.within(FINE, 3, bands=24), "bands must be a power of two from 16 to 256, got 24"),
        (lambda: bands.within(FINE, 3, bands=8), "bands must be a power of two from 16 to 256, got 8"),
        (lambda: bands.forest(FINE[:, 0], 70), "radius must be 0 to 64, the number of bits, got 70"),
        (lambda: bands.keys(FINE, 0), "bands must be a power of two from 8 to 256, got 0"),
        (lambda: bands.bucket_keys(FINE, 31, 16, parts=1), "parts must be 2 to 16 .* 1 of 16 bits .* got 1"),
        (lambda: bands.bucket_keys(FINE, 256), "radius must be 0 to 255, less than the number of bits, got 256"),
        (lambda: UnionFind(-1), "n must be at least 0, got -1"),
        (lambda: UnionFind(3).add(np.array([[0, 3]])), "nodes from 0 to 2, got 3"),
        (lambda: UnionFind(3).add(np.array([[-1, 2]])), "nodes from 0 to 2, got -1"),
        (lambda: UnionFind(3).add(np.array([0, 1])), r"edges must be int64 \[m, 2\], got \[2\]"),
        (lambda: UnionFind(3).add(np.array([[0.0, 1.0]])), "got .* of float64"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
