"""Grouped neighbours against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from unmem.evaluate import groups
from unmem.evaluate.groups import group_images, nearest_groups
from unmem.rng import stream


def clustered(n: int, seed: int) -> np.ndarray:
    """Points in [0, 1], many of them near-copies of others."""
    rng = stream(seed, "clustered")
    centres = rng.random((max(2, n // 4), 12))
    return np.clip(centres[rng.integers(0, len(centres), n)] + rng.normal(0, 0.02, (n, 12)), 0, 1).astype(np.float32)


def brute_groups(points: np.ndarray, threshold: float) -> np.ndarray:
    """Flood fill over the full distance matrix."""
    d = np.sqrt(((points[:, None].astype(np.float64) - points[None]) ** 2).mean(2))
    group = np.arange(len(points))
    while True:
        spread = np.array([group[d[i] <= threshold].min() for i in range(len(points))])
        if (spread == group).all():
            return group
        group = spread


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.03, 0.5])
def test_groups_are_connected_components(seed: int, threshold: float) -> None:
    points = clustered(60, seed)
    np.testing.assert_array_equal(group_images(points, threshold), brute_groups(points, threshold))


@pytest.mark.parametrize("crowd", [0.0, 0.1, 1.0], ids=["all directions", "either", "main directions"])
@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.03, 0.5])
def test_groups_do_not_depend_on_blocks_and_directions(
    threshold: float, crowd: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = np.concatenate([clustered(90, 7), clustered(90, 7)[:20], np.zeros((12, 12), np.float32)])
    for name, value in {"ROWS": 17, "COLUMNS": 32, "DIRECTIONS": 3, "SAMPLE": 9, "PAIRS": 5, "CROWD": crowd}.items():
        monkeypatch.setattr(groups, name, value)
    np.testing.assert_array_equal(group_images(points, threshold), brute_groups(points, threshold))


def test_hardly_a_pair_is_measured_that_is_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images differ along few directions: these tell nearly all pairs apart."""
    rng = stream(0, "smooth")
    points = (rng.normal(size=(400, 100)) @ rng.normal(size=(100, 300)) / 10).astype(np.float32)
    points[1::4] = points[::4] + 0.01
    pairs = sum(len(rows) for rows, _ in groups._candidates(points, 0.03 * np.sqrt(300)))
    assert 100 <= pairs < 110
    assert len(np.unique(group_images(points, 0.03))) == 300


def test_queries_that_need_long_lists_among_others() -> None:
    """A few queries fall among hundreds of copies; the lists of the others are short."""
    points = stream(0, "points").random((150, 12)).astype(np.float32)
    copied = np.concatenate([points, np.repeat(points[:3], 200, axis=0)])
    queries = stream(1, "points").random((400, 12)).astype(np.float32)
    queries[5::40] = points[0] + 0.01
    plain, names = nearest_groups(queries, points, np.arange(150), 20)
    grouped, same = nearest_groups(queries, copied, group_images(copied, 0.0), 20)
    np.testing.assert_allclose(grouped, plain, atol=1e-6)
    np.testing.assert_array_equal(same[:, 0], names[:, 0])


@pytest.mark.parametrize("seed", range(6))
def test_nearest_groups_against_brute_force(seed: int) -> None:
    points, queries = clustered(120, seed), clustered(30, seed + 100)
    group = group_images(points, 0.03)
    names = np.unique(group)
    count = min(10, len(names))
    distances, found = nearest_groups(queries, points, group, count)
    d = np.sqrt(((queries[:, None].astype(np.float64) - points[None]) ** 2).mean(2))
    to_group = np.stack([d[:, group == name].min(1) for name in names], axis=1)
    order = np.argsort(to_group, axis=1)[:, :count]
    np.testing.assert_allclose(distances, np.take_along_axis(to_group, order, axis=1), atol=1e-6)
    np.testing.assert_array_equal(found[:, 0], names[order[:, 0]])


def test_a_thousand_copies_count_once() -> None:
    """The paper's mean over neighbours, with copies collapsed: copying an image does not hide it."""
    points = stream(0, "points").random((60, 12)).astype(np.float32)
    copied = np.concatenate([points, np.repeat(points[:1], 1000, axis=0)])
    query = points[:1] + 0.01
    plain, _ = nearest_groups(query, points, np.arange(60), 50)
    grouped, _ = nearest_groups(query, copied, group_images(copied, 0.0), 50)
    np.testing.assert_allclose(grouped, plain, atol=1e-6)
