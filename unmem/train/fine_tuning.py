"""What it takes to train a saved pipeline on: what is trained of its network, and whose schedule it is."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from unmem.component import Positive, UserError, component
from unmem.train.config import Train, refuse_unused
from unmem.train.datasets._files import LocalPath, contents

if TYPE_CHECKING:
    from torch import nn

PREDICTIONS = ("epsilon", "v_prediction")
SHIPPED = Path(__file__).parent / "pipelines"


@component
class FineTuned:
    """Settings of every model that starts from a saved pipeline.

    Attributes:
        init_from: the pipeline's folder.
        public_data: what it was trained on before, in words.
        trainable: ``all``, ``attention`` or ``lora``.
        rank: of LoRA's additions.
        lora_targets: names (endings) of the layers with additions.
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

    def fingerprint(self) -> str:
        """A digest of the pipeline's files, whatever the folder is called."""
        return contents(self.folder)

    def plain(self, network: nn.Module) -> nn.Module:
        """The network with LoRA's additions summed into the weights.

        Raises:
            UserError: when training left an addition where it began.
        """
        if self.trainable == "lora":
            from unmem.train.lora import merge

            merge(network)
        return network

    def freeze(self, network: Any) -> None:
        """Leave gradients to what is trained alone, with LoRA's additions made; the network is on its device.

        Raises:
            UserError: when the network has no such layers.
        """
        if self.trainable == "attention":
            _freeze_but_attention(network)
        elif self.trainable == "lora":
            from unmem.train.lora import add

            add(network, self.rank, self.lora_targets or _projections(network))

    def check_schedule(self, own: Any, config: Train) -> None:
        """Refuse a schedule, by its scheduler's config, that cannot be trained with, or that the recipe contradicts.

        Raises:
            UserError: naming the setting.
        """
        from unmem.train.diffusion import SCHEDULES

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
