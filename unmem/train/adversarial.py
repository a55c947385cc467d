"""The training of a GAN: data and two networks in; a folder with the averaged generator out.

It keeps the promises of :mod:`unmem.train.trainer`: the same call again resumes from the last checkpoint and ends in
the same weights, bit for bit on one kind of device; progress is counted in real images seen; all randomness is a
function of seed and step.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from unmem import progress
from unmem.component import UserError
from unmem.rng import derive, torch_stream
from unmem.train import checkpoint
from unmem.train.config import Train
from unmem.train.diffusion import to_model
from unmem.train.generator import save
from unmem.train.imageset import ImageSet
from unmem.train.trainer import LOGGED_ROWS, Log, rate
from unmem.train.update import Plain

if TYPE_CHECKING:
    from unmem.train.models.gan import Gan

BETAS = (0.0, 0.99)  # Adam's; without momentum, two networks that follow each other do not swing


def train(data: ImageSet, model: Gan, config: Train, directory: Path, *, key: str, seed: int, accelerator: Any) -> None:
    """Train and write ``directory/generator`` (``config.json``, ``model.safetensors``) and ``metrics.jsonl``.

    Args:
        data: the training images.
        model: the model component.
        config: the recipe's settings, of which those in ``model.unread`` mean nothing here.
        directory: the stage's directory; ``state/checkpoint.safetensors`` in it is what a resumed call goes on from.
            The caller removes ``state`` once it has noted that training is done.
        key: the stage's key; a checkpoint with another is refused.
        seed: of initial weights, batches and latents.
        accelerator: accelerate's; its first process trains alone, since a batch of so small networks is soon done.

    Raises:
        UserError: for images that do not fit the model, a damaged checkpoint, or a loss that is not finite.
    """
    if len(data) == 0:
        raise UserError("no image is left to train on; relax the mitigation")
    if accelerator.is_main_process:
        _Run(data, model, config, directory, key, seed, accelerator).train()
    if config.trackers:
        accelerator.end_training()
    accelerator.wait_for_everyone()


class _Run:
    """Two networks, the average of the generator's weights, and the books."""

    def __init__(
        self, data: ImageSet, model: Gan, config: Train, directory: Path, key: str, seed: int, accelerator: Any
    ) -> None:
        self._data, self._config, self._seed, self._accelerator = data, config, seed, accelerator
        self._penalty, self._latent, self._conditional = model.penalty, model.latent, model.conditioning == "class"
        self._directory, self._key, self._device = directory, key, accelerator.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "init"))
            self._generator, self._critic = model.build(data.shape, len(data.label_names) or None, self._device)
        self._averaged = copy.deepcopy(self._generator)
        self._modules = {"generator": self._generator, "discriminator": self._critic, "ema": self._averaged}
        # one optimizer for both networks: whose parameters have no gradient, they and their moments stay as they are
        both = [*self._generator.parameters(), *self._critic.parameters()]
        self._optimizer = torch.optim.Adam(both, betas=BETAS, foreach=True)

    def train(self) -> None:
        """Go on from the last checkpoint to the end, and save the averaged generator."""
        plain = Plain(len(self._data), self._config, self._seed)  # whose batches are a denoiser's, too
        step = self._resume()
        log = Log(self._directory / "metrics.jsonl", "train", step, self._accelerator)
        every, saved = max(1, plain.steps // LOGGED_ROWS), time.monotonic()
        with progress.track("train", plain.steps * plain.batch, start=step * plain.batch) as advance:
            while step < plain.steps:
                lr = plain.lr * rate(step / plain.steps, self._config)
                self._optimizer.param_groups[0]["lr"] = lr
                losses = self._step(step, plain)
                step += 1
                self._average(step)
                if step % every == 0 or step == plain.steps:
                    row = {"step": step, "images": step * plain.batch, **_finite(losses, step * plain.batch), "lr": lr}
                    log.write(row, before=0)
                if time.monotonic() - saved >= self._config.checkpoint_seconds:
                    log.flush()
                    checkpoint.save(self._file, self._modules, self._optimizer, {"key": self._key, "step": step})
                    saved = time.monotonic()
                advance(plain.batch)
        log.flush()
        save(self._averaged, self._directory / "generator")

    @property
    def _file(self) -> Path:
        """Where a run that died is resumed from."""
        return self._directory / "state" / "checkpoint.safetensors"

    def _resume(self) -> int:
        """Restore the last checkpoint, if there is one; returns the steps that are done."""
        if not self._file.exists():
            return 0
        meta = checkpoint.load(self._file, self._modules, self._optimizer)
        if meta["key"] != self._key:
            raise UserError(
                f"{self._file}: belongs to another configuration; remove it to train this arm from the start"
            )
        progress.say(f"train: resumed after {meta['step']} steps")
        return int(meta["step"])

    def _step(self, step: int, plain: Plain) -> dict[str, Tensor]:
        """One update of the discriminator, then one of the generator; returns the losses before them."""
        positions = plain.positions(step)
        random = torch_stream(self._seed, "adversarial", step)
        z = torch.randn((2, len(positions), self._latent), generator=random).to(self._device)
        flipped = torch.rand((len(positions), 1, 1, 1), generator=random).to(self._device) < 0.5
        real, labels = to_model(self._data.images(positions), self._device), None
        if self._config.flip:
            real = torch.where(flipped, real.flip(-1), real)
        if self._conditional:
            assert self._data.labels is not None
            labels = torch.from_numpy(self._data.labels[positions]).to(self._device)  # images made have the real ones'
        with torch.no_grad():
            made = self._generator(z[0], labels)
        critic = self._update(self._critic_loss(real, made, labels))
        self._critic.requires_grad_(False)
        generator = self._update(functional.softplus(-self._critic(self._generator(z[1], labels), labels)).mean())
        self._critic.requires_grad_(True)
        return {"loss": generator, "discriminator_loss": critic}

    def _critic_loss(self, real: Tensor, made: Tensor, labels: Tensor | None) -> Tensor:
        """Goodfellow et al. 2014, eq. 1, as a loss, with R1 (Mescheder et al. 2018, eq. 9)."""
        real.requires_grad_(True)
        logits = self._critic(real, labels)
        loss = functional.softplus(-logits).mean() + functional.softplus(self._critic(made, labels)).mean()
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        return loss + self._penalty / 2 * slope.square().sum((1, 2, 3)).mean()

    def _update(self, loss: Tensor) -> Tensor:
        """A step of the parameters that the loss depends on and that ask for gradients."""
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _average(self, step: int) -> None:
        """Follow the generator's weights, warming up as a denoiser's average does; its statistics are the last ones."""
        decay = min(self._config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self._averaged.parameters()), list(self._generator.parameters()), 1 - decay)
            for mine, theirs in zip(self._averaged.buffers(), self._generator.buffers(), strict=True):
                mine.copy_(theirs)


def _finite(losses: dict[str, Tensor], images: int) -> dict[str, float]:
    """The losses as numbers."""
    found = {name: float(loss) for name, loss in losses.items()}
    for name, loss in found.items():
        if not math.isfinite(loss):
            raise UserError(f"train: the {name} is {loss} after {images} images; lower train.lr or raise model.penalty")
    return found
