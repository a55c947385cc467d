"""The stage that asks a model all that the attacks will read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unmem.evaluate.audit import Audit
from unmem.recipes.recipe import Recipe
from unmem.rng import derive
from unmem.rundir import Stage, read_json
from unmem.train.imageset import ImageSet

if TYPE_CHECKING:
    from unmem.evaluate.matrix.denoiser import Denoiser


def readings_of(attacks: Iterable[Any]) -> list[Any]:
    """What these attacks read, each once."""
    return list(dict.fromkeys(reading for attack in attacks for reading in attack.readings))


def matrix_stage(directory: Path, recipe: Recipe, attacks: list[Any], upstream: list[str]) -> Stage:
    """The stage that asks a model; it depends on what is read, not on which attacks read it."""
    inputs = {
        "upstream": upstream,
        "seed": recipe.seed,
        "readings": sorted(reading.key for reading in readings_of(attacks)),
        "matrix": recipe.resolved["matrix"],
    }
    return Stage(directory / "matrix", {"stage": "matrix", **inputs})


def ask_all(
    denoiser: Denoiser,
    recipe: Recipe,
    audit: Audit,
    generated: ImageSet | None,
    attacks: list[Any],
    accelerator: Any,
    directory: Path,
) -> None:
    """Ask a model about every image of the audit, and about the audited model's own samples."""
    from unmem.evaluate.matrix.compute import compute  # with torch, which a finished run does without

    groups = dict(audit.groups)
    if generated is not None:
        groups["generated"] = generated
    seed = derive(recipe.seed, "matrix")  # the same noise for every model, so that what differs is the model
    compute(denoiser, groups, readings_of(attacks), directory, config=recipe.matrix, seed=seed, accelerator=accelerator)


def generated_set(images: Path, count: int, classes: int) -> ImageSet | None:
    """The first samples as a third class, with what they were asked for, or classes in turn; None without samples."""
    if not count or not images.exists():
        return None
    drawn = np.asarray(np.load(images, mmap_mode="r", allow_pickle=False)[:count])
    labels = np.arange(len(drawn)) % classes if classes else None
    names = tuple(str(k) for k in range(classes))
    asked = images.with_name("prompts.json")
    captions = tuple(read_json(asked)[:count]) if asked.exists() else (None,)
    known = None if None in captions else captions
    return ImageSet.of(drawn, [f"sample/{i:06d}" for i in range(len(drawn))], labels, names, known)
