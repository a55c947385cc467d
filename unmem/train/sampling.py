"""Samples that depend on their number alone: sample k is the same image at any batch size, on any process.

Each sample has a generator of its own, and its initial noise is the first draw. Stochastic samplers (DDIM with eta > 0,
Song et al. 2021; Euler and Heun with churn, Karras et al. 2022) draw on; the others (DDIM with eta = 0; DPM-Solver++,
Lu et al. 2022) are deterministic given the initial noise.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmem import progress
from unmem.component import UserError
from unmem.rng import torch_stream
from unmem.rundir import atomic
from unmem.train.config import Sampling
from unmem.train.diffusion import to_images
from unmem.train.karras import Predict, by_levels

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
    unet = pipeline.unet.to(device).eval()
    num_classes = null_class(unet)
    height, width = image_size(unet)
    shape = unet.config.in_channels, height, width
    denoise = partial(by_levels if config.scheduler in ("euler", "heun") else _by_diffusers, pipeline.scheduler)
    drawn = []
    for start in range(0, len(numbers), config.batch):
        chunk = numbers[start : start + config.batch].tolist()
        generators = [torch_stream(seed, "sample", k) for k in chunk]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        labels = None
        if num_classes is not None:
            labels = torch.tensor([k % num_classes for k in chunk], device=device)
        predict = partial(_predict, unet, labels, config.guidance)
        with torch.no_grad():
            drawn.append(to_images(denoise(predict, noise.to(device), generators, config)))
    return np.concatenate(drawn)


def sample_to_disk(
    pipeline: Any, config: Sampling, count: int, directory: Path, *, seed: int, accelerator: Any
) -> None:
    """Draw samples 0..count-1 into ``directory/images.npy``, shared among processes, resumable part by part."""
    parts = [np.arange(start, min(start + PART, count)) for start in range(0, count, PART)]
    mine = list(range(accelerator.process_index, len(parts), accelerator.num_processes))
    with progress.track("sample", sum(len(parts[i]) for i in mine)) as advance:
        for i in mine:
            file = directory / f"part-{i:05d}.npy"
            if not file.exists():
                images = sample(pipeline, config, parts[i], seed, accelerator.device)
                with atomic(file) as partial, partial.open("wb") as out:
                    np.save(out, images, allow_pickle=False)
            advance(len(parts[i]))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _join(directory, len(parts), count)
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


def _join(directory: Path, parts: int, count: int) -> None:
    """One array out of the parts."""
    files = [directory / f"part-{i:05d}.npy" for i in range(parts)]
    first = np.load(files[0], mmap_mode="r")
    with atomic(directory / "images.npy") as partial:
        out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(count, *first.shape[1:]))
        for i, file in enumerate(files):
            out[i * PART : (i + 1) * PART] = np.load(file)
        out.flush()
        del out
    for file in files:
        file.unlink()
