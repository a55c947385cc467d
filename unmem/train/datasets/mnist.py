"""MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from unmem.component import Positive, component
from unmem.train.datasets._files import LocalPath
from unmem.train.datasets._torchvision import TorchvisionSet
from unmem.train.imageset import ImageSet, Rejected

MNIST = TorchvisionSet("mnist", "MNIST", "MNIST/raw", (28, 28, 1), tuple("0123456789"))


@component
class Mnist:
    """MNIST: 60,000 handwritten digits of 28x28 grey pixels to train on and 10,000 to test, ten classes.

    Source: LeCun, Cortes & Burges 1998, "The MNIST database of handwritten digits".

    Attributes:
        path: a folder that holds ``MNIST/raw``, or an ``.npz`` file with ``x_train``, ``y_train``, ``x_test`` and
            ``y_test``; by default ``unmem`` in the user's cache folder.
        split: ``train`` or ``test``.
        size: side in pixels to which images are reduced; 28, as they are, when unset.
        download: fetch the files into the folder when they are not there (12 MB).
    """

    path: LocalPath | None = None
    split: Literal["train", "test"] = "train"
    size: Positive | None = None
    download: bool = False

    def fingerprint(self) -> str:
        """A digest of the files' sizes and times of change; fetches them first, where that is asked for."""
        return MNIST.fingerprint(self.path, self.download)

    def load(self, scratch: Path) -> tuple[ImageSet, list[Rejected]]:
        """Images uint8 [n, size, size, 1], in the original order; their sources are ``mnist/<split>/<row>``."""
        return MNIST.load(self.path, self.split, self.download, scratch, self.size), []
