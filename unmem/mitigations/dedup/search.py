"""Searches as independent tasks on files: resumed task by task, and extended when items are added.

Every search works on numbered things (distinct hashes, distinct captions, embedded images), compares the new ones
with each other and with those known from earlier generations, and leaves a spanning forest of its pairs: at most one
edge for each thing and task, however many duplicates there are.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from unmem import progress
from unmem.mitigations.dedup import embedding, hamming
from unmem.mitigations.dedup.engine import Engine
from unmem.mitigations.dedup.union_find import UnionFind
from unmem.rundir import atomic, digest, read_json, write_json

BLOCK = 2**17  # hashes a side of a tile: minutes of work at most, megabytes of memory
VECTORS = 2**14  # vectors a side of a tile

Edges = npt.NDArray[np.int64]


class Method(Protocol):
    """How one kind of thing is searched."""

    @property
    def name(self) -> str:
        """The folder of its files."""

    def inputs(self) -> Mapping[str, Any]:
        """All settings that the pairs depend on."""

    def phases(self, known: int, size: int, folder: Path, earlier: Sequence[Path]) -> Iterator[Phase]:
        """The tasks that find the pairs with at least one thing numbered ``known`` or higher.

        Args:
            known: things that earlier generations compared with each other.
            size: things in all.
            folder: of this generation; the last phase's results below ``edges/`` are the pairs.
            earlier: the folders of the earlier generations.
        """


@dataclass(frozen=True)
class Phase:
    """Tasks that may run side by side, each leaving one file.

    Attributes:
        label: for the progress bar.
        work: does a task.
        tasks: each has a ``path``, which exists when it is done.
    """

    label: str
    work: Callable[[Any], Any]
    tasks: Sequence[Any]


def search(method: Method, size: int, tables: Sequence[str], root: Path, engine: Engine) -> Edges:
    """A spanning forest of all pairs, from files where an earlier run left them.

    Args:
        method: what is searched, and how.
        size: how many things there are.
        tables: names of the signature tables that the things come from, in order. Where an earlier search covered
            the first of them, only the rest is new.
        root: folder for this and other searches.
        engine: runs the tasks.
    """
    folder = root / method.name
    record = _record(folder, method.inputs(), tables)
    if record["tables"] != list(tables) or record["size"] != size:
        name = f"generation-{digest([*tables, size])[:16]}"
        earlier = [folder / done for done in record["generations"]]
        for phase in method.phases(record["size"], size, folder / name, earlier):
            if not phase.tasks:
                continue
            left = [task for task in phase.tasks if not task.path.exists()]
            with progress.track(phase.label, len(phase.tasks), "tasks", len(phase.tasks) - len(left)) as advance:
                for _ in engine.run(phase.work, left):
                    advance(1)
        record |= {"tables": list(tables), "size": size, "generations": [*record["generations"], name]}
        write_json(folder / "record.json", record)
    files = sorted(file for done in record["generations"] for file in (folder / done / "edges").glob("*.parquet"))
    return np.concatenate([np.empty((0, 2), np.int64), *map(read_edges, files)])


def _record(folder: Path, inputs: Mapping[str, Any], tables: Sequence[str]) -> dict[str, Any]:
    """What earlier generations covered; nothing where settings or tables changed."""
    fresh: dict[str, Any] = {"inputs": dict(inputs), "tables": [], "size": 0, "generations": []}
    file = folder / "record.json"
    if file.exists():
        record: dict[str, Any] = read_json(file)
        if record["inputs"] == fresh["inputs"] and record["tables"] == list(tables[: len(record["tables"])]):
            return record
        shutil.rmtree(folder)
    write_json(file, fresh)
    return fresh


def write_edges(path: Path, edges: Edges) -> None:
    """Write pairs of numbers, whole or not at all."""
    with atomic(path) as partial:
        pq.write_table(pa.table({"left": edges[:, 0], "right": edges[:, 1]}), partial, compression="zstd")


def read_edges(path: Path) -> Edges:
    """int64 [m, 2]: pairs of numbers."""
    table = pq.read_table(path)
    return np.stack([table["left"].to_numpy(), table["right"].to_numpy()], axis=1)


@dataclass(frozen=True)
class Tile:
    """A rectangle of the matrix of all pairs.

    Attributes:
        arrays: folder with the things themselves.
        limit: the largest distance.
        rows: from, to.
        columns: from, to; the same as ``rows`` on the diagonal.
        path: where the pairs go.
    """

    arrays: Path
    limit: float
    rows: tuple[int, int]
    columns: tuple[int, int]
    path: Path


def tiles(arrays: Path, limit: float, known: int, size: int, block: int, folder: Path) -> list[Tile]:
    """The tiles that hold every pair with at least one new thing, once."""
    old = [(start, min(start + block, known)) for start in range(0, known, block)]
    new = [(start, min(start + block, size)) for start in range(known, size, block)]
    chosen = [(a, b) for b in new for a in [*old, *new] if a <= b]
    return [Tile(arrays, limit, a, b, folder / "edges" / f"{a[0]:012}-{b[0]:012}.parquet") for a, b in chosen]


@dataclass(frozen=True)
class HashTiles:
    """Exhaustive comparison of hashes.

    Attributes:
        arrays: folder with ``codes.npy`` uint64 [n, w] and, where flips and turns count, ``turned.npy`` [n, 8, w].
        max_distance: in bits.
        dihedral: whether ``turned.npy`` is there.
    """

    arrays: Path
    max_distance: int
    dihedral: bool
    name: str = "perceptual"

    def inputs(self) -> Mapping[str, Any]:
        """See :class:`Method`."""
        return {"method": "tiles", "max_distance": self.max_distance, "dihedral": self.dihedral}

    def phases(self, known: int, size: int, folder: Path, earlier: Sequence[Path]) -> Iterator[Phase]:
        """See :class:`Method`."""
        work = match_turned if self.dihedral else match_hashes
        yield Phase("compare hashes", work, tiles(self.arrays, self.max_distance, known, size, BLOCK, folder))


@dataclass(frozen=True)
class VectorTiles:
    """Exhaustive comparison of embeddings.

    Attributes:
        arrays: folder with ``vectors.npy`` float32 [n, d], rows of length 1.
        max_distance: cosine distance.
        model: what made the vectors.
    """

    arrays: Path
    max_distance: float
    model: str
    name: str = "embedding"

    def inputs(self) -> Mapping[str, Any]:
        """See :class:`Method`."""
        return {"max_distance": self.max_distance, "model": self.model}

    def phases(self, known: int, size: int, folder: Path, earlier: Sequence[Path]) -> Iterator[Phase]:
        """See :class:`Method`."""
        chosen = tiles(self.arrays, self.max_distance, known, size, VECTORS, folder)
        yield Phase("compare embeddings", match_vectors, chosen)


def match_hashes(tile: Tile) -> None:
    """Find the pairs of one tile of hashes."""
    codes = np.load(tile.arrays / "codes.npy", mmap_mode="r")
    rows = np.array(codes[slice(*tile.rows)])
    if tile.rows == tile.columns:
        edges = hamming.forest(rows, int(tile.limit), threads=1) + tile.rows[0]
    else:
        columns = np.array(codes[slice(*tile.columns)])
        edges = hamming.forest_between(rows, columns, int(tile.limit), threads=1)
        edges = edges + np.array([tile.rows[0], tile.columns[0]])
    write_edges(tile.path, edges)


def match_turned(tile: Tile) -> None:
    """Find the pairs of one tile of hashes, each against the eight turned ones of the other."""
    codes, turned = (np.load(tile.arrays / name, mmap_mode="r") for name in ("codes.npy", "turned.npy"))
    found = []
    # turning the one is not the same as turning the other back: bits that lie at the median may differ
    for a, b in {(tile.rows, tile.columns), (tile.columns, tile.rows)}:
        variants = np.array(turned[slice(*a)]).reshape(-1, codes.shape[1])
        edges = hamming.forest_between(variants, np.array(codes[slice(*b)]), int(tile.limit), threads=1)
        found.append(edges // np.array([8, 1]) + np.array([a[0], b[0]]))
    edges = np.concatenate(found)
    write_edges(tile.path, spanning(edges[edges[:, 0] != edges[:, 1]]))


def match_vectors(tile: Tile) -> None:
    """Find the pairs of one tile of embeddings."""
    vectors = np.load(tile.arrays / "vectors.npy", mmap_mode="r")
    rows = np.array(vectors[slice(*tile.rows)])
    if tile.rows == tile.columns:
        pairs = embedding.within(rows, tile.limit)
    else:
        pairs = embedding.between(rows, np.array(vectors[slice(*tile.columns)]), tile.limit)
    edges = np.stack([pairs.left + tile.rows[0], pairs.right + tile.columns[0]], axis=1)
    write_edges(tile.path, spanning(edges))


def spanning(edges: Edges) -> Edges:
    """A spanning forest: each thing linked to the smallest of its component, which is at most one edge a thing."""
    things, compact = np.unique(edges, return_inverse=True)
    union = UnionFind(len(things))
    union.add(compact.reshape(-1, 2).astype(np.int64))
    labels = union.labels()
    linked = np.flatnonzero(labels != np.arange(len(things)))
    return np.stack([things[labels[linked]], things[linked]], axis=1).reshape(-1, 2)
