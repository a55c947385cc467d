"""Which engine: the one that was asked for, or the fastest of those that are right on this model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import nn

from unmem import progress
from unmem.component import UserError
from unmem.mitigations.dp.bookkeeping import Bookkeeping
from unmem.mitigations.dp.engine import Engine, Unsupported
from unmem.mitigations.dp.opacus_engines import Functorch, OpacusGhost, OpacusHooks
from unmem.mitigations.dp.self_check import Reference, as_json, complaint
from unmem.train.update import Losses

ENGINES: dict[str, Any] = {engine.name: engine for engine in (Bookkeeping, OpacusHooks, OpacusGhost, Functorch)}
FASTER = 0.8  # of the time of an engine higher on the list: less may be chance, and runs ought to be repeatable
TRIAL_BYTES = 1 << 30  # of gradients by row, that an engine under trial may hold


def choose(
    engine: str,
    model: nn.Module,
    losses: Losses,
    size: int,
    *,
    multiplicity: int,
    precision: torch.dtype,
    accelerator: Any,
) -> tuple[Engine, dict[str, Any]]:
    """An engine on the model, and the record of its self-check.

    Args:
        engine: a name of ``ENGINES``, or ``auto``.
        model: the model, without an engine.
        losses: of ``size`` made-up images, from ``multiplicity`` rows each.
        size: how many images there are to try on.
        multiplicity: rows an image.
        precision: of the forward pass.
        accelerator: its main process chooses for all.

    Raises:
        UserError: when no engine, or not the one that was asked for, is right on this model; it names the layer.
    """
    reference = Reference(model, losses, size, precision)
    if reference.unused:
        progress.say(f"dp_sgd: not used by the loss, and so trained by noise alone: {', '.join(reference.unused)}")
    records: dict[str, dict[str, Any]] = {}
    reasons = []
    for name in ENGINES if engine == "auto" else [engine]:
        if name == "functorch" and records:
            continue  # the last resort, for layers that nothing else takes
        try:
            cases = reference.check(ENGINES[name], multiplicity)
        except Unsupported as error:
            reasons.append(f"{name}: {error}")
            continue
        if all(case.passed for case in cases):
            records[name] = as_json(name, cases, precision)
        else:
            reasons.append(complaint(name, cases))
    if not records:
        raise UserError("dp_sgd.engine: no private step is taken: " + "; ".join(reasons))
    if reasons and Bookkeeping.name not in records:
        progress.say("dp_sgd: " + "; ".join(reasons))
    names = list(records)
    if len(names) > 1:
        names = [names[_agreed(_fastest(names, model, losses, size, multiplicity), accelerator)]]
    return ENGINES[names[0]](model, multiplicity), records[names[0]]


def _fastest(names: list[str], model: nn.Module, losses: Losses, size: int, multiplicity: int) -> int:
    """The place in ``names`` of the fastest engine; the first unless another is clearly faster."""
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    slots = np.arange(max(1, min(size, TRIAL_BYTES // (4 * weights * multiplicity))))
    seconds = [_seconds(ENGINES[name](model, multiplicity), losses, slots) for name in names]
    best = int(np.argmin(seconds))
    best = best if seconds[best] < FASTER * seconds[0] else 0
    told = ", ".join(f"{name} {second / min(seconds):.2f}" for name, second in zip(names, seconds, strict=True))
    progress.say(f"dp_sgd: {names[best]} (time a step: {told})")
    return best


def _seconds(engine: Engine, losses: Losses, slots: np.ndarray) -> float:
    """The shorter of two steps after a first."""
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        engine.clip(losses, slots, 1.0, lambda parameter, part: None)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    engine.detach()
    return min(spent[1:])


def _agreed(place: int, accelerator: Any) -> int:
    """The main process's choice, on all."""
    mine = torch.tensor(place if accelerator.is_main_process else 0, device=accelerator.device)
    return int(accelerator.reduce(mine, "sum"))
