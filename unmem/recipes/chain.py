"""Steps that are done in order, each once: what one process, or all processes of a launcher, work through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmem import progress
from unmem.rundir import Stage

Work = Callable[[Path], None]
"""What a stage does, given its directory."""


@dataclass(frozen=True)
class Step:
    """A stage and its work.

    Attributes:
        stage: its directory and inputs.
        work: what it does.
        together: by all processes of a launcher; else by the first alone.
    """

    stage: Stage
    work: Work
    together: bool = False


def run_steps(steps: Mapping[str, Step], accelerator: Any) -> None:
    """Do, or resume, every step that is not finished."""
    for name, step in steps.items():
        finished = step.stage.finished
        accelerator.wait_for_everyone()  # nobody may mark it as finished before all have looked
        if finished:
            continue
        if accelerator.is_main_process:
            step.stage.begin()
        accelerator.wait_for_everyone()
        if step.together or accelerator.is_main_process:
            step.work(step.stage.directory)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            step.stage.finish()
            progress.say(f"{name}: {step.stage.seconds:.1f} s")
        accelerator.wait_for_everyone()
