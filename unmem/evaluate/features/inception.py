"""The features of the published FID."""

from __future__ import annotations

import numpy as np

from unmem.component import UserError, component

BLOCK = 64


@component
class Inception:
    """InceptionV3 pool features (2,048) by torch-fidelity's port of the original weights: comparable to published FID.

    Attributes:
        weights: a local file ``weights-inception-2015-12-05-6726825d.pth``; torch-fidelity's download when unset.
    """

    weights: str | None = None

    @property
    def dimension(self) -> int:
        """Length of a feature vector."""
        return 2048

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float64 [n, 2048] of images uint8 [n, h, w, c].

        Raises:
            UserError: when torch-fidelity or the weights are missing.
        """
        import torch

        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UserError(
                "features inception: run pip install 'unmem[inception]', or use random_convolutions"
            ) from None
        try:
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=self.weights)
        except Exception as error:  # urllib's, torch's and the file system's, by what is wrong
            raise UserError(
                f"features inception: the weights cannot be had ({error}); set quality.features.weights to a local "
                "file, or use random_convolutions"
            ) from None
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = network.to(device).eval()
        features = []
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            x = torch.from_numpy(np.repeat(block, 3 // block.shape[3], axis=3)).permute(0, 3, 1, 2).contiguous()
            with torch.no_grad():
                features.append(network(x.to(device))[0].double().cpu().numpy())
        return np.concatenate(features)
