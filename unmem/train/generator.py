"""The two networks of a GAN, and images drawn from the saved one: sample k is the same image at any batch size."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmem import progress
from unmem.component import UserError
from unmem.rng import torch_stream
from unmem.rundir import atomic, read_json, write_json
from unmem.train.diffusion import to_images

WIDEST = 8  # times ``channels``: where the doubling of channels from level to level ends


class Generator(nn.Module):
    """From a latent vector, and a class, to an image (Radford et al. 2016), upsampling by nearest neighbours.

    A map of 4 to 8 pixels (its shorter side) is doubled until it covers the image, and what stands over is cut off.

    Attributes:
        config: the arguments that build it again.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, channels: int, latent: int) -> None:
        """Args: height, width and channels of an image; classes, 0 without; channels at full size; latent length."""
        super().__init__()
        self.config: dict[str, Any] = {"shape": shape, "classes": classes, "channels": channels, "latent": latent}
        self._size = shape[:2]
        levels = _levels(shape)
        widths = _widths(channels, levels)[::-1]
        self._start = [widths[0], *(-(-side // 2**levels) for side in self._size)]
        self.classes = nn.Embedding(classes, latent) if classes else None
        self.first = nn.Linear(latent * (2 if classes else 1), math.prod(self._start))
        self.body = nn.Sequential(nn.BatchNorm2d(widths[0]), nn.ReLU())
        for wide, narrow in itertools.pairwise(widths):
            conv = nn.Conv2d(wide, narrow, 3, padding=1, bias=False)
            self.body.extend([nn.Upsample(scale_factor=2), conv, nn.BatchNorm2d(narrow), nn.ReLU()])
        self.last = nn.Conv2d(channels, shape[2], 3, padding=1)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Images in [-1, 1], [n, c, h, w], of latents [n, latent] and classes int64 [n]."""
        if self.classes is not None:
            z = torch.cat([z, self.classes(labels)], 1)
        x: Tensor = self.last(self.body(self.first(z).view(-1, *self._start)))
        top, left = ((have - want) // 2 for have, want in zip(x.shape[2:], self._size, strict=True))
        return torch.tanh(x[:, :, top : top + self._size[0], left : left + self._size[1]])


class Discriminator(nn.Module):
    """From an image, and its class, to a logit; classes by projection (Miyato & Koyama 2018, eq. 3).

    Without normalisation: a penalty on its gradient keeps it smooth.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, channels: int) -> None:
        """Args: height, width and channels of an image; classes, 0 without; channels at full size."""
        super().__init__()
        levels = _levels(shape)
        widths = _widths(channels, levels)
        self.body = nn.Sequential(nn.Conv2d(shape[2], channels, 3, padding=1), nn.LeakyReLU(0.2))
        for narrow, wide in itertools.pairwise(widths):
            self.body.extend([nn.Conv2d(narrow, wide, 4, 2, 1), nn.LeakyReLU(0.2)])
        left = widths[-1] * math.prod(side // 2**levels for side in shape[:2])
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(left, 256), nn.LeakyReLU(0.2))
        self.score = nn.Linear(256, 1)
        self.classes = nn.Embedding(classes, 256) if classes else None

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Logits [n] of images [n, c, h, w] in [-1, 1] and classes int64 [n]."""
        features = self.last(self.body(x))
        logits: Tensor = self.score(features)[:, 0]
        return logits if self.classes is None else logits + (self.classes(labels) * features).sum(1)


def save(generator: Generator, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``, whole or not at all."""
    from safetensors.torch import save_file

    unfinished = folder.with_name(folder.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write_json(unfinished / "config.json", generator.config)
    weights = {name: value.cpu().contiguous() for name, value in generator.state_dict().items()}
    save_file(weights, unfinished / "model.safetensors")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def open_generator(folder: Path) -> Generator:
    """What :func:`save` wrote, ready to draw from.

    Raises:
        UserError: when it is missing or damaged.
    """
    from safetensors.torch import load_file

    config = read_json(folder / "config.json")
    try:
        generator = Generator(**{**config, "shape": tuple(config["shape"])})
        generator.load_state_dict(load_file(folder / "model.safetensors"))
    except Exception as error:  # safetensors and torch each raise their own
        reason = str(error).split("\n")[0]
        raise UserError(f"{folder}: cannot be opened as a generator ({reason})") from None
    return generator.eval()


def sample(
    generator: Generator, numbers: np.ndarray, seed: int, device: torch.device | str, batch: int = 256
) -> np.ndarray:
    """Draw the samples with these numbers; sample k has a latent of its own, and class k mod (number of classes).

    Args:
        generator: a trained one; it is put on the device, and into the mode in which no image sees another.
        numbers: int [n], which samples.
        seed: the experiment's.
        device: where to compute.
        batch: samples at once.

    Returns:
        uint8 [n, h, w, c].
    """
    generator.to(device).eval()
    latent, classes = int(generator.config["latent"]), int(generator.config["classes"])
    drawn = []
    for start in range(0, len(numbers), batch):
        chunk = numbers[start : start + batch].tolist()
        z = torch.stack([torch.randn(latent, generator=torch_stream(seed, "sample", k)) for k in chunk])
        labels = torch.tensor([k % classes for k in chunk], device=device) if classes else None
        with torch.no_grad():
            drawn.append(to_images(generator(z.to(device), labels)))
    return np.concatenate(drawn)


def sample_to_disk(folder: Path, count: int, directory: Path, *, batch: int, seed: int, accelerator: Any) -> None:
    """Draw samples 0..count-1 of a saved generator into ``directory/images.npy``.

    The first process draws alone, from the start if it was killed: one pass of a small network is a sample.
    """
    if accelerator.is_main_process:
        generator = open_generator(folder)
        shape = (count, *generator.config["shape"])
        with progress.track("sample", count) as advance, atomic(directory / "images.npy") as partial:
            out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            for start in range(0, count, batch):
                numbers = np.arange(start, min(start + batch, count))
                out[numbers] = sample(generator, numbers, seed, accelerator.device, batch)
                advance(len(numbers))
            out.flush()
            del out
    accelerator.wait_for_everyone()


def _levels(shape: tuple[int, int, int]) -> int:
    """How often the size is doubled, or halved: down to 4 to 7 pixels on the shorter side."""
    return int(math.log2(min(shape[:2]) / 4))


def _widths(channels: int, levels: int) -> list[int]:
    """Channels from full size down."""
    return [channels * min(2**level, WIDEST) for level in range(levels + 1)]
