"""Run a sweep, or resume it: every cell is a run directory of its own, and the jobs of all go into one pool."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from unmem import progress
from unmem.component import UserError
from unmem.recipes import sweep_report
from unmem.recipes.fleet import Cluster, Failures, Job
from unmem.recipes.runner import LOCK, Run, check_arms, data_stage, locked, opened, work_off
from unmem.recipes.sweep_grid import Cell, Sweep
from unmem.recipes.sweep_summary import FILE, read, summary
from unmem.rundir import first_difference, write_json

Places = dict[str, dict[str, Any]]
"""Cell's key -> its ``directory`` and ``data``, the key of its data stage."""


class Stopped(UserError):
    """A job that ended by an error of ours; its words went to standard error."""


class CellsFailed(UserError):
    """Cells that failed, while the others went on.

    Attributes:
        mendable: whether all of it is for the user to mend.
    """

    def __init__(self, messages: list[str], mendable: bool) -> None:
        self.mendable = mendable
        super().__init__("\n".join([*messages, "the others went on; the same command resumes"]))


def run(
    sweep: Sweep,
    root: Path,
    only: tuple[str, ...],
    arguments: list[str],
    cluster: Cluster | None = None,
    most: int | None = None,
) -> Path:
    """Run, or resume, a sweep in ``root`` and write ``sweep.json``, ``sweep.html`` and ``sweep.md``.

    Args:
        sweep: the checked sweep.
        root: its directory.
        only: arms to run; all when empty.
        arguments: what was typed, for the record.
        cluster: a Ray cluster that does the work; this machine when unset.
        most: jobs at once; as many as there are cores for when unset.

    Raises:
        CellsFailed: when cells failed, after all others were done.
        UserError: for unknown arms, a directory of another sweep, or one that another process works in.
    """
    for cell in sweep.cells:
        check_arms(cell.recipe, only)
    with locked(root):
        known = _known(sweep, root)
        places = _places(sweep, root, known)
        waiting = [cell for cell in sweep.cells if not _is_finished(root, known.get(cell.key), places[cell.key])]
        if not waiting and [*known] == [cell.key for cell in sweep.cells] and sweep_report.is_fresh(root):
            progress.say(f"{root}: nothing to do, all of it is finished")
            return root
        write_json(root / FILE, summary(sweep, root, places, {}))  # the grid is on disk before the first cell begins
        failed = _work(waiting, root, places, only, arguments, cluster, most)
        messages = {key: "\n".join(map(str, errors)) for key, errors in failed.items()}
        write_json(root / FILE, summary(sweep, root, places, messages))
        sweep_report.render(root)
    if failed:
        raise CellsFailed(
            list(messages.values()), not any(isinstance(e, Stopped) for es in failed.values() for e in es)
        )
    return root


def _known(sweep: Sweep, root: Path) -> dict[str, dict[str, Any]]:
    """The cells that the directory has already, by key; all of them must be cells of this sweep."""
    if not (root / FILE).exists():
        if any(entry.name != LOCK for entry in root.iterdir()):
            raise UserError(f"{root}: is not empty and holds no sweep; choose another --out")
        return {}
    found = read(root)
    known = {cell["key"]: cell for cell in found["cells"]}
    if lost := [cell for key, cell in known.items() if key not in {cell.key for cell in sweep.cells}]:
        raise UserError(
            f"{root}: holds a sweep with the cell {lost[0]['name']}, which is none of these "
            f"({_difference(found, sweep, lost[0])}); a grid may grow, but loses no cell: choose another --out"
        )
    return known


def _difference(found: Mapping[str, Any], sweep: Sweep, lost: Mapping[str, Any]) -> str:
    """Why a cell that is in the directory is not in the sweep."""
    if (found["recipe"], found["base"]) != (sweep.name, sweep.base):
        return first_difference({"name": found["recipe"], **found["base"]}, {"name": sweep.name, **sweep.base})
    for path, value in lost["values"].items():
        if path not in sweep.grid:
            return f"{path} was an axis"
        if value not in sweep.grid[path]:
            return f"{path} has no value {value!r} now"
    if new := [path for path in sweep.grid if path not in lost["values"]]:
        return f"the new axis {new[0]} lacks the value that it has"
    return "this version reads the recipe in another way"


def _places(sweep: Sweep, root: Path, known: Mapping[str, Mapping[str, Any]]) -> Places:
    """Where each cell lies: where it lay, else in a folder of its name; and what its data are."""
    taken = {cell["directory"].lower() for cell in known.values()}
    fingerprints: dict[str, str] = {}
    places: Places = {}
    for cell in sweep.cells:
        directory = f"cells/{cell.name}"
        if cell.key in known:
            directory = known[cell.key]["directory"]
        elif directory.lower() in taken:
            directory += f"-{cell.key[:8]}"
        data = repr(cell.recipe.data)  # few cells have data of their own, and a digest may take long
        try:
            if data not in fingerprints:
                fingerprints[data] = cell.recipe.data.fingerprint()
            stage = data_stage(cell.recipe, root / directory, fingerprints[data])
        except UserError as error:
            raise UserError(f"cell {cell.name}: {error}") from None
        places[cell.key] = {"directory": directory, "data": stage.key}
    return places


def _is_finished(root: Path, known: Mapping[str, Any] | None, place: Mapping[str, Any]) -> bool:
    """Whether a cell was finished, of the same data, and is still there."""
    if known is None or (known["state"], known["data"]) != ("finished", place["data"]):
        return False
    file: Path = root / place["directory"] / "comparison.json"
    return file.exists()


def _work(
    cells: list[Cell], root: Path, places: Places, only: tuple[str, ...], arguments: list[str],
    cluster: Cluster | None, most: int | None,
) -> dict[str, list[UserError]]:  # fmt: skip
    """Do what waits in these cells; returns the errors of those that failed, by key."""
    failed: dict[str, list[UserError]] = {}
    runs: dict[str, Run] = {}
    with ExitStack() as held:
        for cell in cells:
            try:
                with progress.within(cell.name):
                    place = root / places[cell.key]["directory"]
                    runs[cell.key] = held.enter_context(opened(cell.recipe, place, only, cell.name))
            except UserError as error:
                failed[cell.key] = [UserError(f"cell {cell.name}: {error}")]
        jobs: Failures = {}
        if runs:
            work_off([*runs.values()], cells[0].recipe.threads, cluster, most, jobs)
        for key, run in runs.items():
            if errors := [_as_user_error(job, error) for job, error in jobs.items() if job.root == run.root]:
                failed[key] = errors
            if not run.concluded and any(arm.finished for arm in run.arms):
                run.conclude(arguments)
    return failed


def _as_user_error(job: Job, error: BaseException) -> UserError:
    """What a job said that it could not use; or that it stopped."""
    return error if isinstance(error, UserError) else Stopped(f"arm {job.title}: stopped; its own words stand above")
