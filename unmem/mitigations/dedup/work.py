"""The state of a deduplication job in its directory: settings, shards, signatures, searches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from unmem import progress
from unmem.component import UserError
from unmem.mitigations.dedup.engine import Engine
from unmem.mitigations.dedup.outcome import Choice
from unmem.mitigations.dedup.search import Method, search
from unmem.mitigations.dedup.signatures import Signing, SignTask, is_whole, rejected_in, sign
from unmem.mitigations.dedup.sources import Shard, plan
from unmem.rundir import first_difference, read_json, write_array, write_json
from unmem.train.imageset import Rejected

OPTIONS = {  # what a user calls the fields of Signing that have another name there
    "scaled": "--decode scaled",
    "as_stored": "--as-imagededup",
    "sharpness": "--keep sharpest",
    "encoding_map": "--read-encoding-map",
    "encoding_map_digest": "the content of --read-encoding-map",
}
FILES = 256  # loose images in a shard: enough work for a task, and enough tasks for a laptop folder


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What counts as a duplicate, and who stays.

    Attributes:
        signing: what is computed of each item.
        max_distance: of perceptual hashes, in bits; None chooses it from the number of images and their hashes.
        method: compare all hashes (``tiles``) or those that share a band (``bands``, 256 bits); the pairs are the same.
        jaccard: the least similarity of two near captions, above 0, at most 1.
        embed: an embedding model (see :func:`unmem.mitigations.dedup.embedding.load`), or None.
        embed_distance: cosine distance within which two embeddings are duplicates.
        drop: ``image`` drops images whatever their captions; ``both`` only where a caption is near, too.
        choice: who stays.
    """

    signing: Signing = field(default_factory=Signing)
    max_distance: int | None = None
    method: Literal["auto", "tiles", "bands"] = "auto"
    jaccard: float = 0.8
    embed: str | None = None
    embed_distance: float = 0.25
    drop: Literal["image", "both"] = "image"
    choice: Choice = field(default_factory=Choice)


@dataclass(frozen=True)
class Source:
    """One signed data set.

    Attributes:
        data: where it lies.
        shards: its parts.
        tables: their signature tables.
        rejected: what could not be used, and why.
    """

    data: Path
    shards: tuple[Shard, ...]
    tables: tuple[Path, ...]
    rejected: tuple[Rejected, ...]


class Work:
    """The state of a job in one directory."""

    def __init__(self, out: Path, settings: Settings, engine: Engine) -> None:
        """Claim the directory.

        Raises:
            UserError: when it holds signatures of another kind.
        """
        self.folder, self.settings, self.engine = out / "work", settings, engine
        file = self.folder / "signing.json"
        signing = asdict(settings.signing)
        if file.exists() and (old := read_json(file)) != signing:
            name, difference = first_difference(old, signing).split(" ", 1)
            raise UserError(
                f"{out}: holds signatures of another kind ({OPTIONS.get(name, f'--{name}')} {difference}); "
                f"take another --out, or remove {self.folder}"
            )
        write_json(file, signing)

    def sign(self, data: Path, name: str) -> Source:
        """Sign all shards that are not signed yet."""
        manifest = self.folder / f"{name}.json"
        known = _shards(manifest) if manifest.exists() else []
        shards, rejected = plan(data, known, files_per_shard=FILES, captions=self.settings.signing.captions)
        tasks = [SignTask(data, shard, self.settings.signing, self.folder / "signatures") for shard in shards]
        names = [task.path.name for task in tasks]
        write_json(manifest, {"shards": [shard.to_json() for shard in shards], "tables": names})
        left = [task for task in tasks if not is_whole(task.path)]
        with progress.track("sign", len(tasks), "shards", len(tasks) - len(left)) as advance:
            for _ in self.engine.run(sign, left):
                advance(1)
        tables = tuple(task.path for task in tasks)
        found = [entry for table in tables for entry in rejected_in(table)]
        return Source(data, tuple(shards), tables, (*rejected, *found))

    def array(self, name: str, values: npt.NDArray[Any]) -> None:
        """Leave an array where tasks find it."""
        write_array(self.arrays / name, values)

    def recorded(self, name: str, setting: str) -> Any:
        """A setting of a search that was begun here; None where there is none."""
        file = self.folder / "search" / name / "record.json"
        return read_json(file)["inputs"].get(setting) if file.exists() else None

    @property
    def arrays(self) -> Path:
        """The folder of the arrays that tasks read."""
        return self.folder / "arrays"

    def search(self, method: Method, size: int, tables: Sequence[Path]) -> npt.NDArray[np.int64]:
        """See :func:`unmem.mitigations.dedup.search.search`."""
        return search(method, size, [table.name for table in tables], self.folder / "search", self.engine)


def _shards(manifest: Path) -> list[Shard]:
    """The shards of an earlier run."""
    try:
        return [Shard.from_json(shard) for shard in read_json(manifest)["shards"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{manifest}: damaged ({error!r}); remove it, and its shards are planned again") from None


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold a directory against a second job.

    Raises:
        UserError: when another one has it.
    """
    (out / "work").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / "work" / "lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"{out}: another unmem dedup works there") from None
