"""From mitigations to a trained model: what an arm and its shadow models do alike."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
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
CAPTIONS = "captions.json"  # beside the ledger, where images were given other captions


def data_stage(directory: Path, mitigations: Sequence[Any], plain: list[dict[str, Any]], **inputs: Any) -> Stage:
    """The stage that applies data mitigations; ``inputs`` say to what."""
    on_data = [_with_files(p, part) for p, part in zip(plain, mitigations, strict=True) if hasattr(part, "apply")]
    return Stage(directory / "data", {"stage": "data", **inputs, "mitigations": on_data})


def _with_files(plain: dict[str, Any], part: Any) -> dict[str, Any]:
    """A mitigation as plain data, with a digest of the files that it names."""
    digest = part.fingerprint() if hasattr(part, "fingerprint") else None
    return plain if digest is None else {**plain, "files": digest}


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
    """Apply data mitigations in order, and write ``ledger.json`` and what they gave of captions, ``captions.json``.

    ``names`` are of their randomness under ``seed``.

    Raises:
        UserError: when one changes images, or does not account for each.
    """
    dropped: list[dict[str, Any]] = []
    for i, part in enumerate(mitigations):
        if hasattr(part, "apply"):
            kept, ledger = part.apply(data, stream(seed, *names, i))
            if sorted([*kept.ids, *(entry.id for entry in ledger)]) != sorted(data.ids):
                raise UserError(f"{kind_of(part)}: its ledger does not account for every image that it was given")
            if not _unchanged(kept, data.select(kept.ids)):
                raise UserError(
                    f"{kind_of(part)}: may leave images out, and give captions alternatives, but neither change nor "
                    "add any image, label or caption"
                )
            data = kept
            dropped += [asdict(entry) for entry in ledger]
    if data.alternatives is not None:
        given = {name: texts for name, texts in zip(data.ids, data.alternatives, strict=True) if texts}
        write_json(directory / CAPTIONS, {"alternatives": given})
    write_json(directory / LEDGER, {"kept": len(data), "dropped": dropped})


def _unchanged(kept: ImageSet, given: ImageSet) -> bool:
    """Whether all but the alternatives is the same."""
    same = kept.store is given.store and np.array_equal(kept.rows, given.rows)
    labels = (kept.labels is None) == (given.labels is None) and np.array_equal(kept.labels, given.labels)  # type: ignore[arg-type]
    return same and labels and (kept.label_names, kept.captions) == (given.label_names, given.captions)


def left_by(directory: Path, data: ImageSet) -> ImageSet:
    """What the data mitigations left of ``data``, with the captions they gave, by what :func:`mitigate` wrote."""
    gone = {entry["id"] for entry in read_json(directory / LEDGER)["dropped"]}
    left = data.take(np.array([i for i, name in enumerate(data.ids) if name not in gone], dtype=np.int64))
    if not (directory / CAPTIONS).exists():
        return left
    given = read_json(directory / CAPTIONS)["alternatives"]
    return replace(left, alternatives=tuple(tuple(given.get(name, ())) for name in left.ids))


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
            rule: UpdateRule = part.update_rule(data, recipe.train, holds_for, directory / "state", seed, **own)
            return rule
    assert recipe.train is not None
    return Plain(len(data), recipe.train, seed)
