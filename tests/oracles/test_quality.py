"""The Fréchet distance against independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from unmem.evaluate.quality.frechet import frechet_distance
from unmem.rng import stream


@pytest.mark.parametrize("d", [1, 5, 40])
@pytest.mark.parametrize("n", [30, 200])
def test_frechet_is_scipys_matrix_root(n: int, d: int) -> None:
    rng = stream(n, "frechet", d)
    first, second = rng.normal(0, 1, (n, d)) @ rng.normal(0, 1, (d, d)), rng.normal(0.3, 2, (n, d))
    s1, s2 = np.atleast_2d(np.cov(first.T)), np.atleast_2d(np.cov(second.T))
    root = scipy.linalg.sqrtm(s1 @ s2).real
    mean = first.mean(0) - second.mean(0)
    expected = mean @ mean + np.trace(s1 + s2 - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_frechet_is_torchmetrics() -> None:
    import torch
    from torchmetrics.image.fid import _compute_fid

    rng = stream(0, "torchmetrics")
    first, second = rng.normal(0, 1, (300, 16)), rng.normal(0.5, 1.5, (300, 16))
    moments = [torch.from_numpy(x) for y in (first, second) for x in (y.mean(0), np.cov(y.T))]
    assert frechet_distance(first, second) == pytest.approx(float(_compute_fid(*moments)), rel=1e-6)


def test_frechet_of_known_gaussians() -> None:
    """Moments in closed form: N(0, I) against N(m, s^2 I) is |m|^2 + d (s - 1)^2."""
    rng = stream(0, "closed form")
    x = rng.normal(0, 1, (200_000, 3))
    assert frechet_distance(x, 2 * rng.normal(0, 1, (200_000, 3)) + 1) == pytest.approx(3 + 3, rel=0.02)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
