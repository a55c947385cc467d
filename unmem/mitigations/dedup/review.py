"""Duplicates for a person to judge: ``duplicates.html``, and the decisions that come back from it."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from unmem.component import UserError
from unmem.rundir import write_text

TEMPLATES = Path(__file__).parent / "templates"
STAGES = ("bytes", "pixels", "perceptual", "embedding", "captions")  # from the surest to the least sure
UNITS = {"perceptual": "bits", "embedding": "cosine distance", "captions": "1 \N{MINUS SIGN} Jaccard"}
COLUMNS = ("id", "kept_id", "decision")
DECISIONS = {"accept": True, "reject": False}
TINY = 64  # pixels: images of at most this side keep every pixel and are enlarged without smoothing
LONGEST = 1000  # characters of a caption that are shown
LISTED = 20  # captions of an image, or values of a list in the report, that are shown


def render(
    groups: pa.Table,
    report: Mapping[str, Any],
    thumbnails: Callable[[Collection[str]], Mapping[str, bytes]],
    out: Path,
    *,
    limit_groups: int = 300,
    limit_images: int = 24,
) -> Path:
    """Write the page on which a person judges the groups: one file, no network, pictures inlined.

    Of more than ``limit_groups`` groups the page holds the largest and, for half of the places, those of the others
    with the largest distances: the first matter most, the second are the most likely to be wrong. Of more than
    ``limit_images`` images of a group it holds those that stay and the least certain of the others. What is left
    out is counted on the page.

    Args:
        groups: the rows of ``groups.parquet``, one for each image that stands in a group: ``group`` int64, ``id``,
            ``kept`` bool, ``kept_id``, ``stage`` (of a dropped image), ``distance`` float32 (to ``kept_id``, in the
            stage's unit), ``why`` (of an image that stays), ``width``, ``height``, ``file_bytes``, ``sharpness``,
            ``captions``, ``merged_captions``, ``copies``.
        report: the content of ``report.json``; what it lacks is not shown.
        thumbnails: asked once for the ids on the page; their PNG or JPEG bytes, such as :func:`thumbnail_bytes`
            gives. An id without draws an empty box.
        out: the file to write.
        limit_groups: groups on the page at most, from 1.
        limit_images: images of one group on the page at most, from 2.

    Returns:
        ``out``.
    """
    assert limit_groups >= 1 and limit_images >= 2, (limit_groups, limit_images)
    shown = _shown(groups, limit_groups, limit_images)
    pictures = thumbnails([row["id"] for group in shown for row in group.rows])
    views = [_group(group, pictures) for group in shown]
    images = [image for view in views for family in view["families"] for image in family["images"]]
    counted = Counter(image["stage"] for image in images if not image["kept"])
    for place, image in enumerate(images):
        image["place"] = place
    script = (TEMPLATES / "duplicates.js").read_text(encoding="utf-8")
    dropped = groups.num_rows - (pc.sum(groups["kept"]).as_py() or 0)
    text = _environment().get_template("duplicates.html.j2").render(
        report=report,
        groups=views,
        left_out={
            "groups": pc.count_distinct(groups["group"]).as_py() - len(views),
            "cut_groups": sum(view["left_out"] > 0 for view in views),
            "dropped": dropped - counted.total(),
        },
        dropped=dropped,
        limit_groups=limit_groups,
        stages={stage: counted[stage] for stage in dict.fromkeys((*STAGES, *counted)) if counted[stage]},
        page={
            "key": f"unmem-duplicates-{_digest(groups)}",
            "images": [[image[field] for field in ("id", "kept_id", "stage", "distance")] for image in images],
        },
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    write_text(out, text.encode("utf-8", "backslashreplace").decode())  # lone surrogates have no UTF-8
    return out


def read_decisions(path: Path) -> dict[tuple[str, str], bool]:
    """Read the decisions that the page exported.

    Args:
        path: a CSV in UTF-8 (with or without a byte order mark) with the columns ``id``, ``kept_id`` and
            ``decision`` (``accept`` or ``reject``), in any order; further columns are ignored.

    Returns:
        (id, kept_id) -> whether the image is accepted as a duplicate of the one kept in its place.

    Raises:
        UserError: naming file, line, column and value, for anything else.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    rows = _records(path, text)
    _, header = next(rows, (1, []))
    for column in COLUMNS:
        if header.count(column) != 1:
            raise UserError(f"{path}: line 1: column {column!r} must stand once among the columns, which are {header}")
    places = [header.index(column) for column in COLUMNS]
    decisions: dict[tuple[str, str], bool] = {}
    lines: dict[tuple[str, str], int] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{path}: line {line}: {len(row)} values {row} for the {len(header)} columns {header}")
        name, kept, decision = (row[place] for place in places)
        for column, value in (("id", name), ("kept_id", kept)):
            if not value:
                raise UserError(f"{path}: line {line}: column {column!r}: {value!r} is no id")
        if decision not in DECISIONS:
            allowed = " or ".join(map(repr, DECISIONS))
            raise UserError(f"{path}: line {line}: column 'decision': {decision!r} is not {allowed}")
        accepted = decisions.setdefault((name, kept), DECISIONS[decision])
        first = lines.setdefault((name, kept), line)
        if accepted != DECISIONS[decision]:
            raise UserError(
                f"{path}: line {line}: column 'decision': {decision!r} contradicts line {first} on {name!r}, which was"
                f" dropped for {kept!r}"
            )
    return decisions


def thumbnail_bytes(image: Image.Image, side: int = 160) -> bytes:
    """A picture for the page, without metadata; transparency is laid over white.

    Args:
        image: 8 bits a channel, upright.
        side: the longest side of the result at most, in pixels.

    Returns:
        PNG of the image's own pixels when no side is above 64 (the page enlarges it without smoothing), else JPEG.
    """
    over = image.convert("RGBA") if image.has_transparency_data else image.convert("RGB")
    tiny = max(over.size) <= TINY
    if max(over.size) > side:
        scale = side / max(over.size)
        width, height = (max(1, round(edge * scale)) for edge in over.size)
        over = over.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    picture = Image.new("RGB", over.size, "white")  # a new image has none of the old one's metadata
    picture.paste(over, mask=over if over.mode == "RGBA" else None)
    buffer = io.BytesIO()
    if tiny:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


# What is shown, and in which order.


@dataclass(frozen=True)
class _Group:
    """One group on the page: how large it is in all, and the rows that are shown."""

    number: int
    size: int
    farthest: float  # the largest distance in the group, as a share of the largest of the same stage anywhere
    stages: dict[str, int]  # dropped images by stage, the least sure last
    doubt: int  # how unsure its least sure stage is: the stage's position
    rows: list[dict[str, Any]]  # family by family: the image that stays, then those dropped for it


def _shown(groups: pa.Table, limit_groups: int, limit_images: int) -> list[_Group]:
    """The groups that fit on the page, largest first, with the rows of each that fit."""
    numbers, group, sizes = np.unique(groups["group"].to_numpy(), return_inverse=True, return_counts=True)
    dropped = ~groups["kept"].to_numpy()
    distance = np.nan_to_num(pc.fill_null(groups["distance"], 0.0).to_numpy().astype(np.float64))
    names = [*STAGES, *sorted(set(pc.unique(groups["stage"]).to_pylist()) - {None, *STAGES})]
    stage = pc.fill_null(pc.index_in(groups["stage"], pa.array(names, pa.string())), 0).to_numpy()
    _, family, members = np.unique(
        groups["kept_id"].dictionary_encode().combine_chunks().indices.to_numpy(),
        return_inverse=True,
        return_counts=True,
    )

    scale = np.maximum(_largest(distance, stage, len(names)), 1e-9)
    farthest = _largest(dropped * distance / scale[stage], group, len(numbers))
    rank = np.full(len(numbers), -1)
    chosen = _chosen(sizes, farthest, limit_groups)
    rank[chosen] = np.arange(len(chosen))

    rows = np.flatnonzero(rank[group] >= 0)
    # The last key counts most.
    keys = (-distance, -stage, dropped, family, -members[family], rank[group])
    rows = rows[np.lexsort([key[rows] for key in keys])]
    places, families = rank[group[rows]], family[rows]
    by_stage = np.zeros((len(chosen), len(names)), np.int64)
    np.add.at(by_stage, (places, stage[rows]), dropped[rows])
    # The places of a group go to its families in turn, two at first: alone, an image that stays says nothing.
    turns = np.maximum(_places_in_runs(families), 1)
    taken = np.lexsort((turns, places))
    rows = rows[np.sort(taken[_places_in_runs(places[taken]) < limit_images])]

    pages = groupby(groups.take(rows).to_pylist(), key=lambda row: row["group"])
    return [
        _Group(
            number=int(numbers[place]),
            size=int(sizes[place]),
            farthest=float(farthest[place]),
            stages={name: int(count) for name, count in zip(names, counted, strict=True) if count},
            doubt=int(np.flatnonzero(counted).max(initial=0)),
            rows=list(found),
        )
        for place, counted, (_, found) in zip(chosen, by_stage, pages, strict=True)
    ]


def _largest(values: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float64]:
    """The largest value under each of ``count`` labels, at least 0."""
    largest = np.zeros(count)
    np.maximum.at(largest, labels, values)
    return largest


def _places_in_runs(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Each item's place in its run of equal labels."""
    places = np.arange(len(labels))
    starts = np.where(np.diff(labels, prepend=-1) != 0, places, 0)
    return places - np.maximum.accumulate(starts)


def _chosen(sizes: npt.NDArray[np.int64], farthest: npt.NDArray[np.float64], limit: int) -> npt.NDArray[np.int64]:
    """The positions of the groups that fit on the page, largest first."""
    by_size = np.lexsort((-farthest, -sizes))
    if len(by_size) <= limit:
        return by_size
    largest, rest = np.split(by_size, [limit - limit // 2])
    doubtful = rest[np.lexsort((-sizes[rest], -farthest[rest]))][: limit // 2]
    return by_size[np.isin(by_size, np.concatenate([largest, doubtful]))]


# What the template is given.


def _group(group: _Group, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """One group for the template, family by family."""
    families = []
    for kept_id, rows in groupby(group.rows, key=lambda row: row["kept_id"]):
        images = [_image(row, pictures) for row in rows]
        known: list[str] = next((image["captions"] for image in images if image["kept"]), [])
        families.append({"kept_id": kept_id, "images": images, "known": known})
    return {
        "number": group.number,
        "size": group.size,
        "farthest": group.farthest,
        "stages": group.stages,
        "doubt": group.doubt,
        "stay": group.size - sum(group.stages.values()),
        "left_out": group.size - len(group.rows),
        "families": families,
    }


def _image(row: dict[str, Any], pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """One image for the template: its row and its picture."""
    data = pictures.get(row["id"])
    captions, merged = row["captions"] or [], row["merged_captions"] or []
    gained = set(captions) <= set(merged)
    return {
        **row,
        "distance": row["distance"] if math.isfinite(row["distance"] or 0) else None,  # JSON knows no NaN
        "captions": captions,
        "merged_captions": [caption for caption in merged if caption not in captions] if gained else merged,
        "merged_title": "gained from the dropped:" if gained else "captions after merging:",
        "picture": None if data is None else _data_uri(data),
        "tiny": max(row["width"] or 0, row["height"] or 0) <= TINY,
    }


def _data_uri(data: bytes) -> str:
    """PNG or JPEG bytes as a data URI."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    assert kind == "png" or data.startswith(b"\xff\xd8"), data[:8]
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _digest(groups: pa.Table) -> str:
    """SHA-256 over what is decided on: which image is kept for which."""
    seen = hashlib.sha256()
    for batch in groups.select(["id", "kept_id"]).to_batches():
        for pair in zip(batch["id"].to_pylist(), batch["kept_id"].to_pylist(), strict=True):
            seen.update(json.dumps(pair).encode())
    return seen.hexdigest()


def _environment() -> Environment:
    """HTML, every value escaped."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {"plain": _plain, "volume": _volume, "clip": _clip, "distance": _distance, "columns": _columns}
    made.globals |= {"units": UNITS, "listed": LISTED}
    return made


def _plain(value: Any) -> str:
    """A number or a word as text."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _volume(count: int) -> str:
    """A file's size in a unit that leaves few digits."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def _clip(text: str) -> str:
    """The beginning of a text that is too long for the page."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST:,} more characters)"


def _distance(row: Mapping[str, Any]) -> str:
    """How far a dropped image is from the one that is kept, in its stage's unit."""
    stage, distance = row["stage"], row["distance"]
    if stage in ("bytes", "pixels"):
        return f"same {stage}"
    if distance is None:
        return "distance unknown"
    if stage == "perceptual":
        return f"{distance:g} bit{'' if distance == 1 else 's'} apart"
    return f"{UNITS.get(stage, 'distance')} {distance:.3f}"


def _columns(table: Mapping[str, Any]) -> list[str]:
    """The heads over a table of counts, whose rows may be single numbers or counts by name."""
    heads = dict.fromkeys(key for row in table.values() if isinstance(row, Mapping) for key in row)
    return list(heads) or ["images"]


# CSV.


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV with the line on which each begins; empty lines are none."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}: line {line}: not a CSV ({error})") from None
