"""Would small models train faster many at once? K networks stacked by torch.func, against one after the other.

    python benchmarks/stacked_training.py [--quick] [--device cuda]

Forward and backward pass of the networks of recipes/membership.yaml (8x8, batch 64) and of a larger one (32x32, batch
128), each model with a batch of its own, as shadow models have; in turn in one run, the least of a few times. Prints a
table and, last, one JSON object: time of K stacked over K times the time of one, below 1 where stacking is faster.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from unmem.train.models.unet import UNet

CASES = {
    "8x8": ((8, 8, 1), UNet(channels=(16, 32), layers=1), 64),
    "32x32": ((32, 32, 3), UNet(channels=(64, 128, 128), layers=1, attention=(8,)), 128),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller networks alone, fewer repeats")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    found = {}
    for name, (shape, spec, batch) in CASES.items():
        if name == "8x8" or not arguments.quick:
            for k in (4,) if arguments.quick else (4, 16):
                stacked, single = measure(spec, shape, batch, k, arguments.device, 3 if arguments.quick else 6)
                found[f"{name}, K = {k}"] = round(stacked / (k * single), 2)
                print(
                    f"{name:>6}  K = {k:<3} one {1000 * single:8.2f} ms   stacked, a model {1000 * stacked / k:8.2f} ms"
                )
    print(json.dumps({"stacked_over_single": found}))


def measure(
    spec: UNet, shape: tuple[int, int, int], batch: int, k: int, device: str, repeats: int
) -> tuple[float, float]:
    """Seconds of a pass of k stacked models, and of one alone."""
    models = [spec.build(shape, None, device) for _ in range(k)]
    height, width, channels = shape
    x = torch.randn(k, batch, channels, height, width, device=device)
    t = torch.randint(1000, (k, batch), device=device)
    parameters, _ = stack_module_state(models)
    base = models[0]

    def loss(values: Any, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = functional_call(base, values, (x, t)).sample
        return out.square().mean()

    def together() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            vmap(grad(loss))(parameters, x, t)

    def alone() -> None:
        one: nn.Module = models[0]
        one(x[0], t[0]).sample.square().mean().backward()
        one.zero_grad()

    return least(together, device, repeats), least(alone, device, repeats)


def least(run: Callable[[], None], device: str, repeats: int) -> float:
    """The least seconds, after one pass that does not count."""
    best = float("inf")
    for turn in range(repeats + 1):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        if turn:
            best = min(best, time.perf_counter() - started)
    return best


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
