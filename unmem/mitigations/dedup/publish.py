"""What a job leaves for people and programs: tables, lists, the report, the page to judge the groups on."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from unmem import progress
from unmem.component import UserError
from unmem.mitigations.dedup import review
from unmem.mitigations.dedup.apply import apply as write_set
from unmem.mitigations.dedup.encoding_map import to_hex, write_encoding_map
from unmem.mitigations.dedup.find import AGAINST, Outcome
from unmem.mitigations.dedup.gather import Signatures
from unmem.mitigations.dedup.sources import read
from unmem.mitigations.dedup.work import Source
from unmem.rundir import atomic, read_json, write_json, write_text
from unmem.train.decode import open_rgb
from unmem.train.imageset import Rejected


def publish(outcome: Outcome, out: Path, limit: int = 300) -> pa.ChunkedArray:
    """Write all results; give back the ids that are kept.

    ``keep.txt`` (kept ids, sorted), ``ledger.csv`` (who was dropped, for whom, by which stage, how far),
    ``groups.parquet`` (every member of every group), ``copies.csv`` (the most copied first), ``quarantine.csv``
    (unusable files and why), ``report.json``, ``duplicates.html``.

    Args:
        outcome: what was found.
        out: the job's directory.
        limit: groups on the page.
    """
    groups = outcome.groups
    gone = groups.filter(pc.invert(groups["kept"])).sort_by("id")
    kept = outcome.ids.filter(pc.invert(pc.is_in(outcome.ids, gone["id"].combine_chunks())))
    with atomic(out / "groups.parquet") as partial:
        pq.write_table(groups, partial, compression="zstd")
    _write_csv(out / "ledger.csv", gone.select(["id", "kept_id", "stage", "distance"]))
    _write_csv(out / "copies.csv", outcome.copies)
    others = outcome.against.rejected if outcome.against else ()
    quarantine = [*outcome.source.rejected, *(Rejected(AGAINST + entry.source, entry.reason) for entry in others)]
    write_text(out / "quarantine.csv", _rejected_csv(quarantine))
    write_json(out / "report.json", outcome.report)
    with atomic(out / "keep.txt") as partial, partial.open("w", encoding="utf-8") as file:
        for chunk in kept.chunks:
            file.writelines(f"{name}\n" for name in chunk.to_pylist())
    _write_page(outcome, out, limit)
    return kept


def write_hashes(outcome: Outcome, path: Path) -> None:
    """Write the hashes of all images that have one as imagededup's encoding map."""
    signatures = Signatures.of(outcome.source.tables)
    codes, present = signatures.words("code")
    ids = signatures.column("id").filter(pa.array(present)).to_pylist()
    write_encoding_map(path, dict(sorted(zip(ids, to_hex(codes[present]), strict=True))))


def apply(outcome: Outcome, kept: pa.ChunkedArray, out: Path, mode: Literal["copy", "link"], field: str | None) -> None:
    """Write the data set without the dropped images to ``out/set``, or bring that up to date.

    Args:
        outcome: what was found.
        kept: the ids that stay.
        out: the job's directory.
        mode: see :func:`unmem.mitigations.dedup.apply.apply`.
        field: where merged captions go, where captions are read from a place of their own.

    Raises:
        UserError: when the data changed under our hands; the rest is written.
    """
    merged = outcome.groups.filter(pc.is_valid(outcome.groups["merged_captions"]))
    captions = dict(zip(merged["id"].to_pylist(), merged["merged_captions"].to_pylist(), strict=True))
    source = outcome.source
    ids = frozenset(kept.to_pylist())
    done = write_set(source.data, source.shards, ids, out / "set", mode, captions or None, field=field)
    if done["missing"]:
        raise UserError(f"{source.data}: {len(done['missing'])} kept images are gone, such as {done['missing'][0]}")


def _write_page(outcome: Outcome, out: Path, limit: int) -> None:
    """Write the page, unless it is there and would be the same: its pictures are read from the data."""
    page, record = out / "duplicates.html", out / "work" / "page.json"
    groups = hashlib.sha256((out / "groups.parquet").read_bytes()).hexdigest()
    shown = {"groups": groups, "report": outcome.report, "limit": limit}
    if page.exists() and record.exists() and read_json(record) == shown:
        return
    review.render(outcome.groups, outcome.report, lambda ids: _thumbnails(outcome, ids), page, limit_groups=limit)
    write_json(record, shown)


def _write_csv(path: Path, table: pa.Table) -> None:
    """Write a table as CSV, whole or not at all."""
    with atomic(path) as partial:
        pyarrow.csv.write_csv(table, partial, pyarrow.csv.WriteOptions(quoting_style="needed"))


def _rejected_csv(rejected: Collection[Rejected]) -> str:
    """The quarantine list."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "reason"])
    writer.writerows([entry.source, entry.reason] for entry in rejected)
    return text.getvalue()


def _thumbnails(outcome: Outcome, ids: Collection[str]) -> dict[str, bytes]:
    """Small pictures of these images."""
    found = _thumbnails_of(outcome.source, {name for name in ids if not name.startswith(AGAINST)})
    if outcome.against is not None:
        others = {name.removeprefix(AGAINST) for name in ids if name.startswith(AGAINST)}
        found |= {AGAINST + name: picture for name, picture in _thumbnails_of(outcome.against, others).items()}
    return found


def _thumbnails_of(source: Source, ids: set[str]) -> dict[str, bytes]:
    """Small pictures of these images of one set; only the shards that hold any are read."""
    found: dict[str, bytes] = {}
    with progress.track("thumbnails", len(ids)) as advance:
        for shard, table in zip(source.shards, source.tables, strict=True):
            here = ids.intersection(pq.read_table(table, columns=["id"])["id"].to_pylist())
            for item in read(source.data, shard) if here else ():
                if isinstance(item, Rejected) or item.id not in here or item.image is None:
                    continue
                opened = open_rgb(item.image, draft=256)
                if not isinstance(opened, str):
                    found[item.id] = review.thumbnail_bytes(opened.image)
                advance(1)
    return found
