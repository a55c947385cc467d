"""LoRA by peft: low-rank additions to a network's layers, and their sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from unmem.component import UserError


def add(network: nn.Module, rank: int, targets: tuple[str, ...]) -> None:
    """Freeze a network and add trainable low-rank terms, zero at first, to its layers whose names end in ``targets``.

    The network must be on its device: moved afterwards, additions were seen to train without effect.

    Raises:
        UserError: when peft is absent, or no layer has such a name.
    """
    config = _peft().LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))
    names = [name for name, _ in network.named_modules()]
    if unknown := [end for end in targets if not any(name == end or name.endswith(f".{end}") for name in names)]:
        layers = sorted({_ending(name) for name, layer in network.named_modules() if _linear(layer)})
        raise UserError(f"model.lora_targets: no layer is called {unknown[0]!r}; have {', '.join(layers)}")
    try:
        _peft().inject_adapter_in_model(config, network)
    except ValueError as error:  # a layer that is neither linear nor a convolution
        raise UserError(f"model.lora_targets: {str(error).splitlines()[0]}") from None


@torch.no_grad()
def merge(network: nn.Module) -> None:
    """Sum the additions into the weights, and put the plain layers back.

    Raises:
        UserError: when one is still zero, as it began: it was not trained.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    added: dict[str, Any] = {name: m for name, m in network.named_modules() if isinstance(m, BaseTunerLayer)}
    assert added
    if idle := [name for name, layer in added.items() if not _moved(layer)]:
        raise UserError(
            f"model.trainable: LoRA's additions to {len(idle)} of {len(added)} layers ({idle[0]}, ...) "
            "did not move; raise train.lr or train.images"
        )
    for name, layer in added.items():
        layer.merge(safe_merge=True)
        network.set_submodule(name, layer.get_base_layer())
    network.requires_grad_(True)


def _moved(layer: Any) -> bool:
    """Whether training changed an addition: its second factor begins as zero."""
    return any(bool(factor.weight.any()) for factor in layer.lora_B.values())


def _linear(layer: nn.Module) -> bool:
    """Whether a layer can have an addition."""
    return isinstance(layer, nn.Linear | nn.Conv2d)


def _ending(name: str) -> str:
    """A layer's name within its block: the last part that is no number, and what follows."""
    *outer, last = name.split(".")
    return f"{outer[-1]}.{last}" if last.isdigit() and outer else last


def _peft() -> Any:
    """The library.

    Raises:
        UserError: when it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise UserError('model.trainable: lora needs peft; run pip install "unmem[lora]"') from None
    return peft
