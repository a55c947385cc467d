"""Who may step in before a pipeline draws what a prompt asks for: into its words, and into its initial noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from unmem.train.config import Sampling

if TYPE_CHECKING:  # whoever writes a rule can be looked at without torch
    from torch import Tensor


class PromptRule(Protocol):
    """A condition on how prompts become samples.

    Each sample is treated by itself, whatever else is in the batch, so that it stays a function of the experiment's
    seed, its prompt and its number.

    Attributes:
        starts: whether it changes initial noise; what does not leaves drawing it to the pipeline.
    """

    starts: bool

    def rewrite(self, prompt: str, rng: np.random.Generator) -> str:
        """The text that the pipeline is given for one sample of a prompt.

        Args:
            prompt: as it was asked, or as the rule before has left it.
            rng: this sample's own.
        """

    def start(self, pipeline: Any, noise: Tensor, prompts: Sequence[str], config: Sampling) -> Tensor:
        """The initial noise that the pipeline begins with; asked only where ``starts``.

        Args:
            pipeline: the diffusers pipeline, on its device.
            noise: float32 [n, c, h, w], N(0, I), on the same device, not yet scaled by the scheduler.
            prompts: n texts, as rewritten.
            config: steps and guidance.

        Returns:
            The same shape.
        """


class AsAsked:
    """Ordinary sampling: neither words nor noise are changed. Rules that do one of the two stand on it."""

    starts = False

    def rewrite(self, prompt: str, rng: np.random.Generator) -> str:
        """As it was asked."""
        return prompt

    def start(self, pipeline: Any, noise: Tensor, prompts: Sequence[str], config: Sampling) -> Tensor:
        """As it was drawn."""
        return noise
