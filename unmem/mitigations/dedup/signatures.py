"""From a shard of images and captions to a table of signatures: all that the searches need to know of them."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unmem.mitigations.dedup import captions, perceptual
from unmem.mitigations.dedup.encoding_map import read_encoding_map
from unmem.mitigations.dedup.sources import Item, Shard, read
from unmem.rundir import atomic, digest
from unmem.train.decode import Opened, open_rgb
from unmem.train.imageset import Rejected

KEY = pa.binary(16)  # half of a SHA-256: among 10^9 items, two unequal ones share it with probability 10^-21
REJECTED = b"unmem.rejected"

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("bytes_key", KEY),
        ("pixels_key", KEY),
        ("code", pa.binary()),  # big-endian words; null for flat images
        ("turned", pa.binary()),  # the eight dihedral codes, one after the other
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("file_bytes", pa.int64()),
        ("sharpness", pa.float32()),
        ("flat", pa.bool_()),
        ("oriented", pa.bool_()),
        ("flattened", pa.bool_()),
        ("captions", pa.list_(pa.string())),
        ("caption_keys", pa.list_(KEY)),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Signing:
    """What is computed of each item.

    Attributes:
        hash: the perceptual hash; None opens no image whose SHA-256 the data's own metadata give.
        bits: of the hash, 64 or 256.
        dihedral: whether the hashes of all flips and quarter turns are stored as well.
        scaled: whether JPEGs are decoded at a fraction of their size; then pixels are not compared.
        as_stored: imagededup's way with EXIF orientation (ignored) and transparency (dropped).
        sharpness: whether it is measured.
        captions: the column, field or ending that holds the captions; None takes the usual ones.
        encoding_map: imagededup's hashes by id, a JSON file: the images that it names are not decoded.
        encoding_map_digest: of that file's content.
    """

    hash: perceptual.Hash | None = "phash"
    bits: int = 64
    dihedral: bool = False
    scaled: bool = False
    as_stored: bool = False
    sharpness: bool = False
    captions: str | None = None
    encoding_map: str | None = None
    encoding_map_digest: str | None = None


@dataclass(frozen=True)
class SignTask:
    """One shard to sign.

    Attributes:
        data: the data set.
        shard: the part of it.
        signing: what to compute.
        folder: where the table goes, under :attr:`path`.
    """

    data: Path
    shard: Shard
    signing: Signing
    folder: Path

    @property
    def path(self) -> Path:
        """The table's file, named by all that its content depends on."""
        inputs = [str(self.data), self.shard.to_json(), vars(self.signing)]
        return self.folder / f"{digest(inputs)[:20]}.parquet"


@dataclass
class _Columns:
    """The rows of a table, column by column."""

    signing: Signing
    rows: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in SCHEMA.names})
    rejected: list[Rejected] = field(default_factory=list)
    seen: dict[bytes, dict[str, Any] | str] = field(default_factory=dict)

    def add(self, item: Item) -> None:
        """Sign one item; equal bytes are decoded once."""
        data, key = _bytes_and_key(item, self.signing)
        if isinstance(data, str):
            self.rejected.append(Rejected(item.id, data))
            return
        if key not in self.seen:
            known_code = _known_codes(self.signing.encoding_map).get(item.id)
            if known_code is not None:
                self.seen[key] = {"code": known_code, "file_bytes": len(data or b"")}
            else:
                self.seen[key] = {} if data is None else _of_image(data, self.signing)
        image = self.seen[key]
        if isinstance(image, str):
            self.rejected.append(Rejected(item.id, image))
            return
        keys = [_key(captions.normalise(text).encode()) for text in item.captions]
        row = {"id": item.id, "bytes_key": key, "captions": item.captions, "caption_keys": keys, **image}
        for name, values in self.rows.items():
            values.append(row.get(name))


def sign(task: SignTask) -> Path:
    """Write the table of one shard; unusable items are listed in its metadata, with reasons."""
    columns = _Columns(task.signing)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters ends up among the rejected
        for item in _items(task):
            if isinstance(item, Rejected):
                columns.rejected.append(item)
            else:
                columns.add(item)
    rejected = json.dumps([[entry.source, entry.reason] for entry in columns.rejected])
    table = pa.table(columns.rows, SCHEMA.with_metadata({REJECTED: rejected.encode()}))
    with atomic(task.path) as partial:
        pq.write_table(table, partial, compression="zstd")
    return task.path


def _items(task: SignTask) -> Iterable[Item | Rejected]:
    """The shard's items; without their images where neither hashes nor keys need them."""
    if task.signing.hash is None:
        bare = list(read(task.data, task.shard, images=False, captions=task.signing.captions))
        if all(isinstance(item, Rejected) or item.sha256 for item in bare):
            return bare
    return read(task.data, task.shard, images=True, captions=task.signing.captions)


def sign_image(data: bytes, signing: Signing) -> dict[str, Any] | str:
    """The columns of one image file alone; or a text that says why there are none."""
    found = _of_image(data, signing)
    if isinstance(found, str):
        return found
    return {"bytes_key": _key(data), "pixels_key": None, "code": None, "turned": None, **found}


def is_whole(path: Path) -> bool:
    """Whether a table is there and can be read."""
    try:
        return path.exists() and REJECTED in (pq.read_schema(path).metadata or {})
    except (pa.ArrowInvalid, OSError):
        return False


def rejected_in(path: Path) -> list[Rejected]:
    """What a shard's table lists as unusable."""
    return [Rejected(*entry) for entry in json.loads(pq.read_schema(path).metadata[REJECTED])]


def _bytes_and_key(item: Item, signing: Signing) -> tuple[bytes | str | None, bytes]:
    """The file's bytes (a text that says why it cannot be read; None when they need not be) and their key."""
    known = bytes.fromhex(item.sha256)[:16] if item.sha256 else None
    if signing.hash is None and known is not None:
        return None, known
    try:
        data = item.image.read_bytes() if isinstance(item.image, Path) else item.image
    except OSError as error:
        return f"cannot be read ({error.strerror})", b""
    if data is None:
        return "holds no image", b""
    return data, _key(data)  # where the bytes are read they count, not what the metadata say of them


def _of_image(data: bytes, signing: Signing) -> dict[str, Any] | str:
    """The columns that come from the pixels; or a text that says why there are none."""
    if signing.hash is None:
        return {"file_bytes": len(data)}
    draft = _draft(signing)
    opened = open_rgb(data, draft=draft, as_stored=signing.as_stored)
    if isinstance(opened, str):
        return opened
    code, flat = perceptual.code_and_flat(opened.image, signing.hash, signing.bits)
    return {
        "pixels_key": None if signing.scaled else _pixels_key(opened),
        "code": None if flat else code.astype(">u8").tobytes(),
        "turned": perceptual.dihedral_codes(opened.image, signing.bits).astype(">u8").tobytes()
        if signing.dihedral and not flat
        else None,
        "width": opened.width,
        "height": opened.height,
        "file_bytes": len(data),
        "sharpness": perceptual.sharpness(opened.image) if signing.sharpness else None,
        "flat": flat,
        "oriented": opened.oriented,
        "flattened": opened.flattened,
    }


@lru_cache(maxsize=1)
def _known_codes(path: str | None) -> dict[str, bytes]:
    """Stored hashes by id."""
    if path is None:
        return {}
    return {name: bytes.fromhex(text) for name, text in read_encoding_map(Path(path)).items()}


def _draft(signing: Signing) -> int | None:
    """The side in pixels that a reduced decode must leave."""
    if not signing.scaled or signing.hash is None:
        return None
    side = perceptual.DRAFT[signing.hash, signing.bits]
    return max(side, perceptual.SHARPNESS_SIDE) if signing.sharpness else side


def _pixels_key(opened: Opened) -> bytes:
    """The key of the decoded pixels and their shape."""
    return _key(f"{opened.image.width}x{opened.image.height} ".encode() + opened.image.tobytes())


def _key(data: bytes) -> bytes:
    """Half a SHA-256."""
    return hashlib.sha256(data).digest()[:16]
