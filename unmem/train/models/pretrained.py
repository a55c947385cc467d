"""A network that somebody trained before, trained on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from unmem.component import UserError, component
from unmem.train.config import Train
from unmem.train.fine_tuning import FineTuned

if TYPE_CHECKING:
    import torch
    from torch import nn


@component
class Pretrained(FineTuned):
    """A saved diffusers pipeline with a UNet2DModel on pixels, trained on: all of it, its attention, or LoRA.

    Noise schedule and prediction type are the pipeline's, so ``prediction``, ``noise_schedule`` and ``timesteps`` of
    the training section are left out. Whether the network is class-conditional is the pipeline's, too.

    Attributes:
        init_from: the pipeline's folder, such as a run's ``arms/NAME/train/pipeline``; or ``digits8``, a tiny one that
            comes with the package, to try a recipe on (see ``unmem/train/pipelines``).
        public_data: what the network was trained on before, in words. A guarantee of the training does not cover it.
        trainable: ``all`` weights; those of the ``attention`` blocks; or ``lora``, low-rank additions to frozen weights
            (Hu et al. 2021, arXiv 2106.09685; needs peft), which are saved as part of the weights that they add to.
        rank: of LoRA's additions.
        lora_targets: names (endings) of the linear and convolution layers with additions; unset, the attention's
            projections, or without attention the residual blocks' layers.
    """

    @property
    def conditioning(self) -> Literal["none", "class"]:
        """What the network takes, read without opening its weights.

        Raises:
            UserError: when the folder holds no such network.
        """
        file = self.folder / "unet" / "config.json"
        try:
            embedded = json.loads(file.read_text(encoding="utf-8")).get("num_class_embeds")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no JSON"
            raise UserError(f"model.init_from: {file} cannot be read ({reason}); needs a saved pipeline") from None
        return "none" if embedded is None else "class"

    def build(
        self, shape: tuple[int, int, int], num_classes: int | None, device: torch.device | str = "cpu"
    ) -> nn.Module:
        """The network for images of ``shape`` (height, width, channels), what is not trained frozen.

        Raises:
            UserError: when the pipeline cannot be used, or was made for other images or classes.
        """
        from unmem.train.sampling import open_pipeline

        network: nn.Module = open_pipeline(self.folder).unet
        self._check(network, shape, num_classes)
        network = network.to(device).train()  # before anything is added: additions are made where the weights lie
        self.freeze(network)
        return network

    def scheduler(self, config: Train) -> Any:
        """The pipeline's own noise schedule and prediction type.

        Raises:
            UserError: when they are none that can be trained with, or the recipe says otherwise.
        """
        from diffusers import DDPMScheduler

        from unmem.train.sampling import open_pipeline

        scheduler = DDPMScheduler.from_config(open_pipeline(self.folder).scheduler.config)
        self.check_schedule(scheduler.config, config)
        return scheduler

    def _check(self, network: Any, shape: tuple[int, int, int], num_classes: int | None) -> None:
        """Refuse a network that was made for other images or other classes."""
        from unmem.train.sampling import image_size, null_class

        height, width, channels = shape
        theirs = network.config
        size = image_size(network)
        if size != (height, width):
            raise UserError(
                f"model.init_from: {self.init_from} is for {size[0]}x{size[1]} images; these are {height}x{width}"
            )
        if (theirs.in_channels, theirs.out_channels) != (channels, channels):
            raise UserError(
                f"model.init_from: {self.init_from} has {theirs.in_channels} channels in and "
                f"{theirs.out_channels} out; these images have {channels}"
            )
        classes = null_class(network)
        if classes is not None and classes != num_classes:
            raise UserError(
                f"model.init_from: {self.init_from} knows {classes} classes and a null class; "
                f"this data set has {num_classes or 'no'} classes"
            )
