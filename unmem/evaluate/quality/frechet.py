"""The Fréchet distance between generated and real images."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from unmem.component import Confidence, Positive, build, component
from unmem.evaluate.audit import Audit
from unmem.evaluate.features import Features, files_of
from unmem.evaluate.measure import Measured
from unmem.evaluate.statistics import Estimate
from unmem.rng import stream


@component
class Frechet:
    """Fréchet distance of features (Heusel et al. 2017) to the held-out images; lower is better.

    Moments in float64. The interval is normal, with the bootstrap's standard error over samples and held-out images.
    The reference is the distance between members and held-out images: what a perfect model would reach. Moments of few
    images in many dimensions are biased upward, so compare only equal numbers.

    Attributes:
        samples: generated images.
        features: the extractor, such as ``{kind: random_convolutions}`` (embedded, needs no download, not comparable
            to published FID) or ``{kind: inception}``.
        resamples: of the bootstrap.
        confidence: of the interval.
    """

    samples: Positive
    features: dict[str, Any] = field(default_factory=lambda: {"kind": "random_convolutions"})
    resamples: Annotated[int, Field(ge=2)] = 100
    confidence: Confidence = 0.95

    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._extractor()

    def fingerprint(self) -> str:
        """A digest of the files that the features are read from; empty where there are none."""
        return files_of(self._extractor())

    def measure(self, samples: np.ndarray, labels: np.ndarray | None, audit: Audit, seed: int) -> Measured:
        """The distance of ``samples`` (uint8 [n, h, w, c]) to the held-out images."""
        from scipy.stats import norm

        extract = self._extractor()
        generated, real = extract(samples), extract(audit.nonmember_images.images())
        value = frechet_distance(generated, real)
        rng = stream(seed, "frechet")
        resampled = [
            frechet_distance(
                generated[rng.integers(0, len(generated), len(generated))], real[rng.integers(0, len(real), len(real))]
            )
            for _ in range(self.resamples)
        ]
        # resampling repeats images, which shifts the distance upward: take its spread, not its place
        reach = float(norm.ppf((1 + self.confidence) / 2) * np.std(resampled, ddof=1))
        counts = {"samples": len(generated), "real": len(real)}
        note = f"features: {self.features['kind']}"
        estimate = Estimate(value, max(0.0, value - reach), value + reach, counts, note)
        floor = frechet_distance(extract(audit.member_images.images()), real)
        return Measured(estimate, better="lower", reference=floor, reference_name="members against held-out images")

    def _extractor(self) -> Features:
        """The feature extractor."""
        problems: list[Any] = []
        built: Features = build("unmem.evaluate.features", self.features, "features", problems)
        if problems:
            raise ValueError("; ".join(str(problem) for problem in problems))
        return built


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two feature sets, float64 [n, d] each.

    The root's trace is taken over the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2), which needs no complex
    numbers and no inverse.
    """
    mean = first.mean(0) - second.mean(0)
    s1, s2 = np.atleast_2d(np.cov(first, rowvar=False)), np.atleast_2d(np.cov(second, rowvar=False))
    values, vectors = np.linalg.eigh(s1)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(min=0)).sum()
    return max(0.0, float(mean @ mean + np.trace(s1) + np.trace(s2) - 2 * cross))
