"""Duplicates left out of a set in memory: what the four recipe components share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unmem.mitigations.dedup.groups import Relation, representatives
from unmem.mitigations.dedup.union_find import UnionFind
from unmem.mitigations.ledger import Dropped
from unmem.train.imageset import ImageSet


def leave_out(
    data: ImageSet, edges: npt.NDArray[np.int64], relation: Relation, kind: str
) -> tuple[ImageSet, list[Dropped]]:
    """Keep, in the set's order, each image that no kept one duplicates.

    Args:
        data: the set.
        edges: int64 [m, 2], a spanning forest of the pairs that ``relation`` joins.
        relation: between positions of the set.
        kind: the component's, for the ledger.
    """
    union = UnionFind(len(data))
    union.add(edges)
    kept = representatives(union.labels(), np.arange(len(data)), [relation])
    stays = kept.by == np.arange(len(data))
    dropped = [
        Dropped(data.ids[i], data.ids[kept.by[i]], float(kept.distance[i]), kind)
        for i in np.flatnonzero(~stays).tolist()
    ]
    return data.take(np.flatnonzero(stays)), dropped
