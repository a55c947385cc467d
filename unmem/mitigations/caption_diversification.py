"""Several captions in the place of one."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from unmem.component import Positive, UserError, component
from unmem.mitigations.ledger import Dropped
from unmem.train.config import refuse_unused
from unmem.train.datasets._files import LocalPath, read_text
from unmem.train.imageset import ImageSet
from unmem.train.text import encodable

COPY = "#copy-"  # what the id of a planted copy has after its original's


@component
class CaptionDiversification:
    """Give each image other captions, one of which stands for it in a step, so that no caption alone leads to it.

    Somepalli et al., NeurIPS 2023, arXiv 2305.20086: several captions, random caption replacement, random
    word insertion, and caption word repetition. No image is left out. ``captions.json`` in the data stage holds the
    captions. An image that has other captions already keeps them beside these.

    Words are what stands between spaces; random ones are drawn from all distinct words of the set's captions.

    Attributes:
        way: ``random_replacement``, by as many random words as the caption has; ``word_insertion`` of random words at
            random places; ``word_repetition``, of the caption's own; ``several``, captions from a file.
        probability: of a changed caption in a step, in whole ``variants``-ths; the caption itself stands in the others.
        variants: how many captions an image has, its own and unchanged ones included. Not for ``several``.
        words: how many words are inserted, or repeated.
        captions: the file, for ``several``: JSON, a mapping from names to lists of texts; or JSONL, with ``id`` or
            ``file_name`` and ``captions`` in each line. A name is an image's id, its path in the data set, or the
            path's last part. A planted copy has its original's captions. Images that it does not name keep theirs.
    """

    way: Literal["random_replacement", "word_insertion", "word_repetition", "several"] = "random_replacement"
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.4
    variants: Annotated[int, Field(ge=2)] = 10
    words: Positive = 1
    captions: LocalPath | None = None

    for_texts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.way not in ("word_insertion", "word_repetition"):
            refuse_unused(self, ("words",), "way: word_insertion or word_repetition")
        if self.way == "several":
            refuse_unused(self, ("probability", "variants"), "the other ways")
            if self.captions is None:
                raise ValueError("captions: way: several needs a file of captions")
        else:
            refuse_unused(self, ("captions",), "way: several")
            if not 0 < self._changed < self.variants:
                raise ValueError(
                    f"probability: {self.probability:g} of {self.variants} variants is none or all of them"
                )

    def fingerprint(self) -> str | None:
        """A digest of the file; None without."""
        return None if self.captions is None else hashlib.sha256(read_text(self.captions).encode()).hexdigest()

    def apply(self, data: ImageSet, rng: np.random.Generator) -> tuple[ImageSet, list[Dropped]]:
        """The set with alternatives, and an empty ledger.

        Raises:
            UserError: when the data have no captions, or the file cannot be read or names none of the images.
        """
        if data.captions is None:
            raise UserError("caption_diversification: the data have no captions")
        others = self._from_file(data) if self.way == "several" else self._drawn(data.captions, rng)
        before = data.alternatives or ((),) * len(data)
        both = tuple((*known, *new) for known, new in zip(before, others, strict=True))
        return replace(data, alternatives=both), []

    @property
    def _changed(self) -> int:
        """How many of an image's captions are changed ones."""
        return round(self.probability * self.variants)

    def _drawn(self, captions: tuple[str, ...], rng: np.random.Generator) -> list[list[str]]:
        """Each image's other captions: changed ones, and its own again so that those have their probability."""
        vocabulary = sorted({word for caption in captions for word in caption.split()}) or [""]
        own = self.variants - 1 - self._changed
        return [
            [caption] * own + [self._change(caption.split(), vocabulary, rng) for _ in range(self._changed)]
            for caption in captions
        ]

    def _change(self, words: list[str], vocabulary: list[str], rng: np.random.Generator) -> str:
        """A changed caption."""
        if self.way == "random_replacement":
            return " ".join(vocabulary[i] for i in rng.integers(len(vocabulary), size=max(1, len(words))))
        source = vocabulary if self.way == "word_insertion" else list(words)
        for _ in range(self.words if source else 0):
            words.insert(int(rng.integers(len(words) + 1)), source[int(rng.integers(len(source)))])
        return " ".join(words)

    def _from_file(self, data: ImageSet) -> list[list[str]]:
        """Each image's captions in the file."""
        assert self.captions is not None
        known: dict[str, list[str]] = {}
        for name, texts in _read(self.captions):
            known.setdefault(name, []).extend(texts)
        found = [next((known[name] for name in _names(image) if name in known), []) for image in data.ids]
        if not any(found):
            raise UserError(f"{self.captions}: names none of the {len(data)} images, such as {data.ids[0]!r}")
        return found


def _names(image: str) -> list[str]:
    """What a file may call an image: its id, its path, and the path's last part; of a copy, the original's."""
    original = image.rsplit(COPY, 1)[0]
    path = original.partition(":")[2]
    return [image, original, path, posixpath.basename(path)]


def _read(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Names and their captions."""
    text = read_text(path)
    try:
        if path.suffix == ".jsonl":
            lines = (json.loads(line) for line in text.split("\n") if line.strip())
            records: Any = [(line.get("id", line.get("file_name")), line.get("captions")) for line in lines]
        else:
            records = json.loads(text).items()
    except (json.JSONDecodeError, RecursionError, AttributeError) as error:
        raise UserError(f"{path}: needs JSON objects ({error})") from None
    for name, texts in records:
        if not isinstance(name, str) or not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise UserError(f"{path}: needs a name and a list of texts; got {name!r}: {str(texts)[:40]}")
        yield name, [encodable(text) for text in texts]
