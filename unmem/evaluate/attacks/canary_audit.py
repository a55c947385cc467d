"""An audit by canaries: what a model knows of images that a coin put into its training set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from unmem.component import Confidence, UserError, component, nested
from unmem.evaluate.attacks.loss import Loss
from unmem.evaluate.audit import Audit
from unmem.evaluate.results import Attack, CanaryScores, Scores, Target
from unmem.evaluate.score_attack import OnBase

if TYPE_CHECKING:
    Membership = Attack
else:  # in a recipe: a mapping with the attack's kind and fields
    Membership = nested("unmem.evaluate.attacks", Attack)


@component
class CanaryAudit(OnBase):
    """Lower bounds on epsilon from one training run (Steinke, Nasr & Jagielski 2023), and exposure.

    The canaries are scored by a membership attack that knows no coin. How well the scores tell the coins bounds the
    epsilon of the training from below: a bound above the epsilon that is proven says that the proof or the code is
    wrong. Exposure is that of Carlini et al. 2019. Both need ``data.canaries``.

    Attributes:
        base: the membership attack.
        delta: of the bound.
        confidence: of the bound: a share of at most 1 - confidence of audits exceeds a true epsilon by chance.
        selection: how the choice of the numbers of guesses is paid for: each tested at its share of the error
            (``bonferroni``), or chosen on one half of the canaries and scored on the other (``split``).
    """

    base: Membership = Loss()
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    confidence: Confidence = 0.95
    selection: Literal["bonferroni", "split"] = "bonferroni"

    further: ClassVar[frozenset[str]] = frozenset({"canaries"})

    def run(self, target: Target, audit: Audit, seed: int) -> CanaryScores:
        """Scores of all canaries, beside their coins.

        Raises:
            UserError: where the base gives canaries no scores.
        """
        found = self.base.run(target, audit, seed)
        if not isinstance(found, Scores) or len(found.canaries) != len(audit.canaries):
            raise UserError(f"attack canary_audit: base {type(self.base).__name__} gives canaries no scores")
        return CanaryScores(
            scores=found.canaries,
            inserted=audit.inside.canaries,
            copies=np.array(audit.canary_copies),
            delta=np.array(self.delta),
            confidence=np.array(self.confidence),
            split=np.array(self.selection == "split"),
        )
