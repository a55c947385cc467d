"""Open any saved pipeline's folder: quietly, in float32, and without running code that came with it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unmem.component import UserError
from unmem.train.folder import NEEDLESS, absent, checkers, parts, pipeline_class
from unmem.train.quiet import quiet


def open_any(path: Path, *, checked: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """The diffusers pipeline of a folder.

    Args:
        path: a folder that ``DiffusionPipeline.save_pretrained`` wrote.
        checked: keep the safety checker that it holds, as whoever draws images with it would.
        dtype: of all its networks.

    Raises:
        UserError: when it cannot be opened.
    """
    from diffusers import DiffusionPipeline

    texts = {name: cls for name, cls in parts(path).items() if "text_encoder" in name}
    kept = checkers(path) if checked else ()
    with quiet(texts=bool(texts) or bool(kept)), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer releases say dtype
        try:
            given = {name: _text_encoder(path / name, cls).to(dtype) for name, cls in texts.items()}
            without = dict.fromkeys(name for name in (*NEEDLESS, *absent(path)) if name not in kept)
            loaded = {} if dtype == torch.float32 else {"torch_dtype": dtype}
            pipeline = DiffusionPipeline.from_pretrained(path, local_files_only=True, **loaded, **given, **without)
        except UserError:
            raise
        except Exception as error:  # diffusers and transformers raise many kinds for damaged folders
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{path}: cannot be opened as a {pipeline_class(path)} ({reason})") from None
    for name, module in modules_of(pipeline).items():
        if missing := [key for key, value in module.state_dict().items() if value.is_meta]:
            raise UserError(f"{path / name}: its files hold no weights {missing[0]}")
        if dtype == torch.float32:
            module.float()
    return pipeline


def modules_of(pipeline: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline by its parts' names."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def _text_encoder(part: Path, cls: str) -> nn.Module:
    """A text encoder; loaded apart, since within a pipeline what its files lack is drawn at random without a word."""
    import transformers

    encoder, report = getattr(transformers, cls).from_pretrained(part, local_files_only=True, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{part}: its files hold no weights {missing[0]}")
    found: nn.Module = encoder
    return found
