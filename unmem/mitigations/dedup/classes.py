"""Joint duplication of images and captions, in the four classes that memorization tells apart.

The same image under the same caption is what a text-conditioned diffusion model memorizes first, the same image
under other captions much less (Somepalli et al. 2023, arXiv 2305.20086); other images under one caption teach a
template.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


def count(item: Labels, image: Labels, pixels: Labels, caption: Labels, near_caption: Labels) -> dict[str, int]:
    """How many items have a partner of each class; an item may be counted in several.

    Args:
        item: int64 [m], a row for each caption of each item: which item it belongs to.
        image: the group of the row's image by all image stages.
        pixels: the group of the row's image by bytes and pixels alone.
        caption: the group of equal normalised captions.
        near_caption: the group of captions within the Jaccard threshold.

    Returns:
        The counts by class. ``same image``: one image group. ``near image, near caption``: one image group, but
        other pixels; captions within the threshold, but not equal.
    """
    return {
        "same image, same caption": _items(item, _varied([image, caption], [item])),
        "same image, other captions": _items(item, _differing([image], item, near_caption)),
        "other images, same caption": _items(item, _varied([caption], [image])),
        "near image, near caption": _items(item, _differing([image, near_caption], pixels, caption)),
    }


def _varied(by: list[Labels], what: list[Labels]) -> npt.NDArray[np.bool_]:
    """Whether each row's group, by the first labels, holds two or more different values of the second."""
    group = _number(by)
    distinct = np.unique(np.stack([group, *what]), axis=1)
    varied: npt.NDArray[np.bool_] = np.bincount(distinct[0])[group] > 1
    return varied


def _differing(by: list[Labels], a: Labels, b: Labels) -> npt.NDArray[np.bool_]:
    """Whether each row's group holds a row that differs in both ``a`` and ``b``."""
    group = _number(by)
    pairs = np.unique(np.stack([group, a, b]), axis=1)
    with_a, with_b = _number([pairs[0], pairs[1]]), _number([pairs[0], pairs[2]])
    # all pairs of the group, less those that share a, less those that share b, and itself put back
    others = np.bincount(pairs[0])[pairs[0]] - np.bincount(with_a)[with_a] - np.bincount(with_b)[with_b] + 1
    _, row = np.unique(np.stack([group, a, b]), axis=1, return_inverse=True)
    differing: npt.NDArray[np.bool_] = others[row.reshape(-1)] > 0
    return differing


def _number(labels: list[Labels]) -> Labels:
    """Number the combinations of labels."""
    numbers: Labels = np.unique(np.stack(labels), axis=1, return_inverse=True)[1].reshape(-1)
    return numbers


def _items(item: Labels, rows: npt.NDArray[np.bool_]) -> int:
    """How many different items these rows belong to."""
    return len(np.unique(item[rows]))
