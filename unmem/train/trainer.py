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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from unmem import progress
from unmem.component import UserError
from unmem.rng import derive
from unmem.rundir import write_json, write_text
from unmem.train import checkpoint
from unmem.train.config import Train
from unmem.train.diffusion import Diffusion
from unmem.train.draw import Draw, NetworkLosses, made_up
from unmem.train.imageset import ImageSet
from unmem.train.inputs import Inputs, Pixels
from unmem.train.noise_levels import NoiseLevels
from unmem.train.update import StepLosses, UpdateRule

LOGGED_ROWS = 200  # rows of metrics.jsonl over a whole run: a curve, not a burden


def make_accelerator(config: Train | None, directory: Path | None = None) -> Any:
    """accelerate's view of devices, precision and processes; without settings, for no training.

    Raises:
        UserError: for a tracker that accelerate does not know, or that is not installed.
    """
    from datetime import timedelta

    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    trackers = () if config is None else config.trackers
    installed = {str(tracker) for tracker in get_available_trackers()}
    for tracker in trackers:
        if tracker not in set(map(str, LOGGER_TYPE_TO_CLASS)):
            raise UserError(f"train.trackers: unknown {tracker!r}; have {', '.join(map(str, LOGGER_TYPE_TO_CLASS))}")
        if tracker not in installed:
            raise UserError(f"train.trackers: {tracker!r} is not installed; run pip install {tracker}")
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # others wait while one process attacks
    return Accelerator(
        mixed_precision="no" if config is None else config.precision,
        log_with=list(trackers) or None,
        project_dir=directory,
        kwargs_handlers=[patient],
    )


class Model(Protocol):
    """A component that makes the network, and says how it is trained."""

    @property
    def conditioning(self) -> str:
        """``none``; ``class``: the network takes labels, and a null class besides; or ``text``: it takes captions."""

    def build(self, shape: tuple[int, int, int], num_classes: int | None, device: torch.device | str) -> nn.Module:
        """The network on its device; parameters that do not require gradients stay as they are."""

    def scheduler(self, config: Train) -> Any:
        """The diffusers scheduler that the network is trained and saved with: noise schedule and prediction type."""

    def plain(self, network: nn.Module) -> nn.Module:
        """The trained network as diffusers alone can save and open it."""


class TextModel(Model, Protocol):
    """A model that is conditioned on texts, and sees images as a part of the pipeline that is not trained does."""

    def inputs(self, data: ImageSet, config: Train, state: Path, *, key: str, seed: int, accelerator: Any) -> Inputs:
        """What the network is given of images; made anew, or read again from what it keeps in ``state`` by ``key``."""


def train(
    data: ImageSet,
    model_spec: Model,
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
    phases = _phases(data, rule)
    num_classes = len(data.label_names) or None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init"))
        network = model_spec.build(data.shape, num_classes, accelerator.device)
    inputs = _inputs(data, model_spec, config, directory / "state", key, seed, accelerator)
    scheduler = model_spec.scheduler(config)
    memories = {f"memory of {phase.name}": phase.rule.memory for phase in phases if phase.rule.memory is not None}
    diffusion = Diffusion.of(scheduler, accelerator.device)
    run = _Run(network, memories, diffusion, config, inputs, directory, key, accelerator)
    names = [phase.name for phase in phases]
    privacy = None
    for phase in phases[names.index(run.resume(names[0])) :]:
        privacy = run.train(phase)
    averaged = model_spec.plain(run.averaged)
    if accelerator.is_main_process:
        if privacy is not None:
            write_json(directory / "privacy.json", privacy)
        _save_pipeline(inputs.pipeline(averaged, scheduler), directory / "pipeline")
    if config.trackers:
        accelerator.end_training()
    accelerator.wait_for_everyone()


def _inputs(
    data: ImageSet, model: Model | TextModel, config: Train, state: Path, key: str, seed: int, accelerator: Any
) -> Inputs:
    """What the model's network is given of images."""
    if hasattr(model, "inputs"):
        found: Inputs = model.inputs(data, config, state, key=key, seed=seed, accelerator=accelerator)
        return found
    return Pixels((len(data.label_names) or None) if model.conditioning == "class" else None, accelerator.device)


@dataclass(frozen=True)
class _Phase:
    """A stretch of training with images, a rule, an optimizer and a learning-rate course of its own.

    Attributes:
        name: ``train``, or ``warm-up`` for what comes before it.
        data: the images.
        rule: batches and step.
        before: images that earlier phases see.
    """

    name: str
    data: ImageSet
    rule: UpdateRule
    before: int = 0


def _phases(data: ImageSet, rule: UpdateRule) -> list[_Phase]:
    """The rule's warm-up, if it wants one, and its training."""
    if len(data) == 0:
        raise UserError("no image is left to train on; relax the mitigation")
    if rule.warmup is None:
        return [_Phase("train", data, rule)]
    images, first = rule.warmup
    assert len(images) > 0 and first.warmup is None
    assert (images.shape, images.label_names) == (data.shape, data.label_names), "one network is for both"
    return [_Phase("warm-up", images, first), _Phase("train", data, rule, first.steps * first.batch)]


class _Run:
    """What one phase hands on to the next: the network, the average of its weights, and the books.

    Attributes:
        network: the network, on its device.
        averaged: a copy of it with the moving average of the weights.
    """

    def __init__(
        self,
        network: nn.Module,
        memories: dict[str, nn.Module],
        diffusion: Diffusion,
        config: Train,
        inputs: Inputs,
        directory: Path,
        key: str,
        accelerator: Any,
    ) -> None:
        self.network, self.averaged, self._memories = network, copy.deepcopy(network), memories
        self._diffusion, self._config, self._inputs, self._accelerator = diffusion, config, inputs, accelerator
        self._levels = NoiseLevels.of(config, diffusion)
        self._weights: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        self._averages: list[Tensor] = [p for p in self.averaged.parameters() if p.requires_grad]
        self._directory, self._key = directory, key
        self._step, self._optimizer, self._saved = 0, self._fresh_optimizer(), time.monotonic()

    def resume(self, first: str) -> str:
        """Restore the last checkpoint, if there is one; returns the phase to go on with, else the ``first``."""
        phase = first
        if self._checkpoint.exists():
            meta = checkpoint.load(self._checkpoint, self._modules, self._optimizer)
            if meta["key"] != self._key:
                raise UserError(
                    f"{self._checkpoint}: belongs to another configuration; remove it to train this arm from the start"
                )
            phase, self._step = str(meta["phase"]), int(meta["step"])
            progress.say(f"{phase}: resumed after {self._step} steps")
        self._log = Log(self._directory / "metrics.jsonl", phase, self._step, self._accelerator)
        return phase

    def train(self, phase: _Phase) -> dict[str, Any] | None:
        """Train to the end of a phase, which leaves the start of the next one; returns the rule's statement."""
        rule, accelerator = phase.rule, self._accelerator
        forward = rule.prepare(self.network, self._optimizer, accelerator)
        if self._step < rule.steps:
            trial = made_up(phase.data, rule.batch)
            rule.rehearse(len(trial), self._losses(trial, np.arange(len(trial)), rule, 0, forward))
        every = max(1, rule.steps // LOGGED_ROWS)
        with progress.track(phase.name, rule.steps * rule.batch, start=self._step * rule.batch) as advance:
            while self._step < rule.steps:
                lr = rule.lr * rate(self._step / rule.steps, self._config)
                for group in self._optimizer.param_groups:
                    group["lr"] = lr
                torch.manual_seed(derive(rule.seed, "dropout", self._step, accelerator.process_index))
                positions = rule.positions(self._step)
                losses = self._losses(phase.data, positions, rule, self._step, forward)
                part = rule.update(self._step, len(positions), losses)
                self._step += 1
                self._average()
                if self._step % every == 0 or self._step == rule.steps:
                    self._write(phase, part, lr)
                if accelerator.is_main_process and time.monotonic() - self._saved >= self._config.checkpoint_seconds:
                    self._save(phase)
                advance(rule.batch)
        statement = rule.finish()
        accelerator.unwrap_model(forward, keep_fp32_wrapper=False)  # so that the next rule takes hold of a plain one
        if accelerator.is_main_process:
            self._log.flush()
        self._step, self._optimizer = 0, self._fresh_optimizer()
        return statement

    @property
    def _checkpoint(self) -> Path:
        """Where a run that died is resumed from."""
        return self._directory / "state" / "checkpoint.safetensors"

    @property
    def _modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds beside the optimizer's moments."""
        return {"model": self.network, "ema": self.averaged, **self._memories}

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        """AdamW without any memory; the loop sets its rate."""
        return torch.optim.AdamW(self._weights, weight_decay=self._config.weight_decay, foreach=True)

    def _losses(
        self, data: ImageSet, positions: np.ndarray, rule: UpdateRule, step: int, forward: nn.Module
    ) -> StepLosses:
        """The losses of a step's batch by slot."""
        draw = Draw(data, positions, self._config, self._levels, self._inputs, rule, step)
        return NetworkLosses(draw, self._diffusion, forward, self._accelerator)

    def _average(self) -> None:
        """Follow the weights, warming up so that a short run is not an average over its start.

        It warms up anew in each phase: a warm-up's weights are of other images, and with a slow decay they would be
        most of the average of a short training.
        """
        decay = min(self._config.ema, (1 + self._step) / (10 + self._step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._weights, 1 - decay)

    def _write(self, phase: _Phase, part: float, lr: float) -> None:
        """Log a step."""
        loss = float(self._accelerator.reduce(torch.tensor(part, device=self._accelerator.device), "sum"))
        images = self._step * phase.rule.batch
        if not math.isfinite(loss):
            raise UserError(f"{phase.name}: the loss is {loss} after {images} images; lower train.lr")
        name = {} if phase.name == "train" else {"phase": phase.name}
        self._log.write({**name, "step": self._step, "images": images, "loss": loss, "lr": lr}, phase.before)

    def _save(self, phase: _Phase) -> None:
        """Write a checkpoint."""
        self._log.flush()
        meta = {"key": self._key, "phase": phase.name, "step": self._step}
        checkpoint.save(self._checkpoint, self._modules, self._optimizer, meta)
        self._saved = time.monotonic()


class Log:
    """metrics.jsonl and the trackers; rows after the checkpoint that a run resumes from are dropped."""

    def __init__(self, path: Path, phase: str, step: int, accelerator: Any) -> None:
        self._path, self._accelerator = path, accelerator
        rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        reached = phase == "train", step
        self._rows = [row for row in rows if _place(json.loads(row)) <= reached]
        if accelerator.log_with:
            accelerator.init_trackers("trackers")

    def write(self, row: dict[str, Any], before: int) -> None:
        """Add a row; trackers count the images of the phases ``before`` it, too."""
        self._rows.append(json.dumps(row))
        if self._accelerator.log_with:
            self._accelerator.log({"loss": row["loss"], "lr": row["lr"]}, step=before + row["images"])

    def flush(self) -> None:
        """Bring the file up to date."""
        write_text(self._path, "".join(row + "\n" for row in self._rows))


def _place(row: dict[str, Any]) -> tuple[bool, int]:
    """Where in a run a row was written: after the warm-up or in it, and the step."""
    return "phase" not in row, row["step"]


def rate(done: float, config: Train) -> float:
    """The learning rate's factor at a fraction ``done`` of training."""
    if done < config.warmup:
        return done / config.warmup
    if config.decay == "none":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / max(1 - config.warmup, 1e-9)))


def _save_pipeline(pipeline: Any, target: Path) -> None:
    """A normal diffusers folder, whole or not at all."""
    unfinished = target.with_name(target.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    pipeline.save_pretrained(unfinished, safe_serialization=True)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
