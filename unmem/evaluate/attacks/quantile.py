"""Membership inference with a threshold for each image, learnt from images that nobody trained on."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from unmem.component import Confidence, Positive, UserError, component
from unmem.evaluate.attacks.secmi import SecMI
from unmem.evaluate.audit import Audit
from unmem.evaluate.population import flags, joined, log_errors, parted
from unmem.evaluate.results import Scores, Target
from unmem.evaluate.rows import Rows
from unmem.evaluate.score_attack import Base, OnBase
from unmem.rng import derive, stream

SCALES = 3  # at which images are described, each half the size of the last
FEWEST = 20  # public images
PENALTIES = tuple(np.logspace(-2, 5, 15).tolist())  # of the ridge regressions, chosen by leaving one image out


@component
class Quantile(OnBase):
    """A threshold for each image: the quantile of non-members that look like it (Tang et al. 2024, arXiv 2312.05140).

    The base's score of an image depends on how hard the image is, member or not. A regression on the calibration half
    of the non-members predicts from cheap features of the pixels the score that an image of its kind exceeds with
    probability fpr though it was not trained on. The score is how far the base's exceeds that threshold, in units of
    the spread of such images' scores. No shadow models are needed.

    The quantile is that of a location-scale model (as in Bertran et al. 2023, arXiv 2307.03694): ridge regressions of
    the score and of the log of its residual, and one quantile of the standardised residuals, taken where the regression
    did not see the image, so that the threshold's false-positive rate is right on the whole (Romano et al. 2019, arXiv
    1905.03222). Regressions on the pinball loss itself, linear or by trees, have next to no images beyond a rare
    quantile to learn from: on halved CIFAR-10 images their own loss came out larger.

    Attributes:
        base: the attack whose score is calibrated, with its fields.
        fpr: the false-positive rate at which a score of 0 stands; the order of the scores does not depend on it.
        bags: regressions that are averaged; each on a bootstrap of the public images without every bags-th of them.
        components: principal components of the pixels among the features.
    """

    base: Base = SecMI()
    fpr: Confidence = 0.01
    bags: Annotated[int, Field(ge=2)] = 10
    components: Positive = 32

    def run(self, target: Target, audit: Audit, seed: int) -> Scores:
        """Excess over the image's threshold, in units of its predicted spread; public images are marked as learnt from.

        Raises:
            UserError: when the calibration half holds too few non-members.
        """
        rows = self.base.scored(target)
        public = flags(Rows(np.empty(0), audit.is_calibration().nonmembers), rows)
        if public.sum() < FEWEST:
            raise UserError(
                f"attacks.quantile: the calibration half holds {public.sum()} non-members; {FEWEST} are the least to "
                "learn from (data.nonmembers)"
            )
        scores, features = log_errors(joined(rows)), self._features(target, audit, rows, public, seed)
        location, spread = self._expected(features, scores, np.flatnonzero(public), stream(seed, "quantile", "bags"))
        standard = (scores - location) / spread
        return parted(standard - np.quantile(standard[public], 1 - self.fpr, method="higher"), rows, fitted=public)

    def _expected(
        self, features: np.ndarray, scores: np.ndarray, public: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Location and spread of each image's score if it was not trained on, [n] each; by bags that did not see it."""
        from sklearn.linear_model import RidgeCV

        resolution = np.finfo(np.float32).eps * np.abs(scores[public]).max()
        order, images = rng.permutation(public), np.arange(len(scores))
        locations, logs, counts = (np.zeros(len(scores)) for _ in range(3))
        for bag in range(self.bags):
            rest = np.delete(order, slice(bag, None, self.bags))
            weights = np.bincount(rng.choice(rest, len(rest)), minlength=len(scores))
            drawn, unseen = images[weights > 0], images[weights == 0]

            def fitted(values: np.ndarray, drawn: np.ndarray = drawn, weights: np.ndarray = weights) -> np.ndarray:
                ridge = RidgeCV(PENALTIES).fit(features[drawn], values[drawn], sample_weight=weights[drawn])
                return np.asarray(ridge.predict(features))

            location = fitted(scores)
            log_spread = fitted(np.log(np.abs(scores - location) + resolution))
            locations[unseen] += location[unseen]
            logs[unseen] += log_spread[unseen]
            counts[unseen] += 1
        logs = logs / counts
        # an image that is like no public one gets no spread that none of them has
        return locations / counts, np.exp(logs.clip(logs[public].min(), logs[public].max()))

    def _features(self, target: Target, audit: Audit, rows: Rows, public: np.ndarray, seed: int) -> np.ndarray:
        """float64 [n, features]: principal components of the pixels, and simple statistics at several scales."""
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import StandardScaler

        groups = {name: images.images() for name, images in audit.groups.items()}
        if len(rows.generated):
            groups["generated"] = target.samples(len(rows.generated))
        pixels = np.concatenate([groups[name] for name, values in rows.items() if len(values)]).astype(np.float32) / 255
        flat = pixels.reshape(len(pixels), -1)
        components = min(self.components, flat.shape[1], int(public.sum()) // 4)
        principal = PCA(components, random_state=derive(seed, "quantile") % (1 << 32)).fit(flat[public])
        features = np.hstack([principal.transform(flat), _statistics(pixels)])
        return np.asarray(StandardScaler().fit(features[public]).transform(features), dtype=np.float64)


def _statistics(pixels: np.ndarray) -> np.ndarray:
    """float32 [n, statistics] of [n, h, w, c] in [0, 1]: light, contrast and detail, at several scales."""
    found: list[np.ndarray] = []
    for _ in range(SCALES):
        if min(pixels.shape[1:3]) < 2:
            break
        found += [pixels.mean((1, 2, 3)), pixels.std((1, 2, 3))]
        for axis in (1, 2):
            steps = np.abs(np.diff(pixels, axis=axis))
            found += [np.log(steps.mean((1, 2, 3)) + 1e-3), np.log((steps**2).mean((1, 2, 3)) + 1e-6)]
        n, h, w, c = pixels.shape
        pixels = pixels[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
    return np.stack(found, axis=1)
