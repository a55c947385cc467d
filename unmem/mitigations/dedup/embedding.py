"""Images as vectors, by any model, and the pairs of them within a cosine distance.

The cosine distance of two vectors is ``1 - cos``: 0 for the same direction, 1 for orthogonal ones, 2 at most. For rows
of length 1 it is half the squared Euclidean distance, so the hall's exact search finds every pair. SSCD (Pizzi et al.,
CVPR 2022, arXiv 2202.10261), made for copies, calls 0.25 apart a copy with 90 % precision on DISC.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unmem import neighbors
from unmem.component import UserError
from unmem.mitigations.dedup import image_models
from unmem.mitigations.dedup.pairs import Pairs

Vectors = npt.NDArray[np.float32]

BATCH = 64
ROUNDING = 1e-9  # cosine distance that arithmetic alone can make of one image in two batches
OFF = 1e-5  # a row's length may be so far from 1
CHUNK = 2**22  # numbers that pairs are verified in at once

ALLOWED = (
    "package.module:callable; a TorchScript file *.pt or *.torchscript; a folder that transformers or timm saved; "
    "torchvision:NAME:WEIGHTS.pth or .safetensors; imagededup:cnn; files may end in ?size=PIXELS"
)


@dataclass(frozen=True)
class Embed:
    """A model of images, and the check on what it gives.

    Attributes:
        name: what it was asked for by, for the record.
        function: makes float32 [n, d], of NumPy or torch, of n RGB images.
    """

    name: str
    function: Callable[[list[Image.Image]], Any]

    def __call__(self, images: list[Image.Image]) -> Vectors:
        """float32 [n, d] of n images in RGB.

        Raises:
            UserError: when the model raises, gives anything else, or a value that is not finite.
        """
        try:
            found = self.function(images)
        except UserError:
            raise
        except Exception as error:  # whatever a user's own function raises
            raise UserError(f"embed {self.name!r}: {type(error).__name__}: {error}") from error
        if hasattr(found, "detach"):
            found = found.detach().cpu()
        shape, dtype = getattr(found, "shape", None), str(getattr(found, "dtype", type(found).__name__))
        wrong = shape is None or len(shape) != 2 or shape[0] != len(images) or not shape[1]
        if wrong or dtype.removeprefix("torch.") != "float32":
            got = dtype if shape is None else f"{dtype} {list(shape)}"
            raise UserError(
                f"embed {self.name!r}: must give float32 [{len(images)}, d] of {len(images)} images, got {got}"
            )
        vectors: Vectors = np.asarray(found)
        if not np.isfinite(vectors).all():
            raise UserError(f"embed {self.name!r}: gave a value that is not finite, in {dtype} {list(vectors.shape)}")
        return vectors


def load(spec: str) -> Embed:
    """The model that a user names. Networks run on a GPU if there is one.

    | spec | model | what it sees |
    |---|---|---|
    | ``package.module:callable`` | takes a list of RGB images, gives float32 [n, d] | the images |
    | ``model.torchscript.pt?size=320`` | TorchScript, such as SSCD as published | a square |
    | ``torchvision:resnet18:weights.pth?size=224`` | torchvision's, a local state dict, no head | a square |
    | a folder with ``config.json`` | transformers' (CLIP, DINOv2, ViT, ...) or timm's | what it was trained on |
    | ``imagededup:cnn`` (or ``vit``, ``efficientnet``) | imagededup's, by torchvision's weights | as in imagededup |

    A square is the whole image squeezed (bilinear, antialiased), which keeps the edges that a centre crop loses, in
    ImageNet's normalisation; SSCD's authors recommend 320. The sizes above are the defaults.

    Args:
        spec: one of the above.

    Raises:
        UserError: when it is none of these, or cannot be loaded.
    """
    return Embed(spec, _function(spec))


def embed(images: Iterable[Image.Image], model: Embed, batch: int = BATCH) -> Vectors:
    """The images' vectors, scaled to length 1; a model's zero vector stays zero, and is near nothing.

    Args:
        images: any mode; taken one batch at a time.
        model: see :func:`load`.
        batch: images handed to the model at once.

    Returns:
        float32 [n, d]; [0, 0] of no images.

    Raises:
        UserError: when the model gives anything but finite float32 vectors of one length.
    """
    rows: list[Vectors] = []
    left = (image if image.mode == "RGB" else image.convert("RGB") for image in images)
    while some := list(itertools.islice(left, batch)):
        rows.append(_unit(model(some)))
        if rows[-1].shape[1] != rows[0].shape[1]:
            raise UserError(f"embed {model.name!r}: gave {rows[0].shape[1]} columns, then {rows[-1].shape[1]}")
    return np.concatenate(rows) if rows else np.empty((0, 0), np.float32)


def vectors_of_arrays(images: npt.NDArray[np.uint8], model: Embed, batch: int = BATCH) -> Vectors:
    """:func:`embed` of images uint8 [n, height, width, channels], 1 (grey) or 3 (RGB) channels."""
    return embed((Image.fromarray(np.repeat(image, 3 // image.shape[2], axis=2)) for image in images), model, batch)


def within(vectors: Vectors, max_distance: float) -> Pairs:
    """All pairs of vectors within a cosine distance; see :func:`between`."""
    pairs = between(vectors, vectors, max_distance)
    above = pairs.left < pairs.right
    return Pairs(pairs.left[above], pairs.right[above], pairs.distance[above])


def between(left: Vectors, right: Vectors, max_distance: float) -> Pairs:
    """All pairs of a vector on the left and one on the right within a cosine distance.

    The exact search by Euclidean distance gives candidates, whose cosine distance is computed in float64 and compared
    with ``max_distance``. Below 1e-9 it counts as 0: so much rounding may make of one image in two batches. Zero
    vectors have no direction and are in no pair.

    Args:
        left: [n, d], rows of length 1 or 0, as :func:`embed` gives them.
        right: [m, d], likewise.
        max_distance: 0 to 2.

    Returns:
        The pairs; ``distance`` is the cosine distance.

    Raises:
        UserError: when ``max_distance`` is out of range.
        ValueError: when a row has another length.
    """
    if not 0 <= max_distance <= 2:
        raise UserError(f"max_distance of embeddings must be 0 to 2 (cosine distance), got {max_distance}")
    some, others = (_directed(name, rows) for name, rows in (("left", left), ("right", right)))
    if not len(some) or not len(others):
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    # |a - b|² is (|a| - |b|)² + 2 |a| |b| (1 - cos); the lengths are only nearly 1
    radius = math.sqrt(4 * OFF**2 + 2 * (1 + OFF) ** 2 * (max_distance + ROUNDING)) * (1 + 2**-20)
    i, j, _ = neighbors.within(left[some], right[others], radius)
    i, j = some[i], others[j]
    exact = _distances(left, right, i, j)
    exact[exact < ROUNDING] = 0
    near = exact <= max_distance
    return Pairs(i[near], j[near], exact[near].astype(np.float32))


def _function(spec: str) -> image_models.Function:
    """The function that a spec names."""
    kind, _, rest = spec.partition(":")
    if kind == "imagededup":
        return image_models.imagededup(rest)
    if kind == "torchvision":
        name, _, file = rest.partition(":")
        return image_models.torchvision(name, *_file(spec, file, 224))
    if spec and Path(spec).is_dir():
        return image_models.folder(Path(spec))
    if spec.partition("?")[0].endswith(image_models.TORCHSCRIPT):
        return image_models.torchscript(*_file(spec, spec, 320))
    module, colon, name = spec.partition(":")
    if colon and all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        return image_models.imported(spec)
    raise UserError(f"embed {spec!r}: no such model; allowed are {ALLOWED}")


def _file(spec: str, text: str, side: int) -> tuple[Path, int]:
    """The file and the size that ``file?size=N`` names."""
    name, mark, option = text.partition("?")
    if mark:
        size = option.removeprefix("size=")
        if size == option or not size.isdecimal() or not int(size):
            raise UserError(f"embed {spec!r}: after '?' only size=PIXELS is allowed, got {option!r}")
        side = int(size)
    if not Path(name).is_file():
        raise UserError(f"embed {spec!r}: no such file {name!r}")
    return Path(name), side


def _unit(vectors: Vectors) -> Vectors:
    """The rows, of length 1 each, or 0."""
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    exact /= np.where(lengths > 0, lengths, 1)
    return exact.astype(np.float32)


def _directed(name: str, vectors: Vectors) -> npt.NDArray[np.int64]:
    """The positions of the rows that are not zero."""
    lengths = np.concatenate([np.empty(0), *(np.linalg.norm(part.astype(float), axis=1) for part in _parts(vectors))])
    wrong = (lengths > 0) & ~(np.abs(lengths - 1) <= OFF)
    if wrong.any() or np.isnan(lengths).any():
        raise ValueError(f"{name} must have rows of length 1 or 0, got {lengths[wrong | np.isnan(lengths)][0]:g}")
    return np.flatnonzero(lengths)


def _parts(vectors: Vectors) -> list[Vectors]:
    """The rows in parts that fit the memory."""
    step = max(1, CHUNK // max(1, vectors.shape[1]))
    return [vectors[start : start + step] for start in range(0, len(vectors), step)]


def _distances(
    left: Vectors, right: Vectors, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Cosine distances of pairs: half the squared differences of the rows at length 1, all in float64."""
    found = np.empty(len(i))
    step = max(1, CHUNK // left.shape[1])
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        a, b = left[i[part]].astype(float), right[j[part]].astype(float)
        a /= np.linalg.norm(a, axis=1, keepdims=True)
        b /= np.linalg.norm(b, axis=1, keepdims=True)
        found[part] = np.square(a - b).sum(1) / 2
    return np.minimum(found, 2, out=found)
