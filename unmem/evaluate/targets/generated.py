"""Images that somebody's model generated: what one has of a model that is not at hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from unmem import progress
from unmem.component import UserError, component
from unmem.evaluate.prompts import read_prompts
from unmem.rundir import atomic, write_json
from unmem.train.datasets._files import LocalPath, files_below, stamp
from unmem.train.imageset import Rejected
from unmem.train.metadata import NAMES
from unmem.train.text import printable

if TYPE_CHECKING:
    import numpy as np

ARRAYS = (".npy", ".npz")
CHUNK = 1024  # images copied at once


@component
class Generated:
    """A folder of generated images, with their prompts if there is a manifest: all that a closed model gives away.

    Every file below the folder is taken for an image, as ``image_folder`` does; images are cut and scaled to the size
    of the data's. Samples are numbered in the order of their paths. A recipe with this target needs given members and
    non-members, and attacks that need samples alone.

    Attributes:
        path: the folder; or uint8 images [n, h, w] or [n, h, w, c] of the data's size in an ``.npy`` file, or in an
            ``.npz`` file under ``x`` or ``images``.
        prompts: a ``.csv`` or ``.jsonl`` file with a ``file_name``, relative to the folder, and a ``prompt`` a record
            (see :func:`unmem.evaluate.prompts.read_prompts`); of an array, ``file_name`` is the row's number.
    """

    path: LocalPath
    prompts: LocalPath | None = None

    @property
    def access(self) -> frozenset[str]:
        """Samples, and their prompts where there is a manifest."""
        return frozenset({"samples"} if self.prompts is None else {"samples", "prompts"})

    @property
    def classes(self) -> int:
        """None that were drawn in turn: 0."""
        return 0

    def fingerprint(self) -> str:
        """A digest of all files' relative paths, sizes and times of change.

        Raises:
            UserError: when there are no such images or no such manifest.
        """
        files = {"": self.path} if self._is_array else files_below(self.path)
        manifest = {} if self.prompts is None else {"prompts": self.prompts}
        for file in (*manifest.values(), *([self.path] if self._is_array else ())):
            if not file.is_file():
                raise UserError(f"{file}: no such file")
        return stamp([*files.items(), *manifest.items()])

    def collect(self, directory: Path, shape: tuple[int, int, int]) -> None:
        """Bring the images to ``images.npy``, their prompts to ``prompts.json``, what was left out to quarantine.

        ``images.npy`` is uint8 [n, h, w, c]; ``prompts.json`` a list of n texts, null where an image has none;
        ``quarantine.json`` a list of ``source`` and ``reason``.

        Args:
            directory: where to.
            shape: height, width and channels of the data's images.

        Raises:
            UserError: when no image can be read, sizes differ, or no line of the manifest names an image.
        """
        with _scratch(directory) as scratch:
            found = self._array(scratch) if self._is_array else self._folder(scratch, shape)
            if found.images.shape[1:] != shape:
                have, want = (f"{h} x {w} x {c}" for h, w, c in (found.images.shape[1:], shape))
                raise UserError(f"{self.path}: images are {have} (height, width, channels), the data's are {want}")
            _write(found.images, directory / "images.npy")
        rejected = found.rejected
        if self.prompts is not None:
            prompts, unused = self._asked(self.prompts, found.names, {entry.source for entry in rejected})
            rejected = [*rejected, *unused]
            write_json(directory / "prompts.json", prompts)
        write_json(
            directory / "quarantine.json", [{"source": printable(r.source), "reason": r.reason} for r in rejected]
        )
        if rejected:
            file = f"{directory.name}/quarantine.json"
            progress.say(f"{self.path}: {len(rejected)} images or prompts could not be used; they are listed in {file}")

    @property
    def _is_array(self) -> bool:
        """Whether the images are in one array."""
        return self.path.suffix.lower() in ARRAYS

    def _folder(self, scratch: Path, shape: tuple[int, int, int]) -> _Images:
        """The images of a folder's files, and those files that are none."""
        from unmem.train.datasets._stream import decode_all

        files = {name: file for name, file in files_below(self.path).items() if self._may_be_image(name, file)}
        if not files:
            raise UserError(f"{self.path}: holds no image file")
        height, width, channels = shape
        size = height if height == width else None  # other shapes cannot be cut to; they are compared
        mode: Literal[1, 3] = 1 if channels == 1 else 3
        decoded = decode_all(files.items(), len(files), scratch, size=size, channels=mode, origin=str(self.path))
        names = list(files)
        return _Images(decoded.images, [names[i] for i in decoded.kept], decoded.rejected)

    def _may_be_image(self, name: str, file: Path) -> bool:
        """Whether a file is not one of those that go with images."""
        path = PurePosixPath(name)
        beside = path.suffix.lower() in (".txt", ".json") or path.name in NAMES
        return not beside and (self.prompts is None or file.resolve() != self.prompts.resolve())

    def _array(self, scratch: Path) -> _Images:
        """The images of an array."""
        import numpy as np

        from unmem.train.datasets._archive import Archive

        if self.path.suffix.lower() == ".npz":
            archive = Archive(self.path)
            images = archive.images(["x" if "x" in archive.keys else "images"], scratch)
        else:
            try:
                images = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise UserError(f"{self.path}: cannot be read ({error})") from None
            if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
                have = f"{images.dtype} {list(images.shape)}"
                raise UserError(f"{self.path}: is {have}; needs uint8 images [n, h, w] or [n, h, w, c], 0 to 255")
            images = images[..., None] if images.ndim == 3 else images
        return _Images(images, [str(row) for row in range(len(images))], [])

    def _asked(self, manifest: Path, names: list[str], unread: set[str]) -> tuple[list[str | None], list[Rejected]]:
        """Each image's prompt, and what the manifest says in vain."""
        prompts, rejected = read_prompts(manifest)
        known = set(names)
        for name in (name for name in prompts if name not in known):
            reason = "cannot be read" if name in unread else "is not there"
            rejected.append(Rejected(f"{manifest.name}: {name}", f"has a prompt, but the image {reason}"))
        found = [prompts.get(name) for name in names]
        if not any(prompt is not None for prompt in found):
            reasons = f"; first: {rejected[0].source}: {rejected[0].reason}" if rejected else ""
            raise UserError(f"{manifest}: gives none of the {len(names)} images in {self.path} a prompt{reasons}")
        if missing := sum(prompt is None for prompt in found):
            progress.say(f"{manifest}: {missing} of {len(names)} images have no prompt; they are samples all the same")
        return found, rejected


@dataclass(frozen=True)
class _Images:
    """Images, their names, and what could not be read."""

    images: np.ndarray
    names: list[str]
    rejected: list[Rejected]


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A folder for pixels that are not needed afterwards."""
    scratch = directory / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(images: np.ndarray, file: Path) -> None:
    """Copy images to a file, some at a time: they may not fit in memory."""
    from unmem.train.datasets._stream import allocate

    with atomic(file) as partial:
        out = allocate(partial, images.shape)
        for start in range(0, len(images), CHUNK):
            out[start : start + CHUNK] = images[start : start + CHUNK]
        out.flush()
        del out
