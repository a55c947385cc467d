"""A pipeline's folder, looked at before anything in it is loaded: what it holds, whether it is whole."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from unmem.component import UserError

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
NEEDLESS = ("safety_checker", "feature_extractor", "image_encoder", "watermarker")  # no denoiser needs them
CHECKERS = ("stable_diffusion", "deepfloyd_if")  # modules of diffusers that hold safety checkers
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "spiece.model",
)  # without one, a tokenizer opens all the same and knows no word


def parts(folder: Path) -> dict[str, str]:
    """The classes of a pipeline's parts by the parts' names, such as ``unet``: ``UNet2DModel``.

    Nothing is loaded, and no code of the folder's is run: a folder that wants that is refused.

    Raises:
        UserError: when the folder is missing, is no saved pipeline, or is not whole.
    """
    pipeline_class(folder)
    if code := sorted(folder.glob("*.py")) + sorted(folder.glob("*/*.py")):
        raise UserError(f"{code[0]}: code in a pipeline's folder is never run; move it away to use the rest without it")
    held = {}
    for name, (library, cls) in _declared(folder).items():
        if library not in LIBRARIES or (library == "transformers" and cls.startswith("Auto")):
            raise UserError(
                f"{folder / INDEX}: {name} is {library}.{cls}, which is not among the classes of diffusers and "
                "transformers; other code is never run"
            )
        if library == "transformers" and find_spec("transformers") is None:
            raise UserError(f'{folder}: {name} is {cls}, which needs transformers; run pip install "unmem[text]"')
        _check_whole(folder / name, cls)
        held[name] = cls
    return held


def pipeline_class(folder: Path) -> str:
    """The name of the pipeline's class.

    Raises:
        UserError: when the folder is no saved pipeline, or its class is not one of diffusers' own.
    """
    cls = _index(folder).get("_class_name")
    if not isinstance(cls, str):
        raise UserError(f"{folder / INDEX}: the pipeline's class is {cls!r}, none of diffusers' own; it is never run")
    return cls


def absent(folder: Path) -> tuple[str, ...]:
    """The parts that a pipeline might have and was saved without, such as the T5 encoder of Stable Diffusion 3."""
    return tuple(name for name, value in _index(folder).items() if value == [None, None])


def checkers(folder: Path) -> tuple[str, ...]:
    """The parts of a pipeline that look at finished images: its safety checker, and what prepares images for it."""
    index = _index(folder)
    declared = index.get("safety_checker")
    known = isinstance(declared, list) and declared[0] in (*LIBRARIES, *CHECKERS)
    if not known or not (folder / "safety_checker").is_dir():
        return ()
    extractor = index.get("feature_extractor")
    prepared = isinstance(extractor, list) and extractor[0] in LIBRARIES and (folder / "feature_extractor").is_dir()
    return ("safety_checker", "feature_extractor") if prepared else ("safety_checker",)


def _index(folder: Path) -> dict[str, object]:
    """What ``model_index.json`` says."""
    file = folder / INDEX
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; needs one that DiffusionPipeline.save_pretrained wrote")
    if not file.is_file():
        raise UserError(f"{folder}: holds no {INDEX}; needs a folder that DiffusionPipeline.save_pretrained wrote")
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    if not isinstance(index, dict):
        raise UserError(f"{file}: is no mapping of parts to classes")
    return index


def _declared(folder: Path) -> dict[str, tuple[str, str]]:
    """(library, class) of every part that is there and needed."""
    found = {}
    for name, value in _index(folder).items():
        if name not in NEEDLESS and isinstance(value, list) and len(value) == 2 and None not in value:
            found[name] = (str(value[0]), str(value[1]))
    return found


def _check_whole(part: Path, cls: str) -> None:
    """Refuse a part that is missing, and files that were cut short."""
    from safetensors import SafetensorError, safe_open

    if not part.is_dir():
        raise UserError(f"{part}: no such folder; {INDEX} names {cls} there")
    if part.name.startswith("tokenizer") and not any((part / name).is_file() for name in VOCABULARIES):
        raise UserError(f"{part}: holds no vocabulary ({' or '.join(VOCABULARIES)})")
    for file in sorted(part.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: damaged ({error})") from None
