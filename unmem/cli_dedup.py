"""The command line of deduplication."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unmem import progress
from unmem.component import UserError

if TYPE_CHECKING:
    from unmem.mitigations.dedup.engine import Engine
    from unmem.mitigations.dedup.work import Settings


def _bits(context: click.Context, option: click.Parameter, value: str) -> int | None:
    """A number of bits, or None for ``auto``."""
    if value == "auto":
        return None
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither a number of bits nor 'auto'")
    return int(value)


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Where all results go.")
@click.option(
    "--hash",
    "hash_",
    type=click.Choice(["phash", "dhash", "whash", "ahash", "none"]),
    default="phash",
    show_default=True,
    help="Perceptual hash; none: exact duplicates only, from the data's own SHA-256 where it has them.",
)
@click.option("--bits", type=click.Choice(["64", "256"]), default="64", show_default=True, help="256: phash only.")
@click.option(
    "--max-distance",
    metavar="N|auto",
    callback=_bits,
    default="auto",
    show_default=True,
    help="Differing bits; auto goes by the number of images and by their hashes, and says why.",
)
@click.option("--dihedral", is_flag=True, help="Flips and quarter turns count as the same image (phash).")
@click.option(
    "--decode",
    type=click.Choice(["full", "scaled"]),
    default="full",
    show_default=True,
    help="scaled: JPEGs at a fraction of their size, several times as fast; a few bits may differ.",
)
@click.option(
    "--as-imagededup", is_flag=True, help="Ignore EXIF orientation and drop transparency, as imagededup does."
)
@click.option("--captions", metavar="NAME", help="Column, JSON field or file ending of the captions. [the usual ones]")
@click.option("--jaccard", type=click.FloatRange(0.05, 1), default=0.8, show_default=True, help="Of near captions.")
@click.option("--embed", metavar="MODEL", help="Embedding stage: package.module:callable, or a local model.")
@click.option(
    "--embed-distance",
    type=click.FloatRange(0, 2),
    default=0.25,
    show_default=True,
    help="Cosine distance; every model has its own scale, and the default is SSCD's.",
)
@click.option("--against", type=click.Path(path_type=Path), help="Drop what duplicates an item of this other set.")
@click.option(
    "--keep",
    type=click.Choice(["largest", "sharpest", "longest_caption", "first"]),
    default="largest",
    show_default=True,
    help="Which image of a group stays.",
)
@click.option(
    "--drop",
    type=click.Choice(["image", "both"]),
    default="image",
    show_default=True,
    help="image: duplicates whatever their captions; both: only where a caption is near, too.",
)
@click.option("--merge-captions", is_flag=True, help="Whoever stays takes the captions of those it stands for.")
@click.option("--decisions", type=click.Path(path_type=Path), help="A CSV exported from duplicates.html.")
@click.option("--apply", "apply_", type=click.Choice(["copy", "link", "list"]), help="Write the new set to OUT/set.")
@click.option("--page-groups", type=click.IntRange(1), default=300, show_default=True, help="On duplicates.html.")
@click.option("--read-encoding-map", type=click.Path(path_type=Path), help="imagededup's hashes, from JSON.")
@click.option("--write-encoding-map", type=click.Path(dir_okay=False, path_type=Path), help="The same, to JSON.")
@click.option("--search", type=click.Choice(["auto", "tiles", "bands"]), default="auto", help="The pairs are the same.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--address", help="Of a Ray cluster. [one is started on this machine]")
@click.option("--workers", type=click.IntRange(1), help="Processes. [one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print report.json at the end, and nothing else.")
def dedup(**options: Any) -> None:
    """Find the duplicates of DATA: equal files and pixels, like images, like captions.

    DATA is a folder of images (captions beside them or in metadata), webdataset tars, parquet files with image bytes,
    or a Hugging Face data set saved to disk. It is never changed. The same command resumes, and takes up files that
    were added.

    \b
    unmem dedup pictures --out dups                     then open dups/duplicates.html
    unmem dedup pictures --out dups --decisions decisions.csv --apply link
    unmem dedup train --against takedown --out hits     what of train is like an image of takedown
    """  # noqa: D301 (click wants the control character)
    from unmem.mitigations.dedup import find, publish, work

    data, out = options["data"].absolute(), options["out"]
    against = options["against"] and options["against"].absolute()
    _check_places(options, data, against)
    if options["bits"] == "256" and options["hash_"] != "phash":
        raise UserError(f"--bits 256: there is only a phash of 256 bits, not {options['hash_']}")
    if math.isnan(options["jaccard"]) or math.isnan(options["embed_distance"]):
        raise UserError("--jaccard and --embed-distance: must be numbers, got nan")
    if options["hash_"] == "none" and (options["max_distance"] is not None or options["embed"]):
        raise UserError("--hash none: opens no image, so --max-distance and --embed do not go with it")
    if options["dihedral"] and options["hash_"] != "phash":
        raise UserError(f"--dihedral: works with phash, not {options['hash_']}")
    if options["search"] == "bands" and (options["bits"] != "256" or options["dihedral"]):
        raise UserError("--search bands: goes with --bits 256, without --dihedral; at 64 bits it would file too much")
    if (options["read_encoding_map"] or options["write_encoding_map"]) and (
        options["bits"] != "64" or options["dihedral"] or options["hash_"] == "none"
    ):
        raise UserError("an encoding map holds plain hashes of 64 bits: take it with --bits 64 and without --dihedral")
    settings = _settings(options)
    with progress.shown(quiet=options["as_json"]), work.lock(out):
        outcome = find.find(data, out, settings, _engine(options), against)
        kept = publish.publish(outcome, out, options["page_groups"])
        if options["write_encoding_map"]:
            publish.write_hashes(outcome, options["write_encoding_map"])
        if options["apply_"] in ("copy", "link"):  # the list is keep.txt
            publish.apply(outcome, kept, out, options["apply_"], options["captions"])
    click.echo(
        json.dumps(outcome.report, indent=1) if options["as_json"] else _summary(outcome.report, out, options["apply_"])
    )


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--max-distance", type=click.IntRange(0, 256), help="Differing bits. [as OUT has it]")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def lookup(out: Path, images: tuple[Path, ...], max_distance: int | None, as_json: bool) -> None:
    """Look IMAGES up among those of OUT, a finished unmem dedup."""
    from unmem.mitigations.dedup.lookup import lookup as look

    found, failed = {}, []
    for image in images:
        try:
            found[str(image)] = look(out, image, max_distance)
        except UserError as error:
            failed.append(str(error))
    if as_json:
        plain = {image: [vars(match) for match in matches] for image, matches in found.items()}
        click.echo(json.dumps(plain, indent=1))
    else:
        for name, matches in found.items():
            click.echo(f"{name}: {f'{len(matches)} found' if matches else 'not found'}")
            for match in matches:
                click.echo(f"  {match.id}  {match.stage}{f', {match.distance} bits' if match.distance else ''}")
    if failed:
        raise UserError("\n".join(failed))


def _settings(options: dict[str, Any]) -> Settings:
    """The job's settings."""
    from unmem.mitigations.dedup.encoding_map import read_encoding_map
    from unmem.mitigations.dedup.outcome import Choice
    from unmem.mitigations.dedup.review import read_decisions
    from unmem.mitigations.dedup.signatures import Signing
    from unmem.mitigations.dedup.work import Settings
    from unmem.rundir import digest

    stored: Path | None = options["read_encoding_map"]
    decided = read_decisions(options["decisions"]) if options["decisions"] else {}
    signing = Signing(
        hash=None if options["hash_"] == "none" else options["hash_"],
        bits=int(options["bits"]),
        dihedral=options["dihedral"],
        scaled=options["decode"] == "scaled",
        as_stored=options["as_imagededup"],
        sharpness=options["keep"] == "sharpest",
        captions=options["captions"],
        encoding_map=None if stored is None else str(stored.absolute()),
        encoding_map_digest=None if stored is None else digest(read_encoding_map(stored)),
    )
    if options["max_distance"] is not None and options["max_distance"] > signing.bits:
        raise UserError(f"--max-distance {options['max_distance']}: must be at most {signing.bits}, the bits of a hash")
    return Settings(
        signing=signing,
        max_distance=options["max_distance"],
        method=options["search"],
        jaccard=options["jaccard"],
        embed=options["embed"],
        embed_distance=options["embed_distance"],
        drop=options["drop"],
        choice=Choice(
            policy=options["keep"],
            merge_captions=options["merge_captions"],
            rejected=frozenset(pair for pair, accepted in decided.items() if not accepted),
        ),
    )


def _check_places(options: dict[str, Any], data: Path, against: Path | None) -> None:
    """Refuse places where results and data would mix."""
    out, hashes = options["out"], options["write_encoding_map"]
    for one in (data, *((against,) if against else ())):
        if _is_inside(out, one):
            raise UserError(f"--out {out}: lies inside the data; take a folder outside")
        if _is_inside(one, out):
            raise UserError(f"--out {out}: the data {one} lie inside it; take another folder")
        if hashes is not None and _is_inside(hashes, one):
            raise UserError(f"--write-encoding-map {hashes}: lies inside the data; take a place outside")
    if hashes is not None:
        from unmem.mitigations.dedup.encoding_map import read_encoding_map

        if not hashes.absolute().parent.is_dir():
            raise UserError(f"--write-encoding-map {hashes}: there is no such folder")
        if hashes.exists():
            read_encoding_map(hashes)  # anything else is not overwritten


def _engine(options: dict[str, Any]) -> Engine:
    """Who does the work."""
    from unmem.mitigations.dedup.engine import Local, Ray

    workers = options["workers"] or os.cpu_count() or 1
    if options["engine"] == "ray":
        return Ray(workers, options["address"])
    if options["address"] is not None:
        raise UserError(f"--address {options['address']}: goes with --engine ray")
    return Local(workers)


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, or is it."""
    return folder.is_dir() and path.resolve().is_relative_to(folder.resolve())


def _summary(report: dict[str, Any], out: Path, applied: str | None) -> str:
    """What was found, for a person."""
    what = f"{report['images']:,} images: {report['kept']:,} stay, {report['dropped']:,} are duplicates"
    if "against" in report:
        lines = [f"{what} of one of the {report['against']['images']:,} of the other set"]
    else:
        lines = [f"{what}, in {report['groups']:,} groups"]
    lines += [f"  {stage:<10} {count:>9,}" for stage, count in report["stages"].items()]
    if "threshold" in report:
        chosen = report["threshold"]
        lines.append(
            f"threshold: {chosen['max_distance']} of {chosen['bits']} bits of {chosen['hash']} ({chosen['reason']})"
        )
        if chosen["bits"] == 64 and chosen["max_distance"] < 6:
            lines.append("  so few bits miss many edits of an image: --bits 256 leaves room for more")
    if "embedding" in report:
        lines.append(
            f"embedding: cosine distance {report['embedding']['max_distance']:g} of {report['embedding']['model']}"
        )
    for name, entries in report.get("given", {}).items():
        lines.append(f"{name}: {entries['used']:,} of {entries['given']:,} entries are about images of DATA")
    seen = report.get("seen", {})
    for name, words in (
        ("flat", "hold too little to be compared by hash, and were compared by pixels alone"),
        ("oriented", "carry an EXIF orientation, which was applied (--as-imagededup ignores it)"),
        ("flattened", "have transparency, which was laid over white (--as-imagededup drops it)"),
    ):
        if seen.get(name):
            lines.append(f"{seen[name]:,} images {words}")
    if any(report["classes"].values()):
        lines += ["captions:", *(f"  {name:<28} {count:>9,} images" for name, count in report["classes"].items())]
        lines.append(
            f"  near is a Jaccard similarity of {report['captions']['jaccard']:g}, by {report['captions']['bands']}"
        )
    if report["quarantined"]:
        lines.append(f"{report['quarantined']:,} files could not be used and are left out: {out / 'quarantine.csv'}")
    if applied:
        lines.append(f"what stays: {out / ('keep.txt' if applied == 'list' else 'set')}")
    return "\n".join([*lines, f"\nto judge the groups: {out / 'duplicates.html'}"])
