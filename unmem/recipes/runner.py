"""Run a recipe, or resume it: data once, then each arm, then the comparison and the report.

Each arm, and each of its shadow models, runs in a process of its own (see :mod:`unmem.recipes.fleet`). Under
``accelerate launch`` all processes work on one after the other instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unmem import progress
from unmem.component import UserError, suggest
from unmem.evaluate.audit import Audit, draw
from unmem.recipes import fleet, report, twins, yaml_file
from unmem.recipes.arm import Arm
from unmem.recipes.comparison import compare
from unmem.recipes.execution import run_attacks, run_model, run_shadow
from unmem.recipes.fleet import Cluster, Failures, Job
from unmem.recipes.given import Given
from unmem.recipes.prompting import chosen_by
from unmem.recipes.recipe import Recipe, check
from unmem.rundir import PARTIAL, Stage, first_difference, provenance, read_json, write_json, write_text


def run(
    recipe: Recipe, root: Path, only: tuple[str, ...], arguments: list[str], cluster: Cluster | None = None
) -> Path:
    """Run, or resume, a recipe in ``root`` and write ``comparison.json``, ``report.html`` and ``report.md``.

    Args:
        recipe: the checked recipe.
        root: the run's directory.
        only: arms to run; all when empty.
        arguments: what was typed, for the record.
        cluster: a Ray cluster that does the work; this machine when unset.

    Raises:
        UserError: for unknown arms, a directory of another recipe, or one that another process works in.
    """
    check_arms(recipe, only)
    if _processes() > 1:
        return _run_together(recipe, root, only, arguments)
    with opened(recipe, root, only) as run:
        if run.concluded:
            progress.say(f"{root}: nothing to do, all of it is finished")
            return root
        work_off([run], recipe.threads, cluster)
        run.conclude(arguments)
    return root


@dataclass(frozen=True)
class Run:
    """A run directory that we hold, with its data drawn.

    Attributes:
        root: the directory.
        recipe: the checked recipe.
        arms: all of its arms.
        only: the names of those to run; all when empty.
        cell: of a sweep; empty for a run of its own.
    """

    root: Path
    recipe: Recipe
    arms: list[Arm]
    only: tuple[str, ...]
    cell: str = ""

    @property
    def waiting(self) -> list[Arm]:
        """The arms to run that are not finished."""
        return [arm for arm in self.arms if (not self.only or arm.name in self.only) and not arm.finished]

    @property
    def concluded(self) -> bool:
        """Whether there is nothing to do: no arm waits, and comparison and report speak of every finished one."""
        if self.waiting or not all((self.root / name).exists() for name in _CONCLUSIONS):
            return False
        return set(read_json(self.root / "comparison.json")["arms"]) == {arm.name for arm in self.arms if arm.finished}

    def conclude(self, arguments: list[str]) -> None:
        """Compare the arms, record where the numbers came from, and render the report."""
        write_json(self.root / "comparison.json", compare(self.recipe, self.arms, self.root))
        write_json(self.root / "provenance.json", provenance(arguments, _device(), _processes()))
        report.render(self.root)


_CONCLUSIONS = ("comparison.json", "report.html", "report.md")


@contextmanager
def opened(recipe: Recipe, root: Path, only: tuple[str, ...], cell: str = "") -> Iterator[Run]:
    """Hold a run directory and prepare it (see :func:`run` for what may be wrong)."""
    with locked(root):
        upstream = prepare(recipe, root)
        yield Run(root, recipe, [Arm(recipe, name, root, upstream) for name in recipe.models], only, cell)


def check_arms(recipe: Recipe, only: tuple[str, ...]) -> None:
    """Refuse names that no arm has."""
    if unknown := [name for name in only if name not in recipe.models]:
        raise UserError(
            f"--arm {unknown[0]}: no such arm{suggest(unknown[0], recipe.models)}; have {', '.join(recipe.models)}"
        )


def work_off(
    runs: list[Run],
    threads: int | None,
    cluster: Cluster | None,
    most: int | None = None,
    failures: Failures | None = None,
) -> None:
    """Do what waits in all of these runs, from one pool of jobs (arguments as for :func:`fleet.run`)."""
    cells = {run.root: run.cell for run in runs}
    for jobs in phases([arm for run in runs for arm in run.waiting]):
        failed = {(job.root, job.arm) for job in failures or ()}
        going = [replace(job, cell=cells[job.root]) for job in jobs if (job.root, job.arm) not in failed]
        fleet.run(going, threads, cluster, most, failures)


def phases(arms: list[Arm]) -> Iterator[list[Job]]:
    """What may run at once, one list after the other: models and shadows, then the attacks that read both.

    Arms that take over another's training wait for it. Shadows that were trained before their arm's model had drawn its
    samples, about which they are asked, come twice.
    """
    groups = twins.first_and_later(arms)
    if not any(arm.shadows for arm in arms):
        yield from ([Job(arm.root, arm.name, "all") for arm in group] for group in groups)
        return
    for group in groups:
        models = [Job(arm.root, arm.name, "model") for arm in group if not arm.has_answered]
        yield models + _unfinished_shadows(group)
    yield _unfinished_shadows(arms)
    yield [Job(arm.root, arm.name, "attacks") for arm in arms]


def _unfinished_shadows(arms: list[Arm]) -> list[Job]:
    """A job for each shadow that has something left to do."""
    waiting = [shadow for arm in arms for shadow in arm.shadows if not shadow.finished]
    return [Job(shadow.arm.root, shadow.arm.name, f"shadow-{shadow.number}") for shadow in waiting]


def prepare(recipe: Recipe, root: Path) -> str:
    """Write ``recipe.yaml`` and draw the audit split; returns the data stage's key."""
    file = root / "recipe.yaml"
    if file.exists():
        if (found := yaml_file.read(file)) != recipe.resolved:
            raise UserError(f"{root}: holds a run of another recipe ({first_difference(found, recipe.resolved)})")
    elif root.exists() and any(entry.name != LOCK for entry in root.iterdir()):
        raise UserError(f"{root}: is not empty and holds no run; choose another --out")
    write_text(file, yaml_file.to_text(recipe.resolved))
    stage = data_stage(recipe, root)
    if not stage.finished:
        stage.begin()
        scratch = root / "scratch"
        scratch.mkdir(exist_ok=True)
        _split(recipe, scratch, root / "quarantine.json").save(root)
        shutil.rmtree(scratch)
        stage.finish()
        progress.say(f"data: {stage.seconds:.1f} s")
    return stage.key


def _split(recipe: Recipe, scratch: Path, quarantine: Path) -> Audit:
    """The audit split: drawn from one data set, or given by two; what could not be used is listed."""
    if isinstance(recipe.data, Given):
        audit, rejected = recipe.data.audit(scratch, recipe.seed)
    else:
        source, rejected = recipe.data.load(scratch)
        assert recipe.split is not None
        audit = draw(source, recipe.split, recipe.seed, rejected)
    for name, attack in recipe.attacks.items():
        if "captions" in attack.needs and audit.data.captions is None:
            raise UserError(f"attacks.{name}: needs images with captions, and these have none; leave it out")
    if recipe.prompts is not None:
        chosen_by(recipe, recipe.prompts, audit)  # too few are complained of before anything is trained
    write_json(quarantine, [{"source": r.source, "reason": r.reason} for r in rejected])
    if rejected:
        progress.say(f"data: {len(rejected)} images could not be used; they are listed in quarantine.json")
    return audit


def open_run(root: Path) -> Recipe:
    """The recipe of a run directory.

    Raises:
        UserError: when the directory holds no run.
    """
    file = root / "recipe.yaml"
    if not file.exists():
        raise UserError(f"{root}: holds no run (no recipe.yaml)")
    problems: list[Any] = []
    recipe = check(yaml_file.read(file), root.name, problems)
    if recipe is None:
        raise UserError("\n".join(f"{file}: {problem}" for problem in problems))
    return recipe


def arms_of(root: Path) -> dict[str, Arm]:
    """The arms of a prepared run directory by name."""
    recipe = open_run(root)
    upstream = Stage(root / "data", read_json(root / "data" / "key.json")["inputs"]).key
    return {name: Arm(recipe, name, root, upstream) for name in recipe.models}


def arm_of(root: Path, name: str) -> Arm:
    """One of them."""
    return arms_of(root)[name]


def run_job(job: Job) -> None:
    """Do one job of a prepared run directory: what a child process does."""
    with progress.within(job.title):
        _work(arms_of(job.root), job)


def _work(arms: Mapping[str, Arm], job: Job) -> None:
    """Do a part of an arm: all of it, its model, one of its shadow models, or the attacks."""
    arm, part = arms[job.arm], job.part
    if os.environ.get("RANK", "0") == "0":  # the others wait for it at the end of the arm's first stage
        twins.take_over(arm, part, list(arms.values()))
    if part in ("all", "model"):
        run_model(arm)
    if part.startswith("shadow-"):
        run_shadow(arm.shadows[int(part.removeprefix("shadow-"))])
    if part in ("all", "attacks"):
        run_attacks(arm)


LOCK = ".lock"


def data_stage(recipe: Recipe, root: Path, fingerprint: str | None = None) -> Stage:
    """The stage that draws the split; ``fingerprint`` is that of the recipe's data, where it is known already."""
    if fingerprint is None:
        fingerprint = recipe.data.fingerprint()
    inputs = {"seed": recipe.seed, "data": recipe.resolved["data"], "fingerprint": fingerprint}
    if recipe.split is not None and recipe.split.canaries is not None:
        inputs["canaries"] = recipe.split.canaries.fingerprint()
    return Stage(root / "data", {"stage": "data", **inputs})


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """One process at a time in a directory; the lock dies with its holder."""
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / LOCK)
    try:
        lock.acquire(timeout=5)  # a killed run's children need a moment to notice
    except Timeout:
        raise UserError(f"{root}: another process is working in it") from None
    try:
        for leftover in root.rglob(f"*{PARTIAL}"):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _run_together(recipe: Recipe, root: Path, only: tuple[str, ...], arguments: list[str]) -> Path:
    """All processes of an ``accelerate launch`` on one arm after the other; the first one keeps the books."""
    from unmem.train.trainer import make_accelerator

    accelerator = make_accelerator(recipe.train)
    if accelerator.is_main_process:
        with locked(root):
            prepare(recipe, root)
    accelerator.wait_for_everyone()
    arms = [Arm(recipe, name, root, data_stage(recipe, root).key) for name in recipe.models]
    for jobs in phases([arm for arm in arms if not only or arm.name in only]):
        for job in jobs:
            with progress.within(job.title):
                _work({arm.name: arm for arm in arms}, job)
    if accelerator.is_main_process:
        Run(root, recipe, arms, only).conclude(arguments)
    accelerator.wait_for_everyone()
    return root


def _processes() -> int:
    """How many processes a launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _device() -> str:
    """The kind of machine, as a report names it."""
    import platform

    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"CPU, {os.cpu_count()} cores ({name})"
