"""From mitigations to a trained model: what an arm and its shadow models do alike."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unmem.component import UserError
from unmem.recipes.recipe import Recipe, kind_of
from unmem.rng import stream
from unmem.rundir import Stage, read_json, write_json
from unmem.train.imageset import ImageSet

if TYPE_CHECKING:
    from unmem.train.update import UpdateRule

LEDGER = "ledger.json"


def data_stage(directory: Path, mitigations: Sequence[Any], plain: list[dict[str, Any]], **inputs: Any) -> Stage:
    """The stage that applies data mitigations; ``inputs`` say to what."""
    on_data = [p for p, part in zip(plain, mitigations, strict=True) if hasattr(part, "apply")]
    return Stage(directory / "data", {"stage": "data", **inputs, "mitigations": on_data})


def train_stage(
    directory: Path, recipe: Recipe, mitigations: Sequence[Any], plain: list[dict[str, Any]], upstream: str, seed: int
) -> Stage:
    """The stage that trains on what the data stage left."""
    on_training = [p for p, part in zip(plain, mitigations, strict=True) if hasattr(part, "update_rule")]
    resolved = recipe.resolved
    inputs = {"upstream": upstream, "seed": seed, "model": resolved["model"], "train": resolved["train"]}
    if hasattr(recipe.model, "fingerprint"):  # it starts from files, which the recipe only names
        inputs["initial"] = recipe.model.fingerprint()
    return Stage(directory / "train", {"stage": "train", **inputs, "rule": on_training})


def mitigate(
    data: ImageSet, mitigations: Sequence[Any], seed: int, names: tuple[str | int, ...], directory: Path
) -> None:
    """Apply data mitigations in order, and write ``ledger.json``; ``names`` are of their randomness under ``seed``.

    Raises:
        UserError: when one changes images, or does not account for each.
    """
    dropped: list[dict[str, Any]] = []
    for i, part in enumerate(mitigations):
        if hasattr(part, "apply"):
            kept, ledger = part.apply(data, stream(seed, *names, i))
            if sorted([*kept.ids, *(entry.id for entry in ledger)]) != sorted(data.ids):
                raise UserError(f"{kind_of(part)}: its ledger does not account for every image that it was given")
            if not np.array_equal(kept.rows, data.select(kept.ids).rows) or kept.store is not data.store:
                raise UserError(f"{kind_of(part)}: may leave images out, but neither change nor add any")
            data = kept
            dropped += [asdict(entry) for entry in ledger]
    write_json(directory / LEDGER, {"kept": len(data), "dropped": dropped})


def left_by(directory: Path, data: ImageSet) -> ImageSet:
    """What the data mitigations left of ``data``, by the ledger that :func:`mitigate` wrote."""
    gone = {entry["id"] for entry in read_json(directory / LEDGER)["dropped"]}
    return data.take(np.array([i for i, name in enumerate(data.ids) if name not in gone], dtype=np.int64))


def left_out_by(kind: str, directory: Path, data: ImageSet) -> ImageSet:
    """What the data mitigation of this kind left out of ``data``, by the same ledger."""
    own = [entry["id"] for entry in read_json(directory / LEDGER)["dropped"] if entry["mitigation"] == kind]
    return data.select(own)


def train_on(
    given: ImageSet,
    ledger: Path,
    recipe: Recipe,
    mitigations: Sequence[Any],
    seed: int,
    accelerator: Any,
    directory: Path,
) -> None:
    """Train a model into the stage's directory on what the data mitigations left of ``given``.

    ``ledger`` is the directory in which :func:`mitigate` wrote what they did.
    """
    # the model is the last file: where it stands, a second training would release a second private model
    if not (directory / saved_in(recipe.model)).exists():
        assert recipe.train is not None
        key, data = read_json(directory / "key.json")["key"], left_by(ledger, given)
        if hasattr(recipe.model, "train"):
            recipe.model.train(data, recipe.train, directory, key=key, seed=seed, accelerator=accelerator)
        else:
            from unmem.train.trainer import train

            rule = _update_rule(given, ledger, recipe, mitigations, seed, directory)
            train(data, recipe.model, recipe.train, rule, directory, key=key, seed=seed, accelerator=accelerator)
    if accelerator.is_main_process:
        shutil.rmtree(directory / "state", ignore_errors=True)


def saved_in(model: Any) -> str:
    """The folder in the train stage's directory that a trained model is saved in."""
    name: str = getattr(model, "saved_as", "pipeline")
    return name


def _update_rule(
    given: ImageSet, ledger: Path, recipe: Recipe, mitigations: Sequence[Any], seed: int, directory: Path
) -> UpdateRule:
    """The way to train: the training mitigation's, or plain."""
    from unmem.train.update import Plain

    data = left_by(ledger, given)
    steps = [kind_of(part) for part in mitigations if hasattr(part, "apply")]
    holds_for = f"the {len(data)} training images as given"
    if steps:
        holds_for = (
            f"the {len(data)} images that {', '.join(steps)} left; "
            "the choice of these images depends on all images and is not covered"
        )
    if public := getattr(recipe.model, "public_data", None):
        holds_for += f"; the network was trained on {public} before, taken as public and not covered"
    for part in mitigations:
        if hasattr(part, "update_rule"):
            # one that leaves images out, too, does so in order to look at them while it trains on the others
            own = {"left_out": left_out_by(kind_of(part), ledger, given)} if hasattr(part, "apply") else {}
            rule: UpdateRule = part.update_rule(data, recipe.train, holds_for, directory / "state", **own)
            return rule
    assert recipe.train is not None
    return Plain(len(data), recipe.train, seed)
