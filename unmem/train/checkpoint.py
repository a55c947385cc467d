"""Checkpoints in one safetensors file: weights, their average, the optimizer's moments; never a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unmem.component import UserError
from unmem.rundir import atomic


def save(path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, meta: dict[str, Any]) -> None:
    """Write modules, optimizer moments and ``meta`` (plain data), whole or not at all."""
    from safetensors.torch import save_file

    tensors = {f"{name}|{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer|{index}|{name}": value for name, value in moments.items()}
    with atomic(path) as partial:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata={"meta": json.dumps(meta)})


def load(path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore what :func:`save` wrote, in place, and return its ``meta``.

    Raises:
        UserError: when the file is damaged or belongs to another model.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            meta: dict[str, Any] = json.loads(file.metadata()["meta"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        for name, module in modules.items():
            module.load_state_dict(_under(tensors, f"{name}|"))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in _under(tensors, "optimizer|").items():
            index, moment = key.split("|")
            state.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    except Exception as error:  # safetensors, json and torch each raise their own
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: damaged checkpoint ({reason}); remove it to train this arm from the start") from None
    return meta


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
