"""Samples by number from pipelines on latents that take no texts, through their own ``__call__``.

Sample k is of class k, counted round all classes, where there are any; its noise is a function of the seed and of k.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unmem.component import UserError
from unmem.train.cascade import open_drawing
from unmem.train.config import Sampling
from unmem.train.prompted import Prompted
from unmem.train.sampling import sample_to_disk


def call_to_disk(
    path: Path,
    config: Sampling,
    count: int,
    directory: Path,
    *,
    classes: int,
    shape: tuple[int, int, int],
    seed: int,
    accelerator: Any,
) -> None:
    """Draw samples 0..count-1 into ``directory/images.npy``, as :func:`unmem.train.sampling.sample_to_disk` does.

    Args:
        path: the pipeline's folder.
        config: the recipe's settings.
        count: how many.
        directory: where to.
        classes: of the network; 0 without.
        shape: height, width and channels that images must have.
        seed: the experiment's.
        accelerator: accelerate's view of processes.

    Raises:
        UserError: when the pipeline cannot be opened or told so, or draws images of another shape.
    """
    pipeline = open_drawing((path,), accelerator.device)
    asking = Prompted(pipeline, config, seed, accelerator.device)

    def draw(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = asking.draw([(str(k % classes) if classes else "", k) for k in numbers.tolist()])
        if found.images.shape[1:] != shape:
            have, want = (f"{h} x {w} x {c}" for h, w, c in (found.images.shape[1:], shape))
            raise UserError(f"{path}: draws images of {have} (height, width, channels), the data's are {want}")
        return found.images, found.refused

    sample_to_disk(pipeline, config, count, directory, seed=seed, accelerator=accelerator, draw=draw)
