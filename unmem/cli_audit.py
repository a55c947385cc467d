"""The command line of audits: a finished model, its members one by one, and limits for a run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from unmem import progress
from unmem.component import UserError

CHECK_FAILED = 1
PLACE = click.Path(path_type=Path)
RUN = click.Path(file_okay=False, path_type=Path)


def is_main_process() -> bool:
    """Under ``accelerate launch`` one process speaks."""
    return os.environ.get("RANK", "0") == "0"


def conclude(root: Path, as_json: bool) -> None:
    """Print the verdict of a run, and where the report lies; or all of its comparison."""
    from unmem.rundir import read_json

    comparison = read_json(root / "comparison.json")
    if as_json:
        click.echo(json.dumps(comparison, indent=1))
        return
    for sentence in comparison["verdict"]:
        click.echo(sentence)
    click.echo(f"\nreport: {root / 'report.html'}")


@click.command()
@click.option("--model", type=PLACE, help="A folder that DiffusionPipeline.save_pretrained wrote.")
@click.option("--generated", type=PLACE, help="Instead: images that a model generated, in a folder or an array.")
@click.option("--manifest", type=PLACE, help="What these were asked for: .csv or .jsonl with file_name and prompt.")
@click.option("--members", required=True, type=PLACE, metavar="DATA", help="What it was trained on, or a part of it.")
@click.option("--nonmembers", required=True, type=PLACE, metavar="DATA", help="Like images, not trained on.")
@click.option("--attacks", metavar="KIND,...", help="Kinds of attacks. [loss,sima,pia,pian,secmi,blind and what suits]")
@click.option("--samples", type=click.IntRange(1), help="Draw so many images, for the attacks that look at these.")
@click.option("--prompts", metavar="N|FILE", help="Ask a model for N members' captions, and N held-out; or a list.")
@click.option("--each", type=click.IntRange(1), help="Samples a prompt. [50]")
@click.option("--per-image", is_flag=True, help="Write risk.json and risk.csv, too: the members, most exposed first.")
@click.option("--size", type=click.IntRange(1), help="Side in pixels to which images are brought. [the model's]")
@click.option("--captions", metavar="NAME", help="Column or key of the captions. [the usual ones]")
@click.option("--batch", type=click.IntRange(1), help="Images that the network sees at once. [by their size]")
@click.option("--precision", type=click.Choice(["no", "bf16", "fp16"]), default="no", show_default=True)
@click.option("--out", type=RUN, help="The run's directory. [runs/NAME-HASH]")
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Change a field: attacks.loss.draws=16.")
@click.option("--json", "as_json", is_flag=True, help="Print comparison.json at the end, and nothing else.")
def audit(
    model: Path | None,
    members: Path,
    nonmembers: Path,
    attacks: str | None,
    samples: int | None,
    per_image: bool,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Attack a finished MODEL: does it tell what it was trained on? The same command resumes.

    DATA is a folder of images, an .npz file, or a Hugging Face data set saved with save_to_disk. Non-members that are,
    or look like, members are left out.

    \b
    unmem audit --model pipeline --members train --nonmembers held_out --per-image
    unmem audit --model pipeline --members set.npz --nonmembers set.npz --samples 10000 \\
        --set data.members.split=train --set data.nonmembers.split=test
    unmem audit --model stable_diffusion --members train --nonmembers held_out --prompts 100 --each 50 \\
        --set sampling.guidance=7.5 --set prompts.stop.rate=0.2
    unmem audit --generated images --manifest prompts.csv --members train --nonmembers held_out
    """  # noqa: D301 (click wants the control character)
    from unmem.recipes.auditing import audit_recipe
    from unmem.recipes.runner import run

    chosen = None if attacks is None else tuple(name.strip() for name in attacks.split(","))
    recipe = audit_recipe(model, members, nonmembers, attacks=chosen, samples=samples or 0, **options)
    with progress.shown(quiet=as_json or not is_main_process()):
        root = run(recipe, out or Path("runs") / recipe.run_name, (), sys.argv[1:])
    if not is_main_process():
        return
    conclude(root, as_json)
    if per_image:
        _write_risk(root, (), quiet=as_json)


@click.command()
@click.argument("run_dir", type=RUN)
@click.option("--arm", "arms", multiple=True, metavar="NAME", help="This arm alone; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print risk.json, and nothing else.")
def risk(run_dir: Path, arms: tuple[str, ...], as_json: bool) -> None:
    """Write risk.json and risk.csv of RUN_DIR: every member with what each attack says of it, most exposed first."""
    found = _write_risk(run_dir, arms, quiet=as_json)
    if as_json:
        click.echo(json.dumps(found, indent=1))


@click.command()
@click.argument("run_dir", type=RUN)
@click.option("--max", "most", multiple=True, metavar="FIGURE=LIMIT", help="Such as tpr_at_fpr[0.01]=0.05.")
@click.option("--min-quality", "quality", multiple=True, metavar="NAME=LIMIT", help="At least so good: frechet=12.")
@click.option("--arm", "arms", multiple=True, metavar="NAME", help="This arm alone; may be repeated. [all]")
@click.option(
    "--by",
    type=click.Choice(["value", "interval"]),
    default="value",
    show_default=True,
    help="interval: the worse end of the figure's confidence interval must keep the limit.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def check(
    run_dir: Path, most: tuple[str, ...], quality: tuple[str, ...], arms: tuple[str, ...], by: Any, as_json: bool
) -> None:
    """Hold the figures of RUN_DIR against limits: exit code 0 where all are kept, 1 where one is not.

    FIGURE is ATTACK.FIGURE of comparison.json, or a figure's name alone: of every attack that has it and sees the
    model. Of extractions the count is taken; epsilon is the proven one, which an audit must not contradict.

    \b
    unmem check RUN_DIR --max tpr_at_fpr[0.01]=0.05 --max extracted=0 --by interval
    unmem check RUN_DIR --arm dp --max epsilon=8 --min-quality frechet=12
    """  # noqa: D301 (click wants the control character)
    from unmem.recipes import check as checking
    from unmem.rundir import read_json

    limits = [checking.Limit.parse("--max", text) for text in most]
    least = [checking.Limit.parse("--min-quality", text) for text in quality]
    found = checking.check(read_json(run_dir / "comparison.json"), limits, least, only=arms, by=by)
    failed = [finding for finding in found if not finding.passed]
    if as_json:
        click.echo(json.dumps({"passed": not failed, "checks": [finding.as_json() for finding in found]}, indent=1))
    else:
        for finding in failed:
            click.echo(str(finding), err=True)
        if not failed:
            click.echo(f"{run_dir}: {len(found)} figures within their limits")
    if failed:
        raise SystemExit(CHECK_FAILED)


def _write_risk(root: Path, arms: tuple[str, ...], *, quiet: bool) -> dict[str, Any]:
    """Write the list of members, and say what is in it."""
    from unmem.recipes.risk import summary, write

    if not (root / "comparison.json").exists():
        raise UserError(f"{root}: holds no finished run (no comparison.json)")
    with progress.shown(quiet=quiet):
        found = write(root, arms)
    if not quiet:
        for line in summary(found):
            click.echo(line)
        click.echo(f"member by member: {root / 'risk.csv'}")
    return found
