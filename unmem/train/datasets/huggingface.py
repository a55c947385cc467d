"""A Hugging Face data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unmem.component import Positive, UserError, component
from unmem.train.datasets._files import files_below, stamp
from unmem.train.datasets._labels import number
from unmem.train.datasets._stream import decode_all
from unmem.train.imageset import ImageSet, Rejected

CAPTIONS = ("text", "caption")


@component
class HuggingFace:
    """A Hugging Face data set: its name on the hub, or a folder of parquet or arrow files or of ``save_to_disk``.

    Needs ``pip install 'unmem[huggingface]'``. Rows whose image cannot be decoded (see
    :func:`unmem.train.decode.decode`) are listed as rejected. Columns that are not named are found by their type.

    Attributes:
        path: the folder, or the name on the hub; a folder of that name comes first.
        split: the split's name; not used where a folder holds a single data set of ``save_to_disk``.
        image: the image column; by default the only one of type Image.
        label: the class column, of type ClassLabel, integer or text; by default the only ClassLabel column, provided
            that every row has a class.
        caption: the text column; by default ``text`` or ``caption``.
        size: side in pixels to which images are scaled and cropped; without it, all must be of one size already.
        channels: 3 for colour, 1 for grey.
    """

    path: str
    split: str = "train"
    image: str | None = None
    label: str | None = None
    caption: str | None = None
    size: Positive | None = None
    channels: Literal[1, 3] = 3

    def fingerprint(self) -> str:
        """A digest of the folder's files (paths, sizes, times of change); on the hub, the data set's revision."""
        folder = self._folder()
        if folder is not None:
            return stamp(files_below(folder).items())
        try:
            return str(_library().load_dataset_builder(self.path).hash)
        except Exception as error:
            raise self._missing(error) from None

    def load(self, scratch: Path) -> tuple[ImageSet, list[Rejected]]:
        """Images uint8 [n, height, width, channels], in the rows' order; their sources are ``<split>/<row>``.

        Raises:
            UserError: when the library, the data set, the split or a column is missing, a column has another type,
                no image is usable, or their sizes differ with ``size`` unset.
        """
        rows = self._rows(scratch)
        column = self._image_column(rows)
        classes, names = self._classes(rows)
        captions = self._captions(rows)
        decoded = decode_all(
            self._items(rows, column), len(rows), scratch, size=self.size, channels=self.channels, origin=self.path
        )
        kept = decoded.kept
        labels: np.ndarray | None = None
        if classes is not None and names:
            labels = np.array([classes[row] for row in kept], dtype=np.int64)
        elif classes is not None:
            labels, names = number([classes[row] for row in kept])
        texts = None if captions is None else tuple(captions[row] for row in kept)
        images = ImageSet.of(decoded.images, [self._source(row) for row in kept], labels, names, texts)
        return images, decoded.rejected

    def _folder(self) -> Path | None:
        """The local folder, unless ``path`` is a name on the hub."""
        path = Path(self.path).expanduser()
        return path.resolve() if path.is_dir() else None

    def _rows(self, scratch: Path) -> Any:
        """The split as a ``datasets.Dataset``."""
        library = _library()
        folder = self._folder()
        try:
            if folder is None:
                return library.load_dataset(self.path, split=self.split)
            if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
                return library.load_dataset(str(folder), split=self.split, cache_dir=str(scratch / "huggingface"))
            saved = library.load_from_disk(str(folder))
        except Exception as error:  # the hub, the network, damaged files, an unknown split: each has its own
            raise self._missing(error) from None
        if not isinstance(saved, library.DatasetDict):
            return saved
        if self.split not in saved:
            raise UserError(f"{self.path}: has no split {self.split!r}; has {', '.join(saved)}")
        return saved[self.split]
