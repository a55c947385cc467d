"""Epsilon of composed private queries, by two independent accountants and under weaker assumptions.

The accountant by the central limit theorem (Opacus's ``gdp``) is left out on purpose: it reports too little.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Literal

import numpy as np

Relation = Literal["add/remove", "replace-one"]


@dataclass(frozen=True)
class Query:
    """A sum over a Poisson sample of the images, released with Gaussian noise, several times.

    Attributes:
        name: what is asked.
        noise_multiplier: standard deviation of the noise over the L2 bound of one image's part in the sum.
        sample_rate: probability of each image to be in a sample, independently at every step.
        steps: how often the sum is released.
    """

    name: str
    noise_multiplier: float
    sample_rate: float
    steps: int


def prv_epsilon(queries: Sequence[Query], delta: float) -> float:
    """The upper end of the interval of Opacus's PRV accountant (Gopi et al. 2021), add or remove one."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(query.noise_multiplier, query.sample_rate, query.steps) for query in queries]
    # warnings about RDP orders, which PRV takes for a starting point only; at a rate of 1 it takes the logarithm of 0
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.filterwarnings("ignore", message="Optimal order is")
        return float(accountant.get_epsilon(delta=delta))


def pld_epsilon(queries: Sequence[Query], delta: float, relation: Relation = "add/remove") -> float:
    """The upper bound of Google's privacy-loss-distribution accountant (Doroshenko et al. 2022)."""
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    neighbours = dp_accounting.NeighboringRelation
    accountant = PLDAccountant(
        neighbours.ADD_OR_REMOVE_ONE if relation == "add/remove" else neighbours.REPLACE_ONE,
        value_discretization_interval=1e-4,  # ten times coarser is twice the epsilon where epsilon is 0.04
    )
    for query in queries:
        noise = dp_accounting.GaussianDpEvent(query.noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(query.sample_rate, noise), query.steps)
    return float(accountant.get_epsilon(delta))


def without_amplification(queries: Sequence[Query], delta: float) -> float:
    """Epsilon if batches were known, and each image in one of them an epoch; exact (Balle & Wang 2018).

    Gaussian releases of one image compose to a single one, whose precision is the sum of theirs.
    """
    from dp_accounting import get_epsilon_gaussian

    epochs = [(math.ceil(round(query.steps * query.sample_rate, 9)), query.noise_multiplier) for query in queries]
    precision = sum(times / noise**2 for times, noise in epochs)
    return float(get_epsilon_gaussian(1 / math.sqrt(precision), delta))


def tuned(queries: Sequence[Query], delta: float, runs: int) -> float:
    """The PLD epsilon of ``runs`` such runs together: what is spent if the best of them is released."""
    return pld_epsilon([replace(query, steps=query.steps * runs) for query in queries], delta)


def named(accountant: Literal["PRV", "PLD"]) -> str:
    """An accountant with the package and version that it comes from."""
    package = {"PRV": "opacus", "PLD": "dp-accounting"}[accountant]
    return f"{accountant} ({package} {version(package)})"


def rounded_up(epsilon: float) -> float:
    """A bound with 4 decimals, rounded up."""
    return math.ceil(epsilon * 1e4) / 1e4
