"""CIFAR-10."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from unmem.component import component
from unmem.train.datasets._files import LocalPath
from unmem.train.datasets._torchvision import TorchvisionSet
from unmem.train.imageset import ImageSet, Rejected

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10 = TorchvisionSet("cifar10", "CIFAR10", "cifar-10-batches-py", (32, 32, 3), CLASSES)


@component
class Cifar10:
    """CIFAR-10: 50,000 colour photographs of 32x32 pixels to train on and 10,000 to test, ten classes.

    Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".

    Attributes:
        path: a folder that holds ``cifar-10-batches-py``, or an ``.npz`` file with ``x_train``, ``y_train``,
            ``x_test`` and ``y_test``; by default ``unmem`` in the user's cache folder.
        split: ``train`` or ``test``.
        download: fetch the files into the folder when they are not there (170 MB).
    """

    path: LocalPath | None = None
    split: Literal["train", "test"] = "train"
    download: bool = False

    def fingerprint(self) -> str:
        """A digest of the files' sizes and times of change; fetches them first, where that is asked for."""
        return CIFAR10.fingerprint(self.path, self.download)

    def load(self, scratch: Path) -> tuple[ImageSet, list[Rejected]]:
        """Images uint8 [n, 32, 32, 3], in the original order; their sources are ``cifar10/<split>/<row>``."""
        return CIFAR10.load(self.path, self.split, self.download, scratch), []
