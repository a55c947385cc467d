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
        kept: the image that stays in its place.
        distance: between the two, in the mitigation's own unit (bits for hashes; 0 for exact copies).
        mitigation: the component's kind.
    """

    id: str
    kept: str
    distance: float
    mitigation: str


def copies(dropped: Iterable[tuple[str, str]]) -> dict[str, int]:
    """How many images of the set each duplicated image stands with, itself included.

    Args:
        dropped: (id, kept id) of every dropped image; one that was kept may be dropped later.

    Returns:
        The size of its group by id, for every dropped image and every image that stands for one.
    """
    kept_for = dict(dropped)
    last: dict[str, str] = {}
    for name in kept_for:
        end = name
        while end in kept_for:
            end = kept_for[end]
        last[name] = end
    sizes = Counter(last.values())
    return {name: sizes[last.get(name, name)] + 1 for name in {*last, *last.values()}}
