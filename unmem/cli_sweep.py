"""The command line of sweeps: a recipe over a grid."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from unmem import progress
from unmem.component import UserError

CHECK_FAILED = 1


@click.command()
@click.argument("recipe")
@click.option("--grid", "grids", multiple=True, metavar="PATH=V1,V2,...", help="An axis: train.images=1000,2000.")
@click.option("--seeds", metavar="S1,S2,...", help="Repeat every cell with these seeds.")
@click.option("--smoke", is_flag=True, help="Of the tiny version, to see that everything is in place.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Its directory. [sweeps/NAME-HASH]")
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Change a field in every cell.")
@click.option("--arm", "arms", multiple=True, metavar="NAME", help="Run this arm alone; may be repeated.")
@click.option("--jobs", type=click.IntRange(1), help="Models at once. [as many as there are cores for]")
@click.option("--ray", metavar="ADDRESS", help="A Ray cluster that sees the same files; local starts one here.")
@click.option("--gpus", type=click.FloatRange(0), default=0.0, help="With --ray: GPUs of a job, such as 0.25.")
@click.option("--json", "as_json", is_flag=True, help="Print sweep.json at the end, and nothing else.")
def sweep(
    recipe: str,
    grids: tuple[str, ...],
    seeds: str | None,
    smoke: bool,
    out: Path | None,
    settings: tuple[str, ...],
    arms: tuple[str, ...],
    jobs: int | None,
    ray: str | None,
    gpus: float,
    as_json: bool,
) -> None:
    """Run RECIPE over a grid, every combination of values a run of its own; the same command resumes.

    Values are YAML: commas in brackets do not part them. A grid may grow: with further values, or with further axes
    and the same --out, cells that are finished stay.

    \b
    unmem sweep quickstart --grid data.planted.copies=1,4,16,64 --seeds 0,1,2
    unmem sweep mine.yaml --grid "model.channels=[16, 32],[32, 64]" --grid train.images=100000,400000 --jobs 2
    """  # noqa: D301 (click wants the control character)
    from unmem.recipes.fleet import Cluster
    from unmem.recipes.sweep import CellsFailed, run
    from unmem.recipes.sweep_grid import axes, plan

    if gpus and not ray:
        raise UserError(f"--gpus {gpus:g}: goes with --ray; without it jobs side by side take the GPUs in turn")
    if "WORLD_SIZE" in os.environ:
        raise UserError("sweep: goes without a launcher; it starts the processes itself")
    planned = plan(recipe, axes(grids, seeds), smoke=smoke, settings=settings)
    root = out or Path("sweeps") / planned.default_name
    with progress.shown(quiet=as_json):
        try:
            run(planned, root, arms, sys.argv[1:], Cluster(ray, gpus) if ray else None, jobs)
        except CellsFailed as error:
            if error.mendable:
                raise
            click.echo(f"error: {error}", err=True)
            raise SystemExit(CHECK_FAILED) from None
    _conclude(root, as_json)


def _conclude(root: Path, as_json: bool) -> None:
    """Print where the report lies, or all that it says; an audit that contradicts a proof ends in failure."""
    from unmem.rundir import read_json

    found = read_json(root / "sweep.json")
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        finished = sum(cell["state"] == "finished" for cell in found["cells"])
        click.echo(f"{finished} of {len(found['cells'])} cells finished\n\nreport: {root / 'sweep.html'}")
    if refuted := [f"{cell['name']}: {sentence}" for cell in found["cells"] for sentence in cell["refuted"]]:
        click.echo("error: " + "\n".join(refuted), err=True)
        raise SystemExit(CHECK_FAILED)
