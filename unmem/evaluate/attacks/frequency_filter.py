"""Membership inference by the low frequencies of another attack's residual."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unmem.component import Fraction, component
from unmem.evaluate.attacks.pia import PIA
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.score_attack import Base, ScoreAttack


@component
class FrequencyFilter(ScoreAttack):
    """Another attack with high frequencies damped (FreMIA, arXiv 2505.20955), at no further query.

    Networks err on fine detail, whether the image is a member or not. What the attack compares is Fourier-transformed,
    its high frequencies damped, and transformed back; as that is linear, the difference is filtered in place of both
    images. All else is the other attack's, its queries included.

    Attributes:
        base: the attack, with its fields.
        keep: the share of spatial frequencies, from the centre to the edge, that are left as they are; 5 of 16 are the
            paper's for 32 pixels a side.
        damp: the factor of the others' amplitudes.
    """

    base: Base = PIA()
    keep: Fraction = 5 / 16
    damp: Fraction = 0.2

    @property
    def reading(self) -> Reading:
        """The base's, filtered."""
        base = self.base.reading
        return Reading(base.probe, replace(base.norm, keep=self.keep, damp=self.damp))

    def score(self, values: np.ndarray) -> np.ndarray:
        """As the base scores."""
        return self.base.score(values)
