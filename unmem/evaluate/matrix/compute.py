"""Ask the network once, for all attacks together: shard by shard, on any number of processes, resumable.

Which images share a batch changes nothing but the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmem import progress
from unmem.component import UserError
from unmem.evaluate.matrix.batch import Batch
from unmem.evaluate.matrix.config import Matrix
from unmem.evaluate.matrix.denoiser import Denoiser
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.matrix.store import Shard, shards_of, write_manifest
from unmem.rundir import write_arrays
from unmem.train.imageset import ImageSet


def compute(
    denoiser: Denoiser,
    groups: dict[str, ImageSet],
    readings: Iterable[Reading],
    directory: Path,
    *,
    config: Matrix,
    seed: int,
    accelerator: Any,
) -> None:
    """Write ``manifest.json`` and the shards that are not there yet.

    Args:
        denoiser: whom to ask, on the accelerator's device.
        groups: the images by the names of :class:`~unmem.evaluate.rows.Rows`.
        readings: what to ask; readings of one probe share its queries.
        directory: the stage's; whole shards in it are kept.
        config: batch and precision.
        seed: of the noise; the same for every model, so that they are asked with the same noise.
        accelerator: its processes share the shards.

    Raises:
        UserError: where the network answers with NaN or infinity.
    """
    unique = list(dict.fromkeys(readings))
    sizes = {name: len(images) for name, images in groups.items()}
    shards = list(shards_of(sizes))
    if accelerator.is_main_process:
        write_manifest(directory, unique, sizes)
    mine = shards[accelerator.process_index :: accelerator.num_processes]
    with progress.track("attack", sum(len(shard) for shard in mine)) as advance:
        for shard in mine:
            if not shard.file(directory).exists():
                images = groups[shard.group]
                parts = [
                    _asked(denoiser, images, shard, start, unique, config, seed, accelerator.device)
                    for start in range(shard.start, shard.stop, config.batch)
                ]
                found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}
                for reading in unique:
                    _check(found[reading.key], reading, shard)
                write_arrays(shard.file(directory), **found)
            advance(len(shard))
    accelerator.wait_for_everyone()


def _asked(
    denoiser: Denoiser,
    images: ImageSet,
    shard: Shard,
    start: int,
    readings: list[Reading],
    config: Matrix,
    seed: int,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """One batch's numbers by the readings' keys, float32 [n, columns]."""
    part = slice(start, min(start + config.batch, shard.stop))
    batch = Batch(
        denoiser,
        images.images(part),
        None if images.labels is None else images.labels[part],
        None if images.captions is None else images.captions[part],
        start=start,
        place=("matrix", shard.group),
        seed=seed,
        device=device,
    )
    with _autocast(config.precision, device):
        columns = ask(batch, readings)
    return {key: found.float().cpu().numpy() for key, found in columns.items()}


def ask(batch: Batch, readings: Iterable[Reading]) -> dict[str, torch.Tensor]:
    """The readings of a batch by their keys, float32 [n, columns]; each probe is asked once."""
    by_probe: dict[Any, list[Reading]] = {}
    for reading in readings:
        by_probe.setdefault(reading.probe, []).append(reading)
    columns: dict[str, list[torch.Tensor]] = {}
    for probe, wanted in by_probe.items():
        # gradients in full precision: per-image ones do not go together with autocast
        gradients = torch.autocast(batch.x.device.type, enabled=False)
        with gradients if probe.access == "gradients" else torch.inference_mode():
            for residual in probe.residuals(batch):
                for reading in wanted:
                    columns.setdefault(reading.key, []).append(reading.norm(residual))
    return {key: torch.stack(found, dim=1) for key, found in columns.items()}


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Half precision, where it is wanted."""
    if precision == "no":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def _check(values: np.ndarray, reading: Reading, shard: Shard) -> None:
    """Refuse what no attack can use."""
    if not np.isfinite(values).all():
        image, column = np.argwhere(~np.isfinite(values))[0]
        probe = type(reading.probe).__name__
        raise UserError(
            f"the network's answers are not finite ({probe}, image {shard.start + image} of the {shard.group}, column "
            f"{column}): its weights hold NaN or infinity, or half precision overflows (matrix.precision: no)"
        )
