"""The command line."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import click

from unmem import __version__, cli_audit, cli_dedup, cli_sweep, progress
from unmem.component import ConfigError, Kind, UserError, dump, find, kinds, suggest

DONE, CHECK_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
LISTS = ("data", "models", "mitigations", "attacks", "quality", "features", "targets", "recipes")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def app() -> None:
    """Train image diffusion models that do not hand back their training data, and prove it with numbers.

    \b
    unmem run quickstart              a first run: real digits, four arms, a report, in minutes
    unmem cp mnist mine.yaml          take a recipe as a start, then edit it
    unmem validate mine.yaml          all that is wrong with it, at once
    unmem run mine.yaml               run it; the same command again resumes
    unmem ls mitigations              what there is; unmem show NAME tells a component's fields
    unmem dedup pictures --out dups   the duplicates in your own data, without any training
    unmem sweep mine.yaml --grid train.images=100000,200000     many runs: a recipe over a grid of settings
    unmem audit --help                what a finished model gives away of the data that it was trained on

    Exit codes: 0 done, 1 a check failed, 2 bad input.
    """  # noqa: D301 (click wants the control character)


app.add_command(cli_audit.audit)
app.add_command(cli_audit.check)
app.add_command(cli_audit.risk)
app.add_command(cli_dedup.dedup)
app.add_command(cli_dedup.lookup)
app.add_command(cli_sweep.sweep)


@app.command()
@click.argument("what", required=False, type=click.Choice(LISTS))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def ls(what: str | None, as_json: bool) -> None:
    """List components and recipes, one line each."""
    listing = {name: _listing(name) for name in ([what] if what else LISTS)}
    if as_json:
        click.echo(json.dumps(listing, indent=1))
        return
    for name, entries in listing.items():
        if what is None:
            click.secho(name, bold=True)
        width = max((len(entry) for entry in entries), default=0)
        for entry, summary in entries.items():
            click.echo(f"  {entry:<{width}}  {summary}")


@app.command()
@click.argument("kind")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show(kind: str, as_json: bool) -> None:
    """A component's fields, defaults and documentation."""
    import dataclasses

    found = _find_anywhere(kind)
    cls = found.load()
    fields = []
    for field in dataclasses.fields(cls):
        entry = {"name": field.name, "type": str(field.type)}
        if field.default is not dataclasses.MISSING:
            entry["default"] = _plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            entry["default"] = _plain(field.default_factory())
        fields.append(entry)
    if as_json:
        click.echo(json.dumps({"kind": kind, "module": found.module, "doc": found.doc, "fields": fields}, indent=1))
        return
    click.secho(f"{kind}  ({found.module})", bold=True)
    click.echo(f"\n{found.doc}\n")
    for entry in fields:
        default = f" = {entry['default']!r}" if "default" in entry else "   (required)"
        click.echo(f"  {entry['name']}: {entry['type']}{default}")


@app.command()
@click.argument("recipe")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def cp(recipe: str, file: Path) -> None:
    """Copy a shipped RECIPE to FILE, to edit it."""
    from unmem.recipes.recipe import locate
    from unmem.rundir import write_text

    source = locate(recipe)
    if file.exists():
        raise UserError(f"{file}: exists already; it is left as it is")
    write_text(file, source.read_text(encoding="utf-8"))
    click.echo(f"{file}: a copy of {recipe}; edit it, then: unmem run {file}")


@app.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def validate(files: tuple[str, ...], as_json: bool) -> None:
    """Say all that is wrong with each recipe of FILES: file, path, value, and what is allowed."""
    from unmem.recipes.recipe import load

    problems: list[dict[str, str]] = []
    for file in files:
        try:
            for smoke in (False, True):
                load(file, smoke=smoke)
        except ConfigError as error:
            problems += [{"file": error.source, "path": p.path, "message": p.message} for p in error.problems]
        except UserError as error:
            problems.append({"file": file, "path": "", "message": str(error)})
    if as_json:
        click.echo(json.dumps({"valid": not problems, "problems": problems}, indent=1))
    else:
        for problem in problems:
            place = f"{problem['file']}: {problem['path']}: " if problem["path"] else ""
            click.echo(place + problem["message"], err=True)
        if not problems:
            click.echo(f"{len(files)} valid")
    if problems:
        raise SystemExit(BAD_INPUT)


@app.command()
@click.argument("recipe")
@click.option("--smoke", is_flag=True, help="A tiny version, in seconds, to see that everything is in place.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="The run's directory. [runs/NAME-HASH]")
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Change a field: train.images=1000.")
@click.option("--arm", "arms", multiple=True, metavar="NAME", help="Run this arm alone; may be repeated.")
@click.option("--ray", metavar="ADDRESS", help="A Ray cluster that sees the same files; local starts one here.")
@click.option("--gpus", type=click.FloatRange(0), default=0.0, help="With --ray: GPUs of a job, such as 0.25.")
@click.option("--json", "as_json", is_flag=True, help="Print comparison.json at the end, and nothing else.")
def run(
    recipe: str,
    smoke: bool,
    out: Path | None,
    settings: tuple[str, ...],
    arms: tuple[str, ...],
    ray: str | None,
    gpus: float,
    as_json: bool,
) -> None:
    """Run RECIPE (a shipped one's name or a file), or resume it."""
    from unmem.recipes.fleet import Cluster
    from unmem.recipes.recipe import load
    from unmem.recipes.runner import run as run_recipe

    if gpus and not ray:
        raise UserError(f"--gpus {gpus:g}: goes with --ray; without it jobs side by side take the GPUs in turn")
    if ray and "WORLD_SIZE" in os.environ:
        raise UserError(f"--ray {ray}: goes without a launcher, which starts the processes itself")
    loaded = load(recipe, smoke=smoke, settings=settings)
    with progress.shown(quiet=as_json or not cli_audit.is_main_process()):
        cluster = Cluster(ray, gpus) if ray else None
        root = run_recipe(loaded, out or Path("runs") / loaded.run_name, arms, sys.argv[1:], cluster)
    if not cli_audit.is_main_process():
        return
    cli_audit.conclude(root, as_json)
    _stop_if_refuted(root)


@app.command()
@click.argument("run_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--redact", is_flag=True, help="Leave out every training image and file name, so that it may be shared.")
def report(run_dir: Path, redact: bool) -> None:
    """Render report.html and report.md of RUN_DIR again, from JSON alone; of a sweep sweep.html and sweep.md."""
    from unmem.recipes import sweep_report
    from unmem.recipes.report import render

    is_sweep = (run_dir / "sweep.json").exists()
    if is_sweep and redact:
        raise UserError(f"{run_dir}: a sweep's pages show no training image; --redact is for its cells")
    for file in sweep_report.render(run_dir) if is_sweep else render(run_dir, redact=redact):
        click.echo(file)


@app.command()
@click.argument("run_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--arm", metavar="NAME", help="Whose model; where a run has one arm alone, that.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="[RUN_DIR/arms/NAME/MODEL_CARD.md]")
def card(run_dir: Path, arm: str | None, out: Path | None) -> None:
    """Write a model card for Hugging Face: what is proven, what was measured, and what neither covers."""
    from unmem.recipes import model_card

    click.echo(model_card.write(run_dir, arm, out))


@app.command()
@click.argument("run_dirs", nargs=-1, required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def compare(run_dirs: tuple[Path, ...], as_json: bool) -> None:
    """The arms of several runs in one table."""
    from unmem.recipes.report import table
    from unmem.rundir import read_json

    comparisons = {str(path): read_json(path / "comparison.json") for path in run_dirs}
    click.echo(json.dumps(comparisons, indent=1) if as_json else table(comparisons))


@app.command(hidden=True)
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("name")
@click.option("--part", default="all")
@click.option("--cell", default="")
def arm(run_dir: Path, name: str, part: str, cell: str) -> None:
    """A part of one arm of a prepared run, as a child process of ``unmem run``."""
    from unmem.recipes.fleet import Job
    from unmem.recipes.runner import run_job

    threading.Thread(target=_leave_with_parent, daemon=True).start()
    progress.use(progress.Lines())
    run_job(Job(run_dir, name, part, cell))


def main() -> None:
    """Entry point: user errors in one message with exit code 2, never a traceback."""
    try:
        app(standalone_mode=False)
    except UserError as error:
        _complain(str(error), BAD_INPUT)
    except click.ClickException as error:
        error.show()
        raise SystemExit(BAD_INPUT) from None
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted; the same command resumes", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(CHECK_FAILED) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = f" while writing {error.filename}" if error.filename else ""
            _complain(f"the disk is full{place}; make room, and the same command resumes", BAD_INPUT)
        if error.filename is None:
            raise
        _complain(f"{error.filename}: {error.strerror}", BAD_INPUT)


def _complain(message: str, code: int) -> None:
    """One message; to standard output when a parent process reads that."""
    click.echo(f"error: {message}" if sys.argv[1:2] != ["arm"] else message, err=sys.argv[1:2] != ["arm"])
    raise SystemExit(code)


def _leave_with_parent() -> None:
    """Stop when the parent's end of our standard input closes, however it died."""
    while os.read(sys.stdin.fileno(), 1):  # unbuffered: a buffer's lock would block our own exit
        pass
    os._exit(CHECK_FAILED)


def _listing(what: str) -> dict[str, str]:
    """Names and one-line descriptions."""
    from unmem.recipes.recipe import ROOMS, shipped

    if what == "recipes":
        return {name: file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for name, file in shipped().items()}
    return {name: kind.summary for name, kind in kinds(ROOMS[what]).items()}


def _plain(default: Any) -> Any:
    """A field's default; one that is a component as it stands in a recipe."""
    from unmem.recipes.recipe import kind_of

    if isinstance(default, tuple):
        return [_plain(part) for part in default]
    return {"kind": kind_of(default), **dump(default)} if hasattr(default, "__dataclass_fields__") else default


def _find_anywhere(name: str) -> Kind:
    """A component of any room."""
    from unmem.recipes.recipe import ROOMS

    known = {kind: entry for package in ROOMS.values() for kind, entry in kinds(package).items()}
    if "." in name:
        return find(ROOMS["data"], name)
    if name not in known:
        raise UserError(f"{name}: no such component{suggest(name, known)}; unmem ls lists them")
    return known[name]


def _stop_if_refuted(root: Path) -> None:
    """An audit that contradicts a proof ends in failure, whatever else the run found."""
    from unmem.recipes.verdict import contradictions
    from unmem.rundir import read_json

    if found := contradictions(read_json(root / "comparison.json")):
        _complain("\n".join(found), CHECK_FAILED)
