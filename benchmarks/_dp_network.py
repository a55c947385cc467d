"""The network, the data and the rules of the DP benchmarks: whole training steps, as the trainer makes them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unmem.mitigations.dp.plan import DPPlan
from unmem.mitigations.dp.update import PrivateUpdate
from unmem.train.config import Train
from unmem.train.update import Plain


def network(side: int, channels: tuple[int, ...] = (32, 64, 96)) -> nn.Module:
    """diffusers' UNet2DModel with attention at the two lower levels and classes; 2.5 million weights by default."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    model: nn.Module = UNet2DModel(
        sample_size=side, in_channels=3, out_channels=3, block_out_channels=channels, layers_per_block=2,
        down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * (len(channels) - 1)),
        up_block_types=(*["AttnUpBlock2D"] * (len(channels) - 1), "UpBlock2D"),
        norm_num_groups=8, num_class_embeds=11,
    )  # fmt: skip
    return model


def step(engine: str, side: int, batch: int, multiplicity: int = 1, physical: int | None = None) -> Callable[[], Any]:
    """One training step of a rule: ``plain``, or DP-SGD with an engine; optimizer and noise included.

    ``physical`` bounds the rows of the network that are held at once.
    """
    model, rows = network(side), batch * multiplicity
    x, eps = (torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    t, labels = torch.randint(1000, (rows,)), torch.randint(10, (rows,))

    def losses(slots: np.ndarray) -> Tensor:
        r = (torch.as_tensor(slots)[:, None] * multiplicity + torch.arange(multiplicity)).flatten()
        out = model(x[r], t[r], class_labels=labels[r]).sample
        return (out - eps[r]).square().flatten(1).mean(1).view(-1, multiplicity).mean(1)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    rule: Any
    if engine == "plain":
        micro = None if physical is None else max(1, physical // multiplicity)
        rule = Plain(1000, Train(images=1000, batch=batch, micro_batch=micro), 0)
    else:
        plan = DPPlan(n=1000, expected_batch=batch, steps=10, clip=0.1, noise_multiplier=1.0, delta=1e-3)
        rule = PrivateUpdate(
            plan, secret=0, lr=1e-4, physical_batch=physical or rows, multiplicity=multiplicity, engine=engine,
            holds_for="a benchmark",
        )  # fmt: skip
    rule.prepare(model, optimizer, Accelerator(cpu=True))
    rule.rehearse(2, losses)
    return lambda: rule.update(0, batch, losses)


def best_times(runs: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, float]:
    """The least seconds of each, all called in turn, after a first turn that does not count."""
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def peak_mebibytes(engine: str, side: int, batch: int, multiplicity: int = 1, physical: int | None = None) -> float:
    """By how much building a rule and three steps raise the largest resident set of a fresh process, MiB (Linux)."""
    code = f"from _dp_network import risen\nprint(risen({engine!r}, {side}, {batch}, {multiplicity}, {physical}))"
    command, here = [sys.executable, "-c", code], Path(__file__).parent
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=here).stdout
    return float(found.splitlines()[-1])


def risen(engine: str, side: int, batch: int, multiplicity: int, physical: int | None) -> float:
    """The same in this process."""
    network(side)  # imports what it needs
    Path("/proc/self/clear_refs").write_text("5")  # forgets the largest resident set so far, which imports made
    before = _resident("VmRSS")
    make = step(engine, side, batch, multiplicity, physical)
    for _ in range(3):
        make()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """A field of the process's status, MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024
