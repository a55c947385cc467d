"""Are samples nearer to the training set than to images that nobody trained on?"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from unmem.component import Positive, component
from unmem.evaluate.audit import Audit
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.results import Distances, Target
from unmem.neighbors import top_k
from unmem.train.imageset import ImageSet


@component
class NearestDistance:
    """Distances of generated images to the nearest member against the nearest held-out image.

    A model that only generalises is as near to one as to the other, given sets of one size; so the larger of members
    and non-members is cut to the size of the smaller (in the audit's order, which is random).

    Attributes:
        samples: generated images.
    """

    samples: Positive

    needs: ClassVar[frozenset[str]] = frozenset({"samples"})
    readings: ClassVar[tuple[Reading, ...]] = ()

    def run(self, target: Target, audit: Audit, seed: int) -> Distances:
        """Both distances of each sample."""
        queries = target.samples(self.samples)
        size = np.arange(min(len(audit.members), len(audit.nonmembers)))
        return Distances(
            _nearest(queries, audit.member_images.take(size)), _nearest(queries, audit.nonmember_images.take(size))
        )


def _nearest(queries: np.ndarray, data: ImageSet) -> np.ndarray:
    """float64 [q]: L2 over the root of the number of values."""
    points = data.images().reshape(len(data), -1)
    distances = top_k(queries.reshape(len(queries), -1), points, 1).distances[:, 0].astype(np.float64)
    return np.asarray(distances / (255 * np.sqrt(points.shape[1])))
