"""The embeddings of all images: shard by shard, then one array."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from unmem import progress
from unmem.mitigations.dedup import embedding
from unmem.mitigations.dedup.engine import Engine
from unmem.mitigations.dedup.signatures import Signing
from unmem.mitigations.dedup.sources import Shard, read
from unmem.rundir import atomic, digest, write_array
from unmem.train.decode import open_rgb
from unmem.train.imageset import Rejected


@dataclass(frozen=True)
class EmbedTask:
    """One shard to embed.

    Attributes:
        data: the data set.
        shard: the part of it.
        signing: how its images are opened.
        table: its signatures; their rows are the vectors' rows.
        model: see :func:`unmem.mitigations.dedup.embedding.load`.
        folder: the job's.
    """

    data: Path
    shard: Shard
    signing: Signing
    table: Path
    model: str
    folder: Path

    @property
    def path(self) -> Path:
        """Where the vectors go."""
        return self.folder / "embeddings" / identity(self.model)[:12] / f"{self.table.stem}.npy"


def embed(task: EmbedTask) -> None:
    """Write float32 [rows, d], of length 1 each, for one shard."""
    wanted = set(pq.read_table(task.table, columns=["id"])["id"].to_pylist())
    vectors = embedding.embed(_images(task, wanted), _model(task.model))
    write_array(task.path, vectors)


def gather(tasks: Sequence[EmbedTask], path: Path, engine: Engine) -> npt.NDArray[np.float32]:
    """Embed what is not embedded yet; all vectors in one memory-mapped array, float32 [n, d]."""
    left = [task for task in tasks if not task.path.exists()]
    with progress.track("embed", len(tasks), "shards", len(tasks) - len(left)) as advance:
        for _ in engine.run(embed, left):
            advance(1)
    parts = [np.load(task.path, mmap_mode="r") for task in tasks]
    rows, width = sum(map(len, parts)), max((part.shape[1] for part in parts if len(part)), default=1)
    with atomic(path) as partial:
        out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(rows, width))
        start = 0
        for part in parts:
            if len(part):
                out[start : start + len(part)] = part
            start += len(part)
        out.flush()
        del out
    vectors: npt.NDArray[np.float32] = np.load(path, mmap_mode="r")
    return vectors


def identity(spec: str) -> str:
    """What tells a model from others: its name, and size and time of change of every file that it names."""
    named = [Path(part) for part in re.split(r"[:?]", spec)]
    files = [file for path in named if path.exists() for file in ([path] if path.is_file() else sorted(path.iterdir()))]
    return digest([spec, *([str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files)])


@lru_cache(maxsize=1)
def _model(spec: str) -> embedding.Embed:
    """The model, loaded once a process."""
    return embedding.load(spec)


def _images(task: EmbedTask, wanted: set[str]) -> Iterator[Image.Image]:
    """The images of a table's rows."""
    for item in read(task.data, task.shard, captions=task.signing.captions):
        if not isinstance(item, Rejected) and item.id in wanted:
            assert item.image is not None
            opened = open_rgb(item.image, as_stored=task.signing.as_stored)
            assert not isinstance(opened, str), "the image was opened when it was signed"
            yield opened.image
