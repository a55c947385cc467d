"""Grouped neighbours against brute force."""

from __future__ import annotations

import numpy as np
import pytest

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
