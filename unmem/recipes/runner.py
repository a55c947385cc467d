"""Run a recipe, or resume it: data once, then each arm, then the comparison and the report.

Each arm runs in a process of its own, so that small ones can run side by side and none inherits another's state. Under
``accelerate launch`` all processes work on one arm after the other instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unmem import progress
from unmem.component import UserError, suggest
from unmem.evaluate.audit import draw
from unmem.recipes import report, yaml_file
from unmem.recipes.arm import Arm, run_arm
from unmem.recipes.comparison import compare
from unmem.recipes.recipe import Recipe, check
from unmem.rundir import PARTIAL, Stage, first_difference, provenance, read_json, write_json, write_text


def run(recipe: Recipe, root: Path, only: tuple[str, ...], arguments: list[str]) -> Path:
    """Run, or resume, a recipe in ``root`` and write ``comparison.json``, ``report.html`` and ``report.md``.

    Args:
        recipe: the checked recipe.
        root: the run's directory.
        only: arms to run; all when empty.
        arguments: what was typed, for the record.

    Raises:
        UserError: for unknown arms, a directory of another recipe, or one that another process works in.
    """
    if unknown := [name for name in only if name not in recipe.arms]:
        raise UserError(
            f"--arm {unknown[0]}: no such arm{suggest(unknown[0], recipe.arms)}; have {', '.join(recipe.arms)}"
        )
    if _processes() > 1:
        return _run_together(recipe, root, only, arguments)
    with _locked(root):
        upstream = prepare(recipe, root)
        arms = [Arm(recipe, name, root, upstream) for name in recipe.arms]
        waiting = [arm for arm in arms if (not only or arm.name in only) and not arm.finished]
        if not waiting and _concluded(arms, root):
            progress.say(f"{root}: nothing to do, all of it is finished")
            return root
        _run_in_children(waiting, recipe)
        _conclude(recipe, arms, root, arguments)
    return root


def prepare(recipe: Recipe, root: Path) -> str:
    """Write ``recipe.yaml`` and draw the audit split; returns the data stage's key."""
    file = root / "recipe.yaml"
    if file.exists():
        if (found := yaml_file.read(file)) != recipe.resolved:
            raise UserError(f"{root}: holds a run of another recipe ({first_difference(found, recipe.resolved)})")
    elif root.exists() and any(entry.name != _LOCK for entry in root.iterdir()):
        raise UserError(f"{root}: is not empty and holds no run; choose another --out")
    write_text(file, yaml_file.to_text(recipe.resolved))
    stage = _data_stage(recipe, root)
    if not stage.finished:
        stage.begin()
        scratch = root / "scratch"
        scratch.mkdir(exist_ok=True)
        source, rejected = recipe.data.load(scratch)
        write_json(root / "quarantine.json", [{"source": r.source, "reason": r.reason} for r in rejected])
        if rejected:
            progress.say(f"data: {len(rejected)} files could not be read; they are listed in quarantine.json")
        draw(source, recipe.split, recipe.seed).save(root)
        del source
        shutil.rmtree(scratch)
        stage.finish()
        progress.say(f"data: {stage.seconds:.1f} s")
    return stage.key


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


def run_one(root: Path, name: str) -> None:
    """Run one arm of a prepared run directory: what a child process does."""
    recipe = open_run(root)
    with progress.within(name):
        run_arm(Arm(recipe, name, root, Stage(root / "data", read_json(root / "data" / "key.json")["inputs"]).key))


_LOCK = ".lock"


def _data_stage(recipe: Recipe, root: Path) -> Stage:
    """The stage that draws the split."""
    plain = recipe.resolved["data"]
    return Stage(
        root / "data", {"stage": "data", "seed": recipe.seed, "data": plain, "fingerprint": recipe.data.fingerprint()}
    )


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One process at a time in a run directory; the lock dies with its holder."""
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / _LOCK)
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


def _run_in_children(arms: list[Arm], recipe: Recipe) -> None:
    """Each arm in a process of its own; as many at once as ``train.threads`` lets the cores hold."""
    threads = recipe.train.threads
    places = threading.Semaphore(max(1, (os.cpu_count() or 1) // threads) if threads else 1)
    errors: list[BaseException] = []

    def work(arm: Arm) -> None:
        with places:
            if not errors:
                try:
                    _child(arm, threads)
                except BaseException as error:
                    errors.append(error)

    workers = [threading.Thread(target=work, args=(arm,)) for arm in arms]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]


def _child(arm: Arm, threads: int | None) -> None:
    """Run one arm in a child and pass on its progress.

    The child holds our end of a pipe as its standard input and stops when that closes, so that killing the parent
    leaves nobody behind.
    """
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "unmem", "arm", str(arm.root), arm.name]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
    ) as child:
        assert child.stdout is not None
        complaint = ""
        for line in child.stdout:
            if not progress.replay(line):
                complaint += line
        child.wait()
    if child.returncode == 2:
        raise UserError(f"arm {arm.name}: {complaint.strip()}")
    if child.returncode != 0:
        progress.say(f"error: arm {arm.name} stopped with exit code {child.returncode}; its own words stand above")
        raise SystemExit(1)


def _run_together(recipe: Recipe, root: Path, only: tuple[str, ...], arguments: list[str]) -> Path:
    """All processes of an ``accelerate launch`` on one arm after the other; the first one keeps the books."""
    from unmem.train.trainer import make_accelerator

    accelerator = make_accelerator(recipe.train)
    if accelerator.is_main_process:
        with _locked(root):
            prepare(recipe, root)
    accelerator.wait_for_everyone()
    arms = [Arm(recipe, name, root, _data_stage(recipe, root).key) for name in recipe.arms]
    for arm in arms:
        if not only or arm.name in only:
            with progress.within(arm.name):
                run_arm(arm)
    if accelerator.is_main_process:
        _conclude(recipe, arms, root, arguments)
    accelerator.wait_for_everyone()
    return root


def _conclude(recipe: Recipe, arms: list[Arm], root: Path, arguments: list[str]) -> None:
    """Compare the arms, record where the numbers came from, and render the report."""
    write_json(root / "comparison.json", compare(recipe, arms, root))
    write_json(root / "provenance.json", provenance(arguments, _device(), _processes()))
    report.render(root)


def _concluded(arms: list[Arm], root: Path) -> bool:
    """Whether comparison and report speak of every finished arm."""
    if not all((root / name).exists() for name in ("comparison.json", "report.html", "report.md")):
        return False
    return set(read_json(root / "comparison.json")["arms"]) == {arm.name for arm in arms if arm.finished}


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
