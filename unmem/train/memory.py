"""Work in batches that become smaller where a device's memory is short of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from unmem import progress
from unmem.component import UserError

T = TypeVar("T")


class Batches:
    """How many things are worked on at once: as many as asked for, and fewer from where memory ran out.

    Attributes:
        size: of the next batch.
    """

    def __init__(self, size: int, setting: str) -> None:
        """Args: the size at first; the setting that it comes from, for messages."""
        self.size, self._setting, self._said = size, setting, False

    def run(self, count: int, work: Callable[[slice], T]) -> list[T]:
        """What ``work`` gives for each batch of ``count`` things, in order; a batch that is too large is begun anew.

        Raises:
            UserError: when there is not enough memory for one.
        """
        found: list[T] = []
        start = 0
        while start < count:
            end = min(start + self.size, count)
            done = self._tried(work, slice(start, end))
            if done is not None:
                found.append(done)
                start = end
        return found

    def _tried(self, work: Callable[[slice], T], batch: slice) -> T | None:
        """One batch, or None after too large a one, the next being half as large.

        What failed is let go before memory is given back: an exception holds all that its frames held.
        """
        try:
            return work(batch)
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the processor's allocator raises the bare class
            if not out_of_memory(error):
                raise
        tried = batch.stop - batch.start
        if tried == 1:
            raise UserError(f"{self._setting}: there is not enough memory for a single one; take a smaller model")
        self.size = tried // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self._said:
            progress.say(f"out of memory with {tried} at once; going on with smaller batches ({self._setting})")
            self._said = True
        return None


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory is short."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
