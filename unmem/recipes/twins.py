"""Arms whose models are trained alike, as those that differ in sampling alone: the first one's are everybody's.

So a defence of the sampling is measured on the very weights that the unguarded arm has, whatever chance there is in the
training (that of DP-SGD is fresh each time), and costs no training of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from unmem import progress
from unmem.recipes.arm import Arm
from unmem.rundir import Stage


def first_and_later(arms: Sequence[Arm]) -> tuple[list[Arm], list[Arm]]:
    """Arms whose training no earlier one of them does; and the others, which wait for it."""
    first: list[Arm] = []
    later: list[Arm] = []
    seen: set[tuple[Path, str]] = set()
    for arm in arms:
        train = arm.model_stages.get("train")
        trained = (arm.root, "" if train is None else train.key)
        (later if train is not None and trained in seen else first).append(arm)
        seen.add(trained)
    return first, later


def take_over(arm: Arm, part: str, others: Sequence[Arm]) -> None:
    """Have the training that a part of an arm needs from another one, if one has done it and it has not begun here.

    Args:
        arm: whose.
        part: ``all`` or ``model``; or ``shadow-K``, one of its shadow models.
        others: arms of the same run.
    """
    mine = _training(arm, part)
    if mine is None or mine.directory.exists():
        return
    for other in others:
        theirs = None if other.name == arm.name else _training(other, part)
        if theirs is not None and theirs.key == mine.key and theirs.finished:
            _copy(theirs, mine)
            progress.say(f"train: as in {other.name}, whose model it is")
            return


def _training(arm: Arm, part: str) -> Stage | None:
    """The stage that trains for this part; None for other parts, or where nothing is trained."""
    if part.startswith("shadow-"):
        number = int(part.removeprefix("shadow-"))
        return next((shadow.stages["train"] for shadow in arm.shadows if shadow.number == number), None)
    return arm.model_stages.get("train") if part in ("all", "model") else None


def _copy(source: Stage, target: Stage) -> None:
    """A stage's directory under another name, by links where the disk has them; whole or not at all."""
    unfinished = target.directory.with_name(target.directory.name + ".taken")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source.directory, unfinished, copy_function=_link)
    unfinished.rename(target.directory)


def _link(source: str, target: str) -> None:
    """A second name for a file, which nobody writes to again; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
