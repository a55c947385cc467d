"""The features of a network that somebody saved with its program."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, FiniteFloat

from unmem.component import Positive, PositiveFloat, UserError, component
from unmem.train.datasets._files import LocalPath, contents

if TYPE_CHECKING:
    import torch

Colours = Annotated[tuple[FiniteFloat, ...], Field(min_length=3, max_length=3)]
Spreads = Annotated[tuple[PositiveFloat, ...], Field(min_length=3, max_length=3)]


@component
class TorchScript:
    """Embeddings of a TorchScript file, such as SSCD's ``sscd_disc_mixup.torchscript.pt`` (Pizzi et al. 2022).

    Opening such a file runs the program in it: use those alone whose origin you trust. The network is given RGB images
    scaled to [0, 1], brought to ``size`` x ``size`` and normalised, and must give one vector an image.

    Attributes:
        path: the file.
        size: pixels a side; SSCD's authors use 288 and 320.
        mean: subtracted from red, green and blue; by default ImageNet's, which SSCD takes.
        std: what they are divided by then.
        batch: images at once.
    """

    path: LocalPath
    size: Positive = 288
    mean: Colours = (0.485, 0.456, 0.406)
    std: Spreads = (0.229, 0.224, 0.225)
    batch: Positive = 32

    @property
    def dimension(self) -> int:
        """Length of a feature vector."""
        return int(self(np.zeros((1, self.size, self.size, 3), np.uint8)).shape[1])

    def fingerprint(self) -> str:
        """A digest of the file's contents.

        Raises:
            UserError: when there is no such file.
        """
        self._check_there()
        return contents(self.path)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float64 [n, dimension] of images uint8 [n, h, w, c].

        Raises:
            UserError: when the file is missing or damaged, or its network does not give a vector an image.
        """
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network, found = self._network(device), []
        for start in range(0, len(images), self.batch):
            x = self._prepared(images[start : start + self.batch]).to(device)
            try:
                with torch.inference_mode():
                    features = network(x)
            except RuntimeError as error:  # whatever its program raises
                raise self._problem(f"its network does not take {self.size} x {self.size} images", error) from None
            if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(x):
                shape = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
                raise self._problem(f"its network gives {shape} for {len(x)} images; needs [{len(x)}, dimension]")
            if not bool(features.isfinite().all()):
                raise self._problem("its network gives NaN or infinity")
            found.append(features.double().cpu().numpy())
        return np.concatenate(found)

    def _check_there(self) -> None:
        """Refuse a path where no file is."""
        if not self.path.is_file():
            raise self._problem("no such file; needs one of torch.jit.save")

    def _network(self, device: torch.device) -> Any:
        """The network, in evaluation mode."""
        import torch

        self._check_there()
        try:
            with warnings.catch_warnings():  # torch would have another format; SSCD is published in this one
                warnings.simplefilter("ignore", FutureWarning)
                return torch.jit.load(str(self.path), map_location=device).eval()
        except Exception as error:  # torch raises several kinds for damaged files
            raise self._problem("cannot be opened as TorchScript", error) from None

    def _prepared(self, images: np.ndarray) -> torch.Tensor:
        """float32 [n, 3, size, size], normalised."""
        import torch
        from torch.nn.functional import interpolate

        grey = images.shape[3] == 1
        x = torch.from_numpy(np.repeat(images, 3, axis=3) if grey else images).permute(0, 3, 1, 2).float() / 255
        x = interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std

    def _problem(self, what: str, error: Exception | None = None) -> UserError:
        """A message that names the file, and a way out."""
        reason = "" if error is None else f" ({str(error).strip().splitlines()[0] if str(error).strip() else error!r})"
        return UserError(f"features torchscript: {self.path}: {what}{reason}; or use random_convolutions")
