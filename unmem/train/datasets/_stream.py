"""Many images, decoded one after the other into a memory-mapped file; what cannot be used goes into quarantine."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from unmem.component import UserError
from unmem.progress import track
from unmem.rundir import atomic, free_bytes
from unmem.train.decode import decode
from unmem.train.imageset import Rejected

WORKERS = min(8, os.cpu_count() or 1)  # each may hold one decoded image of MAX_IMAGE_PIXELS
CHUNK = 16 * WORKERS  # images decoded, or about to be, that are in memory at once


@dataclass(frozen=True)
class Decoded:
    """What became of a stream of images.

    Attributes:
        images: uint8 [k, height, width, channels], memory-mapped, read-only.
        kept: the k positions in the stream that these are from, ascending.
        rejected: the others, in order.
    """

    images: np.ndarray
    kept: list[int]
    rejected: list[Rejected]


def decode_all(
    items: Iterable[tuple[str, bytes | Path]],
    total: int,
    scratch: Path,
    *,
    size: int | None,
    channels: Literal[1, 3],
    origin: str,
) -> Decoded:
    """Decode ``(source, data)`` items into ``scratch/pixels.npy``, in their order, on several threads.

    Args:
        items: names and files; drawn as needed.
        total: how many items there are.
        scratch: the folder for the pixels.
        size: see :func:`unmem.train.decode.decode`.
        channels: likewise.
        origin: where the items come from, for messages.

    Raises:
        UserError: when no image is readable, when their sizes differ, or when the disk is too small.
    """
    stream = enumerate(items)
    kept: list[int] = []
    rejected: list[Rejected] = []
    shapes: Counter[tuple[int, ...]] = Counter()
    out: np.memmap | None = None
    with (
        atomic(scratch / "pixels.npy") as partial,
        ThreadPoolExecutor(WORKERS) as pool,
        track("decode", total) as advance,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters ends up among the rejected
        while chunk := list(islice(stream, CHUNK)):
            results = pool.map(lambda item: decode(item[1][1], size, channels), chunk)
            for (position, (source, _)), result in zip(chunk, results, strict=True):
                if isinstance(result, str):
                    rejected.append(Rejected(source, result))
                else:
                    if out is None:
                        out = allocate(partial, (total, *result.shape))
                    if result.shape == out.shape[1:]:
                        out[len(kept)] = result
                    kept.append(position)
                    shapes[result.shape] += 1
            advance(len(chunk))
        if out is None:
            raise UserError(f"{origin}: none of {total} files is a usable image ({_first(rejected)})")
        if len(shapes) > 1:
            raise UserError(f"{origin}: images of {_sizes(shapes)}; set `size:` to bring them to one size")
        out.flush()
        del out
    return Decoded(np.load(scratch / "pixels.npy", mmap_mode="r")[: len(kept)], kept, rejected)


def allocate(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new memory-mapped uint8 ``.npy`` file.

    Raises:
        UserError: when there is no room for it; writing to the mapping would kill the process.
    """
    need, free = int(np.prod(shape, dtype=np.int64)), free_bytes(path.parent)
    if need > free:
        raise UserError(f"{path.parent}: the pixels need {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def _first(rejected: list[Rejected]) -> str:
    """The first rejected file and its reason."""
    return f"{rejected[0].source}: {rejected[0].reason}" if rejected else "there is no file"


def _sizes(shapes: Counter[tuple[int, ...]]) -> str:
    """How many images there are of each size, the commonest five."""
    shown = ", ".join(f"{width} x {height} ({count})" for (height, width, _), count in shapes.most_common(5))
    return f"{len(shapes)} sizes: {shown}{', ...' if len(shapes) > 5 else ''}"
