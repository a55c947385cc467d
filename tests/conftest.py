"""Shared small things: real digits, a small audit, a small network."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

# small tensors: more threads only fight with each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

from unmem.evaluate.audit import Audit, Planted, Split, draw
from unmem.train.config import Train
from unmem.train.datasets.digits import Digits
from unmem.train.imageset import ImageSet


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return Digits().load(tmp_path_factory.mktemp("scratch"))[0]


@pytest.fixture(scope="session")
def audit(digits: ImageSet) -> Audit:
    """40 members of which two stand four times, 40 non-members."""
    return draw(digits, Split(members=40, nonmembers=40, planted=Planted(images=2, copies=4)), seed=0)


@pytest.fixture
def small_train() -> Train:
    return Train(images=256, batch=32, lr=3e-3, noise_schedule="cosine", ema=0.9, checkpoint_seconds=3600.0, threads=1)


def grey_set(images: np.ndarray) -> ImageSet:
    """An image set over uint8 [n, h, w]."""
    return ImageSet.of(images[..., None], [f"image/{i}" for i in range(len(images))])


class Generator:
    """A target whose samples are given."""

    access = frozenset({"samples"})

    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    def samples(self, count: int) -> np.ndarray:
        return self._images[:count]

    def losses(self, images: np.ndarray, labels: np.ndarray | None, t: int, eps: np.ndarray) -> np.ndarray:
        raise AssertionError("a folder of images gives no losses")


REPOSITORY = Path(__file__).parent.parent
