"""Clipped sums of gradients by example on several kinds of networks: our engine beside each of Opacus's.

    python benchmarks/dp_zoo.py [--quick]

16 examples of 16x16 pixels. Engines first pass the self-check against one example at a time; then all are timed in turn
in one run, forward and backward pass included, the best of the repeats. Prints a table of times over the plain forward
and backward pass and, last, one JSON object: by network, the best of Opacus's times over ours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from _dp_network import best_times
from torch import Tensor, nn

from unmem.mitigations.dp.choice import ENGINES
from unmem.mitigations.dp.engine import Unsupported
from unmem.mitigations.dp.self_check import Reference

SIDE, BATCH, WORDS, WIDTH = 16, 16, 8, 64


def unet(attention: bool) -> nn.Module:
    from diffusers import UNet2DModel

    kind = "Attn" if attention else ""
    model: nn.Module = UNet2DModel(
        sample_size=SIDE, in_channels=3, out_channels=3, block_out_channels=(32, 64, 96), layers_per_block=2,
        down_block_types=(f"{kind}DownBlock2D",) * 3, up_block_types=(f"{kind}UpBlock2D",) * 3,
        add_attention=attention, norm_num_groups=8, num_class_embeds=11,
    )  # fmt: skip
    return model


def conditional(lora: bool) -> nn.Module:
    from diffusers import UNet2DConditionModel

    model: Any = UNet2DConditionModel(
        sample_size=SIDE, in_channels=3, out_channels=3, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8, attention_head_dim=8, cross_attention_dim=WIDTH,
    )  # fmt: skip
    if lora:
        from peft import LoraConfig

        model.requires_grad_(False)
        model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    return model  # type: ignore[no-any-return]


def transformer() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    model: nn.Module = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, in_channels=3, num_layers=4, sample_size=SIDE, patch_size=2,
        num_embeds_ada_norm=11, norm_num_groups=1, dropout=0.0,
    )  # fmt: skip
    return model


ZOO: dict[str, Callable[[], nn.Module]] = {
    "UNet2DModel": lambda: unet(attention=False),
    "UNet2DModel, attention": lambda: unet(attention=True),
    "UNet2DConditionModel": lambda: conditional(lora=False),
    "UNet2DConditionModel, LoRA": lambda: conditional(lora=True),
    "DiTTransformer2DModel": transformer,
}


def losses_of(model: nn.Module) -> Callable[[np.ndarray], Tensor]:
    """Denoising losses of made-up examples."""
    from diffusers import DiTTransformer2DModel, UNet2DConditionModel

    x, eps = (torch.randn(BATCH, 3, SIDE, SIDE) for _ in range(2))
    t, labels, text = torch.randint(1000, (BATCH,)), torch.randint(10, (BATCH,)), torch.randn(BATCH, WORDS, WIDTH)

    def losses(slots: np.ndarray) -> Tensor:
        if isinstance(model, UNet2DConditionModel):
            out = model(x[slots], t[slots], encoder_hidden_states=text[slots]).sample
        elif isinstance(model, DiTTransformer2DModel):
            out = model(x[slots], timestep=t[slots], class_labels=labels[slots]).sample[:, :3]
        else:
            out = model(x[slots], t[slots], class_labels=labels[slots]).sample
        return (out - eps[slots]).square().flatten(1).mean(1)

    return losses


def ignore(parameter: nn.Parameter, part: Tensor) -> None:
    """Take a clipped sum and do nothing with it."""


def seconds(make: Callable[[], nn.Module], repeats: int) -> dict[str, float]:
    """The best time of each engine that takes the network, and of the plain passes; each on a network of its own."""
    torch.manual_seed(0)
    slots = np.arange(BATCH)
    runs: dict[str, Callable[[], Any]] = {}
    plain = make()
    plain_losses = losses_of(plain)
    runs["plain"] = lambda: (plain_losses(slots).sum().backward(), plain.zero_grad())
    for name, build in ENGINES.items():
        model = make()
        losses = losses_of(model)
        try:
            assert all(case.passed for case in Reference(model, losses, BATCH).check(build, 1))
        except Unsupported:
            continue
        runs[name] = partial(build(model, 1).clip, losses, slots, 1.0, ignore)
    return best_times(runs, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    repeats = 3 if parser.parse_args().quick else 10
    result = {}
    for kind, make in ZOO.items():
        best = seconds(make, repeats)
        ratios = {name: f"{spent / best['plain']:.2f}" for name, spent in best.items() if name != "plain"}
        print(f"{kind:<28} plain {1000 * best['plain']:6.1f} ms  {ratios}", flush=True)
        opacus = min(spent for name, spent in best.items() if name not in ("plain", "bookkeeping"))
        result[kind] = round(opacus / best["bookkeeping"], 2)
    print(json.dumps({"opacus_over_bookkeeping": result, "least": min(result.values())}))


if __name__ == "__main__":
    main()
