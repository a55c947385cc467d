"""Images whose captions say the same: MinHash signatures and the Jaccard similarity of their shingles."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from unmem.component import UserError, component
from unmem.mitigations.ledger import Dropped
from unmem.train.imageset import ImageSet


@component
class CaptionDuplicates:
    """Drop each image whose caption is a near copy of one that stays; the first in the set's order stays.

    Captions are compared as sets of 5-character shingles of their normalised text. Pairs are found by MinHash LSH
    (Broder 1997) and verified by the exact Jaccard similarity. An empty caption is like none.

    Attributes:
        jaccard: the least similarity of a near copy; 1 drops equal normalised captions only.
    """

    jaccard: Annotated[float, Field(gt=0, le=1)] = 0.8

    def apply(self, data: ImageSet, rng: np.random.Generator) -> tuple[ImageSet, list[Dropped]]:
        """The set without images of repeated captions; a ledger entry (1 - Jaccard) for each dropped image.

        Raises:
            UserError: when the data have no captions.
        """
        from unmem.mitigations.dedup import captions
        from unmem.mitigations.dedup.leave_out import leave_out
        from unmem.mitigations.dedup.relations import NearCaption

        if data.captions is None:
            raise UserError("caption_duplicates: the data have no captions")
        rows = np.flatnonzero([bool(text.strip()) for text in data.captions])
        edges = rows[captions.forest([data.captions[row] for row in rows], self.jaccard)]
        relation = NearCaption([[text] for text in data.captions], self.jaccard)
        return leave_out(data, edges, relation, "caption_duplicates")
