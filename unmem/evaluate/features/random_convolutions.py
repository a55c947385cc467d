"""Features that need no download."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unmem.component import component

BLOCK = 512


@component
class RandomConvolutions:
    """Embedded default: an untrained convolutional network with fixed weights; NOT comparable to published FID.

    Three 3x3 convolutions of stride 2 (16, 32, 64 channels) with fixed random orthogonal weights on images resized to
    32x32, then mean and standard deviation over space. It ranks models on one data set; its scale means nothing
    elsewhere.

    Attributes:
        seed: of the weights.
    """

    seed: int = 0

    @property
    def dimension(self) -> int:
        """Length of a feature vector."""
        return 128

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float64 [n, 128] of images uint8 [n, h, w, c]."""
        return np.concatenate(list(self._blocks(images)))

    def _blocks(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """Features, block by block."""
        import torch
        from torch.nn import functional

        generator = torch.Generator().manual_seed(self.seed)
        weights = []
        for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
            weight = torch.empty(outputs, inputs, 3, 3)
            torch.nn.init.orthogonal_(weight, gain=2**0.5, generator=generator)
            weights.append(weight)
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            x = torch.from_numpy(np.repeat(block, 3 // block.shape[3], axis=3)).permute(0, 3, 1, 2).float() / 127.5 - 1
            x = functional.interpolate(x, size=(32, 32), mode="bilinear", antialias=True)
            for weight in weights:
                x = functional.relu(functional.conv2d(x, weight, stride=2, padding=1))
            yield torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1).double().numpy()
