"""Samples that depend on their number alone: sample k is the same image at any batch size, on any process.

Each sample has a generator of its own, and its initial noise is the first draw. Stochastic samplers (DDIM with eta > 0,
Song et al. 2021; Euler and Heun with churn, Karras et al. 2022) draw on; the others (DDIM with eta = 0; DPM-Solver++,
Lu et al. 2022) are deterministic given the initial noise.

Rules (``sampling_rule.py``) may steer the steps and refuse finished images. A refused sample is drawn again with
generators of its own, so it still depends on its number alone; its first draw is the one without rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmem import progress
from unmem.component import UserError
from unmem.rng import torch_stream
from unmem.rundir import atomic, write_array, write_json
from unmem.train.config import Sampling
from unmem.train.diffusion import Diffusion, to_images
from unmem.train.karras import Predict, by_levels
from unmem.train.memory import Batches
from unmem.train.sampling_rule import SamplingRule

PART = 1024  # samples a file: what a killed run has to draw again


def sample(pipeline: Any, config: Sampling, numbers: np.ndarray, seed: int, device: torch.device | str) -> np.ndarray:
    """Draw the samples with these numbers.

    Args:
        pipeline: a diffusers pipeline with ``unet`` (UNet2DModel) and ``scheduler``.
        config: the recipe's settings.
        numbers: int [n], which samples.
        seed: the experiment's seed.
        device: where to compute.

    Returns:
        uint8 [n, h, w, c].
    """
    return _draw(pipeline, config, numbers, seed, device, (), 0)


def sample_by_rules(
    pipeline: Any,
    config: Sampling,
    numbers: np.ndarray,
    seed: int,
    device: torch.device | str,
    rules: Sequence[SamplingRule],
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the samples with these numbers as rules allow, each again until every rule accepts it.

    Args:
        pipeline: as in :func:`sample`, like the next four.
        config: the recipe's settings.
        numbers: int [n], which samples.
        seed: the experiment's seed.
        device: where to compute.
        rules: they steer in this order; the most attempts of any of them count.

    Returns:
        uint8 [n, h, w, c], and int64 [n]: how many draws of each were refused. A sample of which all were is black.
    """
    attempts = max((rule.attempts for rule in rules), default=1)
    pending, refused = np.arange(len(numbers)), np.zeros(len(numbers), np.int64)
    for attempt in range(attempts):
        found = _draw(pipeline, config, numbers[pending], seed, device, rules, attempt)
        if attempt == 0:
            images = np.zeros_like(found)
        accepted = np.all([np.ones(len(found), bool), *(rule.accept(found) for rule in rules)], axis=0)
        images[pending[accepted]] = found[accepted]
        pending = pending[~accepted]
        refused[pending] += 1
        if not len(pending):
            break
    return images, refused


def sample_to_disk(
    pipeline: Any,
    config: Sampling,
    count: int,
    directory: Path,
    *,
    seed: int,
    accelerator: Any,
    rules: Sequence[SamplingRule] = (),
    draw: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
) -> None:
    """Draw samples 0..count-1 into ``directory/images.npy``, shared among processes, resumable part by part.

    Where there are rules, ``directory/refused.json`` counts what they refused. What :func:`sample_by_rules` gives for
    some numbers may come from elsewhere: ``draw``.
    """
    parts = [np.arange(start, min(start + PART, count)) for start in range(0, count, PART)]
    mine = list(range(accelerator.process_index, len(parts), accelerator.num_processes))
    with progress.track("sample", sum(len(parts[i]) for i in mine)) as advance:
        for i in mine:
            file = directory / f"part-{i:05d}.npy"
            if not file.exists():
                if draw is None:
                    images, refused = sample_by_rules(pipeline, config, parts[i], seed, accelerator.device, rules)
                else:
                    images, refused = draw(parts[i])
                if rules:
                    write_array(directory / f"refused-{i:05d}.npy", refused)
                write_array(file, images)
            advance(len(parts[i]))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        attempts = max((rule.attempts for rule in rules), default=0)
        _join(directory, len(parts), count, attempts)
    accelerator.wait_for_everyone()


def open_pipeline(path: Path) -> Any:
    """Open a saved diffusers pipeline folder, quietly.

    Raises:
        UserError: when it cannot be opened, or is not a UNet2DModel on pixels.
    """
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    try:
        pipeline = DiffusionPipeline.from_pretrained(path, local_files_only=True)
    except Exception as error:  # diffusers raises many kinds for damaged folders
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: cannot be opened as a diffusers pipeline ({reason})") from None
    if not hasattr(pipeline, "unet") or type(pipeline.unet).__name__ != "UNet2DModel":
        raise UserError(f"{path}: is a {type(pipeline).__name__}; a pipeline with a UNet2DModel is needed")
    return pipeline


def null_class(unet: Any) -> int | None:
    """The number of classes of a class-conditional network, which is also its null class; None without."""
    embeddings = unet.config.num_class_embeds
    return None if embeddings is None else int(embeddings) - 1


def image_size(unet: Any) -> tuple[int, int]:
    """Height and width that the network was made for."""
    size = unet.config.sample_size
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _draw(
    pipeline: Any,
    config: Sampling,
    numbers: np.ndarray,
    seed: int,
    device: torch.device | str,
    rules: Sequence[SamplingRule],
    attempt: int,
) -> np.ndarray:
    """One attempt at each of these samples, steered, uint8 [n, h, w, c]."""
    unet = pipeline.unet.to(device).eval()
    num_classes = null_class(unet)
    height, width = image_size(unet)
    shape = unet.config.in_channels, height, width
    denoise = partial(by_levels if config.scheduler in ("euler", "heun") else _by_diffusers, pipeline.scheduler)
    again = (attempt,) if attempt else ()
    if rules:
        diffusion = Diffusion.of(pipeline.scheduler)
        steered = partial(_steered, diffusion.prediction, diffusion.sigmas.log().numpy(), rules)

    def draw(batch: slice) -> np.ndarray:
        chunk = numbers[batch].tolist()
        generators = [torch_stream(seed, "sample", k, *again) for k in chunk]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        labels = None
        if num_classes is not None:
            labels = torch.tensor([k % num_classes for k in chunk], device=device)
        predict: Predict = partial(_predict, unet, labels, config.guidance)
        if rules:
            predict = partial(steered, predict)
        with torch.no_grad():
            return to_images(denoise(predict, noise.to(device), generators, config))

    return np.concatenate(Batches(config.batch, "sampling.batch").run(len(numbers), draw))


def _steered(
    prediction: str, logs: np.ndarray, rules: Sequence[SamplingRule], predict: Predict, x: Tensor, t: Tensor
) -> Tensor:
    """The prediction that stands for the image which the rules make of the network's, or its own.

    ``prediction`` is the network's type, ``logs`` the schedule's ln sigma [T], between which t may lie.
    """
    predicted = predict(x, t)
    sigma = math.exp(np.interp(float(t), np.arange(len(logs)), logs))
    signal, noise = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
    if prediction == "epsilon":
        image = (x - noise * predicted) / signal
    elif prediction == "v_prediction":
        image = signal * x - noise * predicted
    else:
        image = predicted
    image = wanted = image.clamp(-1, 1)
    for rule in rules:
        wanted = rule.steer(wanted, sigma)
    if prediction == "epsilon":
        other = (x - signal * wanted) / noise
    elif prediction == "v_prediction":
        other = (signal * x - wanted) / noise
    else:
        other = wanted
    changed = (wanted != image).flatten(1).any(1)
    return torch.where(changed[:, None, None, None], other, predicted)


def _predict(unet: Any, labels: Tensor | None, guidance: float, x: Tensor, t: Tensor) -> Tensor:
    """The network's prediction at x_t [n, c, h, w], guided where that is asked for."""
    predicted: Tensor = unet(x, t, class_labels=labels).sample
    if labels is None or guidance == 1.0:
        return predicted
    null = torch.full_like(labels, int(unet.config.num_class_embeds) - 1)
    free: Tensor = unet(x, t, class_labels=null).sample
    return free + guidance * (predicted - free)


def _by_diffusers(
    trained: Any, predict: Predict, x: Tensor, generators: list[torch.Generator], config: Sampling
) -> Tensor:
    """From noise to images in [-1, 1], both [n, c, h, w], by diffusers' steps over the trained schedule."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    if config.scheduler == "ddim":
        scheduler = DDIMScheduler.from_config(trained.config, clip_sample=True)
        step = partial(scheduler.step, eta=config.eta, generator=generators)
    else:
        scheduler = DPMSolverMultistepScheduler.from_config(
            trained.config, algorithm_type="dpmsolver++", thresholding=True, sample_max_value=1.0
        )
        step = scheduler.step
    scheduler.set_timesteps(config.steps)
    for t in scheduler.timesteps:
        x = step(predict(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    return x


def _join(directory: Path, parts: int, count: int, attempts: int) -> None:
    """One array out of the parts; and, where there are rules, what up to so many attempts at a sample came to."""
    files = [directory / f"part-{i:05d}.npy" for i in range(parts)]
    tallies = [directory / f"refused-{i:05d}.npy" for i in range(parts)]
    if attempts:
        refused = np.concatenate([np.load(file) for file in tallies])
        black = int((refused == attempts).sum())
        found = {"samples": count, "drawn": count + int(refused.sum()) - black, "refused": int(refused.sum())}
        write_json(directory / "refused.json", {**found, "black": black})
    first = np.load(files[0], mmap_mode="r")
    with atomic(directory / "images.npy") as partial:
        out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(count, *first.shape[1:]))
        for i, file in enumerate(files):
            out[i * PART : (i + 1) * PART] = np.load(file)
        out.flush()
        del out
    for file in (*files, *tallies):
        file.unlink(missing_ok=True)
