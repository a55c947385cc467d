"""A finished model: a saved diffusers pipeline, ours or anybody's."""

from __future__ import annotations

from unmem.component import component
from unmem.rundir import read_json
from unmem.train.datasets._files import LocalPath, contents


@component
class Pipeline:
    """A pipeline folder: pixels or latents, unconditional, by class or by text (see ``unmem/evaluate/denoisers``).

    Schedule and prediction type are read from the folder, never declared again. A cascade, such as DeepFloyd IF, has a
    folder a stage; with ``then`` it draws as a whole and gives samples alone, and its first stage gives more without.

    Attributes:
        path: the folder that ``DiffusionPipeline.from_pretrained`` opens.
        then: folders of further stages, each of which enlarges the images of the one before.
    """

    path: LocalPath
    then: tuple[LocalPath, ...] = ()

    @property
    def access(self) -> frozenset[str]:
        """What it gives an attack by itself; one that takes texts gives samples, too, where it is asked by prompts.

        Raises:
            UserError: when the folder holds no whole pipeline.
        """
        from unmem.train.folder import parts

        held = parts(self.path)
        if self.then or "PriorTransformer" in held.values():  # of an unCLIP, images follow from an embedding, not text
            return frozenset()
        on_pixels = held.get("unet") == "UNet2DModel" and not held.keys() & {"vae", "vqvae"}
        drawn = {"samples"} if on_pixels or self.called else set()
        return frozenset({"predictions", "gradients", *drawn})

    @property
    def called(self) -> bool:
        """Whether it draws samples without texts through its own call, since our sampler is for networks on pixels.

        Raises:
            UserError: when the folder holds no whole pipeline.
        """
        from unmem.train.folder import pipeline_class

        cls = pipeline_class(self.path)
        if cls == "LDMPipeline":  # it takes no classes, whatever its network
            return read_json(self.path / "unet" / "config.json").get("num_class_embeds") is None
        return cls == "DiTPipeline"

    @property
    def takes_texts(self) -> bool:
        """Whether it draws what a prompt asks for.

        Raises:
            UserError: when the folder holds no whole pipeline.
        """
        from unmem.train.folder import parts

        return any("text_encoder" in name for name in parts(self.path))

    @property
    def classes(self) -> int:
        """Classes that are drawn in turn; 0 where it takes none.

        Raises:
            UserError: when the network's configuration cannot be read.
        """
        if "samples" not in self.access:
            return 0
        if (transformer := self.path / "transformer" / "config.json").is_file():
            return int(read_json(transformer)["num_embeds_ada_norm"])
        embedded = read_json(self.path / "unet" / "config.json").get("num_class_embeds")
        return 0 if embedded is None else int(embedded) - 1  # the last one is the null class

    def fingerprint(self) -> str:
        """A digest of the folders' files, whatever they are called.

        Raises:
            UserError: when there is no such folder.
        """
        return " ".join(contents(path) for path in (self.path, *self.then))
