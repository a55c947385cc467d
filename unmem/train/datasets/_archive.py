"""Image arrays in an ``.npz`` file, without reading them into memory."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from unmem.component import UserError, suggest
from unmem.progress import track
from unmem.rundir import atomic
from unmem.train.datasets._stream import allocate

ROWS = 1 << 22  # bytes unpacked at once, about


@dataclass(frozen=True)
class _Member:
    """An image array: n, height, width, channels; bytes before the pixels in the member, and in a stored one's file."""

    key: str
    shape: tuple[int, int, int, int]
    start: int
    place: int | None


class Archive:
    """An ``.npz`` file; pickled objects in it are refused."""

    def __init__(self, path: Path) -> None:
        """Read the list of keys.

        Raises:
            UserError: when the file is missing, or is no ``.npz``.
        """
        self.path = path
        with self._opened("") as archive:
            self.keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def check(self, key: str) -> str:
        """``key`` itself.

        Raises:
            UserError: when the archive lacks it.
        """
        if key not in self.keys:
            raise UserError(f"{self.path}: has no {key!r}{suggest(key, self.keys)}; has {', '.join(self.keys)}")
        return key

    def length(self, key: str) -> int:
        """How many images there are under ``key``.

        Raises:
            UserError: as :meth:`images`.
        """
        return self._member(key).shape[0]

    def images(self, keys: list[str], scratch: Path) -> np.ndarray:
        """uint8 [n, height, width, channels], memory-mapped: the images under these keys, one array after the other.

        A single array that is not compressed is mapped where it lies; else ``scratch/pixels.npy`` is written.

        Raises:
            UserError: when a key is missing, an array is damaged or is not of uint8 images, or their sizes differ.
        """
        members = [self._member(key) for key in keys]
        first = members[0]
        if any(member.shape[1:] != first.shape[1:] for member in members):
            raise UserError(f"{self.path}: images of different sizes in {', '.join(keys)}")
        if len(members) == 1 and first.place is not None:
            return np.memmap(self.path, mode="r", dtype=np.uint8, offset=first.place, shape=first.shape)
        total = sum(member.shape[0] for member in members)
        with atomic(scratch / "pixels.npy") as partial, track("unpack", total) as advance:
            out = allocate(partial, (total, *first.shape[1:]))
            done = 0
            for member in members:
                for rows in self._rows(member):
                    out[done : done + len(rows)] = rows
                    done += len(rows)
                    advance(len(rows))
            out.flush()
            del out
        unpacked: np.ndarray = np.load(scratch / "pixels.npy", mmap_mode="r")
        return unpacked

    def column(self, key: str, count: int, dtypes: str, meaning: str) -> np.ndarray:
        """[count]: one value an image.

        Args:
            key: the array's name.
            count: how many images there are.
            dtypes: the kinds of numpy dtype that will do, such as ``iu``.
            meaning: what the values must be, in words.

        Raises:
            UserError: when the key is missing, or the array is damaged, of another length or of another type.
        """
        self.check(key)
        with self._opened(key) as archive, archive.open(f"{key}.npy") as stream:
            values: np.ndarray = npy.read_array(stream, allow_pickle=False)
        if values.shape not in ((count,), (count, 1)) or values.dtype.kind not in dtypes:
            have = f"{values.dtype} {list(values.shape)}"
            raise UserError(f"{self.path}: {key!r} is {have}; needs {count} {meaning}, one an image")
        return values.reshape(count)

    def _member(self, key: str) -> _Member:
        """Where the array under ``key`` lies, once it proves to be of images."""
        self.check(key)
        with self._opened(key) as archive, archive.open(f"{key}.npy") as stream:
            read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            start = stream.tell()
            info = archive.getinfo(f"{key}.npy")
        size = (*shape, 1) if len(shape) == 3 else shape
        if dtype != np.uint8 or len(size) != 4 or size[3] not in (1, 3) or 0 in size or fortran:
            have = f"{dtype} {list(shape)}{' in Fortran order' if fortran else ''}"
            raise UserError(
                f"{self.path}: {key!r} is {have}; needs uint8 images, 0 to 255, of shape [n, height, width] or "
                "[n, height, width, channels] with 1 or 3 channels, in C order"
            )
        if info.file_size != start + math.prod(size):
            raise UserError(f"{self.path}: {key!r} is damaged ({info.file_size} bytes for {list(shape)})")
        place = None
        if info.compress_type == zipfile.ZIP_STORED:
            with self.path.open("rb") as file:  # the local header's own lengths: they may differ from the directory's
                file.seek(info.header_offset + 26)
                place = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))) + start
        return _Member(key, size, start, place)

    def _rows(self, member: _Member) -> Iterator[np.ndarray]:
        """The images of one array, some at a time."""
        count, *size = member.shape
        bytes_each = math.prod(size)
        step = max(1, ROWS // bytes_each)
        with self._opened(member.key) as archive, archive.open(f"{member.key}.npy") as stream:
            stream.read(member.start)
            for begin in range(0, count, step):
                rows = min(step, count - begin)
                yield np.frombuffer(stream.read(rows * bytes_each), np.uint8).reshape(rows, *size)

    @contextmanager
    def _opened(self, key: str) -> Iterator[zipfile.ZipFile]:
        """The zip file; whatever a damaged one raises becomes one message."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except FileNotFoundError:
            raise UserError(f"{self.path}: no such file") from None
        except Exception as error:  # from BadZipFile and zlib.error to EOFError and ValueError
            what = f"{key!r} cannot be read" if key else "is not an .npz file"
            raise UserError(f"{self.path}: {what} ({error})") from None
