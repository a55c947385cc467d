"""A finished model: a saved diffusers pipeline, ours or anybody's."""

from __future__ import annotations

from unmem.component import component
from unmem.rundir import read_json
from unmem.train.datasets._files import LocalPath, contents


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

    @property
    def classes(self) -> int:
        """Classes that our sampler draws in turn from a network on pixels; 0 where it takes none.

        Raises:
            UserError: when the network's configuration cannot be read.
        """
        if "samples" not in self.access:
            return 0
        embedded = read_json(self.path / "unet" / "config.json").get("num_class_embeds")
        return 0 if embedded is None else int(embedded) - 1  # the last one is the null class

    def fingerprint(self) -> str:
        """A digest of the folder's files, whatever it is called.

        Raises:
            UserError: when there is no such folder.
        """
        return contents(self.path)
