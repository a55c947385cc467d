"""The control that never sees the model."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from unmem.component import Positive, component
from unmem.evaluate.audit import Audit
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.results import Scores, Target
from unmem.rng import derive


@component
class Blind:
    """A classifier on pixels alone, without access to any model: is the split itself guessable?

    Logistic regression on the principal components of the pixels, cross-validated, so that no image is scored by a
    classifier that was fitted on it. Where its AUC is above chance, members and non-members come from different
    distributions, and the other attacks' figures say little about the model. Below chance it says nothing: the folds
    share one pool, so that on an unguessable split their errors lean against each other, and the figure scatters about
    0.5 more widely than the bootstrap's interval, which resamples images and not classifiers, lets on.

    Attributes:
        folds: of the cross-validation.
        components: principal components kept.
    """

    folds: Positive = 5
    components: Positive = 32

    needs: ClassVar[frozenset[str]] = frozenset()
    readings: ClassVar[tuple[Reading, ...]] = ()

    def run(self, target: Target | None, audit: Audit, seed: int) -> Scores:
        """Cross-validated log-odds of being a member."""
        from sklearn.decomposition import PCA
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        pixels = np.concatenate([audit.member_images.flat(), audit.nonmember_images.flat()])
        members = np.arange(len(pixels)) < len(audit.members)
        folds = min(self.folds, len(audit.members), len(audit.nonmembers))
        if folds < 2:
            return Scores(np.zeros(len(audit.members)), np.zeros(len(audit.nonmembers)))
        fitted = len(pixels) - -(-len(pixels) // folds)
        components = min(self.components, pixels.shape[1], fitted)
        state = derive(seed, "blind") % (1 << 32)
        model = make_pipeline(
            PCA(components, random_state=state), StandardScaler(), LogisticRegression(max_iter=1000, random_state=state)
        )
        order = StratifiedKFold(folds, shuffle=True, random_state=state)
        scores = cross_val_predict(model, pixels, members, cv=order, method="decision_function")
        return Scores(scores[members], scores[~members])
