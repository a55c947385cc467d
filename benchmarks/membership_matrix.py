"""What asking a network for all membership attacks costs over asking it at all; and what their analysis costs.

    python benchmarks/membership_matrix.py [--quick] [--device cpu|cuda]

``compute`` turns images into shards of readings on disk: it noises, mirrors, asks, measures and writes. Beside it
stands a bare loop of as many forward passes of the same network, a UNet2DModel with attention and 2.7 million weights,
in batches of the same size, over inputs made beforehand. They take turns in one run; a round's ratio is that of their
rates, and the median over rounds counts. Cases: the losses (three timesteps, a draw, both mirror images) at 16x16 and
32x32 pixels, batches of 64 and 256, and all cheap attacks together (loss, sima, pia, secmi). --quick leaves out the
batches of 256. First of all, both sides give the same losses.

Then, in seconds and MiB of arrays at their peak: the likelihood ratios of 50,000 images under 16 shadow models, and the
one-run bound on epsilon from 100,000 canaries. Prints tables and, last, one JSON object: ``over_bare_forward`` is the
least of the cases' medians, the rate of ``compute`` over that of the bare loop; ``by_cpu_time`` is the same from the
processor's time (None on a GPU, of which it says nothing). On a busy machine only the latter counts, and only with
OMP_NUM_THREADS=1: threads that wait for each other spend time of both kinds.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _dp_network import network

from unmem.evaluate.attacks.lira import likelihood_ratio, tail
from unmem.evaluate.attacks.loss import Loss
from unmem.evaluate.attacks.pia import PIA
from unmem.evaluate.attacks.secmi import SecMI
from unmem.evaluate.attacks.sima import SimA
from unmem.evaluate.denoisers.pixels import Pixels
from unmem.evaluate.epsilon import best_one_run_epsilon
from unmem.evaluate.matrix.batch import Batch
from unmem.evaluate.matrix.compute import compute
from unmem.evaluate.matrix.config import Matrix
from unmem.rundir import read_arrays
from unmem.train.imageset import ImageSet
from unmem.train.trainer import make_accelerator

LOSS = Loss(timesteps=(50, 100, 200), draws=1, flips=True)
ATTACKS = {"loss": (LOSS,), "cheap": (LOSS, SimA(), PIA(), SecMI())}
CASES = [(16, 64, "loss"), (32, 64, "loss"), (16, 64, "cheap"), (16, 256, "loss"), (32, 256, "loss")]
Seconds = tuple[float, float]
"""By the clock, and of the processor."""
MODELS, IMAGES, CANARIES = 16, 50_000, 100_000


class Case:
    """One network and its images, asked both ways.

    Attributes:
        forwards: of one image.
    """

    def __init__(self, side: int, batch: int, attacks: str, batches: int, accelerator: Any) -> None:
        from diffusers import DDPMPipeline, DDPMScheduler

        self._accelerator, self._batch, self._batches = accelerator, batch, batches
        self._denoiser = Pixels(DDPMPipeline(unet=network(side), scheduler=DDPMScheduler()), accelerator.device)
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (batch * batches, side, side, 3), dtype=np.uint8)
        labels, names = rng.integers(0, 10, len(pixels)), tuple(map(str, range(10)))
        self._data = ImageSet.of(pixels, [f"image/{i}" for i in range(len(pixels))], labels, names)
        self._readings = [attack.reading for attack in ATTACKS[attacks]]
        self.forwards = sum(reading.probe.queries for reading in self._readings)
        self._first = Batch(
            self._denoiser, pixels[:batch], labels[:batch], None, start=0, place=("matrix", "members"), seed=0,
            device=accelerator.device,
        )  # fmt: skip
        self._inputs = self._noised()

    def asked(self) -> Seconds:
        """All readings, on disk."""
        with tempfile.TemporaryDirectory() as directory:
            started = self._clock()
            self._compute(Path(directory))
            return self._since(started)

    def bare(self) -> Seconds:
        """As many forward passes, and nothing else."""
        labels, ask = self._first.condition, self._denoiser.network
        started = self._clock()
        with torch.inference_mode():
            for i in range(self.forwards * self._batches):
                x_t, t, _ = self._inputs[i % len(self._inputs)]
                ask(x_t, t, class_labels=labels)
        return self._since(started)

    def check(self) -> None:
        """The first batch's losses, both ways."""
        with torch.inference_mode():
            outs = [(self._denoiser.predict(x, t, self._first.condition), eps) for x, t, eps in self._inputs]
            wanted = torch.stack([(out - eps).square().flatten(1).mean(1) for out, eps in outs], dim=1)
        with tempfile.TemporaryDirectory() as directory:
            self._compute(Path(directory))
            key = self._readings[0].key
            found = read_arrays(Path(directory) / "members-00000.npz", key)[key]
        np.testing.assert_allclose(found[: self._batch], wanted.cpu().numpy(), rtol=1e-3)

    def _compute(self, directory: Path) -> None:
        groups, config = {"members": self._data}, Matrix(batch=self._batch)
        compute(self._denoiser, groups, self._readings, directory, config=config, seed=0, accelerator=self._accelerator)

    def _noised(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(x_t, t, eps) of the first batch's losses."""
        batch, found = self._first, []
        for t in LOSS.timesteps:
            eps = batch.noise("loss", t, 0)
            for z in (batch.z, batch.mirrored):
                x_t = self._denoiser.diffusion.noised(z, batch.at(t), eps)
                found.append((x_t.contiguous(), batch.at(t), eps))
        return found

    def _clock(self) -> Seconds:
        """Both clocks, once the device has done all it was told."""
        if self._accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def _since(self, started: Seconds) -> Seconds:
        wall, processor = self._clock()
        return wall - started[0], processor - started[1]


def ratios(case: Case, rounds: int) -> tuple[list[float], list[float]]:
    """The rates of ``compute`` over those of the bare loop, a round each: by the clock, and by the processor's time."""
    walls, processors = [], []
    for turn in range(rounds):
        if turn % 2:
            bare, asked = case.bare(), case.asked()
        else:
            asked, bare = case.asked(), case.bare()
        walls.append(bare[0] / asked[0])
        processors.append(bare[1] / asked[1])
    return walls, processors


def analyses() -> dict[str, Callable[[], Any]]:
    """What is made of the answers."""
    rng = np.random.default_rng(0)
    inside = np.stack([rng.permutation(MODELS) < MODELS // 2 for _ in range(IMAGES)], axis=1)
    scores, own = rng.normal(size=(MODELS, IMAGES)) + inside, rng.normal(size=IMAGES)
    coins = rng.random(CANARIES) < 0.5
    guessed = rng.normal(size=CANARIES) + coins
    return {
        "lira": partial(likelihood_ratio, own, scores, inside, pooled=True),
        "lira_per_example": partial(likelihood_ratio, own, scores, inside, pooled=False),
        "lira_offline": partial(tail, own, scores, inside, pooled=True),
        "one_run": partial(best_one_run_epsilon, guessed, coins, 1e-5, 0.95),
        "one_run_split": partial(best_one_run_epsilon, guessed, coins, 1e-5, 0.95, "split"),
    }


def cost(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, the median of three; MiB of arrays at once, inputs apart."""
    run()
    spent = []
    for _ in range(3):
        started = time.perf_counter()
        run()
        spent.append(time.perf_counter() - started)
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return median(spent), peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the batches of 64, fewer rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="a GPU where there is one, when unset")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    accelerator = make_accelerator(None)
    on_gpu = accelerator.device.type == "cuda"
    rounds = 9 if on_gpu else 3 if arguments.quick else 5
    print(f"{accelerator.device.type}, {torch.get_num_threads()} threads; rates of compute over those of a bare loop:")
    cases, by_cpu, batches = {}, [], 16 if on_gpu else 1
    Case(*CASES[0], batches, accelerator).check()
    for side, batch, attacks in [case for case in CASES if not arguments.quick or case[1] == 64]:
        case = Case(side, batch, attacks, batches, accelerator)
        case.bare()  # what starts up once is not timed
        walls, processors = ratios(case, rounds)
        cases[f"{side}x{side}_{batch}_{attacks}"] = [round(f(walls), 3) for f in (median, min, max)]
        by_cpu.append(median(processors))
        print(
            f"{side}x{side}, batch {batch}, {attacks}, {case.forwards} forwards an image: "
            f"{median(walls):.3f} (rounds: {min(walls):.3f} to {max(walls):.3f}), by the processor's time "
            f"{median(processors):.3f} ({min(processors):.3f} to {max(processors):.3f})",
            flush=True,
        )
    result: dict[str, Any] = {"over_bare_forward": min(value for value, _, _ in cases.values())}
    result |= {"by_cpu_time": None if on_gpu else round(min(by_cpu), 3), "cases": cases}
    print(f"\n{MODELS} models x {IMAGES:,} images; {CANARIES:,} canaries")
    for name, run in analyses().items():
        seconds, peak = cost(run)
        print(f"{name:>17}  {1000 * seconds:8.1f} ms  {peak:6.1f} MiB")
        result[f"{name}_seconds"], result[f"{name}_mib"] = round(seconds, 4), round(peak, 1)
    print(json.dumps({**result, "device": accelerator.device.type, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
