"""The matrix on disk: shards of images, each with one array [images, columns] a reading, and a manifest of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unmem.component import UserError
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.rows import Rows
from unmem.rundir import read_arrays, read_json, write_json

SHARD = 1024  # images a file: what a killed run has to ask again


@dataclass(frozen=True)
class Shard:
    """Some images of a group."""

    group: str
    start: int
    stop: int
    number: int

    def __len__(self) -> int:
        return self.stop - self.start

    def file(self, directory: Path) -> Path:
        """Where it lies."""
        return directory / f"{self.group}-{self.number:05d}.npz"


def shards_of(sizes: dict[str, int], most: int = SHARD) -> Iterator[Shard]:
    """All shards of all groups."""
    for group, size in sizes.items():
        for number, start in enumerate(range(0, size, most)):
            yield Shard(group, start, min(start + most, size), number)


def write_manifest(directory: Path, readings: Iterable[Reading], sizes: dict[str, int]) -> None:
    """Say what the shards hold: readings by key, and how many images each group has."""
    plain = {reading.key: reading.as_json() for reading in readings}
    write_json(directory / "manifest.json", {"readings": plain, "groups": sizes, "shard": SHARD})


def read(directory: Path, reading: Reading) -> Rows:
    """float32 [images, columns] of every group.

    Raises:
        UserError: when the reading was not taken there, or a shard is missing or damaged.
    """
    manifest = read_json(directory / "manifest.json")
    if reading.key not in manifest["readings"]:
        raise UserError(f"{directory / 'manifest.json'}: holds no reading {reading.as_json()}")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in manifest["groups"]}
    for shard in shards_of(manifest["groups"], manifest["shard"]):
        file = shard.file(directory)
        try:
            parts[shard.group].append(read_arrays(file, reading.key)[reading.key])
        except (KeyError, UserError) as error:
            problem = "is missing or damaged" if isinstance(error, UserError) else f"holds no reading {reading.key}"
            raise UserError(f"{file}: {problem}; remove the folder {directory} to take it again") from None
    return Rows(**{name: np.concatenate(arrays) for name, arrays in parts.items() if arrays})
