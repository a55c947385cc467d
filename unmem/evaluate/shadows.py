"""Shadow models: who is trained on what, so that each image is inside half of them by chance.

Carlini et al. 2022 (arXiv 2112.03570): models of the same training on random halves of one pool tell what a model's
answers on an image look like with and without it. The pool is members, non-members and canaries together; the audited
model is none of them.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from unmem.component import component
from unmem.evaluate.audit import Audit
from unmem.evaluate.rows import Rows
from unmem.rng import stream
from unmem.train.imageset import content_of


@component
class Shadows:
    """A fleet of shadow models for each arm, trained with the arm's own mitigations (an adaptive attack).

    Attributes:
        count: how many; each image is inside half of them.
    """

    count: Annotated[int, Field(ge=2)]


def inside(audit: Audit, config: Shadows, number: int, seed: int) -> Rows:
    """bool [images] a group: what shadow ``number`` of 0..count-1 is trained on.

    An image is inside ``count // 2`` of them, drawn by what it looks like, so that equal images go together.
    """
    drawn = {name: _drawn(images.ids, config.count, number, seed) for name, images in audit.groups.items()}
    return Rows(**drawn)


def _drawn(ids: tuple[str, ...], count: int, number: int, seed: int) -> np.ndarray:
    """bool [ids]: who is inside."""
    places = [stream(seed, "shadow", content_of(name)).permutation(count)[number] for name in ids]
    return np.array(places, dtype=np.int64) < count // 2
