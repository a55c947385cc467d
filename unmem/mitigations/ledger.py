"""What a data mitigation did, image by image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dropped:
    """One image that was left out.

    Attributes:
        id: the dropped image.
        kept: the image that stays in its place.
        distance: between the two, in the mitigation's own unit (bits for hashes; 0 for exact copies).
        mitigation: the component's kind.
    """

    id: str
    kept: str
    distance: float
    mitigation: str
