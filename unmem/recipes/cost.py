"""What a stage cost: images, seconds and peak memory, written beside its result as ``cost.json``."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unmem.recipes.chain import Work
from unmem.rundir import write_json

COST = "cost.json"
MIB = 2**20


def metered(work: Work, name: str, accelerator: Any) -> Work:
    """The same work, which then says what it cost.

    Args:
        work: of a stage that trains or draws images.
        name: ``train`` or ``samples``.
        accelerator: accelerate's; the first of its processes measures and writes.
    """
    return partial(_measure, work, name, accelerator)


def _measure(work: Work, name: str, accelerator: Any, directory: Path) -> None:
    """Do the work, and write ``cost.json`` unless no image came of it."""
    resumed = any(entry.name not in ("key.json", "trackers") for entry in directory.iterdir())
    on_gpu = accelerator.device.type == "cuda"
    _forget_peak(on_gpu)
    started = time.monotonic()
    work(directory)
    seconds = time.monotonic() - started
    images = {"train": _trained_on, "samples": _drawn}[name](directory)
    file = directory / COST
    if accelerator.is_main_process and images and not (resumed and file.exists()):
        write_json(
            file,
            {
                "images": images,
                "seconds": round(seconds, 3),
                "peak_memory_mib": _peak_memory(),
                "peak_gpu_memory_mib": _peak_gpu_memory() if on_gpu else None,
                "processes": accelerator.num_processes,
                "resumed": resumed,
            },
        )


def _trained_on(directory: Path) -> int:
    """Training images seen, of every phase, by the last row that each left in ``metrics.jsonl``."""
    seen: dict[str, int] = {}
    file = directory / "metrics.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        row = json.loads(line)
        seen[row.get("phase", "train")] = row["images"]
    return sum(seen.values())


def _drawn(directory: Path) -> int:
    """Images that lie there."""
    file = directory / "images.npy"
    return len(np.load(file, mmap_mode="r", allow_pickle=False)) if file.exists() else 0


def _forget_peak(on_gpu: bool) -> None:
    """Start to measure anew; where a system cannot forget, the peak is the process's since it began."""
    if on_gpu:
        import torch

        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size


def _peak_memory() -> float | None:
    """The most memory that this process held at once, in MiB; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        found = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return round(int(found[0].split()[1]) / 1024, 1) if found else None
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / MIB if sys.platform == "darwin" else peak / 1024, 1)


def _peak_gpu_memory() -> float:
    """The most memory that tensors held at once on this process's GPU, in MiB."""
    import torch

    return round(torch.cuda.max_memory_allocated() / MIB, 1)
