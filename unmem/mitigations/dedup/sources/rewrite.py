"""A tar, table or metadata file once more, with only the kept items and with merged captions."""

from __future__ import annotations

import copy
import csv
import io
import json
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unmem.mitigations.dedup.sources.batches import Groups, opened
from unmem.mitigations.dedup.sources.records import MAX_TEXT, caption_field, parse
from unmem.mitigations.dedup.sources.shard import Shard
from unmem.mitigations.dedup.sources.table import IMAGE_ROWS, Columns, row_ids
from unmem.mitigations.dedup.sources.tar import IMAGES, index_of, open_tar, payload
from unmem.rundir import atomic, write_text
from unmem.train.imageset import Rejected
from unmem.train.metadata import named_image, read_records

GROUP_BYTES = 1 << 28  # of a row group that is written; it is held in memory

_WRITERS = {"parquet": pq.ParquetWriter, "arrow": pa.ipc.new_stream}

Captions = Mapping[str, Sequence[str]]


def as_text(captions: Sequence[str]) -> str:
    """Several captions as one text: one a line."""
    return "\n".join(" ".join(caption.splitlines()) for caption in captions)


def is_whole(base: Path, shards: Sequence[Shard], kept: Collection[str]) -> bool:
    """Whether a tar or table would come out of a rewriting as it is: then its file may stand for the new one."""
    name = shards[0].files[0][0]
    if shards[0].layout == "tar":
        with open_tar(base / name) as tar:
            index = index_of(tar, name, shards[0].files[0][1])
        return not index.rejected and {f"{name}/{key}" for key in index.samples} == set(kept)
    with opened(base / name) as table:
        counts = table.counts()
        return sum(counts) == len(kept) and 0 not in counts  # 0: a group that is damaged


def rewrite_tar(
    base: Path, shard: Shard, out: Path, kept: Collection[str], captions: Captions, field: str | None
) -> list[str]:
    """Write the kept samples of a tar, each in one piece with its bytes unchanged, and its parquet's rows beside it.

    A sample's merged captions take the place of the caption in its text member, in its ``.json`` and in its parquet
    row; where there is none, a text member is made.

    Args:
        base: the folder that the data's relative paths start from.
        shard: the tar.
        out: the folder to write below.
        kept: the ids of the samples to keep.
        captions: what replaces the captions of some samples, by id.
        field: the text member's ending, JSON field and column of captions; None takes ``.txt`` and the usual fields.

    Returns:
        The ids written.
    """
    name = shard.files[0][0]
    written = {}
    columns: list[str] = []
    for beside, _, _ in shard.files[1:]:
        columns += _columns(base / beside)
    in_row = "key" in columns and field_beside(columns, field) is not None
    with (
        atomic(out / name) as partial,
        open_tar(base / name) as tar,
        tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as new,
    ):
        for key, members in index_of(tar, name, shard.files[0][1]).samples.items():
            identity = f"{name}/{key}"
            if identity in kept:
                written[key] = identity
                _add_sample(tar, new, key, members, captions.get(identity), field, in_row=in_row)
    for beside, _, _ in shard.files[1:]:
        _rewrite_beside(base / beside, out / beside, written, captions, field)
    return list(written.values())


def rewrite_table(
    base: Path, shards: Sequence[Shard], out: Path, kept: Collection[str], captions: Captions, field: str | None
) -> list[str]:
    """Write the kept rows of a table in its own format, all columns, in the row groups or batches that they were in.

    Returns:
        The ids written.
    """
    name = shards[0].files[0][0]
    written: list[str] = []
    with opened(base / name) as table, atomic(out / name) as partial:
        columns = Columns.of(table.schema, shards[0].key, field)
        assert isinstance(columns, Columns), "a table without images makes no shard"
        with _WRITERS[table.layout](str(partial), table.schema) as writer:
            first = 0
            for group, count in enumerate(table.counts()):
                parts: list[pa.RecordBatch] = []
                row = first
                for batch in _readable(table, group):
                    ids = row_ids(name, batch, row, columns.key)
                    chosen = batch.filter(pa.array([identity in kept for identity in ids], pa.bool_()))
                    ids = [identity for identity in ids if identity in kept]
                    parts.append(_with_captions(chosen, ids, columns.caption, captions))
                    written += ids
                    row += batch.num_rows
                    if sum(part.nbytes for part in parts) > GROUP_BYTES:
                        writer.write_table(pa.Table.from_batches(parts, table.schema))
                        parts = []
                if any(part.num_rows for part in parts):
                    writer.write_table(pa.Table.from_batches(parts, table.schema))
                first += count
    return written


def rewrite_metadata(
    path: Path, name: str, target: Path, kept: Collection[str], captions: Captions, field: str | None
) -> None:
    """Write a metadata file's rows of kept images; merged captions are one text, one a line.

    Args:
        path: the metadata file.
        name: its relative posix path, which the images' names are relative to.
        target: the file to write.
        kept: the images' relative posix paths.
        captions: what replaces the captions of some images.
        field: the column of captions; None takes the usual ones.
    """
    images = [named_image(name, record) for _, record in read_records(path)]
    if name.endswith(".parquet"):
        table = pq.read_table(path)
        table = _kept_rows(table, images, kept, captions, caption_field(table.schema.names, field))
        with atomic(target) as partial:
            pq.write_table(table, partial)
        return
    rows = [dict(record) for _, record in read_records(path)]
    named = zip(images, rows, strict=True)
    chosen = [
        _with_caption(row, caption_field(_filled(row), field), captions.get(image))
        for image, row in named
        if image in kept
    ]
    if name.endswith(".jsonl"):
        write_text(target, "".join(json.dumps(record) + "\n" for record in chosen))
        return
    text = io.StringIO()
    columns = [name for name in rows[0] if name is not None] if rows else ["file_name"]  # None: cells past the header
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(chosen)
    with atomic(target) as partial:
        partial.write_bytes(text.getvalue().encode())


def merged_json(name: str, raw: bytes, captions: Sequence[str], field: str | None) -> bytes | None:
    """A JSON side file with merged captions for its caption; None where it is damaged or has none."""
    record = parse(name, "json", raw)
    if isinstance(record, Rejected):
        return None
    column = field_beside(_filled(record), field)
    return None if column is None else json.dumps(_with_caption(dict(record), column, captions)).encode()


def field_beside(names: Iterable[str], field: str | None) -> str | None:
    """The field of captions beside texts: ``txt`` asks for what the ``.txt`` says, which is in the usual fields."""
    present = set(names)
    return caption_field(present, field) or (caption_field(present, None) if field == "txt" else None)


def _add_sample(
    tar: tarfile.TarFile,
    new: tarfile.TarFile,
    key: str,
    members: Mapping[str, tarfile.TarInfo],
    captions: Sequence[str] | None,
    field: str | None,
    *,
    in_row: bool,
) -> None:
    """Copy one sample from tar to tar, in order; merged captions replace the others, which may be in a row, too."""
    if not captions:
        for member in members.values():
            new.addfile(member, tar.extractfile(member))
        return
    ending = "txt" if field is None or field in IMAGES or field == "json" else field
    replaced = {ending: as_text(captions).encode()}
    side = members.get("json")
    if side is not None and side.size <= MAX_TEXT:
        raw = merged_json(side.name, payload(tar, side), captions, field)
        if raw is not None:
            replaced["json"] = raw
    for name, member in members.items():
        if name in replaced:
            _add_bytes(new, copy.copy(member), replaced[name])
        else:
            new.addfile(member, tar.extractfile(member))
    if ending not in members and "json" not in replaced and not in_row:
        text = tarfile.TarInfo(f"{key}.{ending}")
        text.mtime = next(iter(members.values())).mtime
        _add_bytes(new, text, replaced[ending])


def _add_bytes(new: tarfile.TarFile, member: tarfile.TarInfo, raw: bytes) -> None:
    """Add a member with this content."""
    member.size = len(raw)
    new.addfile(member, io.BytesIO(raw))


def _readable(table: Groups, group: int) -> Iterator[pa.RecordBatch]:
    """A group's rows up to where it is damaged: what lies behind was rejected when it was read."""
    try:
        yield from table.batches(group, table.schema.names, IMAGE_ROWS)
    except (OSError, ValueError):
        return


def _with_captions(batch: pa.RecordBatch, ids: list[str], column: str | None, captions: Captions) -> pa.RecordBatch:
    """The rows with merged captions in the column of captions, in its own type."""
    if column is None or not any(identity in captions for identity in ids):
        return batch
    place = batch.schema.names.index(column)
    kind = batch.schema.field(place).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    values: list[Any] = batch.column(place).to_pylist()
    for i, identity in enumerate(ids):
        if identity in captions:
            values[i] = list(captions[identity]) if is_list else as_text(captions[identity])
    return batch.set_column(place, batch.schema.field(place), pa.array(values, kind))


def _with_caption(record: dict[str, Any], column: str | None, captions: Sequence[str] | None) -> dict[str, Any]:
    """A record with merged captions."""
    if captions and column is not None:
        record[column] = list(captions) if isinstance(record[column], list) else as_text(captions)
    return record


def _filled(record: Mapping[str, Any]) -> list[str]:
    """The fields that are not empty."""
    return [name for name, value in record.items() if value]


def _kept_rows(
    table: pa.Table, ids: Sequence[str], kept: Collection[str], captions: Captions, column: str | None
) -> pa.Table:
    """The rows whose ids are kept, with merged captions."""
    table = table.filter(pa.array([identity in kept for identity in ids], pa.bool_()))
    batch = pa.RecordBatch.from_arrays([part.combine_chunks() for part in table.columns], schema=table.schema)
    return pa.Table.from_batches([_with_captions(batch, [name for name in ids if name in kept], column, captions)])


def _columns(path: Path) -> list[str]:
    """The columns of a parquet file; none where it is damaged."""
    try:
        return list(pq.read_schema(path).names)
    except (OSError, ValueError):  # Arrow's own errors are of these
        return []


def _rewrite_beside(
    path: Path, target: Path, written: Mapping[str, str], captions: Captions, field: str | None
) -> None:
    """Write the rows of the parquet beside a tar whose keys were written; no file if damaged or without keys."""
    try:
        table = pq.read_table(path)
        ids = [written.get(str(key), "") for key in table["key"].to_pylist()]
    except (OSError, ValueError, KeyError):  # Arrow's own errors are of these
        target.unlink(missing_ok=True)
        return
    table = _kept_rows(table, ids, frozenset(written.values()), captions, field_beside(table.schema.names, field))
    with atomic(target) as partial:
        pq.write_table(table, partial)
