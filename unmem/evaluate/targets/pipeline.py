"""A finished model: a saved diffusers pipeline, ours or anybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmem.component import component
from unmem.train.datasets._files import LocalPath, contents

if TYPE_CHECKING:
    import torch

    from unmem.evaluate.matrix.denoiser import Denoiser


@component
class Pipeline:
    """A pipeline folder: pixels or latents, unconditional, by class or by text (see ``unmem/evaluate/denoisers``).

    Schedule and prediction type are read from the folder, never declared again.

    Attributes:
        path: the folder that ``DiffusionPipeline.from_pretrained`` opens.
    """

    path: LocalPath

    @property
    def access(self) -> frozenset[str]:
        """What it gives an attack: samples only of networks on pixels, which alone our sampler draws from.

        Raises:
            UserError: when the folder holds no whole pipeline.
        """
        from unmem.evaluate.denoisers.folder import parts

        held = parts(self.path)
        drawn = {"samples"} if held.get("unet") == "UNet2DModel" and not held.keys() & {"vae", "vqvae"} else set()
        return frozenset({"predictions", "gradients", *drawn})

    def fingerprint(self) -> str:
        """A digest of the folder's files, whatever it is called.

        Raises:
            UserError: when there is no such folder.
        """
        return contents(self.path)

    def denoiser(self, device: torch.device | str) -> Denoiser:
        """The network, as attacks ask it.

        Raises:
            UserError: when it cannot be opened, or is of a kind that is not supported.
        """
        from unmem.evaluate.denoisers.opening import open_denoiser

        return open_denoiser(self.path, device)
