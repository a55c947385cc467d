"""What drawing each sample from its own seed costs beside diffusers' plain loop.

    python benchmarks/sampling.py           several minutes
    python benchmarks/sampling.py --quick   under a minute

Ours is ``unmem.train.sampling.sample``: a generator for each sample, labels by number, any batch size the same images.
Bare is a loop over the same diffusers scheduler: the same network, steps and batch, one generator for the whole batch.
Both end with uint8 images in memory. They take turns, order changing, and the least time of each counts; ``cpu_``
figures are of all threads' processor time, which other programs disturb less. First both must give the same images from
the same initial noise. The last line is a JSON object; ``time_over_bare_diffusers`` is the worst scheduler's.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from unmem.rng import torch_stream
from unmem.train.config import Sampling
from unmem.train.diffusion import make_scheduler, to_images
from unmem.train.models.unet import UNet
from unmem.train.sampling import sample

KINDS: dict[str, dict[str, Any]] = {
    "ddim": {"scheduler": "ddim"},
    "ddim, eta 1": {"scheduler": "ddim", "eta": 1.0},
    "dpm_solver++": {"scheduler": "dpm_solver++"},
}
SECONDS = 30  # for the turns of --quick


def bare(pipeline: Any, config: Sampling, count: int, noise: torch.Tensor | None = None) -> np.ndarray:
    """Samples by diffusers alone, uint8 [count, h, w, c]."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    unet, trained, generator = pipeline.unet, pipeline.scheduler, torch.Generator().manual_seed(0)
    options: dict[str, Any] = {}
    if config.scheduler == "ddim":
        scheduler = DDIMScheduler.from_config(trained.config, clip_sample=True)
        options = {"eta": config.eta, "generator": generator}
    else:
        scheduler = DPMSolverMultistepScheduler.from_config(
            trained.config, algorithm_type="dpmsolver++", thresholding=True, sample_max_value=1.0
        )
    scheduler.set_timesteps(config.steps)
    labels = torch.arange(count) % (unet.config.num_class_embeds - 1)
    side = unet.config.sample_size
    x = torch.randn((count, 3, side, side), generator=generator) if noise is None else noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, class_labels=labels).sample, t, x, **options).prev_sample
    return to_images(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller network and batch: under a minute")
    quick = parser.parse_args().quick

    torch.manual_seed(0)
    channels, batch, steps = ((32, 64), 32, 5) if quick else ((64, 128, 128), 128, 10)
    network = UNet(channels=channels, conditioning="class").build((32, 32, 3), 10).eval()
    pipeline = SimpleNamespace(unet=network, scheduler=make_scheduler("cosine", "epsilon", 1000))
    runs: dict[str, tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]] = {}
    for name, options in KINDS.items():
        config = Sampling(steps=steps, batch=batch, **options)
        if not config.eta:
            noise = torch.stack([torch.randn((3, 32, 32), generator=torch_stream(0, "sample", k)) for k in range(4)])
            ours, theirs = sample(pipeline, config, np.arange(4), 0, "cpu"), bare(pipeline, config, 4, noise)
            assert np.abs(ours.astype(int) - theirs).max() <= 1, name
        runs[name] = (
            lambda config=config: sample(pipeline, config, np.arange(batch), 0, "cpu"),
            lambda config=config: bare(pipeline, config, batch),
        )

    wall, cpu = defaultdict(lambda: [np.inf, np.inf]), defaultdict(lambda: [np.inf, np.inf])
    start, turns = time.perf_counter(), 0
    while turns < (100 if quick else 20):
        turn = time.perf_counter()
        for name, pair in runs.items():
            for side in (0, 1) if turns % 2 else (1, 0):
                before = time.perf_counter(), time.process_time()
                pair[side]()
                wall[name][side] = min(wall[name][side], time.perf_counter() - before[0])
                cpu[name][side] = min(cpu[name][side], time.process_time() - before[1])
        turns += 1
        now = time.perf_counter()
        if quick and 2 * now - turn - start > SECONDS:
            break

    print(f"{'':14}{'ours, s':>10}{'bare, s':>10}{'ours over bare':>16}{'of processors':>15}")
    for name in runs:
        ratios = wall[name][0] / wall[name][1], cpu[name][0] / cpu[name][1]
        print(f"{name:14}{wall[name][0]:10.3f}{wall[name][1]:10.3f}{ratios[0]:16.3f}{ratios[1]:15.3f}")
    summary = {
        "time_over_bare_diffusers": max(ours / theirs for ours, theirs in wall.values()),
        "cpu_over_bare_diffusers": max(ours / theirs for ours, theirs in cpu.values()),
        "batch": batch,
        "steps": steps,
        "turns": turns,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    print(json.dumps({key: round(it, 3) if isinstance(it, float) else it for key, it in summary.items()}))


if __name__ == "__main__":
    main()
