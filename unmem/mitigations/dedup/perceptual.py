"""Perceptual hashes of images: imagededup's four of 64 bits, bit for bit, and a DCT hash of 256 bits.

A hash sees a small grey version of an image; copies that were re-encoded, resized or retouched differ from it in a few
bits. Every function takes an opened image in RGB or grey (:func:`unmem.train.decode.open_rgb`), so that any number of
them cost one decode. Where exact bits are not needed, ``DRAFT`` says how far the decoder, or :func:`shrink`, may reduce
the image beforehand.

| hash, bits | grey version | a bit is 1 where |
|---|---|---|
| phash 64 | 32 x 32 | a coefficient of the lowest 8 x 8 of its DCT-II is at least the median of the 63 without DC |
| phash 256 | 64 x 64 | the same of the lowest 16 x 16, and the 255 without DC |
| dhash 64 | 9 x 8 | a pixel is lighter than its left neighbour |
| ahash 64 | 8 x 8 | a pixel is at least the mean |
| whash 64 | 256 x 256 | a mean of 32 x 32 pixels (Haar, level 5) is at least the median of the 64 |

Bits are in reading order. Those of 64 bits follow imagededup 0.3.3: Lanczos in RGB, then grey in 8 bits. The one of 256
is ours: grey first, then Lanczos in floating point, since rounding to 8 bits would flip the bits of weak coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dct

from unmem.component import UserError
from unmem.mitigations.dedup.resample import lanczos

Hash = Literal["phash", "dhash", "whash", "ahash"]
SIZES = {  # width and height of the grey version
    ("phash", 64): (32, 32),
    ("phash", 256): (64, 64),
    ("dhash", 64): (9, 8),
    ("ahash", 64): (8, 8),
    ("whash", 64): (256, 256),
}
# Pixels that suffice on either side: less than one bit changes on average, as benchmarks/image_hash.py counts.
DRAFT = {("phash", 64): 64, ("phash", 256): 128, ("dhash", 64): 64, ("ahash", 64): 128, ("whash", 64): 256}

# The order of :func:`dihedral_codes`.
DIHEDRAL = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
)

FIRM = 3.0  # grey levels
FLAT = 16.0  # firm bits
SHARPNESS_SIDE = 256  # pixels
BATCH = 1 << 19  # pixels, before or after resampling, that codes_of_arrays has in hand: they stay in the cache


def code(image: Image.Image, hash: Hash, bits: int = 64) -> npt.NDArray[np.uint64]:
    """The perceptual hash of one image.

    Args:
        image: mode RGB or L.
        hash: the method; those of 64 bits equal imagededup's ``encode_image`` of the same pixels.
        bits: 64; or, for phash, 256.

    Returns:
        uint64 [bits / 64], the first bit highest in the first word: ``f"{code[0]:016x}"`` is imagededup's string.

    Raises:
        UserError: when there is no such hash.
    """
    found: npt.NDArray[np.uint64] = _codes(_grey(image, hash, bits)[None], hash, bits)[0]
    return found


def codes_of_arrays(images: npt.NDArray[np.uint8], hash: Hash, bits: int = 64) -> npt.NDArray[np.uint64]:
    """The perceptual hashes of many images of one size: :func:`code` of each.

    Args:
        images: uint8 [n, height, width, channels], 1 (grey) or 3 (RGB) channels.
        hash: the method.
        bits: 64; or, for phash, 256.

    Returns:
        uint64 [n, bits / 64].

    Raises:
        UserError: when there is no such hash.
    """
    found = np.empty((len(images), bits // 64), np.uint64)
    for part in _batches(images, hash, bits):
        found[part] = _codes(_greys(images[part], hash, bits), hash, bits)
    return found


def flat_of_arrays(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """bool [n]: :func:`is_flat` of many images of one size, uint8 [n, height, width, channels]."""
    found = np.empty(len(images), np.bool_)
    for part in _batches(images, "phash", 64):
        found[part] = _details(_low_frequencies(_greys(images[part], "phash", 64), 64)) < FLAT
    return found


def dihedral_codes(image: Image.Image, bits: int = 64) -> npt.NDArray[np.uint64]:
    """The phashes of an image and of its seven flips and quarter turns, from one DCT.

    A flip changes the signs of every other row or column of the DCT, a transposition transposes it. Codes differ from
    those of the turned image itself only in coefficients so close to the median that rounding decides.

    Args:
        image: mode RGB or L.
        bits: 64 or 256.

    Returns:
        uint64 [8, bits / 64]: row i is the hash of ``image.transpose(DIHEDRAL[i])``, row 0 that of the image.
    """
    block = _low_frequencies(_grey(image, "phash", bits)[None], bits)[0]
    signs = (-1.0) ** np.arange(len(block))
    flips = np.stack([block, block * signs, block * signs[:, None], block * np.outer(signs, signs)])
    return _pack(_above_median(np.concatenate([flips, flips.transpose(0, 2, 1)])))


def detail(image: Image.Image) -> float:
    """How many of phash's 63 bits without DC the picture itself decides: 0 to 62 (the median is never decided).

    A bit counts where its coefficient is more than ``FIRM`` grey levels from the median, ten times what rounding to
    8 bits adds; the others are chance, or equal in many pictures. Coefficients are in grey levels when divided by 64:
    so scaled, the DCT of 32 x 32 is orthonormal but for its first row and column.

    Args:
        image: mode RGB or L.
    """
    return float(_details(_low_frequencies(_grey(image, "phash", 64)[None], 64))[0])


def is_flat(image: Image.Image) -> bool:
    """Whether an image holds too little for its hash to mean anything: fewer than ``FLAT`` of 63 bits are firm.

    A picture that is symmetric about both axes has 15 at most. In the test sets of CIFAR-10, MNIST and Fashion-MNIST,
    in Noto emoji and among photographs none is flat; of openclipart 15 % are: blanks, concentric circles, flags of
    plain stripes, faint dots. So is noise of 2 grey levels on 32 x 32 pixels.
    """
    return detail(image) < FLAT


def code_and_flat(image: Image.Image, hash: Hash, bits: int = 64) -> tuple[npt.NDArray[np.uint64], bool]:
    """:func:`code` and :func:`is_flat` of one image; for a phash of 64 bits both come from one DCT.

    Args:
        image: mode RGB or L.
        hash: the method.
        bits: 64; or, for phash, 256.
    """
    if (hash, bits) != ("phash", 64):
        return code(image, hash, bits), is_flat(shrink(image, DRAFT["phash", 64]))
    block = _low_frequencies(_grey(image, hash, bits)[None], bits)
    return _pack(_above_median(block))[0], bool(_details(block)[0] < FLAT)


def sharpness(image: Image.Image) -> float:
    """The variance of the Laplacian, in squared grey levels: the larger, the sharper; noise counts as sharp.

    All images are brought to ``SHARPNESS_SIDE`` pixels on the longer side first, so that an enlarged copy loses to its
    original (Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000).

    Args:
        image: mode RGB or L; a draft of at least ``SHARPNESS_SIDE`` pixels gives nearly the same value.
    """
    image = shrink(image, SHARPNESS_SIDE).convert("L")  # what a draft has behind it already
    scale = SHARPNESS_SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    grey = np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.int16)
    edged = np.pad(grey, 1, mode="edge")
    laplacian = edged[:-2, 1:-1] + edged[2:, 1:-1] + edged[1:-1, :-2] + edged[1:-1, 2:] - 4 * grey
    return float(laplacian.var())


def shrink(image: Image.Image, side: int) -> Image.Image:
    """An image reduced by 8, 4 or 2, as long as both sides keep ``side`` pixels; else itself.

    It is what a draft does to a JPEG, by means over squares, for images of any format and for further, smaller
    versions of a draft. Hashes of ``shrink(image, DRAFT[hash, bits])`` are as near to those of the image as a draft's
    are, and take a fraction of the time.
    """
    factor = next((factor for factor in (8, 4, 2) if min(image.size) >= factor * side), 1)
    return image.reduce(factor) if factor > 1 else image


def _size(hash: Hash, bits: int) -> tuple[int, int]:
    """Width and height of the grey version."""
    if (hash, bits) not in SIZES:
        known = ", ".join(f"{name} {size}" for name, size in SIZES)
        raise UserError(f"no perceptual hash {hash} of {bits} bits: known are {known}")
    return SIZES[hash, bits]


def _grey(image: Image.Image, hash: Hash, bits: int) -> npt.NDArray[np.uint8 | np.float32]:
    """The grey version [height, width] that a hash is made from."""
    assert image.mode in ("RGB", "L"), image.mode
    size = _size(hash, bits)
    if bits == 256:
        return np.asarray(image.convert("L").convert("F").resize(size, Image.Resampling.LANCZOS))
    return np.asarray(lanczos(image, size).convert("L"))


def _batches(images: npt.NDArray[np.uint8], hash: Hash, bits: int) -> Iterator[slice]:
    """As many images at a time as stay in the cache."""
    pixels = max(images.shape[1] * images.shape[2], math.prod(_size(hash, bits)))
    step = max(1, BATCH // pixels)
    return (slice(start, start + step) for start in range(0, len(images), step))


def _greys(images: npt.NDArray[np.uint8], hash: Hash, bits: int) -> npt.NDArray[np.uint8 | np.float32]:
    """The grey versions [n, height, width] of images [n, h, w, channels], as :func:`_grey` makes each.

    Pillow resamples along rows, then along columns, and rounds after each. So the images may lie below each other for
    the one and beside each other for the other, and n of them take two calls. (Newer Pillow begins with the columns
    of images that are much higher than wide: those go one by one.) So does one that is alone.
    """
    if len(images) == 1 or images.shape[1] > images.shape[2]:
        return np.stack([_grey(_image(image), hash, bits) for image in images])
    count, high, wide, channels = images.shape
    width, height = _size(hash, bits)
    below = _image(images.reshape(count * high, wide, channels))
    if bits == 256:
        below = below.convert("L").convert("F")
    rows = np.asarray(below.resize((width, below.height), Image.Resampling.LANCZOS))
    rows = rows.reshape(count, high, width, -1).swapaxes(0, 1)
    beside = _image(rows.reshape(high, count * width, -1))
    grey = beside.resize((beside.width, height), Image.Resampling.LANCZOS)
    if bits == 64:
        grey = grey.convert("L")
    return np.asarray(grey).reshape(height, count, width).swapaxes(0, 1)


def _image(pixels: npt.NDArray[np.uint8 | np.float32]) -> Image.Image:
    """Pixels [height, width, channels] as Pillow's, which knows no third axis for grey."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _codes(grey: npt.NDArray[np.uint8 | np.float32], hash: Hash, bits: int) -> npt.NDArray[np.uint64]:
    """The hashes of grey versions [n, height, width]."""
    if hash == "phash":
        return _pack(_above_median(_low_frequencies(grey, bits)))
    if hash == "dhash":
        return _pack(grey[:, :, 1:] > grey[:, :, :-1])
    if hash == "ahash":
        return _pack(grey >= grey.mean(axis=(1, 2), keepdims=True))
    means = _haar_means(grey)
    return _pack(means >= np.median(means, axis=(1, 2), keepdims=True))


def _low_frequencies(grey: npt.NDArray[np.uint8 | np.float32], bits: int) -> npt.NDArray[np.float64]:
    """float64 [n, side, side]: the lowest coefficients, down and across, of the unnormalised DCT-II; side² = bits."""
    side = round(bits**0.5)
    down = dct(grey.astype(np.float64), axis=1)[:, :side]
    block: npt.NDArray[np.float64] = dct(down, axis=2)[:, :, :side]
    return block


def _details(blocks: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """How many of the coefficients [n, 8, 8] but DC are far from their median, in grey levels."""
    coefficients = blocks.reshape(len(blocks), 64)[:, 1:] / (2 * SIZES["phash", 64][0])
    far = np.abs(coefficients - np.median(coefficients, axis=1, keepdims=True)) > FIRM
    details: npt.NDArray[np.int64] = far.sum(axis=1)
    return details


def _above_median(blocks: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Where the coefficients [n, side, side] reach the median of all but the first, DC."""
    median = np.median(blocks.reshape(len(blocks), -1)[:, 1:], axis=1)
    return blocks >= median[:, None, None]


def _haar_means(grey: npt.NDArray[np.uint8 | np.float32]) -> npt.NDArray[np.float64]:
    """Haar's approximation at level 5, [n, 8, 8]; by pywt, since its rounding decides ties."""
    import pywt

    means = grey / 255
    for _ in range(5):
        for axis in (1, 2):
            means, _ = pywt.dwt(means, "haar", axis=axis)
    return means


def _pack(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """Bits [n, height, width] as words [n, height * width / 64], the first bit highest in the first word."""
    packed = np.packbits(bits.reshape(len(bits), bits.shape[1] * bits.shape[2]), axis=1)
    return packed.view(">u8").astype(np.uint64)
