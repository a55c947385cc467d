"""A small network for copies, trained here in minutes: a stand-in for SSCD where no published weights can be had.

After SSCD (Pizzi et al., CVPR 2022): two random edits of one image are each other's positives, the rest of the batch
negatives (InfoNCE), and the differential entropy of the batch is kept high. Edits are done on whole batches, so that
one core spends its time on the network.
"""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

STORED, SIDE, WIDTH = 64, 32, 128  # pixels of the images to train on, pixels that the network sees, length of a vector
BATCH, TEMPERATURE, ENTROPY, RATE = 256, 0.05, 0.5, 2e-3


def pixels(images: list[Image.Image], side: int) -> npt.NDArray[np.uint8]:
    """The whole images squeezed to squares, uint8 [n, side, side, 3]."""
    return np.stack([np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)) for image in images])


class CopyNetwork(nn.Module):
    """Four convolutions, generalized mean, and a linear layer; float32 [n, 3, 32, 32] in [0, 1] to [n, 128]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 32, 2), (32, 64, 2), (64, 128, 1), (128, 256, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.head = nn.Linear(256 * 4, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = F.adaptive_avg_pool2d(self.layers(2 * x - 1).clamp(min=1e-4).pow(3), 2).pow(1 / 3)
        return F.normalize(self.head(pooled.flatten(1)))

    def embed(self, images: list[Image.Image]) -> npt.NDArray[np.float32]:
        """float32 [n, 128] of RGB images, as :class:`unmem.mitigations.dedup.embedding.Embed` wants it."""
        x = torch.from_numpy(pixels(images, SIDE)).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return self.eval()(x).numpy()


def train(images: npt.NDArray[np.uint8], seconds: float, seed: int) -> tuple[CopyNetwork, int]:
    """Train on uint8 [n, 64, 64, 3] for so long; the network and how many steps it took."""
    torch.manual_seed(seed)
    network, start, steps = CopyNetwork(), time.perf_counter(), 0
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-4)
    stored = torch.from_numpy(images)
    size = min(BATCH, len(images))
    while (done := (time.perf_counter() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, done * 20) * (1 + math.cos(math.pi * done)) / 2
        some = stored[torch.randperm(len(stored))[:size]].permute(0, 3, 1, 2).float() / 255
        views = torch.cat([edit(some), edit(some)]).to(memory_format=torch.channels_last)
        vectors = network.train()(views)
        optimizer.zero_grad()
        loss(vectors).backward()
        optimizer.step()
        steps += 1
    return network, steps


def loss(vectors: torch.Tensor) -> torch.Tensor:
    """InfoNCE, and the entropy by the distance to the nearest other image's vector, of [two views x n, d]."""
    n = len(vectors) // 2
    like = vectors @ vectors.T
    own = torch.eye(2 * n, dtype=torch.bool)
    partner = torch.arange(2 * n).roll(n)
    contrast = F.cross_entropy(like.masked_fill(own, -torch.inf) / TEMPERATURE, partner)
    others = like.masked_fill(own | own.roll(n, 0), -1).amax(1)
    return contrast - ENTROPY * (2 - 2 * others).clamp(min=1e-4).sqrt().log().mean()


def edit(x: torch.Tensor) -> torch.Tensor:
    """Other random edits for each image, float32 [n, 3, 64, 64] to [n, 3, 32, 32]."""
    x = F.avg_pool2d(_overlay(_move(x)), STORED // SIDE)
    n = len(x)
    grey = x.mean(1, keepdim=True).expand_as(x)
    x = torch.where(_chance(n, 0.2), grey, x)
    x = (x * _between(n, 0.6, 1.4) - 0.5) * _between(n, 0.7, 1.3) + 0.5 + _between(n, -0.1, 0.1)
    small = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    x = torch.where(_chance(n, 0.25), small, x)
    return (x + torch.randn_like(x) * _between(n, 0, 0.06) * _chance(n, 0.5)).clamp(0, 1)


def _move(x: torch.Tensor) -> torch.Tensor:
    """Cropped or bordered, turned, squeezed and mirrored; bars and corners in one colour, often black or white."""
    n = len(x)
    zoom = 1 / _between(n, 0.75, 1.35).flatten()
    bars = torch.where(_chance(n, 0.25).flatten(), _between(n, 1, 1.9).flatten(), torch.ones(n))
    squeeze = _between(n, 0.85, 1.18).flatten()
    angle = torch.where(_chance(n, 0.5).flatten(), _between(n, -0.2, 0.2).flatten(), torch.zeros(n))
    mirror = torch.where(_chance(n, 0.5).flatten(), -1.0, 1.0)
    shift = (_between(n, -0.12, 0.12).flatten(), _between(n, -0.12, 0.12).flatten())
    rows = [
        torch.stack([mirror * zoom * squeeze * angle.cos(), -zoom * angle.sin(), shift[0]], 1),
        torch.stack([mirror * zoom * angle.sin() * bars, zoom / squeeze * angle.cos() * bars, shift[1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    inside = F.grid_sample(torch.ones_like(x[:, :1]), grid, align_corners=False)
    moved = F.grid_sample(x, grid, align_corners=False)
    colour = torch.where(_chance(n, 0.3), torch.rand(n, 3, 1, 1), _chance(n, 0.5).float())
    return moved + colour * (1 - inside)


def _overlay(x: torch.Tensor) -> torch.Tensor:
    """A few letter-like strokes in one colour, opaque or not, over some of the images."""
    n = len(x)
    row, column = _between(n, 0.1, 0.9), _between(n, 0.1, 0.6)
    at = torch.arange(STORED) / STORED
    band = (at[:, None] - row).abs() < _between(n, 0.03, 0.1)
    stretch = (at > column) & (at < column + _between(n, 0.3, 0.9))
    strokes = F.interpolate((torch.rand(n, 1, 1, STORED // 2) < 0.6).float(), scale_factor=(1, 2))
    mask = band & stretch & (strokes > 0) & _chance(n, 0.35)
    strength = mask * _between(n, 0.4, 1)
    return x * (1 - strength) + strength * _chance(n, 0.6).float()


def _between(n: int, low: float, high: float) -> torch.Tensor:
    return torch.empty(n, 1, 1, 1).uniform_(low, high)


def _chance(n: int, probability: float) -> torch.Tensor:
    return torch.rand(n, 1, 1, 1) < probability
