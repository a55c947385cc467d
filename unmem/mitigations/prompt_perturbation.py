"""Prompts are changed a little before a model sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from unmem.component import Positive, UserError, component
from unmem.train.imageset import ImageSet
from unmem.train.prompt_rule import AsAsked

if TYPE_CHECKING:
    import numpy as np

NUMBERS = 1_000_000  # the largest that is added


@component
class PromptPerturbation:
    """Add words to each prompt, anew for each sample, so that it is no longer the caption that a model knows by heart.

    Somepalli et al., NeurIPS 2023, arXiv 2305.20086, section 7, at inference: random numbers, which say nothing about
    the image; random words; or the prompt's own words again. Words are what stands between spaces.

    What is memorized by few of its caption's words is still drawn, and so it is where the added words are beyond what
    the text encoder reads. Whoever draws without this, or attacks the network itself, sees what was always there.

    Attributes:
        way: ``random_numbers``, up to a million; ``random_words``, from the training set's captions; or
            ``word_repetition``, of the prompt's own words.
        words: how many are added, each at a random place.
    """

    way: Literal["random_numbers", "random_words", "word_repetition"] = "random_numbers"
    words: Positive = 4

    protects: ClassVar[str] = "samples"

    def prompt_rule(self, data: ImageSet | None, directory: Path) -> Perturbation:
        """The change; ``random_words`` are the distinct ones of the captions of ``data``. Nothing is written.

        Raises:
            UserError: when random words are wanted, and there are no captions to draw them from.
        """
        if self.way != "random_words":
            return Perturbation(self, ())
        captions = () if data is None or data.captions is None else data.captions
        known = tuple(sorted({word for caption in captions for word in caption.split()}))
        if not known:
            raise UserError("prompt_perturbation: random_words are drawn from captions, and the training set has none")
        return Perturbation(self, known)


class Perturbation(AsAsked):
    """Adds words to prompts."""

    def __init__(self, settings: PromptPerturbation, known: tuple[str, ...]) -> None:
        """Args: how; the words that random ones are drawn from."""
        self._settings, self._known = settings, known

    def rewrite(self, prompt: str, rng: np.random.Generator) -> str:
        """The prompt with the words added; one without words stays empty where these are its own."""
        words = prompt.split()
        known = words.copy() if self._settings.way == "word_repetition" else self._known
        if not known and self._settings.way != "random_numbers":
            return prompt
        for _ in range(self._settings.words):
            added = str(rng.integers(NUMBERS + 1)) if not known else known[rng.integers(len(known))]
            words.insert(int(rng.integers(len(words) + 1)), added)
        return " ".join(words)
