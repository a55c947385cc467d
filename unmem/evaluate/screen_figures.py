"""Figures of screens: how well each ranks what the full rule flags, and at what share of its cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unmem.evaluate.results import Screened
from unmem.evaluate.statistics import auc, rate
from unmem.rng import stream

if TYPE_CHECKING:
    from unmem.evaluate.analysis import Compare

POINTS = 20  # of the curve of recall by what is kept


def screen_figures(result: Screened, compare: Compare, seed: int) -> dict[str, Any]:
    """The report of the screens.

    * ``auc_<screen>``: how well it tells the prompts that the full rule flags from the others.
    * ``recall_<screen>[x]``: of the flagged prompts, those among the share x of all that it ranks first.
    """
    screens = {"noise": result.noise, "move": result.move, "edges": result.edges}
    prompts, flagged = len(result.flagged), result.flagged
    estimates, curves = {}, {}
    for name, scores in screens.items():
        found = auc(scores[flagged], scores[~flagged], compare.confidence, stream(seed, name))
        counts = {"flagged": int(flagged.sum()), "others": int((~flagged).sum())}
        estimates[f"auc_{name}"] = replace(found, n=counts)
        hits = np.cumsum(flagged[np.argsort(-scores, kind="stable")])

        def recalled(share: float, hits: np.ndarray = hits) -> int:
            kept = math.ceil(share * prompts - 1e-9)
            return int(hits[kept - 1]) if kept else 0

        for share in result.keep.tolist():
            note = f"of the flagged prompts, those among the first {share:g} of {prompts}"
            estimates[f"recall_{name}[{share:g}]"] = rate(recalled(share), int(flagged.sum()), compare.confidence, note)
        curves[name] = [{"kept": k / POINTS, "recalled": recalled(k / POINTS)} for k in range(POINTS + 1)]
    full = float(result.full)
    return {
        "type": "screens",
        "estimates": {name: estimate.as_json() for name, estimate in estimates.items()},
        "prompts": prompts,
        "flagged": int(flagged.sum()),
        "evaluations": {"full": full, **dict(zip(screens, result.evaluations.tolist(), strict=True))},
        "curves": curves,
    }
