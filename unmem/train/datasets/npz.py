"""Images in a NumPy archive."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from unmem.component import Positive, UserError, component
from unmem.train.datasets._archive import Archive
from unmem.train.datasets._files import LocalPath, stamp
from unmem.train.datasets._labels import number
from unmem.train.datasets._reduce import reduced
from unmem.train.imageset import ImageSet, Rejected

SPLITS = {None: ["x_train"], "train": ["x_train"], "test": ["x_test"], "all": ["x_train", "x_test"]}
LABELS = ("y", "category")
CAPTIONS = ("name", "title")


@component
class Npz:
    """Images in a NumPy ``.npz`` archive: uint8 ``x``, or ``x_train`` and ``x_test``, with labels and captions.

    Images are [n, height, width] or [n, height, width, channels], 1 or 3 channels. An uncompressed array is used where
    it lies, so keep the file as long as the run; a compressed one is unpacked once.

    Attributes:
        path: the file.
        split: ``train``, ``test`` or ``all`` of an archive with ``x_train`` and ``x_test``; by default ``x`` where
            there is one, else ``x_train``.
        images: the images' key, instead of ``split``.
        labels: the classes' key: integers or texts; by default ``y`` or ``category``, each with the images' own
            ending (``y_train`` for ``x_train``), where there is one.
        captions: the texts' key; likewise, ``name`` or ``title``.
        size: side in pixels to which square images are reduced, by area averages; as they are when unset.
    """

    path: LocalPath
    split: Literal["train", "test", "all"] | None = None
    images: str | None = None
    labels: str | None = None
    captions: str | None = None
    size: Positive | None = None

    def fingerprint(self) -> str:
        """A digest of the file's size and time of change."""
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file")
        return stamp([("", self.path)])

    def load(self, scratch: Path) -> tuple[ImageSet, list[Rejected]]:
        """Images uint8 [n, height, width, channels]; their sources are ``<file's stem>/<key>/<row>``.

        Raises:
            UserError: when the file or a key is missing or damaged, or an array has the wrong type or shape.
        """
        archive = Archive(self.path)
        keys = self._keys(archive)
        classes = _column(archive, keys, self.labels, LABELS, "iuU", "integers or texts")
        texts = _column(archive, keys, self.captions, CAPTIONS, "U", "texts")
        images = archive.images(keys, scratch)
        if self.size is not None:
            images = self._reduced(images, self.size)
        sources = [f"{self.path.stem}/{key}/{row:06d}" for key in keys for row in range(archive.length(key))]
        labels, names = (None, ()) if classes is None else number(classes.tolist())
        captions = None if texts is None else tuple(texts.tolist())
        return ImageSet.of(images, sources, labels, names, captions), []

    def _reduced(self, images: np.ndarray, size: int) -> np.ndarray:
        """The images at ``size`` pixels a side."""
        height, width = images.shape[1:3]
        if height != width or size > height:
            raise UserError(f"{self.path}: size: {size} is for squares at least as large; these are {height}x{width}")
        return reduced(images, size)

    def _keys(self, archive: Archive) -> list[str]:
        """The image arrays that make up the set."""
        if self.images is None:
            return ["x"] if self.split is None and "x" in archive.keys else SPLITS[self.split]
        if self.split is not None:
            raise UserError(f"{self.path}: give `images` or `split`, not both")
        return [self.images]


def _column(
    archive: Archive, keys: list[str], chosen: str | None, defaults: tuple[str, ...], dtypes: str, meaning: str
) -> np.ndarray | None:
    """One value an image of all image arrays, or None where there is nothing to read them from."""
    if chosen is not None and len(keys) > 1:
        raise UserError(f"{archive.path}: {chosen!r} cannot hold the values for both of {', '.join(keys)}")
    candidates = [[default + key.removeprefix("x") for key in keys] for default in defaults]
    present = [names for names in candidates if set(names) <= set(archive.keys)]
    names = [chosen] if chosen is not None else next(iter(present), None)
    if names is None:
        return None
    columns = [
        archive.column(name, archive.length(key), dtypes, meaning) for name, key in zip(names, keys, strict=True)
    ]
    return np.concatenate(columns)
