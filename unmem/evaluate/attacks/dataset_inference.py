"""Was a whole set trained on? Evidence of many images, added up."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from unmem.component import UserError, component
from unmem.evaluate.attacks.loss import Loss
from unmem.evaluate.attacks.pia import PIA
from unmem.evaluate.attacks.secmi import SecMI
from unmem.evaluate.attacks.sima import SimA
from unmem.evaluate.audit import Audit
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.population import flags, joined, log_errors, parted
from unmem.evaluate.results import SetScores, Target
from unmem.evaluate.rows import Rows
from unmem.evaluate.score_attack import Base
from unmem.rng import derive


@component
class DatasetInference:
    """CDI: was a set of images trained on, by many weak signs of each (Dubinski et al. 2025, arXiv 2411.12858).

    Scores of several attacks are the features of a logistic regression, which learns on the calibration half to tell
    members from held-out images; scores that are minus an error are taken as minus its log. The other half is tested:
    do its members, as a set, score higher than images that were held out? One-sided Welch test, at all images and on
    random subsets, so that one sees how many images an owner needs; non-members against non-members are the control.

    Attributes:
        bases: the attacks whose scores are features, with their fields.
        sizes: of the subsets, in images; those that the tested half does not hold are left out.
    """

    bases: Annotated[tuple[Base, ...], Field(min_length=1)] = (Loss(), SecMI(), PIA(), PIA(normalised=True), SimA())
    sizes: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (
        5,
        10,
        20,
        50,
        100,
        200,
        500,
        1000,
        2000,
        5000,
    )

    @property
    def needs(self) -> frozenset[str]:
        """What the bases need."""
        return frozenset().union(*(base.needs for base in self.bases))

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What the bases read."""
        return tuple(reading for base in self.bases for reading in base.readings)

    def run(self, target: Target, audit: Audit, seed: int) -> SetScores:
        """Log-odds of being a member, of every image; the calibration half is marked as learnt from.

        Raises:
            UserError: when the calibration half lacks members or non-members.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        by_base = [base.scored(target) for base in self.bases]
        rows, features = by_base[0], np.stack([log_errors(joined(found)) for found in by_base], axis=1)
        learnt = flags(audit.is_calibration(), rows)
        members = flags(Rows(np.ones(len(rows.members)), np.empty(0)), rows)
        if len(set(members[learnt])) < 2:
            raise UserError(
                "attacks.dataset_inference: the calibration half needs members and nonmembers to learn from"
            )
        model = make_pipeline(StandardScaler(), LogisticRegression(random_state=derive(seed, "set") % (1 << 32)))
        model.fit(features[learnt], members[learnt])
        scores = parted(model.decision_function(features), rows, fitted=learnt)
        return SetScores(**vars(scores), sizes=np.array(self.sizes))
