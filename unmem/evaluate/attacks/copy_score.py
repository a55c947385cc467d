"""Are samples copies, in the eyes of a network that was made to recognise copies?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from unmem.component import Fraction, Positive, component, nested
from unmem.evaluate.audit import Audit
from unmem.evaluate.features import Features, files_of
from unmem.evaluate.features.random_convolutions import RandomConvolutions
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.results import Similarities, Target
from unmem.neighbors import top_k

if TYPE_CHECKING:
    Extractor = Features
else:  # in a recipe: a mapping with the extractor's kind and fields
    Extractor = nested("unmem.evaluate.features", Features)


@component
class CopyScore:
    """Copies by the cosine of embeddings (Somepalli et al. 2023, arXiv 2212.03860), beside held-out images.

    Each sample is held against its most similar member, and against its most similar held-out image: what is alike
    without any memory. Both sets are cut to one size (in the audit's order, which is random), for the most similar of
    many is more similar. The paper's embedding is SSCD (Pizzi et al. 2022, arXiv 2202.10261), compared as it comes, and
    a copy is what is above 0.5: ``{features: {kind: torchscript, path: sscd_disc_mixup.torchscript.pt}, centre: false,
    threshold: 0.5}``. The default features need no download, and no network was trained for them: they see colours and
    textures, hardly shapes, and their cosines mean nothing by themselves. So the default threshold is taken from the
    held-out images: what a share ``exceeded`` of them exceed in similarity to the most similar other one.

    Attributes:
        samples: generated images.
        features: the extractor; by default ``random_convolutions``.
        centre: whether the held-out images' mean embedding is subtracted first: needed where all embeddings point about
            the same way, as those of the default do.
        threshold: the cosine above which a sample is a copy; taken from the held-out images when unset.
        exceeded: the share of held-out images that a threshold taken from them lets pass, at most.
    """

    samples: Positive
    features: Extractor = RandomConvolutions()
    centre: bool = True
    threshold: Annotated[float, Field(gt=-1, lt=1)] | None = None
    exceeded: Fraction = 0.01

    needs: ClassVar[frozenset[str]] = frozenset({"samples"})
    readings: ClassVar[tuple[Reading, ...]] = ()

    def fingerprint(self) -> str:
        """A digest of the files that the features are read from; empty where there are none."""
        return files_of(self.features)

    def run(self, target: Target, audit: Audit, seed: int) -> Similarities:
        """The most similar member and held-out image of each sample; nothing is random."""
        size = np.arange(min(len(audit.members), len(audit.nonmembers)))
        held_out = self.features(audit.nonmember_images.take(size).images())
        centre = held_out.mean(0) if self.centre else 0.0
        members = self.features(audit.member_images.take(size).images())
        generated = self.features(target.samples(self.samples))
        drawn, inside, outside = (_directions(points - centre) for points in (generated, members, held_out))
        among = _among(outside)
        chosen = float(np.quantile(among, 1 - self.exceeded, method="higher"))
        threshold = np.array(chosen if self.threshold is None else self.threshold)
        return Similarities(
            *_most_similar(drawn, inside), *_most_similar(drawn, outside), among, threshold,
            np.array(self.threshold is None),
        )  # fmt: skip


def _directions(points: np.ndarray) -> np.ndarray:
    """float64 [n, d] of length 1; a vector of zeros stays one."""
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(points / np.where(lengths > 0, lengths, 1))


def _most_similar(drawn: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [q], where the most similar point stands; float64 [q], its cosine."""
    nearest = top_k(drawn, points, 1).indices[:, 0]
    return nearest, np.einsum("qd,qd->q", drawn, points[nearest])


def _among(points: np.ndarray) -> np.ndarray:
    """float64 [n]: each point's cosine to the most similar other one; -1 for one that is alone."""
    if len(points) < 2:
        return np.full(len(points), -1.0)
    nearest = top_k(points, points, 2).indices
    # of equal points any may come first
    other = np.where(nearest[:, 0] == np.arange(len(points)), nearest[:, 1], nearest[:, 0])
    return np.asarray(np.einsum("nd,nd->n", points, points[other]))
