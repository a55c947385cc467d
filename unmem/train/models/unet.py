"""The paper's kind of denoiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unmem.component import Fraction, Positive, UserError, component
from unmem.train.config import Train

if TYPE_CHECKING:
    import torch
    from torch import nn


@component
class UNet:
    """diffusers' UNet2DModel on pixels, unconditional or class-conditional.

    Attributes:
        channels: output channels of each level, from full resolution down; one halving between two levels.
        layers: residual blocks a level.
        attention: the resolutions (pixels) that get self-attention; the middle block has it if any has.
        dropout: in the residual blocks.
        norm_groups: groups of the group normalisation; must divide every entry of ``channels``.
        conditioning: ``none``, or ``class`` (needs labels; classifier-free guidance by one extra null class).
    """

    channels: tuple[Positive, ...]
    layers: Positive = 2
    attention: tuple[Positive, ...] = ()
    dropout: Fraction = 0.0
    norm_groups: Positive = 8
    conditioning: Literal["none", "class"] = "none"

    def build(
        self, shape: tuple[int, int, int], num_classes: int | None, device: torch.device | str = "cpu"
    ) -> nn.Module:
        """The network for images of ``shape`` (height, width, channels), inputs [n, c, h, w].

        Raises:
            UserError: when the images do not fit the levels, or labels are needed and absent.
        """
        height, width, _ = shape
        shrink = 2 ** (len(self.channels) - 1)
        if height % shrink or width % shrink:
            raise UserError(
                f"model.channels: {len(self.channels)} levels halve {len(self.channels) - 1} times, "
                f"which {height}x{width} images do not allow; use fewer levels or another data size"
            )
        if odd := [c for c in self.channels if c % self.norm_groups]:
            raise UserError(f"model.norm_groups: {self.norm_groups} does not divide channels {odd}")
        resolutions = [height // 2**level for level in range(len(self.channels))]
        if unknown := [r for r in self.attention if r not in resolutions]:
            raise UserError(f"model.attention: the levels have resolutions {resolutions}; got {unknown}")
        if self.conditioning == "class" and num_classes is None:
            raise UserError("model.conditioning: 'class' needs a data set with labels; this one has none")
        return self._network(shape, num_classes, [r in self.attention for r in resolutions]).to(device)

    def scheduler(self, config: Train) -> Any:
        """What the recipe's training section says."""
        from unmem.train.diffusion import make_scheduler

        return make_scheduler(config.noise_schedule, config.prediction, config.timesteps)

    def plain(self, network: nn.Module) -> nn.Module:
        """Nothing was added to it."""
        return network

    def _network(self, shape: tuple[int, int, int], num_classes: int | None, attends: list[bool]) -> nn.Module:
        """Build it, all checks done."""
        from diffusers import UNet2DModel

        height, width, channels = shape
        conditional = self.conditioning == "class" and num_classes is not None
        network: nn.Module = UNet2DModel(
            sample_size=height if height == width else (height, width),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            add_attention=any(attends),
            dropout=self.dropout,
            norm_num_groups=self.norm_groups,
            num_class_embeds=num_classes + 1 if conditional and num_classes is not None else None,
        )
        return network
