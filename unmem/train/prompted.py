"""Samples by prompts from any diffusers pipeline, as its user draws them: through the pipeline's own ``__call__``.

Sample j of a prompt is a function of the experiment's seed, of the prompt's text and of j: it has a generator of its
own, from which the pipeline draws its initial noise and whatever its scheduler adds. Neither the batch, nor other
prompts, nor the number of processes play a part, but for rounding, which may move a pixel by one grey level.

A safety checker that the pipeline holds does its work, and leaves black images; so do images that are not finite.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmem.component import UserError
from unmem.rng import stream, torch_stream
from unmem.train.calls import CALLS, Wanted, called, drawing, takes_noise
from unmem.train.config import Sampling
from unmem.train.memory import Batches
from unmem.train.prompt_rule import PromptRule
from unmem.train.quiet import quiet
from unmem.train.sampling_rule import SamplingRule

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm_solver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
}
OWN = ("LCMScheduler", "TCDScheduler", "UnCLIPScheduler")  # of networks that no other scheduler suits


@dataclass(frozen=True)
class Drawn:
    """Samples, and what became of them.

    Attributes:
        images: uint8 [n, h, w, c]; black where there is none.
        checked: bool [n], which a safety checker took away.
        broken: bool [n], which were not finite.
        refused: int64 [n], how many draws of each a rule refused; a sample of which all were is black.
    """

    images: np.ndarray
    checked: np.ndarray
    broken: np.ndarray
    refused: np.ndarray


class Prompted:
    """A pipeline that is asked by prompts.

    Attributes:
        batch: samples drawn at once, where memory suffices.
        attempts: how often a sample is drawn at most.
        refuses: whether a rule looks at finished images.
    """

    def __init__(
        self,
        pipeline: Any,
        config: Sampling,
        seed: int,
        device: torch.device | str,
        *,
        prompt_rules: Sequence[PromptRule] = (),
        sampling_rules: Sequence[SamplingRule] = (),
        size: tuple[int, int] | None = None,
    ) -> None:
        """Take a pipeline into use.

        Args:
            pipeline: whatever ``DiffusionPipeline.from_pretrained`` gives; its scheduler is replaced by the one that
                is asked for, on the pipeline's own schedule, unless it is one of flow matching or of few steps.
            config: the recipe's settings.
            seed: the experiment's.
            device: where to compute.
            prompt_rules: they change words and noise, in this order.
            sampling_rules: they accept images or refuse them; they cannot steer.
            size: height and width of the images, read only of pipelines that draw any, such as Flux.

        Raises:
            UserError: for settings that a pipeline cannot follow.
        """
        _check(config)
        self._config, self._seed, self._device = config, seed, torch.device(device)
        self._prompt_rules, self._sampling_rules = tuple(prompt_rules), tuple(sampling_rules)
        with quiet(texts=hasattr(pipeline, "tokenizer")):
            self._pipeline = pipeline.to(self._device)
        self._pipeline.set_progress_bar_config(disable=True)
        for part in drawing(pipeline):
            part.scheduler = scheduled(part, config)
        self._call, self._size = CALLS.get(type(pipeline).__name__, called), size
        self.batch, self.attempts = config.batch, max((rule.attempts for rule in self._sampling_rules), default=1)
        self.refuses = bool(self._sampling_rules)
        self._batches = Batches(config.batch, "sampling.batch")

    def draw(self, asked: Sequence[tuple[str, int]]) -> Drawn:
        """Draw the samples with these prompts and numbers.

        Raises:
            UserError: when there is not enough memory for one sample.
        """
        pending, refused = np.arange(len(asked)), np.zeros(len(asked), np.int64)
        for attempt in range(self.attempts):
            found = self._draw([asked[i] for i in pending.tolist()], attempt)
            if attempt == 0:
                images, checked, broken = np.zeros_like(found.images), found.checked.copy(), found.broken.copy()
            checked[pending], broken[pending] = found.checked, found.broken
            accepted = [np.ones(len(pending), bool), *(rule.accept(found.images) for rule in self._sampling_rules)]
            kept = np.all(accepted, axis=0) | found.checked | found.broken
            images[pending[kept]] = found.images[kept]
            pending = pending[~kept]
            refused[pending] += 1
            if not len(pending):
                break
        return Drawn(images, checked, broken, refused)

    def _draw(self, asked: list[tuple[str, int]], attempt: int) -> Drawn:
        """One attempt at each of these samples."""
        parts = self._batches.run(len(asked), lambda batch: self._batch(asked[batch], attempt))
        images, checked = (np.concatenate(part) for part in zip(*parts, strict=True))
        broken = ~np.isfinite(images).all((1, 2, 3))
        images[broken | checked] = 0
        return Drawn((255 * images.clip(0, 1)).round().astype(np.uint8), checked, broken, np.zeros(len(asked), int))

    def _batch(self, asked: list[tuple[str, int]], attempt: int) -> tuple[np.ndarray, np.ndarray]:
        """What the pipeline gives for some samples at once."""
        again = (attempt,) if attempt else ()
        prompts = [self._rewritten(prompt, number, again) for prompt, number in asked]
        generators = [torch_stream(self._seed, "sample", prompt, number, *again) for prompt, number in asked]
        with (
            quiet(texts=hasattr(self._pipeline, "tokenizer")),
            warnings.catch_warnings(),
            np.errstate(invalid="ignore"),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")  # of casts from NaN, which are counted
            noise = self._noise(prompts, generators)
            wanted = Wanted(prompts, generators, self._config, noise, self._size)
            images, checked = self._call(self._pipeline, wanted)
        return np.asarray(images, np.float32), np.asarray(checked, bool)

    def _rewritten(self, prompt: str, number: int, again: tuple[int, ...]) -> str:
        """The text that the pipeline is given for a sample."""
        text = prompt
        for i, rule in enumerate(self._prompt_rules):
            text = rule.rewrite(text, stream(self._seed, "rewrite", i, prompt, number, *again))
        return text

    def _noise(self, prompts: list[str], generators: list[torch.Generator]) -> Tensor | None:
        """The initial noise that the rules make of the pipeline's own; None where they leave it alone."""
        starting = [rule for rule in self._prompt_rules if rule.starts]
        if not starting:
            return None
        shape = noise_shape(self._pipeline)
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(self._device)
        for rule in starting:
            noise = rule.start(self._pipeline, noise, prompts, self._config)
        return noise


def scheduled(pipeline: Any, config: Sampling) -> Any:
    """The scheduler that is asked for, over the schedule that a pipeline's network was trained with; or its own."""
    import diffusers

    trained = pipeline.scheduler
    if not hasattr(trained, "alphas_cumprod") or type(trained).__name__ in OWN:
        return trained
    settings: dict[str, Any] = {}
    if config.scheduler == "ddim" and "clip_sample" not in trained.config:
        settings["clip_sample"] = not hasattr(pipeline, "vae")  # latents have no bounds
    if config.scheduler == "dpm_solver++":
        settings["algorithm_type"] = "dpmsolver++"
    if config.karras_sigmas:
        settings["use_karras_sigmas"] = True
    found = getattr(diffusers, SCHEDULERS[config.scheduler]).from_config(trained.config, **settings)
    if "variance_type" in found.config:  # of the schedulers here none reads a variance that the network has learnt
        found.register_to_config(variance_type=None)
    return found


def noise_shape(pipeline: Any) -> tuple[int, int, int]:
    """Channels, height and width of a pipeline's initial noise.

    Raises:
        UserError: for a network whose noise has another form.
    """
    config = getattr(getattr(pipeline, "unet", None), "config", None)
    if config is None or config.sample_size is None or not takes_noise(pipeline):
        raise UserError(f"{type(pipeline).__name__}: rules on initial noise need a network with a UNet of one size")
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(config.in_channels), int(height), int(width)


def _check(config: Sampling) -> None:
    """Refuse what pipelines cannot be told."""
    if config.guidance < 1:
        raise UserError(
            f"sampling.guidance: pipelines that take prompts know no guidance below 1; got {config.guidance}"
        )
    if config.churn:
        raise UserError("sampling.churn: is for networks on pixels, which our own sampler draws from; leave it out")
