"""Groups of duplicates, and who stays: every dropped item lies within the threshold of the one that is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class Relation(Protocol):
    """One way for two items to be duplicates of each other."""

    @property
    def stage(self) -> str:
        """Its name in the ledger."""

    def distances(self, item: int, others: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32 [k]: how far each of ``others`` is from ``item``; infinite beyond the threshold."""


class Kept(NamedTuple):
    """Who stands for each of n items.

    Attributes:
        by: int64 [n], the item that stays for each; itself when it stays.
        relation: int64 [n], which relation makes it a duplicate of that item; -1 for an item that stays.
        distance: float32 [n], by that relation; 0 for an item that stays.
    """

    by: npt.NDArray[np.int64]
    relation: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float32]


def representatives(
    labels: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    relations: Sequence[Relation],
    apart: Mapping[int, Collection[int]] | None = None,
    anchors: npt.NDArray[np.bool_] | None = None,
) -> Kept:
    """Choose who stays: in order of preference, every item that no kept one stands for.

    A chain (a like b, b like c, a unlike c) is therefore cut: the kept items are a maximal independent set of the
    group's graph, as with imagededup's ``find_duplicates_to_remove``, and each dropped item is given to the
    nearest kept one, by the first relation that holds.

    Args:
        labels: int64 [n], the connected component of each item.
        order: int64 [n], the items from the most to the least preferred.
        relations: from the strictest to the loosest.
        apart: pairs that are no duplicates whatever the relations say, each listed both ways.
        anchors: bool [n], for one set against another: these stay whatever they are like, and they alone stand for
            others; they come first in ``order``.
    """
    by = np.arange(len(labels))
    relation = np.full(len(labels), -1, np.int64)
    distance = np.zeros(len(labels), np.float32)
    for members in _groups(labels, order):
        ranks = np.full(len(members), len(relations), np.int64)
        nearest = np.full(len(members), np.inf, np.float32)
        keeper = members.copy()
        stays = np.zeros(len(members), bool)
        for position, item in enumerate(members.tolist()):
            if ranks[position] < len(relations):
                continue
            if anchors is not None and not anchors[item]:
                break
            stays[position] = True
            allowed = ~stays if anchors is None else ~anchors[members]
            if apart and item in apart:
                allowed &= ~np.isin(members, list(apart[item]))
            for rank, link in enumerate(relations):
                found = link.distances(item, members)
                better = allowed & (found < np.inf)
                better &= (rank < ranks) | ((rank == ranks) & (found < nearest))
                ranks[better], nearest[better], keeper[better] = rank, found[better], item
        dropped = ranks < len(relations)
        by[members] = keeper
        relation[members[dropped]], distance[members[dropped]] = ranks[dropped], nearest[dropped]
    return Kept(by, relation, distance)


def _groups(labels: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """The members of each component of two or more, from the most to the least preferred."""
    by_label = order[np.argsort(labels[order], kind="stable")]
    cuts = np.flatnonzero(np.diff(labels[by_label])) + 1
    return [members for members in np.split(by_label, cuts) if len(members) > 1]
