"""Extraction by prompt: images that a model draws again and again when it is asked for one thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from unmem import progress
from unmem.component import Fraction, Positive, UserError, component
from unmem.evaluate.audit import Audit
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.results import Agreements, Target
from unmem.neighbors import top_k
from unmem.train.imageset import ImageSet


@component
class PromptedExtraction:
    """Extraction by samples of one prompt that agree (Carlini et al. 2023, section 4.2), on held-out captions too.

    A prompt is flagged if ``clique`` of its samples are all within ``threshold`` of one another, by the largest
    distance over tiles. Where it is the caption of members, the sample in the midst of the tightest clique is held
    against these: one within ``near`` of it is extracted. The same rule over held-out images with the prompt as their
    caption gives the false positives. Black images, which a safety checker leaves in place of others, are left out.

    Attributes:
        clique: samples that must agree; the paper's number, of 500 samples a prompt.
        threshold: largest distance between samples that agree: L2 over the root of the number of values, pixels in
            [0, 1], the largest of all tiles.
        tiles: along each side; the paper's 4 are 16 in all.
        near: largest distance, over the whole image, to a training image that counts as extracted; the paper's.
    """

    clique: Annotated[int, Field(ge=2)] = 10
    threshold: Fraction = 0.15
    tiles: Positive = 4
    near: Fraction = 0.15

    needs: ClassVar[frozenset[str]] = frozenset({"samples", "prompts"})
    readings: ClassVar[tuple[Reading, ...]] = ()

    def run(self, target: Target, audit: Audit, seed: int) -> Agreements:
        """Each prompt's clique, and what is near to it; nothing is random.

        Raises:
            UserError: when images have fewer pixels along a side than tiles.
        """
        from unmem.evaluate.cliques import tightest_clique, tiled_distances

        asked = _positions(target.prompts)
        drawn = target.samples(len(target.prompts))
        height, width = drawn.shape[1:3]
        if min(height, width) < self.tiles:
            raise UserError(f"tiles: {self.tiles} a side are more than the pixels of {height} x {width} images")
        sides = [(data, _positions(data.captions or ())) for data in (audit.member_images, audit.nonmember_images)]
        planted = set(audit.planted)
        rows, black = [], 0
        with progress.track("cliques", len(drawn)) as advance:
            for prompt, positions in asked.items():
                seen = [position for position in positions if drawn[position].any()]
                samples, black = drawn[seen], black + len(positions) - len(seen)
                clique = tightest_clique(tiled_distances(samples, self.tiles), self.threshold, self.clique)
                found = (1.0, -1) if clique is None else (clique.mean, seen[clique.medoid])
                medoid = None if clique is None else clique.medoid
                near = [self._nearest(samples, medoid, data, where.get(prompt, [])) for data, where in sides]
                captioned = sum(audit.members[member] in planted for member in sides[0][1].get(prompt, []))
                rows.append((positions[0], len(seen), *found, *near[0], *near[1], captioned))
                advance(len(positions))
        return Agreements(*map(np.array, (*zip(*rows, strict=True), self.clique, self.near, black)))

    def _nearest(
        self, samples: np.ndarray, medoid: int | None, data: ImageSet, captioned: list[int]
    ) -> tuple[int, int, float, int]:
        """How many images have the caption, the one nearest to the medoid, its distance; samples near to one image."""
        if not captioned or not len(samples):
            return len(captioned), -1, 1.0, 0
        images = data.images(np.array(captioned)).reshape(len(captioned), -1)
        near = top_k(samples.reshape(len(samples), -1), images, 1)
        distances = near.distances[:, 0].astype(np.float64) / (255 * np.sqrt(images.shape[1]))
        nearest = near.indices[:, 0]
        most = int(np.bincount(nearest[distances <= self.near], minlength=1).max())
        if medoid is None:
            return len(captioned), -1, 1.0, most
        return len(captioned), captioned[nearest[medoid]], float(distances[medoid]), most


def _positions(texts: Sequence[str | None]) -> dict[str, list[int]]:
    """Where each text stands, without spaces around it; in the order of their first places."""
    found: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        if text is not None and text.strip():
            found.setdefault(text.strip(), []).append(position)
    return found
