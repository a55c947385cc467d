"""The recipe of an audit: a model that is trained already, what it was trained on, and what it was not."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from unmem.component import UserError, kinds, suggest
from unmem.evaluate.denoisers.folder import parts, pipeline_class
from unmem.evaluate.matrix.config import Matrix
from unmem.evaluate.targets.pipeline import Pipeline
from unmem.recipes.recipe import ROOMS, SCHEMA, Recipe, changed

DEFAULT = ("loss", "sima", "pia", "pian", "secmi", "blind")
ON_SAMPLES = ("generate_and_filter", "nearest_distance")
PIAN = {"kind": "pia", "name": "pian", "normalised": True}
PIXELS = 1 << 20  # of the images that the network sees at once, where no batch is asked for
SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves in a folder


def audit_recipe(
    model: Path,
    members: Path,
    nonmembers: Path,
    *,
    attacks: tuple[str, ...] | None = None,
    samples: int = 0,
    size: int | None = None,
    captions: str | None = None,
    batch: int | None = None,
    precision: str = "no",
    settings: tuple[str, ...] = (),
) -> Recipe:
    """A recipe that attacks one finished model; it is called after the model's folder.

    Args:
        model: a pipeline folder.
        members: images that it was trained on: a folder, an ``.npz`` file, or a saved Hugging Face data set.
        nonmembers: likewise, of the same kind, but not trained on.
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
    held = parts(model)
    shape = _shape(model, held)
    if samples and "samples" not in Pipeline(path=model).access:
        raise UserError(
            f"--samples: images are drawn from a UNet2DModel on pixels alone; {model} is a {pipeline_class(model)}"
        )
    if size is None and shape is not None and shape[0] == shape[1]:
        size = shape[0]
    name = re.sub(r"[^A-Za-z0-9_+-]", "_", model.resolve().name).lstrip("+-") or "model"
    channels = None if shape is None else shape[2]
    plain = {
        "schema": SCHEMA,
        "data": {
            "members": data_set("--members", members, size, channels, captions),
            "nonmembers": data_set("--nonmembers", nonmembers, size, channels, captions),
        },
        "targets": {name: {"kind": "pipeline", "path": str(model)}},
        "matrix": {
            "batch": batch or _batch(shape),
            "precision": precision,
            "generated": min(samples, Matrix().generated),
        },
        "attacks": [_attack(attack, samples) for attack in attacks or _suiting(held, samples)],
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


def _suiting(held: dict[str, str], samples: int) -> tuple[str, ...]:
    """The attacks that suit a model."""
    return (*DEFAULT, *(["clid"] if "text_encoder" in held else []), *(ON_SAMPLES if samples else []))


def _attack(name: str, samples: int) -> dict[str, Any]:
    """An attack as plain data."""
    known = [*kinds(ROOMS["attacks"]), "pian"]
    if name not in known and "." not in name:
        raise UserError(f"--attacks {name}: no such attack{suggest(name, known)}; have {', '.join(known)}")
    if name == "pian":
        return PIAN
    if name in ON_SAMPLES:
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
