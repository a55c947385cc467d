"""One image, looked up among those of a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from unmem.component import UserError
from unmem.mitigations.dedup import hamming
from unmem.mitigations.dedup.gather import Signatures
from unmem.mitigations.dedup.signatures import Signing, sign_image
from unmem.rundir import read_json


@dataclass(frozen=True)
class Match:
    """An image of the set that is like the one asked for.

    Attributes:
        id: the image.
        stage: bytes, pixels or perceptual.
        distance: in bits; 0 for the exact stages.
    """

    id: str
    stage: str
    distance: int


def lookup(out: Path, image: Path, max_distance: int | None = None) -> list[Match]:
    """The images of a finished job that duplicate ``image``, the nearest first.

    Args:
        out: the job's directory.
        image: an image file.
        max_distance: in bits; None takes the job's own.

    Raises:
        UserError: when there is no finished job, or the image cannot be used.
    """
    report = read_json(out / "report.json")
    signing = Signing(**read_json(out / "work" / "signing.json"))
    try:
        row = sign_image(image.read_bytes(), signing)
    except OSError as error:
        raise UserError(f"{image}: cannot be read ({error.strerror})") from None
    if isinstance(row, str):
        raise UserError(f"{image}: {row}")
    if max_distance is not None and max_distance > signing.bits:
        raise UserError(f"--max-distance {max_distance}: must be at most {signing.bits}, the bits of a hash")
    radius = report.get("threshold", {}).get("max_distance", 0) if max_distance is None else max_distance
    matches: dict[str, Match] = {}
    for name in read_json(out / "work" / "data.json")["tables"]:
        table = out / "work" / "signatures" / name
        if not table.exists():
            raise UserError(f"{table}: is gone; the same unmem dedup makes it again")
        signatures = Signatures.of([table])
        ids = pq.read_table(table, columns=["id"])["id"]
        for stage in ("bytes", "pixels"):
            keys, present = signatures.words(f"{stage}_key")
            ours = np.frombuffer(row[f"{stage}_key"] or b"", ">u8")
            if len(ours) == keys.shape[1]:
                for found in np.flatnonzero((keys == ours).all(axis=1) & present):
                    matches.setdefault(ids[int(found)].as_py(), Match(ids[int(found)].as_py(), stage, 0))
        if row["code"] is None:
            continue
        codes, present = signatures.words("code")
        turns = np.frombuffer(row["turned"] or row["code"], ">u8").astype(np.uint64).reshape(-1, codes.shape[1])
        bits = np.min([hamming.distances(turn, codes) for turn in turns], axis=0)
        for found in np.flatnonzero((bits <= radius) & present):
            name = ids[int(found)].as_py()
            matches.setdefault(name, Match(name, "perceptual", int(bits[found])))
    order = {"bytes": 0, "pixels": 1, "perceptual": 2}
    return sorted(matches.values(), key=lambda match: (order[match.stage], match.distance, match.id))
