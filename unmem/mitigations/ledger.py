"""What a data mitigation did, image by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Dropped:
    """One image that was left out.

    Attributes:
        id: the dropped image.
        kept: the image that stays in its place; None where none does.
        distance: between the two, in the mitigation's own unit (bits for hashes; 0 for exact copies). Where no image
            stays in its place: what it was left out by, in the mitigation's own unit; 0 for an image that was drawn.
        mitigation: the component's kind.
    """

    id: str
    kept: str | None
    distance: float
    mitigation: str


def copies(dropped: Iterable[tuple[str, str | None]]) -> dict[str, int]:
    """How many images of the set each duplicated image stands with, itself included.

    Args:
        dropped: (id, kept id) of every dropped image; one that was kept may be dropped later. Images without one that
            stays in their place are no copies of any, and do not count.

    Returns:
        The size of its group by id, for every dropped image and every image that stands for one.
    """
    kept_for = {name: kept for name, kept in dropped if kept is not None}
    last: dict[str, str] = {}
    for name in kept_for:
        end = name
        while end in kept_for:
            end = kept_for[end]
        last[name] = end
    sizes = Counter(last.values())
    return {name: sizes[last.get(name, name)] + 1 for name in {*last, *last.values()}}
