"""A tar, table or metadata file once more, with only the kept items and with merged captions."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unmem.mitigations.dedup.sources.batches import Groups, opened
from unmem.mitigations.dedup.sources.records import caption_field
from unmem.mitigations.dedup.sources.shard import Shard
from unmem.mitigations.dedup.sources.table import IMAGE_ROWS, Columns, row_ids
from unmem.mitigations.dedup.sources.tar import index_of, open_tar
from unmem.rundir import atomic, write_text
from unmem.train.metadata import named_image, read_records

GROUP_BYTES = 1 << 28  # of a row group that is written; it is held in memory

Captions = Mapping[str, Sequence[str]]


def as_text(captions: Sequence[str]) -> str:
    """Several captions as one text: one a line."""
    return "\n".join(" ".join(caption.splitlines()) for caption in captions)


def is_whole(base: Path, shards: Sequence[Shard], kept: Collection[str]) -> bool:
    """Whether a tar or parquet file would come out of a rewriting as it is: then its file may stand for the new one."""
    name = shards[0].files[0][0]
    if shards[0].layout == "tar":
        with open_tar(base / name) as tar:
            index = index_of(tar, name, shards[0].files[0][1])
        return not index.rejected and {f"{name}/{key}" for key in index.samples} == set(kept)
    if shards[0].layout == "arrow":
        return False
    with opened(base / name) as table:
        return sum(table.counts()) == len(kept)


def rewrite_tar(base: Path, shard: Shard, out: Path, kept: Collection[str], captions: Captions) -> list[str]:
    """Write the kept samples of a tar, each in one piece with its bytes unchanged, and its parquet's rows beside it.

    A sample's merged captions are its ``.txt``, one a line; its ``.json`` and the parquet keep the caption they had.

    Returns:
        The ids written.
    """
    name = shard.files[0][0]
    keys = {}
    with (
        atomic(out / name) as partial,
        open_tar(base / name) as tar,
        tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as new,
    ):
        for key, members in index_of(tar, name, shard.files[0][1]).samples.items():
            if f"{name}/{key}" in kept:
                keys[key] = f"{name}/{key}"
                _add_sample(tar, new, key, members, captions.get(keys[key]))
    for beside, _, _ in shard.files[1:]:
        _filter_beside(base / beside, out / beside, keys)
    return list(keys.values())


def rewrite_table(
    base: Path, shards: Sequence[Shard], out: Path, kept: Collection[str], captions: Captions, field: str | None
) -> list[str]:
    """Write the kept rows of a table as parquet, all columns, in the row groups or batches that they were in.

    Returns:
        The ids written.
    """
    name = shards[0].files[0][0]
    written: list[str] = []
    with opened(base / name) as table, atomic(target_of(out, shards[0])) as partial:
        columns = Columns.of(table.schema, shards[0].key, field)
        assert isinstance(columns, Columns), "a table without images makes no shard"
        with pq.ParquetWriter(partial, table.schema) as writer:
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


def target_of(out: Path, shard: Shard) -> Path:
    """Where a tar or table goes: to the same place, but Arrow becomes parquet."""
    path = out / shard.files[0][0]
    return path.with_suffix(".parquet") if shard.layout == "arrow" else path


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
        table = table.filter(pa.array([image in kept for image in images], pa.bool_()))
        batch = pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=table.schema)
        ids = [image for image in images if image in kept]
        batch = _with_captions(batch, ids, caption_field(batch.schema.names, field), captions)
        with atomic(target) as partial:
            pq.write_table(pa.Table.from_batches([batch]), partial)
        return
    rows = [dict(record) for _, record in read_records(path)]
    named = zip(images, rows, strict=True)
    chosen = [_with_caption(row, field, captions.get(image)) for image, row in named if image in kept]
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


def _add_sample(
    tar: tarfile.TarFile,
    new: tarfile.TarFile,
    key: str,
    members: Mapping[str, tarfile.TarInfo],
    captions: Sequence[str] | None,
) -> None:
    """Copy one sample from tar to tar; merged captions become its ``.txt``."""
    for ending, member in members.items():
        if ending != "txt" or not captions:
            new.addfile(member, tar.extractfile(member))
    if captions:
        raw = as_text(captions).encode()
        text = tarfile.TarInfo(f"{key}.txt")
        text.size, text.mtime = len(raw), next(iter(members.values())).mtime
        new.addfile(text, io.BytesIO(raw))


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


def _with_caption(record: dict[str, Any], field: str | None, captions: Sequence[str] | None) -> dict[str, Any]:
    """A metadata row with merged captions."""
    column = caption_field([name for name, value in record.items() if value], field)
    if captions and column is not None:
        record[column] = list(captions) if isinstance(record[column], list) else as_text(captions)
    return record


def _filter_beside(path: Path, target: Path, keys: Collection[str]) -> None:
    """Write the rows of the parquet beside a tar whose keys are kept; nothing where it is damaged or has no keys."""
    try:
        table = pq.read_table(path)
        kept = [str(key) in keys for key in table["key"].to_pylist()]
    except (OSError, ValueError, KeyError):  # Arrow's own errors are of these
        return
    table = table.filter(pa.array(kept, pa.bool_()))
    with atomic(target) as partial:
        pq.write_table(table, partial)
