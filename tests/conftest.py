"""Shared small things: real digits, a small audit, a small network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# small tensors: more threads only fight with each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

from unmem.evaluate.audit import Audit, Planted, Split, draw
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.rows import Rows
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
    shadows = ()
    prompts = ()
    drawn = Path()

    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    def samples(self, count: int) -> np.ndarray:
        return self._images[:count]

    def read(self, reading: Reading) -> Rows:
        raise AssertionError("a folder of images answers no questions")


class Asked:
    """A target, or a shadow, whose denoiser is asked on the spot."""

    access = frozenset({"samples", "predictions", "gradients", "shadows"})

    def __init__(
        self,
        denoiser: Any,
        audit: Audit,
        *,
        generated: np.ndarray | None = None,
        shadows: Sequence[Asked] = (),
        inside: Rows | None = None,
        batch: int = 100,
        seed: int = 0,
    ) -> None:
        self.shadows, self.inside, self._generated = shadows, inside, generated
        self.drawn = Path()
        self._denoiser, self._audit, self._batch, self._seed = denoiser, audit, batch, seed
        self._known: dict[str, Rows] = {}

    def samples(self, count: int) -> np.ndarray:
        assert self._generated is not None
        return self._generated[:count]

    @property
    def prompts(self) -> tuple[str, ...]:
        assert self._generated is not None and self._audit.data.captions is not None
        return tuple(self._audit.data.captions[i // 10] for i in range(len(self._generated)))

    def read(self, reading: Reading) -> Rows:
        if reading.key not in self._known:
            groups = dict(self._audit.groups)
            if self._generated is not None:
                groups["generated"] = ImageSet.of(self._generated, [f"sample/{i}" for i in range(len(self._generated))])
            self._known[reading.key] = Rows(**{name: self._ask(name, data, reading) for name, data in groups.items()})
        return self._known[reading.key]

    def _ask(self, name: str, data: ImageSet, reading: Reading) -> np.ndarray:
        from unmem.evaluate.matrix.batch import Batch
        from unmem.evaluate.matrix.compute import ask

        found = []
        for start in range(0, len(data), self._batch):
            part = slice(start, start + self._batch)
            labels = None if data.labels is None else data.labels[part]
            captions = None if data.captions is None else data.captions[part]
            batch = Batch(
                self._denoiser, data.images(part), labels, captions,
                start=start, place=("matrix", name), seed=self._seed,
            )  # fmt: skip
            found.append(ask(batch, [reading])[reading.key].numpy())
        return np.concatenate(found)


REPOSITORY = Path(__file__).parent.parent
