"""What an arm may have of its own: another model, or other settings of training, than the recipe's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from unmem.component import Problem, build, dump, suggest, validate
from unmem.recipes.asked import takes_texts
from unmem.train.config import Train

PARTS = ("model", "train", "mitigations")
SHARED = ("threads", "trackers")  # how a run works, not how a model is trained


def own_model(
    spec: Mapping[str, Any], plain: Mapping[str, Any], room: str, path: str, problems: list[Problem]
) -> tuple[Any, Train] | None:
    """The model and settings of an arm that is a mapping: the recipe's, with the arm's laid over them.

    A model of another kind replaces the recipe's, whose fields mean nothing to it; settings that it does not read are
    not inherited.

    Args:
        spec: the arm, with any of ``model``, ``train`` and ``mitigations``.
        plain: the recipe, whose own sections are known to be right.
        room: the package of models.
        path: the arm's place, for messages.
        problems: receives what is wrong; then the result is None.
    """
    known = len(problems)
    for key in spec:
        if key not in PARTS:
            problems.append(Problem(f"{path}.{key}", f"unknown field{suggest(key, PARTS)}; have {', '.join(PARTS)}"))
    said = {name: spec.get(name, {}) for name in ("model", "train")}
    problems += [
        Problem(f"{path}.{name}", f"needs a mapping of fields; got {fields_said!r}")
        for name, fields_said in said.items()
        if not isinstance(fields_said, Mapping)
    ]
    if len(problems) > known:
        return None
    inherits = said["model"].get("kind", plain["model"]["kind"]) == plain["model"]["kind"]
    model = build(room, {**(plain["model"] if inherits else {}), **said["model"]}, f"{path}.model", problems)
    problems += [Problem(f"{path}.train.{name}", "is one for all arms") for name in SHARED if name in said["train"]]
    inherited = {name: value for name, value in plain["train"].items() if name not in unread(model)}
    train = validate(Train, {**inherited, **said["train"]}, f"{path}.train", problems)
    return None if len(problems) > known or train is None else (model, train)


def own_models(plain: Mapping[str, Any], room: str, problems: list[Problem]) -> dict[str, tuple[Any, Train]]:
    """Model and settings of the arms that are mappings; arguments as of :func:`own_model`."""
    arms = plain.get("arms")
    specs = arms.items() if isinstance(arms, Mapping) else ()
    found = {
        arm: own_model(spec, plain, room, f"arms.{arm}", problems) for arm, spec in specs if isinstance(spec, Mapping)
    }
    return {arm: own for arm, own in found.items() if own is not None}


def check_own(
    arms: Mapping[str, tuple[Any, ...]],
    own: Mapping[str, tuple[Any, Train]],
    shared: tuple[Any, Train],
    problems: list[Problem],
) -> dict[str, frozenset[str]]:
    """An arm's model and settings must be ones, fit its mitigations, and leave the arms comparable.

    Returns what the models of arms give an attack, where that is less than a denoiser gives.
    """
    access = {}
    for arm, parts in arms.items():
        model, train = own.get(arm, shared)
        path = f"arms.{arm}.mitigations" if arm in own else f"arms.{arm}"
        if arm in own and getattr(model, "conditioning", None) != getattr(shared[0], "conditioning", None):
            problems.append(Problem(f"arms.{arm}.model.conditioning", "is one for all arms"))
        found = misfits(model, train, parts, path, f"arms.{arm}.train" if arm in own else "train")
        problems += [problem for problem in found if problem not in problems]
        if hasattr(model, "access"):
            access[arm] = model.access
    return access


def unread(model: Any) -> tuple[str, ...]:
    """Settings of training that a model which brings its own training does not read."""
    names: tuple[str, ...] = getattr(model, "unread", ())
    return names


def read_by(model: Any, train: Train) -> dict[str, Any]:
    """The settings that the model's training reads, as plain data."""
    return {name: value for name, value in dump(train).items() if name not in unread(model)}


def as_own(model: dict[str, Any], train: dict[str, Any], mitigations: list[dict[str, Any]]) -> dict[str, Any]:
    """An arm of its own model as plain data that :func:`own_model` reads again."""
    settings = {name: value for name, value in train.items() if name not in SHARED}
    return {"model": model, "train": settings, "mitigations": mitigations}


def misfits(model: Any, train: Train, parts: Sequence[Any], arm_path: str, train_path: str) -> list[Problem]:
    """What an arm asks of its model, and this does not do.

    Args:
        model: the arm's.
        train: its settings.
        parts: its mitigations.
        arm_path: where they stand.
        train_path: where the settings stand.
    """
    found = [*_textless(model, parts, arm_path), *_uncovered(model, parts, arm_path)]
    if not hasattr(model, "train"):
        return found
    kind = type(model).__module__.rpartition(".")[2]
    steps_in = [i for i, part in enumerate(parts) if hasattr(part, "update_rule") or hasattr(part, "sampling_rule")]
    what = f"steps into the training or the sampling of a denoiser, and a {kind} has its own; leave it out"
    set_here = [f.name for f in fields(train) if f.name in unread(model) and getattr(train, f.name) != f.default]
    return [
        *found,
        *(Problem(f"{arm_path}[{i}]", what) for i in steps_in),
        *(Problem(f"{train_path}.{name}", f"means nothing to a {kind}; leave it out") for name in set_here),
    ]


def _textless(model: Any, parts: Sequence[Any], path: str) -> list[Problem]:
    """Mitigations that deal with captions, of a model that takes none."""
    found = [i for i, part in enumerate(parts) if getattr(part, "for_texts", False)]
    if not found or takes_texts(model, unknown=True):
        return []
    what = (
        "deals with captions, which the model does not take; needs text_to_image or stable_diffusion, or leave it out"
    )
    return [Problem(f"{path}[{i}]", what) for i in found]


def _uncovered(model: Any, parts: Sequence[Any], path: str) -> list[Problem]:
    """Guarantees that a model's training goes beyond."""
    if not hasattr(model, "uncovered"):
        return []
    found = [i for i, part in enumerate(parts) if getattr(part, "guarantees", False)]
    return [Problem(f"{path}[{i}]", f"the model {model.uncovered}") for i in found]
