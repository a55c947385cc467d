"""A network that somebody trained before, trained on."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from unmem.component import Positive, UserError, component
from unmem.train.config import Train, refuse_unused
from unmem.train.datasets._files import LocalPath, contents

if TYPE_CHECKING:
    import torch
    from torch import nn

PREDICTIONS = ("epsilon", "v_prediction")
SHIPPED = Path(__file__).parents[1] / "pipelines"


@component
class Pretrained:
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

    init_from: LocalPath
    public_data: Annotated[str, Field(min_length=1)]
    trainable: Literal["all", "attention", "lora"] = "all"
    rank: Positive = 4
    lora_targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.trainable != "lora":
            refuse_unused(self, ("rank", "lora_targets"), "trainable: lora")

    @property
    def folder(self) -> Path:
        """Where the pipeline lies: ``init_from``, or what comes with the package under this name."""
        shipped = SHIPPED / self.init_from
        return shipped if shipped.is_dir() and not self.init_from.exists() else self.init_from

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

    def fingerprint(self) -> str:
        """A digest of the pipeline's files, whatever the folder is called."""
        return contents(self.folder)

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
        if self.trainable == "attention":
            _freeze_but_attention(network)
        elif self.trainable == "lora":
            from unmem.train.lora import add

            add(network, self.rank, self.lora_targets or _projections(network))
        return network

    def scheduler(self, config: Train) -> Any:
        """The pipeline's own noise schedule and prediction type.

        Raises:
            UserError: when they are none that can be trained with, or the recipe says otherwise.
        """
        from diffusers import DDPMScheduler

        from unmem.train.diffusion import SCHEDULES
        from unmem.train.sampling import open_pipeline

        scheduler = DDPMScheduler.from_config(open_pipeline(self.folder).scheduler.config)
        own = scheduler.config
        if own.prediction_type not in PREDICTIONS:
            raise UserError(
                f"model.init_from: {self.init_from} predicts {own.prediction_type!r}; needs {' or '.join(PREDICTIONS)}"
            )
        names = {theirs: ours for ours, theirs in SCHEDULES.items()}
        found = {
            "prediction": own.prediction_type,
            "noise_schedule": names.get(own.beta_schedule, own.beta_schedule),
            "timesteps": own.num_train_timesteps,
        }
        for field in fields(config):
            said = getattr(config, field.name)
            if field.name in found and said not in (field.default, found[field.name]):
                raise UserError(
                    f"train.{field.name}: {said} is not the pretrained pipeline's, {found[field.name]}; leave it out"
                )
        return scheduler

    def plain(self, network: nn.Module) -> nn.Module:
        """The network with LoRA's additions summed into the weights.

        Raises:
            UserError: when training left an addition where it began.
        """
        if self.trainable == "lora":
            from unmem.train.lora import merge

            merge(network)
        return network

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


def _attention(network: Any) -> list[nn.Module]:
    """The attention blocks."""
    from diffusers.models.attention_processor import Attention

    return [module for module in network.modules() if isinstance(module, Attention)]


def _freeze_but_attention(network: Any) -> None:
    """Leave gradients to the attention blocks alone."""
    blocks = _attention(network)
    if not blocks:
        raise UserError("model.trainable: 'attention' needs a network with attention; use all or lora")
    network.requires_grad_(False)
    for block in blocks:
        block.requires_grad_(True)


def _projections(network: Any) -> tuple[str, ...]:
    """Layers for LoRA: where it is small and works best, or all of the residual blocks'."""
    return ("to_q", "to_k", "to_v", "to_out.0") if _attention(network) else ("conv1", "conv2", "time_emb_proj")
