"""A network that takes texts, called as one that takes classes is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class TextNetwork(nn.Module):
    """A UNet2DConditionModel whose ``class_labels`` are encoded texts, float32 [n, tokens, width].

    Attributes:
        unet: what is trained and saved.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Any:
        """The prediction as ``.sample`` [n, c, h, w]."""
        return self.unet(x, t, encoder_hidden_states=class_labels)
