"""A generator and its discriminator, for comparison with diffusion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unmem.component import NonNegativeFloat, Positive, UserError, component
from unmem.train.config import Sampling, Train
from unmem.train.imageset import ImageSet

if TYPE_CHECKING:
    import torch

    from unmem.train.generator import Discriminator, Generator

SIDES = 8, 64


@component
class Gan:
    """A small convolutional GAN on pixels (Radford et al. 2016, arXiv 1511.06434), 8 to 64 pixels a side.

    It brings its own training (``unmem/train/adversarial.py``): the non-saturating loss of Goodfellow et al. 2014 with
    the gradient penalty R1 (Mescheder et al. 2018, arXiv 1801.04406). It can be drawn from and nothing else, so attacks
    that ask for predictions are refused. Of the training section it reads ``images`` (real ones seen), ``batch``,
    ``lr``, ``warmup`` and ``decay`` (of both networks), ``ema`` (of the generator), ``flip``, and how the run works.

    Attributes:
        channels: of both networks at full size; twice as many a halving, 8 times at most.
        latent: length of the vector that an image is made of.
        penalty: R1's gamma: gamma / 2 times the squared gradient of the discriminator at real images.
        conditioning: ``none``, or ``class`` (needs labels).
    """

    channels: Positive = 32
    latent: Positive = 64
    penalty: NonNegativeFloat = 1.0
    conditioning: Literal["none", "class"] = "none"

    access: ClassVar[frozenset[str]] = frozenset({"samples"})
    saved_as: ClassVar[str] = "generator"
    unread: ClassVar[tuple[str, ...]] = (
        "weight_decay", "max_grad_norm", "prediction", "noise_schedule", "timesteps", "noise_levels", "lognormal_mean",
        "lognormal_std", "label_dropout", "precision", "micro_batch",
    )  # fmt: skip

    def build(
        self, shape: tuple[int, int, int], num_classes: int | None, device: torch.device | str = "cpu"
    ) -> tuple[Generator, Discriminator]:
        """Both networks for images of ``shape`` (height, width, channels).

        Raises:
            UserError: when the images are too small or too large, or labels are needed and absent.
        """
        from unmem.train.generator import Discriminator, Generator

        least, most = SIDES
        if not all(least <= side <= most for side in shape[:2]):
            raise UserError(
                f"model: a gan makes images of {least} to {most} pixels a side; these are {shape[0]}x{shape[1]}"
            )
        if self.conditioning == "class" and num_classes is None:
            raise UserError("model.conditioning: 'class' needs a data set with labels; this one has none")
        classes = (num_classes or 0) if self.conditioning == "class" else 0
        generator = Generator(shape, classes, self.channels, self.latent)
        return generator.to(device), Discriminator(shape, classes, self.channels).to(device)

    def train(self, data: ImageSet, config: Train, directory: Path, *, key: str, seed: int, accelerator: Any) -> None:
        """Train, or go on, and write ``directory/generator``; see :func:`unmem.train.adversarial.train`."""
        from unmem.train.adversarial import train

        train(data, self, config, directory, key=key, seed=seed, accelerator=accelerator)

    def sample_to_disk(
        self, folder: Path, config: Sampling, count: int, directory: Path, *, seed: int, accelerator: Any
    ) -> None:
        """Draw from a saved generator into ``directory/images.npy``; of the settings, ``batch`` alone has a meaning."""
        from unmem.train.generator import sample_to_disk

        sample_to_disk(folder, count, directory, batch=config.batch, seed=seed, accelerator=accelerator)
