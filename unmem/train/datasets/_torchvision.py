"""The data sets that torchvision fetches and reads, for the components that offer them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from unmem.component import UserError
from unmem.train.datasets._archive import Archive
from unmem.train.datasets._files import files_below, stamp
from unmem.train.datasets._reduce import reduced
from unmem.train.imageset import ImageSet


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set of torchvision's, or the same in an ``.npz`` file; both give the same ids.

    Attributes:
        name: the component's name.
        loader: the class in ``torchvision.datasets``.
        folder: where that keeps its files, below its root.
        shape: height, width, channels of an image.
        classes: the names of the labels 0, 1, ...
    """

    name: str
    loader: str
    folder: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]

    def fingerprint(self, path: Path | None, download: bool) -> str:
        """A digest of the files' sizes and times of change; fetches them first, where that is asked for.

        Raises:
            UserError: when there are none.
        """
        if path is not None and path.suffix == ".npz":
            if not path.is_file():
                raise UserError(f"{path}: no such file")
            return stamp([("", path)])
        root = self._root(path)
        if download:
            self._read(root, "train", download=True)
        if not (root / self.folder).is_dir():
            raise self._missing(root, "there are no files")
        return stamp(files_below(root / self.folder).items())

    def load(
        self, path: Path | None, split: Literal["train", "test"], download: bool, scratch: Path, size: int | None = None
    ) -> ImageSet:
        """The images of a split, uint8 [n, height, width, channels]; their sources are ``<name>/<split>/<row>``.

        With ``size`` they are reduced to that side by area averages.

        Raises:
            UserError: when the files are missing or damaged, cannot be fetched, or hold another data set, or ``size``
                is larger than they are.
        """
        if size is not None and size > min(self.shape[:2]):
            raise UserError(f"{self.name}.size: {size} is more than the {self.shape[0]} pixels that there are")
        if path is not None and path.suffix == ".npz":
            archive = Archive(path)
            images = archive.images([f"x_{split}"], scratch)
            labels = archive.column(f"y_{split}", len(images), "iu", "integers").astype(np.int64)
        else:
            images, labels = self._read(self._root(path), split, download=download)
        if images.shape[1:] != self.shape or labels.min() < 0 or labels.max() >= len(self.classes):
            have = f"images of {list(images.shape[1:])}, labels {labels.min()} to {labels.max()}"
            need = f"{list(self.shape)} and 0 to {len(self.classes) - 1}"
            raise UserError(f"{path or self._root(path)}: is not {self.loader}: {have}; needs {need}")
        if size is not None:
            images = reduced(images, size)
        sources = [f"{self.name}/{split}/{row:05d}" for row in range(len(images))]
        return ImageSet.of(images, sources, labels, self.classes)

    def _root(self, path: Path | None) -> Path:
        """The folder for torchvision: the user's, else one in the cache."""
        if path is not None:
            return path
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unmem"

    def _read(self, root: Path, split: str, *, download: bool) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels by torchvision."""
        import torchvision.datasets

        try:
            data = getattr(torchvision.datasets, self.loader)(root, train=split == "train", download=download)
        except Exception as error:  # missing, damaged, no network: from RuntimeError and URLError to AssertionError
            raise self._missing(root, str(error).strip().split("\n")[0] or type(error).__name__) from None
        return np.asarray(data.data).reshape(len(data), *self.shape), np.asarray(data.targets, dtype=np.int64)

    def _missing(self, root: Path, why: str) -> UserError:
        """What to do about files that are not there."""
        return UserError(
            f"{self.name}: cannot read {self.loader} from {root} ({why}); set `download: true`, or `path:` to a folder "
            f"that holds {self.folder}, or to an .npz file with x_train, y_train, x_test and y_test"
        )
