"""Any folder of image files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from unmem.component import Positive, UserError, component
from unmem.progress import say
from unmem.train.datasets._files import LocalPath, files_below, read_text, stamp
from unmem.train.datasets._labels import number
from unmem.train.datasets._stream import decode_all
from unmem.train.imageset import ImageSet, Rejected
from unmem.train.metadata import NAMES, Row, read_metadata
from unmem.train.text import printable


@component
class ImageFolder:
    """Any folder of image files, with sub-folders as classes and captions from metadata or text files.

    Every file below ``path``, at any depth, is taken for an image, except hidden ones, ``.txt``, ``.json``
    and metadata; what cannot be decoded (see :func:`unmem.train.decode.decode`) is listed as rejected.

    * Captions come from ``metadata.csv``, ``.jsonl`` or ``.parquet`` (columns ``file_name`` and ``text`` or
      ``caption``; in any folder, ``file_name`` relative to it), else from ``cat.txt`` beside ``cat.jpg``. Where some
      images have one, the others' is empty.
    * Classes come from the metadata's column ``label``, else from the first folder of each image's path, provided
      that every image lies in one.

    Attributes:
        path: the folder.
        size: side in pixels to which images are scaled and cropped; without it, all must be of one size already.
        channels: 3 for colour, 1 for grey.
    """

    path: LocalPath
    size: Positive | None = None
    channels: Literal[1, 3] = 3

    def fingerprint(self) -> str:
        """A digest of all files' relative paths, sizes and times of change."""
        return stamp(files_below(self.path).items())

    def load(self, scratch: Path) -> tuple[ImageSet, list[Rejected]]:
        """Images uint8 [n, h, w, channels] in the order of their relative paths, which are also their sources.

        Raises:
            UserError: when the folder holds no usable image, images of several sizes with ``size`` unset, or
                metadata that cannot be understood.
        """
        files = files_below(self.path)
        rows = read_metadata(files)
        images = {name: path for name, path in files.items() if not _beside(name) and printable(name) == name}
        rejected = [Rejected(printable(name), "its name is not UTF-8") for name in files if printable(name) != name]
        rejected += [
            Rejected(name, f"{row.place} names it, but there is no such image")
            for name, row in rows.items()
            if name not in images
        ]
        if not images:
            raise UserError(f"{self.path}: holds no image file")
        captions = _captions(images, rows, files)
        classes = _classes(images, rows, self.path)
        decoded = decode_all(
            images.items(), len(images), scratch, size=self.size, channels=self.channels, origin=str(self.path)
        )
        kept, sources = decoded.kept, list(images)
        labels, names = (None, ()) if classes is None else number([classes[i] for i in kept])
        result = ImageSet.of(
            decoded.images,
            [sources[i] for i in kept],
            labels,
            names,
            None if captions is None else tuple(captions[i] for i in kept),
        )
        return result, rejected + decoded.rejected


def _beside(name: str) -> bool:
    """Whether a file goes with images rather than being one."""
    path = PurePosixPath(name)
    return path.suffix.lower() in (".txt", ".json") or path.name in NAMES


def _captions(images: Mapping[str, Path], rows: Mapping[str, Row], files: Mapping[str, Path]) -> list[str] | None:
    """Each image's caption, or None when there is not a single one."""
    captions: list[str | None] = []
    for name in images:
        caption = rows[name].caption if name in rows else None
        text = str(PurePosixPath(name).with_suffix(".txt"))
        if caption is None and text in files:
            caption = read_text(files[text]).strip()
        captions.append(caption)
    if all(caption is None for caption in captions):
        return None
    return [caption or "" for caption in captions]


def _classes(images: Mapping[str, Path], rows: Mapping[str, Row], folder: Path) -> list[str | int] | None:
    """Each image's class, or None when they have none."""
    if any(row.label is not None for row in rows.values()):
        return [_label(name, rows, folder) for name in images]
    outside = sum("/" not in name for name in images)
    if 0 < outside < len(images):
        say(f"image_folder: {outside} of {len(images)} images lie in no sub-folder, so there are no classes")
    return None if outside else [name.split("/")[0] for name in images]


def _label(name: str, rows: Mapping[str, Row], folder: Path) -> str | int:
    """The class that the metadata give an image."""
    label = rows[name].label if name in rows else None
    if label is None:
        raise UserError(f"{folder}: no 'label' for {name!r} in the metadata; label all images or none")
    return label
