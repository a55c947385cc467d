"""Untargeted extraction: generate many images and keep those that are suspiciously near a training image."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from unmem import progress
from unmem.component import Fraction, Positive, PositiveFloat, component
from unmem.evaluate.audit import Audit
from unmem.evaluate.groups import group_images, merge_groups, nearest_groups
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.results import Matches, Target
from unmem.train.imageset import ImageSet

PART = 16_384  # generated images that are searched for at once: as numbers they take four times their memory


@component
class GenerateAndFilter:
    """Extraction by an adaptive distance ratio (Carlini et al. 2023, section 5.1), scored on held-out images too.

    A sample matches its nearest training image if d(sample, image) / (alpha * mean d to its n nearest) < threshold.
    Near-duplicate groups count once among the n, so that copies cannot hide each other. The same rule over the
    held-out images, which no model has seen, gives the number of false positives.

    Attributes:
        samples: generated images.
        alpha: the paper's factor.
        neighbors: the paper's n; fewer where a set has fewer groups.
        threshold: the paper's is 1; small or simple images need a stricter one, as the held-out count shows.
        group_threshold: training images at most this far apart (L2 over the root of the number of values, pixels in
            [0, 1]) are one group.
    """

    samples: Positive
    alpha: PositiveFloat = 0.5
    neighbors: Positive = 50
    threshold: PositiveFloat = 1.0
    group_threshold: Fraction = 0.03

    needs: ClassVar[frozenset[str]] = frozenset({"samples"})
    readings: ClassVar[tuple[Reading, ...]] = ()

    def run(self, target: Target, audit: Audit, seed: int) -> Matches:
        """Nearest member and nearest held-out image of each sample, with distance and ratio."""
        generated = target.samples(self.samples)
        training = audit.member_training
        position = {name: i for i, name in enumerate(audit.members)}
        origin = np.array([position[audit.copies.get(name, name)] for name in training.ids], dtype=np.int64)
        held_out = audit.nonmember_images
        groups = self._groups(training, origin), self._groups(held_out, np.arange(len(held_out)))
        with progress.track("extract", 2 * len(generated)) as advance:
            member = self._match(generated, training, groups[0], advance)
            nonmember = self._match(generated, held_out, groups[1], advance)
        copies = np.bincount(groups[0], minlength=len(audit.members))
        return Matches(*member, *nonmember, copies, np.array(self.threshold), np.array(self.group_threshold))

    def _groups(self, data: ImageSet, origin: np.ndarray) -> np.ndarray:
        """int64 [images]: each image's group, named by the ``origin`` of its first image."""
        # planted copies belong to their original, however they were changed; others are joined by their pixels
        by_pixels = group_images(data.flat(), self.group_threshold)
        return np.asarray(origin[merge_groups(by_pixels, origin)])

    def _match(
        self, generated: np.ndarray, data: ImageSet, group: np.ndarray, advance: Callable[[int], None]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each generated image's nearest group: its name, distance and ratio."""
        points = data.images().reshape(len(data), -1)
        count = min(self.neighbors, len(np.unique(group)))
        found = []
        for start in range(0, len(generated), PART):
            queries = generated[start : start + PART].reshape(-1, points.shape[1])
            distances, names = nearest_groups(queries, points, group, count)
            distances /= 255
            scale = self.alpha * np.maximum(distances.mean(1), np.finfo(np.float64).tiny)
            found.append((names[:, 0], distances[:, 0], distances[:, 0] / scale))
            advance(len(queries))
        names, nearest, ratio = (np.concatenate(column) for column in zip(*found, strict=True))
        return names, nearest, ratio
