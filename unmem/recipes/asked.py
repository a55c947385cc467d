"""Which models of a recipe are asked by prompts, and what does not go with that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmem.component import Problem, UserError
from unmem.evaluate.prompting import Prompts
from unmem.train.config import Sampling


def takes_texts(model: Any, unknown: bool = False) -> bool:
    """Whether a model draws what a prompt asks for: one that arms train, or a finished one.

    Args:
        model: a component; or None.
        unknown: what to say where its files cannot be looked at; they are complained of later.
    """
    try:
        return bool(getattr(model, "takes_texts", False)) or getattr(model, "conditioning", "none") == "text"
    except UserError:
        return unknown


def taking_texts(model: Any, targets: Mapping[str, Any]) -> tuple[str, ...]:
    """Who takes texts: ``an arm's``, and the names of finished models; one that cannot be looked at is left out."""
    return (
        *(("an arm's",) if takes_texts(model) else ()),
        *(f"{name}'s" for name in targets if takes_texts(targets[name])),
    )


def misplaced(
    arms: Mapping[str, tuple[Any, ...]],
    targets: Mapping[str, Any],
    *,
    model: Any,
    prompts: Prompts | None,
    sampling: Sampling | None,
) -> list[Problem]:
    """What goes with prompts and stands where there are none, and the other way round.

    Args:
        arms: mitigations by arm.
        targets: finished models by name.
        model: the model that arms train; None where none is trained.
        prompts: the recipe's section; None without, or where it is wrong.
        sampling: the recipe's; None where it is wrong.
    """
    problems = []
    if (
        prompts is not None
        and not takes_texts(model)
        and not any(takes_texts(target, True) for target in targets.values())
    ):
        problems.append(Problem("prompts", "no model of this recipe takes texts; leave the section out"))
    if prompts is not None and sampling is not None:
        if sampling.guidance < 1:
            problems.append(Problem("sampling.guidance", f"must be 1 or more with prompts; got {sampling.guidance}"))
        if sampling.churn:
            problems.append(
                Problem("sampling.churn", "is for networks on pixels; leave it out where prompts are asked")
            )
    for arm, parts in arms.items():
        for i, part in enumerate(parts):
            path = f"arms.{arm}[{i}]"
            if takes_texts(model) and getattr(part, "steers", False):
                problems.append(
                    Problem(path, "steers the steps of networks on pixels; a model that takes texts has none")
                )
            if hasattr(part, "prompt_rule") and not (takes_texts(model) and prompts is not None):
                problems.append(Problem(path, "acts on prompts: needs a model that takes texts, and a section prompts"))
    return problems
