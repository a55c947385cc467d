"""Pipelines one after the other, each making the images of the one before larger: DeepFloyd IF, after Imagen."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unmem.component import UserError
from unmem.train.folder import parts
from unmem.train.opening import open_any

NETWORKS = ("unet", "transformer", "prior_prior")  # the parts whose precision counts
HALF = {"F16", "BF16"}


class Cascade:
    """Several diffusers pipelines as one: the first draws from text, each further one enlarges.

    Attributes:
        stages: the pipelines, in their order.
    """

    def __init__(self, stages: Sequence[Any]) -> None:
        """Args: the pipelines; those after the first take ``image``."""
        self.stages = tuple(stages)

    def to(self, device: torch.device | str) -> Cascade:
        """Put all stages there."""
        for stage in self.stages:
            stage.to(device)
        return self

    def set_progress_bar_config(self, **settings: Any) -> None:
        """The same for all stages."""
        for stage in self.stages:
            stage.set_progress_bar_config(**settings)


def open_drawing(paths: Sequence[Path], device: torch.device | str) -> Any:
    """A saved pipeline, or a cascade, as whoever draws images with it opens it: with its safety checkers.

    On a GPU, networks that were saved in half precision stay so, as bfloat16.

    Args:
        paths: the folder, or one a stage.
        device: where it will draw.

    Raises:
        UserError: when a folder cannot be opened, or a later stage takes no image.
    """
    opened = [open_any(path, checked=True, dtype=_precision(path, device)) for path in paths]
    for path, stage in zip(paths[1:], opened[1:], strict=True):
        if "image" not in inspect.signature(stage.__call__).parameters:
            raise UserError(f"{path}: is a {type(stage).__name__}, which takes no image to enlarge; see then")
    return opened[0] if len(opened) == 1 else Cascade(opened)


def _precision(path: Path, device: torch.device | str) -> torch.dtype:
    """What a folder's networks compute in on a device."""
    if torch.device(device).type != "cuda" or not torch.cuda.is_bf16_supported():
        return torch.float32
    saved = {dtype for part in parts(path) if part in NETWORKS for dtype in _saved_in(path / part)}
    return torch.bfloat16 if saved & HALF else torch.float32


def _saved_in(part: Path) -> set[str]:
    """What a network's weights were saved in, such as ``F16``."""
    from safetensors import safe_open

    found = set()
    for file in sorted(part.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            found |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    return found
