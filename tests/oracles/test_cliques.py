"""Patch distances and cliques against brute force, and the filter on copies that are known to be there."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from unmem.evaluate import cliques
from unmem.evaluate.cliques import Clique, largest_clique, ranked, tightest_clique, tiled_distances
from unmem.rng import stream
from unmem.train.imageset import ImageSet


def slow_distance(first: np.ndarray, second: np.ndarray, tiles: int) -> float:
    """One pair, tile by tile, in whole numbers."""
    found = []
    for rows in edges_of(first.shape[0], tiles):
        for columns in edges_of(first.shape[1], tiles):
            difference = first[rows, columns].astype(np.int64) - second[rows, columns]
            found.append((difference**2).sum() / (255**2 * difference.size))
    return float(np.sqrt(max(found)))


def edges_of(side: int, tiles: int) -> list[slice]:
    return [slice(side * i // tiles, side * (i + 1) // tiles) for i in range(tiles)]


def slow_cliques(edges: np.ndarray, size: int) -> list[tuple[int, ...]]:
    """Every clique of this size, by trying every subset."""
    return [
        chosen
        for chosen in combinations(range(len(edges)), size)
        if all(edges[i, j] for i, j in combinations(chosen, 2))
    ]


def graph(n: int, density: float, *names: object) -> np.ndarray:
    upper = np.triu(stream(0, "graph", n, *names).random((n, n)) < density, 1)
    return upper | upper.T


def points(n: int, *names: object) -> np.ndarray:
    """Distances between points of a plane, in whole steps, so that many are equal."""
    places = stream(0, "points", n, *names).integers(0, 6, (n, 2))
    return np.sqrt(((places[:, None] - places) ** 2).sum(2).astype(np.float64)) / 10


@pytest.mark.parametrize(("side", "channels", "tiles"), [(8, 1, 4), (9, 3, 4), (7, 3, 1), (4, 1, 4), (200, 3, 1)])
def test_distances_are_those_of_every_pair_bit_for_bit(side: int, channels: int, tiles: int) -> None:
    images = stream(0, "images", side).integers(0, 256, (5, side, side + 1, channels), dtype=np.uint8)
    images[3] = images[1]
    images[4] = 255 - images[0] // 128 * 255  # black and white: the largest products that there are
    found = tiled_distances(images, tiles)
    slow = np.array([[slow_distance(a, b, tiles) for b in images] for a in images])
    np.testing.assert_array_equal(found, slow)
    assert found[1, 3] == 0


def test_a_processor_without_integer_products_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images = stream(0, "images").integers(0, 2, (6, 64, 64, 3), dtype=np.uint8) * 255
    with_integers = tiled_distances(images, 2)
    monkeypatch.setattr(cliques, "_has_integer_products", lambda: False)
    np.testing.assert_array_equal(tiled_distances(images, 2), with_integers)


def test_products_that_saturate_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = a.int()[:, None, :] * b.T.int()[None]  # two products at a time, in 16 bits, as vpmaddubsw adds them
        sums = (pairs[..., ::2] + pairs[..., 1::2]).clamp(-(2**15), 2**15 - 1)
        return sums.sum(2, dtype=torch.int32)

    cliques._has_integer_products.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", saturating)
    try:
        assert not cliques._has_integer_products()
    finally:
        cliques._has_integer_products.cache_clear()


@pytest.mark.parametrize(
    "images", [np.zeros((2, 8, 8, 1)), np.zeros((2, 3, 8, 1), np.uint8), np.zeros((2, 8), np.uint8)]
)
def test_what_has_no_patch_distance_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        tiled_distances(images)


@pytest.mark.parametrize("count", [0, 1])
def test_few_images_have_no_clique(count: int) -> None:
    distances = tiled_distances(np.zeros((count, 8, 8, 1), np.uint8))
    assert distances.shape == (count, count)
    assert tightest_clique(distances, 1, 2) is None


@pytest.mark.parametrize("density", [0, 0.3, 0.6, 0.9, 1])
def test_the_largest_clique_is_brute_forces(density: float) -> None:
    for n in (*range(8), 11, 12):
        edges = graph(n, density, density)
        size = max((k for k in range(n + 1) if slow_cliques(edges, k)), default=0)
        found = largest_clique(edges)
        assert len(found) == size
        assert tuple(found) in slow_cliques(edges, size)
        for above in range(n + 1):
            assert len(largest_clique(edges, above=above)) == (size if size > above else 0)
            enough = largest_clique(edges, above=above, enough=above + 1)
            assert len(enough) == (above + 1 if size > above else 0)


@pytest.mark.parametrize("n", [63, 64, 65, 130])
def test_the_largest_clique_is_networkxs_across_words(n: int) -> None:
    networkx = pytest.importorskip("networkx")
    for density in (0.1, 0.4, 0.6):
        edges = graph(n, density, density)
        size = max(len(each) for each in networkx.find_cliques(networkx.from_numpy_array(edges)))
        found = largest_clique(edges)
        assert len(found) == size
        assert edges[np.ix_(found, found)].sum() == size * (size - 1)


@pytest.mark.parametrize("name", ["parts", "pentagons"])
def test_graphs_that_are_nearly_full_of_cliques_but_have_none_are_seen_through(name: str) -> None:
    """Large independent sets; colours alone do not settle pentagons, of which four need 12 and hold 8."""
    place = np.arange(500)
    if name == "parts":
        edges, most = place[:, None] % 9 != place % 9, 9
    else:
        around = (place[:, None] - place) % 5
        edges, most = (place[:, None] // 125 != place // 125) | (around == 1) | (around == 4), 8
    edges = edges & ~graph(500, 0.01)
    assert len(largest_clique(edges, above=most, enough=most + 1)) == 0
    assert len(largest_clique(edges, above=most - 4, enough=most - 3)) == most - 3


@pytest.mark.parametrize("density", [0.05, 0.3, 0.33, 0.4, 0.9])
def test_a_random_graph_of_a_prompts_size_is_decided(density: float) -> None:
    edges = graph(500, density, density)
    found = largest_clique(edges, above=9, enough=10)
    assert len(found) in (0, 10)
    assert (density < 0.2) <= (len(found) == 0)
    assert (density > 0.39) <= (len(found) == 10)
    assert edges[np.ix_(found, found)].sum() == len(found) * (len(found) - 1)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_tightest_clique_has_the_least_diameter_of_all(size: int) -> None:
    for n in (2, 5, 9, 12):
        for threshold in (0.0, 0.1, 0.25, 1.0):
            distances = points(n, size)
            every = slow_cliques(distances <= threshold, size)
            found = tightest_clique(distances, threshold, size)
            assert (found is None) == (not every)
            if found is None:
                continue
            assert tuple(found.members) in every
            assert found.diameter == min(max(distances[i, j] for i, j in combinations(each, 2)) for each in every)
            pairs = [distances[i, j] for i, j in combinations(found.members, 2)]
            assert (found.diameter, found.mean) == (max(pairs), pytest.approx(np.mean(pairs)))
            middle = distances[np.ix_(found.members, found.members)].sum(1)
            assert found.medoid == found.members[np.flatnonzero(middle == middle.min())[0]]


def test_the_least_diameter_does_not_depend_on_the_samples_order() -> None:
    random = np.triu(stream(0, "random").random((80, 80)), 1)
    distances, order = random + random.T, stream(0, "order").permutation(80)
    found, again = (tightest_clique(some, 1, 6) for some in (distances, distances[np.ix_(order, order)]))
    assert found is not None
    assert again is not None
    assert again.diameter == found.diameter
    assert tightest_clique(distances, np.nextafter(found.diameter, 0), 6) is None


def test_prompts_are_ranked_by_their_mean_distance() -> None:
    cliques_of = [None, *(Clique(np.arange(3), mean, 0.1, 0) for mean in (0.05, 0.01, 0.05)), None]
    assert ranked(cliques_of) == [2, 1, 3]


def enlarged(digits: ImageSet, count: int) -> np.ndarray:
    """Real digits of 64 x 64 pixels."""
    return digits.images(slice(0, count)).repeat(8, 1).repeat(8, 2)


def test_near_copies_among_real_images_are_found_and_nothing_else_is(digits: ImageSet) -> None:
    """Twelve noisy copies of one digit among 188 other digits."""
    images = enlarged(digits, 200)
    where = np.sort(stream(0, "where").permutation(200)[:12])
    noise = stream(0, "noise").normal(0, 12, (12, *images.shape[1:]))
    images[where] = np.clip(images[where[0]] + noise, 0, 255).astype(np.uint8)
    distances = tiled_distances(images)
    found = tightest_clique(distances, 0.15, 10)
    assert found is not None
    assert set(found.members) <= set(where)
    np.testing.assert_array_equal(largest_clique(distances <= 0.15, above=9), where)
    others = np.setdiff1d(np.arange(200), where)
    assert tightest_clique(distances[np.ix_(others, others)], 0.15, 10) is None


def test_one_background_makes_no_clique_but_would_of_plain_distances(digits: ImageSet) -> None:
    """Twenty different digits, small, on one large white page: alike as wholes, different where it matters."""
    page = np.full((20, 64, 64, 1), 255, dtype=np.uint8)
    page[:, 16:32, 16:32] = digits.images(slice(0, 20)).repeat(2, 1).repeat(2, 2)
    whole = tiled_distances(page, tiles=1)
    assert tightest_clique(whole, 0.15, 10) is not None
    assert tightest_clique(tiled_distances(page), 0.15, 10) is None
