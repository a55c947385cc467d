"""The recipe of an audit: a model that is trained already, what it was trained on, and what it was not."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from unmem.component import UserError, kinds, suggest
from unmem.evaluate.matrix.config import Matrix
from unmem.evaluate.targets.pipeline import Pipeline
from unmem.recipes.recipe import ROOMS, SCHEMA, Recipe, changed
from unmem.train.folder import parts, pipeline_class

DEFAULT = ("loss", "sima", "pia", "pian", "secmi", "blind")
ON_SAMPLES = ("generate_and_filter", "nearest_distance")
TAKE_SAMPLES = (*ON_SAMPLES, "copy_score", "surrogate_guided")  # attacks that are told how many
PIAN = {"kind": "pia", "name": "pian", "normalised": True}
EACH = 50  # samples a prompt
PIXELS = 1 << 20  # of the images that the network sees at once, where no batch is asked for
SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves in a folder


def audit_recipe(
    model: Path | None,
    members: Path,
    nonmembers: Path,
    *,
    generated: Path | None = None,
    manifest: Path | None = None,
    prompts: str | None = None,
    each: int | None = None,
    attacks: tuple[str, ...] | None = None,
    samples: int = 0,
    size: int | None = None,
    captions: str | None = None,
    batch: int | None = None,
    precision: str = "no",
    settings: tuple[str, ...] = (),
) -> Recipe:
    """A recipe that attacks one finished model, or what it has generated; it is called after the folder of either.

    Args:
        model: a pipeline folder; None where there are only generated images.
        members: images that it was trained on: a folder, an ``.npz`` file, or a saved Hugging Face data set.
        nonmembers: likewise, of the same kind, but not trained on.
        generated: images that a model generated, in its place: see ``unmem/evaluate/targets/generated.py``.
        manifest: what these were asked for.
        prompts: what a model that takes texts is asked: a number of members' captions, and as many held-out ones; or a
            file of prompts.
        each: samples a prompt, 50 by default.
        attacks: kinds of attacks, and ``pian``; by default those that suit the model.
        samples: how many images to draw from it, for the attacks that need them.
        size: side to which images are brought; by default the model's.
        captions: the captions' column or key.
        batch: images that the network sees at once; by default by their size.
        precision: as in a recipe's section ``matrix``.
        settings: further changes, ``path=value``.

    Raises:
        UserError: for what is missing, or does not go together.
    """
    path, target = _subject(model, generated, manifest)
    held = {} if model is None else parts(path)
    shape = _shape(path, held) if held else None
    if each is not None and prompts is None:
        raise UserError("--each: says how often each of --prompts is asked; there are none")
    if model is None:
        _check_given(samples, prompts, manifest)
    else:
        _check_drawing(path, samples, prompts)
    if size is None and shape is not None and shape[0] == shape[1]:
        size = shape[0]
    name = re.sub(r"[^A-Za-z0-9_+-]", "_", path.resolve().name).lstrip("+-") or "model"
    channels = None if shape is None else shape[2]
    plain = {
        "schema": SCHEMA,
        "data": {
            "members": data_set("--members", members, size, channels, captions),
            "nonmembers": data_set("--nonmembers", nonmembers, size, channels, captions),
        },
        "targets": {name: target},
        **({} if prompts is None else {"prompts": _prompts(prompts, each or EACH)}),
        "matrix": {
            "batch": batch or _batch(shape),
            "precision": precision,
            "generated": Matrix().generated if prompts is not None else min(samples, Matrix().generated),
        },
        "attacks": [_attack(kind, samples) for kind in attacks or _suiting(held, samples, bool(prompts or manifest))],
    }
    return changed(plain, name, settings, "unmem audit")


def data_set(option: str, path: Path, size: int | None, channels: int | None, captions: str | None) -> dict[str, Any]:
    """A data set component as plain data, of the kind that a path is of.

    Args:
        option: what messages call the path.
        path: a folder of images, an ``.npz`` file, or a folder of ``save_to_disk``.
        size: side to which images are brought, where the kind can.
        channels: 1 or 3, likewise.
        captions: the captions' column or key, where the kind has such a thing.
    """
    if path.suffix == ".npz":
        return {"kind": "npz", "path": str(path), **({} if captions is None else {"captions": captions})}
    if not path.is_dir():
        what = "is neither a folder nor an .npz file" if path.exists() else "no such file or folder"
        raise UserError(f"{option} {path}: {what}; needs images in a folder, an .npz file, or a saved data set")
    fitted = {key: value for key, value in (("size", size), ("channels", channels)) if value is not None}
    if any((path / name).is_file() for name in SAVED):
        column = {} if captions is None else {"caption": captions}
        return {"kind": "huggingface", "path": str(path), **fitted, **column}
    if captions is not None:
        raise UserError(
            f"--captions {captions}: {option} {path} is a folder of images, whose captions are found by themselves: "
            "in metadata.csv, .jsonl or .parquet, or in a .txt beside each"
        )
    return {"kind": "image_folder", "path": str(path), **fitted}


def _subject(model: Path | None, generated: Path | None, manifest: Path | None) -> tuple[Path, dict[str, Any]]:
    """What is attacked: its path, and the component as plain data."""
    if generated is None and model is not None and manifest is None:
        return model, {"kind": "pipeline", "path": str(model)}
    if generated is not None and model is None:
        asked = {} if manifest is None else {"prompts": str(manifest)}
        return generated, {"kind": "generated", "path": str(generated), **asked}
    raise UserError("needs a pipeline (--model) or images that one generated (--generated, perhaps with --manifest)")


def _check_given(samples: int, prompts: str | None, manifest: Path | None) -> None:
    """Refuse to ask images anything, and to attack them without an attack."""
    if prompts is not None:
        raise UserError("--prompts: generated images cannot be asked; say what they were asked for with --manifest")
    if not samples and manifest is None:
        raise UserError("--generated: say how many images to look at with --samples, or what they show with --manifest")


def _check_drawing(model: Path, samples: int, prompts: str | None) -> None:
    """Refuse to draw from a model what it does not give."""
    target = Pipeline(path=model)
    if prompts is not None and not target.takes_texts:
        raise UserError(f"--prompts: {model} is a {pipeline_class(model)}, which takes no texts")
    if samples and target.takes_texts and prompts is None:
        raise UserError(f"--samples: {model} takes texts; say what it is to be asked with --prompts")
    if samples and not target.takes_texts and "samples" not in target.access:
        raise UserError(
            f"--samples: {model} is a {pipeline_class(model)}, of which no images can be drawn here; leave it out"
        )


def _prompts(prompts: str, each: int) -> dict[str, Any]:
    """The section ``prompts``: so many captions, or a file."""
    if prompts.isdecimal() and int(prompts):
        return {"each": each, "members": int(prompts)}
    if not Path(prompts).expanduser().is_file():
        raise UserError(f"--prompts {prompts}: needs a number of captions, or a file of prompts (.txt, .csv or .jsonl)")
    return {"each": each, "file": prompts}


def _suiting(held: dict[str, str], samples: int, prompted: bool) -> tuple[str, ...]:
    """The attacks that suit a model; or, where it holds nothing, the images that it generated."""
    asked = ("prompted_extraction",) if prompted else ()
    if not held:
        return ("blind", *asked, *(ON_SAMPLES if samples else ()))
    return (*DEFAULT, *(["clid"] if "text_encoder" in held else []), *asked, *(ON_SAMPLES if samples else ()))


def _attack(name: str, samples: int) -> dict[str, Any]:
    """An attack as plain data."""
    known = [*kinds(ROOMS["attacks"]), "pian"]
    if name not in known and "." not in name:
        raise UserError(f"--attacks {name}: no such attack{suggest(name, known)}; have {', '.join(known)}")
    if name == "pian":
        return PIAN
    if name in TAKE_SAMPLES:
        if not samples:
            raise UserError(f"--attacks {name}: looks at images drawn from the model; say how many with --samples")
        return {"kind": name, "samples": samples}
    return {"kind": name}


def _shape(model: Path, held: dict[str, str]) -> tuple[int, int, int] | None:
    """Height, width and channels of the images that a model is for; None where its folder does not say."""
    network = _config(model / ("unet" if "unet" in held else "transformer"))
    if (side := network.get("sample_size")) is None:
        return None
    height, width = (side, side) if isinstance(side, int) else side
    if (coder := next((name for name in ("vae", "vqvae") if name in held), None)) is None:
        return height, width, network["in_channels"]
    space = _config(model / coder)
    factor = 2 ** (len(space["block_out_channels"]) - 1)
    return factor * height, factor * width, space["in_channels"]


def _config(folder: Path) -> dict[str, Any]:
    """A part's configuration, with what every network says."""
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    return {"in_channels": 3, "block_out_channels": [64], **found}


def _batch(shape: tuple[int, int, int] | None) -> int:
    """As many images at once as most devices hold."""
    return Matrix().batch if shape is None else max(1, min(Matrix().batch, PIXELS // math.prod(shape[:2])))
