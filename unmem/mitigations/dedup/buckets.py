"""Searches by "group by bucket": things that may be near share a key, and only those are compared.

Two phases. Filing: the keys of a block of things, split over partitions by key, a row group each in one file.
Matching: one partition of all files; every pair within a bucket that has a new thing is verified.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from numba import njit

from unmem.mitigations.dedup import bands, captions
from unmem.mitigations.dedup.search import Edges, Phase, write_edges
from unmem.mitigations.dedup.union_find import UnionFind
from unmem.rundir import atomic

FILED = 2**20  # keys that one task files, about
ENTRIES = 2**20  # keys that one partition holds, about
CANDIDATES = 2**20  # pairs verified at once


@dataclass(frozen=True)
class HashBuckets:
    """Hashes that agree in a band, without loss (see :mod:`unmem.mitigations.dedup.bands`).

    Attributes:
        arrays: folder with ``codes.npy`` uint64 [n, w].
        max_distance: in bits.
        partitions: of the keys; fixed when a search begins.
    """

    arrays: Path
    max_distance: int
    partitions: int
    name: str = "perceptual"

    def inputs(self) -> Mapping[str, Any]:
        """See :class:`unmem.mitigations.dedup.search.Method`."""
        return {"method": "bands", "max_distance": self.max_distance, "partitions": self.partitions}

    def phases(self, known: int, size: int, folder: Path, earlier: Sequence[Path]) -> Iterator[Phase]:
        """See :class:`unmem.mitigations.dedup.search.Method`."""
        return _phases(self, known, size, folder, earlier)

    def keys(self, start: int, stop: int) -> npt.NDArray[np.uint64]:
        """uint64 [n, k]: the keys under which things ``start`` to ``stop`` are filed."""
        return bands.bucket_keys(np.array(self._codes[start:stop]), self.max_distance)

    def verified(self, pairs: Edges) -> npt.NDArray[np.bool_]:
        """Which candidates are within the distance."""
        codes = self._codes
        left, right = np.array(codes[pairs[:, 0]]), np.array(codes[pairs[:, 1]])
        near: npt.NDArray[np.bool_] = np.bitwise_count(left ^ right).sum(axis=1) <= self.max_distance
        return near

    @property
    def _codes(self) -> npt.NDArray[np.uint64]:
        codes: npt.NDArray[np.uint64] = np.load(self.arrays / "codes.npy", mmap_mode="r")
        return codes


@dataclass(frozen=True)
class CaptionBuckets:
    """Captions whose MinHash signatures agree in a band.

    Attributes:
        arrays: folder with ``texts.arrow``, the distinct captions.
        threshold: the least Jaccard similarity of a pair.
        partitions: of the keys; fixed when a search begins.
    """

    arrays: Path
    threshold: float
    partitions: int
    name: str = "captions"

    def inputs(self) -> Mapping[str, Any]:
        """See :class:`unmem.mitigations.dedup.search.Method`."""
        return {"threshold": self.threshold, "partitions": self.partitions}

    def phases(self, known: int, size: int, folder: Path, earlier: Sequence[Path]) -> Iterator[Phase]:
        """See :class:`unmem.mitigations.dedup.search.Method`."""
        return _phases(self, known, size, folder, earlier)

    def keys(self, start: int, stop: int) -> npt.NDArray[np.uint64]:
        """uint64 [n, k]: the keys under which things ``start`` to ``stop`` are filed."""
        texts = read_texts(self.arrays / "texts.arrow").slice(start, stop - start).to_pylist()
        return captions.bucket_keys(captions.signatures(texts), captions.choose_bands(self.threshold))

    def verified(self, pairs: Edges) -> npt.NDArray[np.bool_]:
        """Which candidates reach the threshold."""
        things, compact = np.unique(pairs, return_inverse=True)
        texts = read_texts(self.arrays / "texts.arrow").take(pa.array(things)).to_pylist()
        return captions.verify(texts, compact.reshape(-1, 2), threshold=self.threshold) >= self.threshold


def partitions_for(entries: int) -> int:
    """How many partitions hold this many keys."""
    return max(1, -(-entries // ENTRIES))


def write_texts(path: Path, texts: Iterator[list[str]]) -> None:
    """Write distinct captions in batches, for random access."""
    schema = pa.schema([("text", pa.large_string())])
    with atomic(path) as partial, pyarrow.ipc.new_file(str(partial), schema) as out:
        for batch in texts:
            out.write_batch(pa.record_batch([pa.array(batch, pa.large_string())], schema))


def read_texts(path: Path) -> pa.ChunkedArray:
    """Distinct captions, memory-mapped."""
    return pyarrow.ipc.open_file(pa.memory_map(str(path))).read_all()["text"]


@dataclass(frozen=True)
class Filing:
    """Things to file by key.

    Attributes:
        method: gives the keys.
        start: the first thing.
        stop: after the last.
        path: where the filed keys go.
    """

    method: HashBuckets | CaptionBuckets
    start: int
    stop: int
    path: Path


@dataclass(frozen=True)
class Matching:
    """One partition to compare.

    Attributes:
        method: verifies candidates.
        files: all filed keys.
        partition: which row group of each.
        known: things below this number have been compared with each other.
        path: where the pairs go.
    """

    method: HashBuckets | CaptionBuckets
    files: tuple[Path, ...]
    partition: int
    known: int
    path: Path


def _phases(
    method: HashBuckets | CaptionBuckets, known: int, size: int, folder: Path, earlier: Sequence[Path]
) -> Iterator[Phase]:
    """Filing, then matching."""
    block = max(1, FILED // method.keys(0, 0).shape[1])
    filings = [
        Filing(method, start, min(start + block, size), folder / "keys" / f"{start:012}.parquet")
        for start in range(known, size, block)
    ]
    yield Phase(f"file {method.name}", file, filings)
    before = sorted(path for other in earlier for path in (other / "keys").glob("*.parquet"))
    files = (*before, *(filing.path for filing in filings))
    matchings = [
        Matching(method, files, partition, known, folder / "edges" / f"{partition:06}.parquet")
        for partition in range(method.partitions)
    ]
    yield Phase(f"compare {method.name}", match, matchings)


def file(task: Filing) -> None:
    """Write the keys of some things, a row group for each partition."""
    keys = task.method.keys(task.start, task.stop)
    things = np.repeat(np.arange(task.start, task.stop), keys.shape[1])
    flat = keys.reshape(-1)
    partition = flat % np.uint64(task.method.partitions)
    order = np.lexsort((things, flat, partition))
    cuts = np.searchsorted(partition[order], np.arange(task.method.partitions + 1))
    schema = pa.schema([("key", pa.uint64()), ("thing", pa.int64())])
    with atomic(task.path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as out:
        for chosen in np.split(order, cuts[1:-1]):
            out.write_table(pa.table([flat[chosen], things[chosen]], schema), row_group_size=max(1, len(chosen)))


def match(task: Matching) -> None:
    """Write a spanning forest of the pairs of one partition."""
    tables = [pq.ParquetFile(path).read_row_group(task.partition) for path in task.files]
    keys = np.concatenate([np.empty(0, np.uint64), *(table["key"].to_numpy() for table in tables)])
    things = np.concatenate([np.empty(0, np.int64), *(table["thing"].to_numpy() for table in tables)])
    order = np.lexsort((things, keys))
    keys, things = keys[order], things[order]
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(keys)) + 1, [len(keys)]])
    starts, stops = cuts[:-1], cuts[1:]
    shared = stops - starts > 1
    shared[shared] = things[stops[shared] - 1] >= task.known
    write_edges(task.path, _verified_forest(task.method, things, starts[shared], stops[shared], task.known))


def _verified_forest(
    method: HashBuckets | CaptionBuckets, things: Edges, starts: Edges, stops: Edges, known: int
) -> Edges:
    """A spanning forest of the verified pairs within buckets; what is linked already is not compared again."""
    numbers, compact = np.unique(things, return_inverse=True)
    new = numbers >= known
    union = UnionFind(len(numbers))
    buffer = np.empty((max(CANDIDATES, int((stops - starts).max(initial=0))), 2), np.int64)
    bucket, row = 0, 0
    while bucket < len(starts):
        bucket, row, filled = _fill(compact, starts, stops, new, union.labels(), bucket, row, buffer)
        pairs = np.unique(buffer[:filled], axis=0)
        union.add(pairs[method.verified(numbers[pairs])] if len(pairs) else pairs)
    labels = union.labels()
    linked = np.flatnonzero(labels != np.arange(len(numbers)))
    return np.stack([numbers[labels[linked]], numbers[linked]], axis=1)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _fill(
    things: Edges,
    starts: Edges,
    stops: Edges,
    new: npt.NDArray[np.bool_],
    linked: Edges,
    bucket: int,
    row: int,
    buffer: Edges,
) -> tuple[int, int, int]:
    """Write candidates from (bucket, row) on; a row is written whole, or the buffer is given back first."""
    filled = 0
    while bucket < len(starts):
        start, stop = starts[bucket], stops[bucket]
        for i in range(start + row, stop):
            if filled + stop - i > len(buffer):
                return bucket, i - start, filled
            for j in range(i + 1, stop):
                if new[things[j]] and linked[things[i]] != linked[things[j]]:
                    buffer[filled, 0], buffer[filled, 1] = things[i], things[j]
                    filled += 1
        bucket, row = bucket + 1, 0
    return bucket, row, filled
