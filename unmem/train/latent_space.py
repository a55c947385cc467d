"""Images as the latents of a VAE, and back, scaled as the network of its pipeline was trained on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PIXELS = 1 << 21  # of images that go through the VAE at once: 8 of 512x512, whatever the batch


class LatentSpace:
    """A frozen VAE, or VQ-VAE, always in float32.

    Attributes:
        factor: pixels a latent along each side.
        channels: of the latents.
    """

    def __init__(self, vae: Any, device: torch.device | str) -> None:
        """Args: a diffusers autoencoder; where to compute."""
        self._vae = vae.to(device).float().eval().requires_grad_(False)
        self._device, config = torch.device(device), vae.config
        self.factor, self.channels = 2 ** (len(config.block_out_channels) - 1), int(config.latent_channels)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        self._shift = _by_channel(config.get("shift_factor") if mean is None else mean, 0.0, device)
        self._scale: Tensor = config.scaling_factor / _by_channel(std, 1.0, device)

    def encode(self, x: Tensor) -> Tensor:
        """Images [n, c, h, w] in [-1, 1] -> latents [n, c', h', w'], the mode where they are a distribution."""
        with torch.autocast(self._device.type, enabled=False):
            found = [self._vae.encode(part.float()) for part in _split(x, x.shape[-2] * x.shape[-1])]
        each = [part.latent_dist.mode() if hasattr(part, "latent_dist") else part.latents for part in found]
        return (torch.cat(each) - self._shift) * self._scale

    def decode(self, z: Tensor) -> Tensor:
        """Latents [n, c', h', w'] -> images [n, c, h, w] in about [-1, 1]."""
        pixels = self.factor**2 * z.shape[-2] * z.shape[-1]
        with torch.autocast(self._device.type, enabled=False):
            raw = z.float() / self._scale + self._shift
            found = [self._vae.decode(part).sample for part in _split(raw, pixels)]
        return torch.cat(found)


def _by_channel(values: Any, default: float, device: torch.device | str) -> Tensor:
    """One number, or one a channel, shaped for latents."""
    return torch.tensor(default if values is None else values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


def _split(images: Tensor, pixels: int) -> tuple[Tensor, ...]:
    """As many at once as memory surely holds."""
    found: tuple[Tensor, ...] = images.split(max(1, PIXELS // pixels))
    return found
