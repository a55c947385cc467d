"""When a prompt is given up: looks at its samples so far, with a bound on what that misses."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import Field

from unmem.component import Fraction, Positive, component

Rate = Annotated[float, Field(gt=0, le=1)]
Miss = Annotated[float, Field(gt=0, lt=1)]


@component
class Stop:
    """Give up prompts whose samples do not agree.

    At look i, after m_i samples, a prompt is abandoned if its largest clique (as ``prompted_extraction`` seeks it) has
    fewer than c_i samples, c_i being the largest c with P(Bin(m_i, rate) < c) <= miss / 2^i. A prompt each of whose
    samples is, with probability at least ``rate`` and independently of the others, a copy of one image, is abandoned
    with probability at most ``miss``:

    Copies of one image are all near to one another, so that the copies among m_i samples make a clique, and the largest
    clique has at least as many samples as there are copies. That number is binomial with a rate of at least ``rate``,
    and therefore below c_i with probability at most P(Bin(m_i, rate) < c_i) <= miss / 2^i. Whatever the looks' order
    and however they depend on one another, the probability that this happens at any of them is at most the sum of
    miss / 2^i over i = 1, 2, ..., which is at most ``miss`` (union bound).

    Samples that a safety checker leaves black are no copies; ``rate`` is about those that are shown, of all.

    Attributes:
        rate: the least share of a prompt's samples that are copies, of prompts that must not be missed.
        miss: the largest probability to miss one.
        looks: after how many samples of a prompt; when unset, after the least number at which any prompt may be given
            up, then each time after twice as many.
        threshold: largest distance between samples that agree, as of ``prompted_extraction``.
        tiles: along each side, likewise.
    """

    rate: Rate = 0.1
    miss: Miss = 0.05
    looks: tuple[Positive, ...] = ()
    threshold: Fraction = 0.15
    tiles: Positive = 4

    def __post_init__(self) -> None:
        if any(after <= before for before, after in pairwise(self.looks)):
            raise ValueError(f"looks must rise, got {list(self.looks)}")
        for look, samples in enumerate(self.looks):
            if self.needed(samples, look) < 2:
                raise ValueError(f"looks: {samples} samples are too few to give a prompt up at this rate and this miss")

    def rule(self, each: int) -> Rule:
        """The rule for prompts with at most so many samples each."""
        looks = tuple(look for look in self.looks if look < each) if self.looks else self._doubling(each)
        needed = tuple(self.needed(samples, look) for look, samples in enumerate(looks))
        return Rule(looks, needed, self.threshold, self.tiles)

    def needed(self, samples: int, look: int) -> int:
        """c_i: the least clique with which a prompt is asked on after so many samples, at look 0, 1, ..."""
        from scipy.stats import binom

        below = binom.cdf(np.arange(samples), samples, self.rate)  # P(Bin < 1), P(Bin < 2), ...
        return int(np.searchsorted(below, self.miss / 2 ** (look + 1), side="right"))

    def _doubling(self, each: int) -> tuple[int, ...]:
        """Looks from the first at which a clique of two is needed: below that, one sample is clique enough."""
        first = next((samples for samples in range(2, each) if self.needed(samples, 0) >= 2), each)
        looks = []
        while first < each:
            looks.append(first)
            first *= 2
        return tuple(looks)


@dataclass(frozen=True)
class Rule:
    """See :class:`unmem.train.asking.Stopping`; ``needed`` holds the least clique of each look."""

    looks: tuple[int, ...]
    needed: tuple[int, ...]
    threshold: float
    tiles: int

    def goes_on(self, images: np.ndarray, look: int) -> bool:
        """Whether enough of a prompt's samples, uint8 [n, h, w, c], agree."""
        from unmem.evaluate.cliques import largest_clique, tiled_distances

        least = self.needed[look]
        if len(images) < least or least < 2:
            return len(images) >= least
        edges = tiled_distances(images, self.tiles) <= self.threshold
        return len(largest_clique(edges, above=least - 1, enough=least)) > 0
