"""Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from unmem.component import Positive, component
from unmem.train.datasets._files import LocalPath
from unmem.train.datasets._torchvision import TorchvisionSet
from unmem.train.imageset import ImageSet, Rejected

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FASHION_MNIST = TorchvisionSet("fashion_mnist", "FashionMNIST", "FashionMNIST/raw", (28, 28, 1), CLASSES)


@component
class FashionMnist:
    """Fashion-MNIST: 60,000 pictures of clothes, 28x28 grey pixels, to train on and 10,000 to test, ten classes.

    Source: Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747.

    Attributes:
        path: a folder that holds ``FashionMNIST/raw``, or an ``.npz`` file with ``x_train``, ``y_train``, ``x_test``
            and ``y_test``; by default ``unmem`` in the user's cache folder.
        split: ``train`` or ``test``.
        size: side in pixels to which images are reduced; 28, as they are, when unset.
        download: fetch the files into the folder when they are not there (31 MB).
    """

    path: LocalPath | None = None
    split: Literal["train", "test"] = "train"
    size: Positive | None = None
    download: bool = False

    def fingerprint(self) -> str:
        """A digest of the files' sizes and times of change; fetches them first, where that is asked for."""
        return FASHION_MNIST.fingerprint(self.path, self.download)

    def load(self, scratch: Path) -> tuple[ImageSet, list[Rejected]]:
        """Images uint8 [n, size, size, 1], in the original order; their sources are ``fashion_mnist/<split>/<row>``."""
        return FASHION_MNIST.load(self.path, self.split, self.download, scratch, self.size), []
