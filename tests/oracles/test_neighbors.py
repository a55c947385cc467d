"""top_k and within against brute force in float64."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmem import neighbors, whole_numbers
from unmem.neighbors import Near, Neighbors, top_k, within

TIGHT = 2**19  # bytes: several tiles of queries and of points even for small data


def distances(queries: npt.NDArray, points: npt.NDArray) -> npt.NDArray[np.float64]:
    rows = queries.astype(float)
    return np.stack([np.sqrt(np.square(points.astype(float) - row).sum(1)) for row in rows])


def check(found: Neighbors, queries: npt.NDArray, points: npt.NDArray, k: int) -> None:
    """The true distances, at points that really are that far, each once."""
    every = distances(queries, points)
    want = np.sort(every, axis=1)[:, :k]
    assert found.distances.shape == found.indices.shape == (len(queries), k)
    assert found.distances.dtype == np.float32
    assert found.indices.dtype == np.int64
    np.testing.assert_allclose(found.distances, want, rtol=3e-7)
    np.testing.assert_allclose(np.take_along_axis(every, found.indices, 1), want, rtol=3e-7)
    assert all(len(set(row)) == k for row in found.indices.tolist())
    assert (np.diff(found.distances, axis=1) >= 0).all()


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries each pass was asked for."""
    counts: list[int] = []
    run = neighbors._Search.run

    def counting(self: neighbors._Search, found: Neighbors) -> object:
        counts.append(len(self.pending))
        return run(self, found)

    monkeypatch.setattr(neighbors._Search, "run", counting)
    return counts


@pytest.mark.parametrize("memory", [TIGHT, 2**30])
@pytest.mark.parametrize(
    ("q", "n", "d", "k"),
    [
        (1, 1, 1, 1),
        (7, 1, 5, 1),
        (3, 40, 1, 40),
        (9, 70, 700, 70),
        (20, 4000, 3, 9),
        (50, 333, 17, 5),
        (300, 1000, 64, 50),
    ],
)
def test_shapes(random: np.random.Generator, q: int, n: int, d: int, k: int, memory: int) -> None:
    queries, points = random.random((q, d), np.float32), random.random((n, d), np.float32)
    check(top_k(queries, points, k, memory=memory), queries, points, k)


@pytest.mark.parametrize("of_queries", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("of_points", ["uint8", "float16", "float32", "float64"])
def test_types(random: np.random.Generator, of_queries: str, of_points: str) -> None:
    queries = (random.random((20, 48)) * 255).astype(of_queries)
    points = (random.random((300, 48)) * 255).astype(of_points)
    check(top_k(queries, points, 7, memory=TIGHT), queries, points, 7)


def test_types_mean_the_same_numbers(random: np.random.Generator) -> None:
    images = random.integers(0, 256, (200, 192), np.uint8)
    for found in (top_k(images[:9].astype(dtype), images, 12) for dtype in ("float16", "float32")):
        want = top_k(images[:9], images, 12)
        np.testing.assert_array_equal(found.indices, want.indices)
        np.testing.assert_allclose(found.distances, want.distances, rtol=1.2e-7)  # a float's last bit


@pytest.mark.parametrize("memory", [TIGHT, 2**30])
@pytest.mark.parametrize(("q", "n", "d", "k"), [(1, 1, 1, 1), (9, 70, 700, 70), (50, 3333, 17, 5), (70, 2500, 192, 50)])
def test_bytes(random: np.random.Generator, q: int, n: int, d: int, k: int, memory: int) -> None:
    queries, points = random.integers(0, 256, (q, d), np.uint8), random.integers(0, 256, (n, d), np.uint8)
    points[: n // 2] //= 100  # near ties in plenty
    found = top_k(queries, points, k, memory=memory)
    check(found, queries, points, k)
    ties = np.diff(found.distances, axis=1) == 0
    assert (np.diff(found.indices, axis=1)[ties] > 0).all()


@pytest.mark.parametrize("d", [whole_numbers.WIDEST - 1, whole_numbers.WIDEST, whole_numbers.WIDEST + 1])
def test_bytes_as_far_apart_as_can_be(d: int) -> None:
    points = np.repeat(np.array([[0], [255], [128]], np.uint8), d, axis=1)
    found = top_k(points, points, 3)
    np.testing.assert_array_equal(found.indices, [[0, 2, 1], [1, 2, 0], [2, 1, 0]])
    np.testing.assert_allclose(found.distances[0], np.sqrt(d) * np.array([0, 128, 255]), rtol=1e-7)


@pytest.mark.parametrize(("offset", "spread"), [(200, 1e-3), (1e4, 0.1), (-1e7, 10), (3e14, 1e9)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_from_the_origin(random: np.random.Generator, offset: float, spread: float, dtype: type) -> None:
    points = (offset + spread * random.standard_normal((500, 96))).astype(dtype)
    queries = (offset + spread * random.standard_normal((30, 96))).astype(dtype)
    check(top_k(queries, points, 10), queries, points, 10)


@pytest.mark.parametrize(("apart", "passes"), [(0.0, 1), (1e3, 2), (1e10, 3)])
def test_clusters_far_from_each_other(
    random: np.random.Generator, stages: list[int], apart: float, passes: int
) -> None:
    """What one product cannot tell apart, the next does: no centre suits both clusters."""
    points = random.standard_normal((600, 32)) + apart * (np.arange(600) % 2)[:, None]
    queries = points[:40] + 0.1 * random.standard_normal((40, 32))
    check(top_k(queries, points, 6), queries, points, 6)
    assert len(stages) == passes


def test_many_near_ties(random: np.random.Generator) -> None:
    """200 copies of each of 5 images, each copy a grey level off here and there."""
    points = np.repeat(random.integers(1, 255, (5, 768), np.uint8), 200, axis=0)
    points += (random.random(points.shape) < 0.002).astype(np.uint8)
    queries = points[::40] ^ (random.random((25, 768)) < 0.001)
    for memory in (TIGHT, 2**30):
        check(top_k(queries, points, 30, memory=memory), queries, points, 30)


def test_points_on_a_sphere(random: np.random.Generator) -> None:
    """All of them equally far from the query, but for rounding."""
    points = random.standard_normal((800, 24))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True) + 5).astype(np.float32)
    queries = np.full((3, 24), 5, np.float32)
    check(top_k(queries, points, 20), queries, points, 20)


def test_duplicates_are_at_zero_in_order_of_index(random: np.random.Generator) -> None:
    base = 200 + 1e-3 * random.standard_normal((50, 300)).astype(np.float32)
    points = np.concatenate([base, base, base])
    found = top_k(base, points, 4, memory=TIGHT)
    assert (found.distances[:, :3] == 0).all()
    assert (found.distances[:, 3] > 0).all()
    np.testing.assert_array_equal(found.indices[:, :3], np.arange(50)[:, None] + [0, 50, 100])


def test_more_duplicates_than_candidates(stages: list[int]) -> None:
    points = np.zeros((1000, 8), np.uint8)
    points[500:] = 3
    queries = np.array([[0] * 8, [1] * 8], np.uint8)
    check(top_k(queries, points, 5), queries, points, 5)
    assert len(stages) <= 2  # ties are settled by the second product at the latest


@pytest.mark.parametrize("scale", [1e-17, 1e-12, 1e12])
def test_scale(random: np.random.Generator, scale: float) -> None:
    points = (scale * random.random((400, 40))).astype(np.float32)
    check(top_k(points[:20], points, 8), points[:20], points, 8)


def test_memory_does_not_change_the_answer(random: np.random.Generator) -> None:
    centres = random.random((10, 200), np.float32)
    points = centres[random.integers(0, 10, 3000)] + 0.1 * random.standard_normal((3000, 200), np.float32)
    queries = points[:300] + 0.05 * random.standard_normal((300, 200), np.float32)
    first, *others = (top_k(queries, points, 15, memory=memory) for memory in (2**18, 2**20, 2**24, 2**30))
    for found in others:
        np.testing.assert_array_equal(found.indices, first.indices)
        np.testing.assert_array_equal(found.distances, first.distances)


@pytest.mark.filterwarnings("error")
def test_memory_map_and_strides(random: np.random.Generator, tmp_path: object) -> None:
    images = random.integers(0, 256, (400, 120), np.uint8)
    np.save(f"{tmp_path}/images.npy", images)
    mapped = np.load(f"{tmp_path}/images.npy", mmap_mode="r")
    check(top_k(mapped[:30], mapped, 6, memory=TIGHT), images[:30], images, 6)
    check(top_k(images[::9, ::2], images[::2, ::2], 6), images[::9, ::2], images[::2, ::2], 6)
    fortran = np.asfortranarray(images)
    check(top_k(fortran[:30], fortran, 6), images[:30], images, 6)


def test_no_queries() -> None:
    found = top_k(np.zeros((0, 3)), np.zeros((5, 3)), 2)
    assert found.distances.shape == found.indices.shape == (0, 2)


def test_callers_precision_is_theirs(random: np.random.Generator) -> None:
    import torch

    points = random.random((500, 256), np.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            check(top_k(points[:20], points, 8), points[:20], points, 8)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def spoiled(value: float) -> npt.NDArray[np.float32]:
    array = np.zeros((5, 3), np.float32)
    array[4, 1] = value
    return array


FINE = np.zeros((5, 3), np.float32)


@pytest.mark.parametrize(
    ("queries", "points", "k", "options", "message"),
    [
        (FINE, FINE, 0, {}, "k must be 1 to 5, the number of points, got 0"),
        (FINE, FINE, 6, {}, "k must be 1 to 5, the number of points, got 6"),
        (FINE, FINE[:0], 1, {}, "k must be 1 to 0"),
        (FINE[0], FINE, 1, {}, r"queries must be .* got \[3\] of float32"),
        (FINE, FINE[None], 1, {}, r"points must be .* got \[1, 5, 3\] of float32"),
        (FINE[:, :0], FINE[:, :0], 1, {}, r"queries must be .* got \[5, 0\]"),
        (FINE, FINE.astype(np.int64), 1, {}, "points must be .* of int64"),
        (FINE, FINE.astype(">f4"), 1, {}, "points must be .* of >f4"),
        (FINE[::-1], FINE, 1, {}, "queries must be .* without negative strides"),
        (FINE, FINE[:, :2], 1, {}, "equally wide, got 3 and 2 columns"),
        (spoiled(np.nan), FINE, 1, {}, "queries must be finite and below 1e.15 in magnitude, got nan"),
        (FINE, spoiled(-np.inf), 1, {}, "points must be finite and below 1e.15 in magnitude, got -inf"),
        (FINE, spoiled(1e16), 1, {}, "points must be finite and below 1e.15 in magnitude, got 1e.16"),
        (FINE, FINE, 1, {"memory": 1000}, r"memory must be at least \d+ bytes .* got 1000"),
    ],
)
def test_errors(queries: npt.NDArray, points: npt.NDArray, k: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top_k(queries, points, k, **options)


def test_least_memory(random: np.random.Generator) -> None:
    points = random.random((300, 77))
    with pytest.raises(ValueError, match="memory must be at least") as refused:
        top_k(points, points, 20, memory=0)
    least = int(str(refused.value).split("at least ")[1].split()[0])
    check(top_k(points, points, 20, memory=least), points, points, 20)


def check_within(found: Near, queries: npt.NDArray, points: npt.NDArray, radius: float) -> None:
    """All the pairs, in their order, with the true distances."""
    every = distances(queries, points) if len(queries) and len(points) else np.empty((len(queries), len(points)))
    i, j = np.nonzero(every <= radius)
    np.testing.assert_array_equal(found.queries, i)
    np.testing.assert_array_equal(found.points, j)
    np.testing.assert_allclose(found.distances, every[i, j], rtol=3e-7)
    assert [part.dtype for part in found] == [np.int64, np.int64, np.float32]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """For how many queries, among how many points and for how many neighbors top_k was called."""
    calls: list[tuple[int, int, int]] = []

    def counting(queries: npt.NDArray, points: npt.NDArray, k: int, **options: object) -> Neighbors:
        calls.append((len(queries), len(points), k))
        return top_k(queries, points, k, **options)

    monkeypatch.setattr(neighbors, "top_k", counting)
    return calls


def clusters(random: np.random.Generator, *sizes: int) -> npt.NDArray[np.float32]:
    """Tight clusters far from each other, shuffled."""
    centres = np.repeat(100 * random.random((len(sizes), 24), np.float32), sizes, axis=0)
    return random.permutation(centres + random.random(centres.shape, np.float32))


def test_within_clusters_of_all_sizes(random: np.random.Generator, asked: list[tuple[int, int, int]]) -> None:
    points = clusters(random, 1, 2, 15, 16, 17, 63, 64, 65, 200)
    check_within(within(points, points, 10), points, points, 10)
    assert [k for _, _, k in asked] == [16, 64, 256]
    # who had 16 may have more; the cluster of 16 is among them, that of 15 is not
    assert [q for q, _, _ in asked] == [443, 425, 329]


def test_within_little_memory(random: np.random.Generator, asked: list[tuple[int, int, int]]) -> None:
    """Points are taken in parts where too many are near, queries in blocks where their answers would not fit."""
    points = clusters(random, 70, 110, 3, 1)
    least = 2**17 + 2048 * 24
    found = within(points, points, 10, memory=least)
    check_within(found, points, points, 10)
    assert max(k for _, _, k in asked) < 64
    assert {n for _, n, _ in asked} >= {184, 92, 46, 23}
    assert max(q for q, _, _ in asked) < 180
    for got, want in zip(found, within(points, points, 10), strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match=f"memory must be at least {least} bytes for 24 columns, got {least - 1}"):
        within(points, points, 10, memory=least - 1)


def test_within_zero_is_equality(random: np.random.Generator) -> None:
    base = 200 + 1e-3 * random.standard_normal((40, 300)).astype(np.float32)
    points = np.concatenate([base, base[:20], base[:5]])
    found = within(points, points, 0)
    check_within(found, points, points, 0)
    assert len(found.queries) == 20 + 15 * 4 + 5 * 9
    assert not found.distances.any()


@pytest.mark.parametrize("radius", [1e9, np.inf])
def test_within_everything(random: np.random.Generator, radius: float) -> None:
    queries, points = random.random((30, 5)), random.random((90, 5), np.float32)
    check_within(within(queries, points, radius), queries, points, radius)


@pytest.mark.parametrize(("q", "n"), [(0, 0), (0, 5), (5, 0), (1, 1)])
def test_within_few(q: int, n: int) -> None:
    check_within(within(np.zeros((q, 3)), np.ones((n, 3)), 1.8), np.zeros((q, 3)), np.ones((n, 3)), 1.8)


def test_within_the_border_belongs_to_it() -> None:
    points = np.arange(60, dtype=np.uint8)[:, None]
    check_within(within(points[::7], points, 20), points[::7], points, 20)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    q=st.integers(0, 40),
    n=st.integers(0, 90),
    d=st.integers(1, 4),
    radius=st.integers(0, 9),
)
def test_within_on_a_lattice(seed: int, q: int, n: int, d: int, radius: int) -> None:
    """Many ties, many pairs exactly at the radius."""
    random = np.random.default_rng(seed)
    queries, points = random.integers(0, 6, (q, d)).astype(np.uint8), random.integers(0, 6, (n, d)).astype(np.float32)
    check_within(within(queries, points, radius, memory=2**18), queries, points, radius)


@pytest.mark.parametrize(
    ("queries", "points", "radius", "message"),
    [
        (FINE, FINE, -1, "radius must be 0 or more, got -1"),
        (FINE, FINE, np.nan, "radius must be 0 or more, got nan"),
        (FINE[0], FINE, 1, r"queries must be .* got \[3\] of float32"),
        (FINE, FINE[:0, :2], 1, "equally wide, got 3 and 2 columns"),
        (FINE, spoiled(np.nan), 1, "points must be finite"),
    ],
)
def test_within_errors(queries: npt.NDArray, points: npt.NDArray, radius: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        within(queries, points, radius)


def test_import_is_light() -> None:
    code = "import sys, unmem.neighbors; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("megabytes", [64, 400])
def test_peak_memory(dtype: str, megabytes: int) -> None:
    """In a process of its own, as the system counts it; the first small call brings in the libraries' own."""
    code = f"""
        import resource, sys
        import numpy as np
        from unmem.neighbors import top_k
        points = (np.random.default_rng(0).random((20_000, 3072), np.float32) * 255).astype({dtype!r})
        queries = points[:3000].copy()
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        top_k(queries[:64], points[:2000], 50, memory={megabytes} << 20)
        # the peak so far may be the making of the data: fill the gap to it
        current = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
        ballast = np.ones(max(0, peak() - current) << 20, np.uint8)
        before = peak()
        top_k(queries, points, 50, memory={megabytes} << 20)
        print(peak() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) <= megabytes
