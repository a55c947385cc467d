"""Canaries: images that a fair coin puts into the training set or leaves out; who can tell the coins bounds epsilon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from unmem.component import Positive, UserError, component
from unmem.rng import stream, uniform_of
from unmem.train.datasets.image_folder import ImageFolder
from unmem.train.imageset import ImageSet, Rejected


@component
class Canaries:
    """Images of which each is in the training set by its own fair coin (Steinke et al. 2023; Carlini et al. 2019).

    * ``mislabelled``: further real images of the source, beyond members and non-members, each with a wrong class.
    * ``noise``: every value uniform and independent, 0 to 255.
    * ``out_of_distribution``: patterns like no photograph, a third each: a smooth random field (Gaussian noise, blurred
      by an eighth of the longer side, stretched to 0 to 255), stripes of any direction, and a checkerboard; the last
      two are in a dark and a light ink, which are such fields too.
    * ``folder``: image files of yours, scaled and cropped to the data's size.

    The classes of all but the mislabelled are random ones of the data's. A caption is ``canary`` and a number, but for
    mislabelled images, which keep theirs, and for folders with captions of their own.

    Attributes:
        images: how many there are, inserted or not. A bound on epsilon wants hundreds: m canaries cannot show more than
            about log(m / 6) at 95 % confidence.
        source: where they come from.
        copies: how often each is in the training set if it is inserted; dealt out in turn. The bound on epsilon rests
            on those with one copy, exposure compares them all.
        path: the folder of ``folder``, read like the data set ``image_folder``.
    """

    images: Positive
    source: Literal["mislabelled", "noise", "out_of_distribution", "folder"]
    copies: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1,)
    path: Path | None = None

    @model_validator(mode="after")
    def _has_a_path_if_a_folder(self) -> Canaries:
        if (self.path is not None) != (self.source == "folder"):
            raise ValueError(f"path goes with source folder, and only with it; source is {self.source}")
        return self

    def fingerprint(self) -> str:
        """A digest of the folder's files; empty for other sources, which depend on the data and the seed alone."""
        return "" if self.path is None else ImageFolder(path=self.path).fingerprint()

    def candidates(self, data: ImageSet, seed: int) -> tuple[ImageSet, list[Rejected]]:
        """Images to choose canaries from, in the form of ``data``, and files that could not be read.

        Raises:
            UserError: for mislabelled images where ``data`` has fewer than two classes, or a folder without images.
        """
        if self.source == "mislabelled":
            return _mislabelled(data, seed), []
        if self.path is not None:
            return _from_folder(self.path, data, seed)
        make = _noise if self.source == "noise" else _pattern
        return _made(self.images, make, data, seed), []


def _mislabelled(data: ImageSet, seed: int) -> ImageSet:
    """All of ``data``, each image with a class that is not its own."""
    classes = len(data.label_names)
    if data.labels is None or classes < 2:
        raise UserError("data.canaries.source: mislabelled canaries need data with two classes or more")
    further = [1 + int(uniform_of(seed, name, salt="wrong class") * (classes - 1)) for name in data.ids]
    labels = (data.labels + np.array(further)) % classes
    return ImageSet(data.store, data.rows, data.ids, labels, data.label_names, data.captions)


def _from_folder(path: Path, data: ImageSet, seed: int) -> tuple[ImageSet, list[Rejected]]:
    """A folder's images at the size and channels of ``data``, in memory."""
    height, width, channels = data.shape
    side = max(height, width)
    with TemporaryDirectory() as scratch:
        folder = ImageFolder(path=path, size=side, channels=1 if channels == 1 else 3)
        found, rejected = folder.load(Path(scratch))
        top, left = (side - height) // 2, (side - width) // 2
        images = found.images()[:, top : top + height, left : left + width]
        sources = [f"canary/{name.partition(':')[2]}" for name in found.ids]
        captions = found.captions
        del found  # Windows removes no file that is mapped
    return _like(data, images, sources, captions, seed), [Rejected(f"canary/{r.source}", r.reason) for r in rejected]


Maker = Callable[[tuple[int, int, int], int, np.random.Generator], np.ndarray]
"""(height, width, channels), the canary's number and randomness to uint8 [height, width, channels]."""


def _made(count: int, make: Maker, data: ImageSet, seed: int) -> ImageSet:
    """Images that are computed."""
    images = [make(data.shape, i, stream(seed, "canary", i)) for i in range(count)]
    return _like(data, np.stack(images), [f"canary/{i:05d}" for i in range(count)], None, seed)


def _like(
    data: ImageSet, images: np.ndarray, sources: list[str], captions: tuple[str, ...] | None, seed: int
) -> ImageSet:
    """Images with random classes, and captions, where ``data`` have any."""
    labels = None
    if data.labels is not None:
        classes = len(data.label_names)
        labels = np.array([int(uniform_of(seed, name, salt="class") * classes) for name in sources], dtype=np.int64)
    if captions is None:
        captions = tuple(f"canary {i}" for i in range(len(images)))
    return ImageSet.of(images, sources, labels, data.label_names, None if data.captions is None else captions)


def _noise(shape: tuple[int, int, int], number: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform random values."""
    return rng.integers(0, 256, shape, dtype=np.uint8)


def _pattern(shape: tuple[int, int, int], number: int, rng: np.random.Generator) -> np.ndarray:
    """A field, stripes or a checkerboard, by the canary's number."""
    kind = number % 3
    if kind == 0:
        values = _field(shape, rng)
    else:
        light = (_stripes if kind == 1 else _checks)(shape, rng)[..., None]
        values = np.where(light, 0.5 + _field(shape, rng) / 2, _field(shape, rng) / 2)
    return np.round(255 * values).astype(np.uint8)


def _field(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise [h, w, c], blurred over its edges and stretched to 0 to 1."""
    from scipy.ndimage import gaussian_filter

    blur = max(shape[:2]) / 8
    values = gaussian_filter(rng.standard_normal(shape), (blur, blur, 0), mode="wrap")
    return np.asarray((values - values.min()) / np.ptp(values))


def _stripes(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """bool [h, w]: the light stripes, at any angle, 2 to half a side of pixels from one to the next."""
    angle, phase = rng.uniform(0, np.pi), rng.uniform()
    period = rng.uniform(2, max(2, max(shape[:2]) / 2))
    rows, columns = np.indices(shape[:2])
    return np.asarray(((np.cos(angle) * columns + np.sin(angle) * rows) / period + phase) % 1 < 0.5)


def _checks(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """bool [h, w]: the light squares, of 1 to a quarter of a side of pixels."""
    cell = int(rng.integers(1, max(1, max(shape[:2]) // 4) + 1))
    down, right = rng.integers(0, 2 * cell, 2)
    rows, columns = np.indices(shape[:2])
    return np.asarray(((rows + down) // cell + (columns + right) // cell) % 2 == 0)
