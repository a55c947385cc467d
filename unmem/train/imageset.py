"""A set of images with stable ids: pixels stay where they lie (often memory-mapped), selections are row numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from unmem.component import UserError
from unmem.rundir import atomic, read_json, write_json


@dataclass(frozen=True)
class Rejected:
    """A file that could not be used, and why: the quarantine list's entry."""

    source: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """Images, ids, labels and captions.

    Attributes:
        store: uint8 [N, height, width, channels], channels 1 (grey) or 3 (RGB); may be a memmap.
        rows: int64 [n], the rows of ``store`` that this set consists of, in order.
        ids: n stable ids; content hash + source, so that they do not change with the order of files.
        labels: int64 [n], or None; indices into ``label_names``.
        label_names: the classes' names.
        captions: n texts, or None.
        alternatives: n lists of other texts, or None. In each step of training one of them, or the caption, stands for
            the image, each entry as likely as the caption: a text that is listed twice is twice as likely.
    """

    store: np.ndarray = field(repr=False)
    rows: np.ndarray = field(repr=False)
    ids: tuple[str, ...] = field(repr=False)
    labels: np.ndarray | None = field(default=None, repr=False)
    label_names: tuple[str, ...] = ()
    captions: tuple[str, ...] | None = field(default=None, repr=False)
    alternatives: tuple[tuple[str, ...], ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert self.store.ndim == 4 and self.store.dtype == np.uint8 and self.store.shape[3] in (1, 3)
        assert len(self.rows) == len(self.ids) and len(set(self.ids)) == len(self.ids)
        assert self.labels is None or len(self.labels) == len(self.ids)
        assert self.captions is None or len(self.captions) == len(self.ids)
        if self.alternatives is not None:
            assert self.captions is not None and len(self.alternatives) == len(self.ids)

    @classmethod
    def of(
        cls,
        images: np.ndarray,
        sources: list[str],
        labels: np.ndarray | None = None,
        label_names: tuple[str, ...] = (),
        captions: tuple[str, ...] | None = None,
    ) -> ImageSet:
        """A set over all rows of ``images`` (uint8 [n, h, w, c]); ids are made from pixels and ``sources``."""
        ids = tuple(image_id(image, source) for image, source in zip(images, sources, strict=True))
        return cls(images, np.arange(len(ids)), ids, labels, label_names, captions)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        height, width, channels = self.store.shape[1:]
        return height, width, channels

    def images(self, positions: np.ndarray | slice | None = None) -> np.ndarray:
        """uint8 [k, h, w, c]: the images at these positions of the set (all by default), copied into memory."""
        rows = self.rows if positions is None else self.rows[positions]
        return np.asarray(self.store[rows])

    def take(self, positions: np.ndarray) -> ImageSet:
        """The subset at these positions; no pixel is copied."""
        positions = np.asarray(positions, dtype=np.int64)
        return replace(
            self,
            rows=self.rows[positions],
            ids=tuple(self.ids[i] for i in positions),
            labels=None if self.labels is None else self.labels[positions],
            captions=None if self.captions is None else tuple(self.captions[i] for i in positions),
            alternatives=None if self.alternatives is None else tuple(self.alternatives[i] for i in positions),
        )

    def positions(self, ids: tuple[str, ...] | list[str]) -> np.ndarray:
        """int64 positions of these ids in the set."""
        where = {name: position for position, name in enumerate(self.ids)}
        return np.array([where[name] for name in ids], dtype=np.int64)

    def select(self, ids: tuple[str, ...] | list[str]) -> ImageSet:
        """The subset with these ids, in their order."""
        return self.take(self.positions(ids))

    def flat(self) -> np.ndarray:
        """float32 [n, d] in [0, 1]: the pixels as vectors, for searches."""
        return as_vectors(self.images())

    def save(self, directory: Path) -> None:
        """Write ``images.npy`` and ``index.json``; chunk by chunk, so that large sets need not fit in memory."""
        with atomic(directory / "images.npy") as partial:
            out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(self), *self.shape))
            for start in range(0, len(self), 4096):
                out[start : start + 4096] = self.images(slice(start, start + 4096))
            out.flush()
            del out
        labels = None if self.labels is None else self.labels.tolist()
        index = {"ids": self.ids, "labels": labels, "label_names": self.label_names, "captions": self.captions}
        if self.alternatives is not None:
            index["alternatives"] = self.alternatives
        write_json(directory / "index.json", index)

    @classmethod
    def open(cls, directory: Path) -> ImageSet:
        """Open what :meth:`save` wrote, memory-mapped.

        Raises:
            UserError: naming the file when it is missing or damaged.
        """
        index = read_json(directory / "index.json")
        try:
            store = np.load(directory / "images.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{directory / 'images.npy'}: cannot be read ({error})") from None
        labels = None if index["labels"] is None else np.array(index["labels"], dtype=np.int64)
        captions = None if index["captions"] is None else tuple(index["captions"])
        alternatives = tuple(map(tuple, index["alternatives"])) if "alternatives" in index else None
        names = tuple(index["label_names"])
        return cls(store, np.arange(len(store)), tuple(index["ids"]), labels, names, captions, alternatives)


def as_vectors(images: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, c] -> float32 [n, h w c] in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255.0


def image_id(image: np.ndarray, source: str) -> str:
    """``<content hash>:<source>``: 12 hexadecimal digits of the pixels' SHA-256 (shape included), then the source."""
    content = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
    return f"{content[:12]}:{source}"


def content_of(name: str) -> str:
    """The part of an id that says what the image looks like."""
    return name.split(":", 1)[0]


def concatenate(first: ImageSet, second: ImageSet) -> ImageSet:
    """Two sets of one shape, one after the other; the pixels are copied into memory."""
    assert first.shape == second.shape and (first.labels is None) == (second.labels is None)
    images = np.concatenate([first.images(), second.images()])
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = np.concatenate([first.labels, second.labels])
    captions = None
    if first.captions is not None and second.captions is not None:
        captions = first.captions + second.captions
    alternatives = None
    if captions is not None and not (first.alternatives is None and second.alternatives is None):
        alternatives = tuple(texts for part in (first, second) for texts in part.alternatives or ((),) * len(part))
    ids = first.ids + second.ids
    return ImageSet(images, np.arange(len(images)), ids, labels, first.label_names, captions, alternatives)
