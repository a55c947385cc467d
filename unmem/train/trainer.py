"""The training loop: data, a network and an update rule in; a diffusers pipeline folder out.

It knows nothing of privacy: the :class:`~unmem.train.update.UpdateRule` owns the batches and the step. The same call
again resumes from the last checkpoint and ends in the same weights, bit for bit on one kind of device.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmem import progress
from unmem.component import UserError
from unmem.rng import derive, torch_stream
from unmem.rundir import write_json, write_text
from unmem.train import checkpoint
from unmem.train.config import Train
from unmem.train.diffusion import Diffusion, make_scheduler, to_model
from unmem.train.imageset import ImageSet
from unmem.train.models.unet import UNet
from unmem.train.update import UpdateRule

REHEARSED = 64  # made-up images at most
LOGGED_ROWS = 200  # rows of metrics.jsonl over a whole run: a curve, not a burden


def make_accelerator(config: Train, directory: Path | None = None) -> Any:
    """accelerate's view of devices, precision and processes.

    Raises:
        UserError: for a tracker that accelerate does not know, or that is not installed.
    """
    from datetime import timedelta

    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {str(tracker) for tracker in get_available_trackers()}
    for tracker in config.trackers:
        if tracker not in set(map(str, LOGGER_TYPE_TO_CLASS)):
            raise UserError(f"train.trackers: unknown {tracker!r}; have {', '.join(map(str, LOGGER_TYPE_TO_CLASS))}")
        if tracker not in installed:
            raise UserError(f"train.trackers: {tracker!r} is not installed; run pip install {tracker}")
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # others wait while one process attacks
    return Accelerator(
        mixed_precision=config.precision,
        log_with=list(config.trackers) or None,
        project_dir=directory,
        kwargs_handlers=[patient],
    )


def train(
    data: ImageSet,
    model_spec: UNet,
    config: Train,
    rule: UpdateRule,
    directory: Path,
    *,
    key: str,
    seed: int,
    accelerator: Any,
) -> None:
    """Train and write ``directory/pipeline`` (diffusers, safetensors), ``metrics.jsonl`` and ``privacy.json``.

    Args:
        data: the training images.
        model_spec: the model component.
        config: the recipe's settings.
        rule: batches and step, see :class:`~unmem.train.update.UpdateRule`.
        directory: the stage's directory; ``state/checkpoint.safetensors`` in it is what a resumed call goes on from.
            The caller removes ``state`` once it has noted that training is done.
        key: the stage's key; a checkpoint with another is refused.
        seed: of the initial weights, so that all arms start alike.
        accelerator: from :func:`make_accelerator`.

    Raises:
        UserError: for images that do not fit the model, a damaged checkpoint, or a loss that is not finite.
    """
    if len(data) == 0:
        raise UserError("no image is left to train on; relax the mitigation")
    num_classes = len(data.label_names) or None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        network = model_spec.build(data.shape, num_classes).to(accelerator.device)
    scheduler = make_scheduler(config.noise_schedule, config.prediction, config.timesteps)
    averaged = copy.deepcopy(network)
    averages: list[Tensor] = list(averaged.parameters())
    weights: list[Tensor] = list(network.parameters())
    optimizer = torch.optim.AdamW(weights, lr=rule.lr, weight_decay=config.weight_decay, foreach=True)
    forward = rule.prepare(network, optimizer, accelerator)

    file = directory / "state" / "checkpoint.safetensors"
    modules: dict[str, nn.Module] = {"model": network, "ema": averaged}
    step = _resume(file, modules, optimizer, key)
    log = _Log(directory / "metrics.jsonl", step, accelerator)
    null = num_classes if model_spec.conditioning == "class" else None
    diffusion = Diffusion.of(scheduler, accelerator.device)
    every, saved = max(1, rule.steps // LOGGED_ROWS), time.monotonic()
    if step < rule.steps:
        made_up = _made_up(data, rule.batch)
        trial = _Draw(made_up, np.arange(len(made_up)), config, null, rule, 0)
        rule.rehearse(len(made_up), partial(trial.losses, diffusion, forward, accelerator))
    with progress.track("train", rule.steps * rule.batch, start=step * rule.batch) as advance:
        while step < rule.steps:
            lr = rule.lr * _rate(step / rule.steps, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            torch.manual_seed(derive(rule.seed, "dropout", step, accelerator.process_index))
            positions = rule.positions(step)
            draw = _Draw(data, positions, config, null, rule, step)
            part = rule.update(step, len(positions), partial(draw.losses, diffusion, forward, accelerator))
            step += 1
            with torch.no_grad():  # warming up, so that a short run is not an average over its start
                torch._foreach_lerp_(averages, weights, 1 - min(config.ema, (1 + step) / (10 + step)))
            if step % every == 0 or step == rule.steps:
                loss = float(accelerator.reduce(torch.tensor(part, device=accelerator.device), "sum"))
                if not math.isfinite(loss):
                    raise UserError(f"train: the loss is {loss} after {step * rule.batch} images; lower train.lr")
                log.write({"step": step, "images": step * rule.batch, "loss": loss, "lr": lr})
            if accelerator.is_main_process and time.monotonic() - saved >= config.checkpoint_seconds:
                log.flush()
                checkpoint.save(file, modules, optimizer, {"key": key, "step": step})
                saved = time.monotonic()
            advance(rule.batch)

    privacy = rule.finish()
    if accelerator.is_main_process:
        log.flush()
        if privacy is not None:
            write_json(directory / "privacy.json", privacy)
        _save_pipeline(averaged, scheduler, directory / "pipeline")
    if config.trackers:
        accelerator.end_training()
    accelerator.wait_for_everyone()


def _made_up(data: ImageSet, batch: int) -> ImageSet:
    """Noise of the data's shape with random labels: what a rule rehearses on, since the data may be private."""
    random, size = np.random.default_rng(0), min(batch, REHEARSED)
    labels = None if data.labels is None else random.integers(max(len(data.label_names), 1), size=size)
    images = random.integers(256, size=(size, *data.shape), dtype=np.uint8)
    return ImageSet.of(images, [f"made up {i}" for i in range(size)], labels, data.label_names)


class _Draw:
    """One step's global batch with its randomness; each process computes the losses of its own slots.

    Noise is drawn for blocks of slots, each from a generator of its own, so that it depends neither on how slots are
    shared out nor, in memory, on the size of the batch.
    """

    BLOCK = 64

    def __init__(
        self, data: ImageSet, positions: np.ndarray, config: Train, num_classes: int | None, rule: UpdateRule, step: int
    ) -> None:
        self.data, self.positions, self.config, self.num_classes = data, positions, config, num_classes
        self.seed, self.step, self.multiplicity = rule.seed, step, rule.multiplicity
        self._block: tuple[int, tuple[Tensor, ...]] = (-1, ())

    def losses(self, diffusion: Diffusion, model: nn.Module, accelerator: Any, slots: np.ndarray) -> Tensor:
        """Un-reduced losses, float32 [len(slots)], each the mean over its image's draws.

        The model sees an image's draws one after the other: row r belongs to slot r // multiplicity.
        """
        device = accelerator.device
        t, eps, flips, dropped = self._drawn(slots, device)
        mine = self.positions[slots]
        x0 = to_model(self.data.images(mine), device).repeat_interleave(self.multiplicity, 0)
        if self.config.flip:
            x0 = torch.where(flips.view(-1, 1, 1, 1), x0.flip(-1), x0)
        labels = None
        if self.num_classes is not None and self.data.labels is not None:
            labels = torch.from_numpy(self.data.labels[mine]).to(device).repeat_interleave(self.multiplicity)
            labels = torch.where(dropped, self.num_classes, labels)
        with accelerator.autocast():
            each = diffusion.losses(model, x0, t, eps, labels)
        return each if self.multiplicity == 1 else each.view(-1, self.multiplicity).mean(1)

    def _drawn(self, slots: np.ndarray, device: torch.device) -> list[Tensor]:
        """Timesteps, noise, flips and dropped labels of these slots' draws, one row a draw."""
        found: list[tuple[Tensor, ...]] = []
        for block in np.unique(slots // self.BLOCK).tolist() or [0]:  # an empty chunk has shapes, too
            inside = torch.from_numpy(slots[slots // self.BLOCK == block] - block * self.BLOCK).to(device)
            found.append(tuple(part[inside].flatten(0, 1) for part in self._drawn_block(block, device)))
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def _drawn_block(self, block: int, device: torch.device) -> tuple[Tensor, ...]:
        """The randomness of one block of slots, [slots, multiplicity, ...]; the last one is kept for the next chunk."""
        if self._block[0] != block:
            generator = torch_stream(self.seed, "loss", self.step, *([block] if block else []), device=device)
            size = min(self.BLOCK, len(self.positions) - block * self.BLOCK), self.multiplicity
            height, width, channels = self.data.shape
            t = torch.randint(self.config.timesteps, size, generator=generator, device=device)
            eps = torch.randn((*size, channels, height, width), generator=generator, device=device)
            flips = torch.rand(size, generator=generator, device=device) < 0.5
            dropped = torch.rand(size, generator=generator, device=device) < self.config.label_dropout
            self._block = block, (t, eps, flips, dropped)
        return self._block[1]


class _Log:
    """metrics.jsonl and the trackers; rows after the checkpoint that a run resumes from are dropped."""

    def __init__(self, path: Path, step: int, accelerator: Any) -> None:
        self._path, self._accelerator = path, accelerator
        rows = path.read_text(encoding="utf-8").splitlines() if path.exists() and step else []
        self._rows = [row for row in rows if json.loads(row)["step"] <= step]
        if accelerator.log_with:
            accelerator.init_trackers("trackers")

    def write(self, row: dict[str, float]) -> None:
        """Add a row."""
        self._rows.append(json.dumps(row))
        if self._accelerator.log_with:
            self._accelerator.log({"loss": row["loss"], "lr": row["lr"]}, step=int(row["images"]))

    def flush(self) -> None:
        """Bring the file up to date."""
        write_text(self._path, "".join(row + "\n" for row in self._rows))


def _resume(file: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, key: str) -> int:
    """Restore the last checkpoint, if there is one; returns the number of steps done."""
    if not file.exists():
        return 0
    meta = checkpoint.load(file, modules, optimizer)
    if meta["key"] != key:
        raise UserError(f"{file}: belongs to another configuration; remove it to train this arm from the start")
    progress.say(f"train: resumed after {meta['step']} steps")
    return int(meta["step"])


def _rate(done: float, config: Train) -> float:
    """The learning rate's factor at a fraction ``done`` of training."""
    if done < config.warmup:
        return done / config.warmup
    if config.decay == "none":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / max(1 - config.warmup, 1e-9)))


def _save_pipeline(network: Any, scheduler: Any, target: Path) -> None:
    """A normal diffusers folder, whole or not at all."""
    from diffusers import DDPMPipeline

    unfinished = target.with_name(target.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(unfinished, safe_serialization=True)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
