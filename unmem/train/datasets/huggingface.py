"""A Hugging Face data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unmem.component import Positive, UserError, component, suggest
from unmem.train.datasets._files import files_below, stamp
from unmem.train.datasets._labels import number
from unmem.train.datasets._stream import decode_all
from unmem.train.imageset import ImageSet, Rejected

CAPTIONS = ("text", "caption")
TEXT = ("string", "large_string")


@component
class HuggingFace:
    """A Hugging Face data set: its name on the hub, or a folder of parquet or arrow files or of ``save_to_disk``.

    Needs ``pip install 'unmem[huggingface]'``. Rows whose image cannot be decoded (see
    :func:`unmem.train.decode.decode`) are listed as rejected. Columns that are not named are found by their type.

    Attributes:
        path: the folder, or the name on the hub; a folder of that name comes first.
        split: the split's name; not used where a folder holds a single data set of ``save_to_disk``.
        image: the column with the images; by default the only one of type Image.
        label: the column with the classes, of type ClassLabel, integer or text; by default the only ClassLabel, where
            no row lacks its class.
        caption: the column with the texts; by default ``text`` or ``caption``.
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
        library = _library()
        try:
            return str(library.load_dataset_builder(self.path).hash)
        except Exception as error:  # no network, no such name: each has its own
            raise self._unavailable(error) from None

    def load(self, scratch: Path) -> tuple[ImageSet, list[Rejected]]:
        """Images uint8 [n, height, width, channels], in the rows' order; their sources are ``<split>/<row>``.

        Raises:
            UserError: when the library, the data set, the split or a column is missing, a column has another type,
                no image is usable, or their sizes differ with ``size`` unset.
        """
        rows = self._rows(scratch)
        classes, names = self._classes(rows)
        captions = self._captions(rows)
        sources = [f"{self.split}/{row:08d}" for row in range(len(rows))]
        items = zip(sources, self._files(rows), strict=True)
        decoded = decode_all(items, len(rows), scratch, size=self.size, channels=self.channels, origin=self.path)
        kept = decoded.kept
        images = ImageSet.of(
            decoded.images,
            [sources[row] for row in kept],
            None if classes is None else classes[kept],
            names,
            None if captions is None else tuple(captions[row] for row in kept),
        )
        return images, decoded.rejected

    def _folder(self) -> Path | None:
        """The local folder, unless ``path`` is a name on the hub."""
        path = Path(self.path).expanduser()
        return path.resolve() if path.is_dir() else None

    def _unavailable(self, error: Exception) -> UserError:
        """Why there are no data."""
        what = "cannot be loaded" if self._folder() else "is no folder here and cannot be loaded from the hub"
        return UserError(f"{self.path}: {what} ({str(error).strip() or type(error).__name__})")

    def _rows(self, scratch: Path) -> Any:
        """The split as a ``datasets.Dataset``."""
        library, folder = _library(), self._folder()
        try:
            if folder is None:
                return library.load_dataset(self.path, split=self.split)
            if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
                return library.load_dataset(str(folder), split=self.split, cache_dir=str(scratch / "huggingface"))
            saved = library.load_from_disk(str(folder))
        except Exception as error:  # the hub's, Arrow's, an unknown split: each has its own
            raise self._unavailable(error) from None
        if not isinstance(saved, library.DatasetDict):
            return saved
        if self.split not in saved:
            raise UserError(f"{self.path}: has no split {self.split!r}; has {', '.join(saved)}")
        return saved[self.split]

    def _column(self, rows: Any, chosen: str | None, found: list[str]) -> str | None:
        """The column that the user chose, else the first that was found."""
        if chosen is not None and chosen not in rows.column_names:
            names = rows.column_names
            raise UserError(f"{self.path}: has no column {chosen!r}{suggest(chosen, names)}; has {', '.join(names)}")
        return chosen or next(iter(found), None)

    def _files(self, rows: Any) -> Iterator[bytes | Path]:
        """The rows' image files, undecoded; no bytes where a row has none."""
        library = _library()
        found = [name for name, feature in rows.features.items() if isinstance(feature, library.Image)]
        column = self._column(rows, self.image, found if len(found) == 1 else [])
        if column is None:
            raise UserError(f"{self.path}: set `image:` to the images' column; has {', '.join(rows.column_names)}")
        try:
            files = rows.select_columns([column]).cast_column(column, library.Image(decode=False))
        except Exception as error:  # Arrow's, depending on the type
            raise UserError(f"{self.path}: column {column!r} does not hold images ({error})") from None
        for row in files:
            file = row[column] or {}
            path = file.get("path")
            yield file.get("bytes") or (Path(path) if path else b"")

    def _classes(self, rows: Any) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """int64 [rows] and the classes' names, or None and no names."""
        library = _library()
        found = [name for name, feature in rows.features.items() if isinstance(feature, library.ClassLabel)]
        column = self._column(rows, self.label, found if len(found) == 1 else [])
        if column is None:
            return None, ()
        feature, values = rows.features[column], rows[column][:]
        if None in values or (isinstance(feature, library.ClassLabel) and -1 in values):  # -1: how the hub says None
            if self.label is None:
                return None, ()
            raise UserError(f"{self.path}: column {column!r} leaves rows without a class")
        if isinstance(feature, library.ClassLabel):
            return np.array(values, dtype=np.int64), tuple(feature.names)
        if not all(isinstance(value, str | int) for value in values):
            raise UserError(f"{self.path}: column {column!r} is {feature}; classes must be integers or texts")
        return number(values)

    def _captions(self, rows: Any) -> list[str] | None:
        """Each row's caption, empty where it has none; or None."""
        found = [name for name in CAPTIONS if getattr(rows.features.get(name), "dtype", None) in TEXT]
        column = self._column(rows, self.caption, found)
        if column is None:
            return None
        if getattr(rows.features[column], "dtype", None) not in TEXT:
            raise UserError(f"{self.path}: column {column!r} is {rows.features[column]}; captions must be texts")
        return [caption or "" for caption in rows[column][:]]


def _library() -> Any:
    """The ``datasets`` package, which is optional."""
    try:
        import datasets
    except ImportError:
        raise UserError("huggingface: needs the datasets package; pip install 'unmem[huggingface]'") from None
    return datasets
