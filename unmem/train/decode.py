"""One image file, whatever it holds, to upright 8-bit pixels; or the reason why not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

T = TypeVar("T")

# Pixels only: Pillow would also hand EPS to Ghostscript, and read formats without a signature out of random bytes.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
MIRRORED, TURNED = (2, 3, 4), (5, 6, 7, 8)  # EXIF orientations that keep the sides, and that exchange them


class _Unusable(Exception):
    """Readable, but not one image with known pixel values; the message is the reason."""


class Opened(NamedTuple):
    """One image file's picture, and what became of it.

    Attributes:
        image: mode RGB, upright unless read as stored; smaller than the original where a draft was asked for.
        width: of the original in pixels, upright like the image.
        height: of the original in pixels, upright like the image.
        oriented: whether an EXIF orientation was applied.
        flattened: whether transparency was laid over white.
    """

    image: Image.Image
    width: int
    height: int
    oriented: bool
    flattened: bool


def decode(data: bytes | Path, size: int | None, channels: Literal[1, 3]) -> np.ndarray | str:
    """Decode one image; no bytes make it raise.

    The rules, in their order:

    * A file with several frames or pages is refused. A phone's MPO is not: its first frame is the photograph, the
      rest are depth maps and the like.
    * More pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` are refused (Pillow itself only warns up to twice that).
    * 16-bit grey is scaled, 0..65535 to 0..255. Integers outside that range have no known white: refused.
    * Floating point within 0..1 is scaled to 0..255, else within 0..255 it is rounded; anything else is refused.
    * The EXIF orientation is applied.
    * Transparency, of any kind, is laid over white.
    * CMYK and other colour spaces become RGB; embedded ICC profiles are not applied.
    * Grey is Pillow's L: ``0.299 R + 0.587 G + 0.114 B``.
    * With ``size``, the centre square is resampled (Lanczos, antialiased in reduction) to ``size`` x ``size``.

    Args:
        data: the file's bytes, or its path.
        size: side of the result in pixels; None keeps height and width.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8 [height, width, channels]; or, for a file that cannot be used, a text that says why.
    """
    return _read(data, partial(_pixels, size=size, channels=channels))


def open_rgb(data: bytes | Path, *, draft: int | None = None, as_stored: bool = False) -> Opened | str:
    """Decode one image whole, by the rules of :func:`decode`; no bytes make it raise.

    Args:
        data: the file's bytes, or its path.
        draft: a JPEG may come out reduced, by 2, 4 or 8, as long as both sides keep so many pixels. libjpeg then
            decodes only the low frequencies of each block, which takes a fraction of the time. Other formats are
            decoded in full.
        as_stored: imagededup's way: the EXIF orientation is not applied (but to TIFF, which Pillow itself turns),
            transparency is dropped instead of laid over white.

    Returns:
        The picture in RGB and its original size; or, for a file that cannot be used, a text that says why.
    """
    return _read(data, partial(_rgb, draft=draft, as_stored=as_stored))


def _read(data: bytes | Path, use: Callable[[Image.Image], T]) -> T | str:
    """What ``use`` makes of the opened image, or the reason why there is nothing to use."""
    try:
        if not (data.stat().st_size if isinstance(data, Path) else len(data)):
            return "empty file"
        Image.init()
        formats = [name for name in FORMATS if name in Image.OPEN]  # an older Pillow has no AVIF
        with Image.open(data if isinstance(data, Path) else BytesIO(data), formats=formats) as image:
            return use(image)
    except _Unusable as error:
        return str(error)
    except UnidentifiedImageError:  # its message holds a memory address
        return "not an image of a known format"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return f"decompression bomb: {error}"
    except Exception as error:  # damaged files raise anything: SyntaxError, struct.error, OverflowError, ...
        return f"cannot be decoded: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"


def _pixels(image: Image.Image, size: int | None, channels: Literal[1, 3]) -> np.ndarray:
    """The pixels of an opened image."""
    upright = _rgb(image).image
    if channels == 1:
        upright = upright.convert("L")
    if size is not None:
        upright = _square(upright, size)
    return np.asarray(upright).reshape(upright.height, upright.width, channels)


def _rgb(image: Image.Image, draft: int | None = None, as_stored: bool = False) -> Opened:
    """An opened image in RGB; not copied where it is that already."""
    width, height = image.size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise _Unusable(f"decompression bomb: {width} x {height} pixels, above the limit of {Image.MAX_IMAGE_PIXELS}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise _Unusable(f"{'multi-page' if image.format == 'TIFF' else 'animated'}: {frames} frames")
    if draft is not None and image.format in ("JPEG", "MPO"):
        image.draft(image.mode, (draft, draft))
    if as_stored:
        image = _eight_bits(image)
        image = image if image.mode == "RGB" else image.convert("RGBA").convert("RGB")
        image.load()
        return Opened(image, width, height, oriented=False, flattened=False)
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in TURNED and image.format != "TIFF":  # whose size Pillow gives upright
        width, height = height, width
    ImageOps.exif_transpose(image, in_place=True)
    image = _eight_bits(image)
    flattened = image.has_transparency_data
    if flattened:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    image = image if image.mode == "RGB" else image.convert("RGB")
    return Opened(image, width, height, orientation in (*MIRRORED, *TURNED), flattened)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of more than 8 bits in 8 bits, others as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 255):  # so written, NaN is refused too
            raise _Unusable(f"floating-point values from {low:g} to {high:g}: neither within 0..1 nor within 0..255")
        scaled = values * 255 if high <= 1 else values
    else:
        if low < 0 or high > 65535:
            raise _Unusable(f"integer values from {low} to {high}: not within 0..65535")
        scaled = (values.astype(np.uint32) + 128) // 257
        if "transparency" in image.info:
            scaled[values == image.info["transparency"]] = 255
    return Image.fromarray(np.round(scaled).astype(np.uint8))


def _square(image: Image.Image, size: int) -> Image.Image:
    """The centre square, ``size`` x ``size``; cut before it is resampled, or a 1 x 60,000 image would explode."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
