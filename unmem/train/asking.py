"""Samples of many prompts on disk: shared among processes, resumable part by part, with prompts that are given up.

Samples are drawn round by round: every prompt's sample 0, then every prompt's sample 1, and so on, so that the first of
them cover all prompts. At a look (after so many rounds) all processes wait, and prompts of which nothing more is to be
expected are abandoned; what each prompt's samples are does not depend on that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unmem import progress
from unmem.component import UserError
from unmem.rundir import atomic, read_json, write_array, write_json
from unmem.train.prompted import Prompted

CHUNK = 64  # prompts whose samples are looked at by one process at a time
FATES = ("shown", "checked", "broken")  # what became of a sample


class Stopping(Protocol):
    """Who decides at looks which prompts are asked on."""

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many samples of each prompt, ascending."""

    def goes_on(self, images: np.ndarray, look: int) -> bool:
        """Whether a prompt is asked on.

        Args:
            images: its samples so far that are not black, uint8 [n, h, w, c].
            look: which of ``looks``.
        """


@dataclass(frozen=True)
class Rounds:
    """The samples between two looks: numbers ``start`` to ``end`` of each prompt of ``live``, number by number.

    ``live`` is ascending; a file holds ``part`` samples.
    """

    name: str
    start: int
    end: int
    live: tuple[int, ...]
    part: int

    @property
    def count(self) -> int:
        """How many samples."""
        return (self.end - self.start) * len(self.live)

    @property
    def parts(self) -> int:
        """How many files."""
        return -(-self.count // self.part)

    def asked(self, part: int) -> list[tuple[int, int]]:
        """(prompt, number) of each sample of a part."""
        places = range(part * self.part, min((part + 1) * self.part, self.count))
        return [(self.live[place % len(self.live)], self.start + place // len(self.live)) for place in places]

    def places(self, prompt: int) -> Iterable[tuple[int, int]]:
        """(part, row) of a prompt's samples."""
        first = bisect_left(self.live, prompt)
        return (divmod(first + k * len(self.live), self.part) for k in range(self.end - self.start))


class Asking:
    """One model asked by many prompts, in a stage's directory."""

    def __init__(self, sampler: Prompted, prompts: Sequence[str], each: int, directory: Path, accelerator: Any) -> None:
        """Plan it.

        Args:
            sampler: the model.
            prompts: texts, no two alike.
            each: samples a prompt, at most.
            directory: where to.
            accelerator: accelerate's view of processes.
        """
        self._sampler, self._prompts, self._each = sampler, tuple(prompts), each
        self._directory, self._accelerator = directory, accelerator

    def run(self, shape: tuple[int, int, int], stopping: Stopping | None = None) -> None:
        """Draw, or go on drawing, until ``images.npy``, ``prompts.json`` and ``asked.json`` are there.

        ``images.npy`` is uint8 [n, h, w, c]; ``prompts.json`` a list of n texts; ``asked.json`` counts samples that
        were ``planned`` and ``drawn``, prompts ``abandoned`` at each look, and samples that are black: ``checked`` by
        a safety checker, ``broken`` (not finite), or of which a rule ``refused`` all draws.

        Args:
            shape: height, width and channels that images must have.
            stopping: who gives prompts up; nobody when unset.

        Raises:
            UserError: when the model draws images of another shape, or memory does not suffice for one.
        """
        if (self._directory / "images.npy").exists():  # the last file; parts may be left of a killed run
            return self._sweep()
        looks = () if stopping is None else tuple(look for look in stopping.looks if look < self._each)
        done: list[Rounds] = []
        live = tuple(range(len(self._prompts)))
        for i, (start, end) in enumerate(pairwise((0, *looks, self._each))):
            rounds = Rounds(f"{i:02d}", start, end, live, self._sampler.batch)
            self._draw(rounds, shape)
            done.append(rounds)
            if stopping is not None and i < len(looks):
                live = self._look(done, i, stopping)
        if self._accelerator.is_main_process:
            self._join(done, shape)
            self._sweep()
        self._accelerator.wait_for_everyone()
        return None

    def _draw(self, rounds: Rounds, shape: tuple[int, int, int]) -> None:
        """Draw some rounds, this process its parts of them."""
        mine = self._shares(rounds.parts)
        sizes = [len(rounds.asked(i)) for i in mine]
        with progress.track("sample", sum(sizes)) as advance:
            for i, size in zip(mine, sizes, strict=True):
                if not self._images(rounds, i).exists():
                    asked = [(self._prompts[prompt], number) for prompt, number in rounds.asked(i)]
                    drawn = self._sampler.draw(asked)
                    if drawn.images.shape[1:] != shape:
                        have, want = (f"{h} x {w} x {c}" for h, w, c in (drawn.images.shape[1:], shape))
                        raise UserError(
                            f"the model draws images of {have} (height, width, channels), the data's are {want}"
                        )
                    fates = np.stack([drawn.checked + 2 * (drawn.broken & ~drawn.checked), drawn.refused], axis=1)
                    write_array(self._fates(rounds, i), fates.astype(np.int32))
                    write_array(self._images(rounds, i), drawn.images)
                advance(size)
        self._accelerator.wait_for_everyone()

    def _look(self, done: list[Rounds], look: int, stopping: Stopping) -> tuple[int, ...]:
        """The prompts that are asked on after a look, which all processes share and find again."""
        live = done[-1].live
        chunks = [live[start : start + CHUNK] for start in range(0, len(live), CHUNK)]
        files = [self._directory / f"look-{look:02d}-{i:05d}.json" for i in range(len(chunks))]
        mine = self._shares(len(chunks))
        with progress.track("look", sum(len(chunks[i]) for i in mine), "prompts") as advance:
            for i in mine:
                if not files[i].exists():
                    chunk = chunks[i]
                    write_json(files[i], [p for p in chunk if stopping.goes_on(self._samples(done, p), look)])
                advance(len(chunks[i]))
        self._accelerator.wait_for_everyone()
        kept = tuple(prompt for file in files for prompt in read_json(file))
        if self._accelerator.is_main_process:
            progress.say(f"after {done[-1].end} samples: {len(live) - len(kept)} of {len(live)} prompts are given up")
        return kept

    def _samples(self, done: list[Rounds], prompt: int) -> np.ndarray:
        """A prompt's samples so far that are not black, uint8 [n, h, w, c]."""
        found = np.stack(
            [_opened(self._images(rounds, part))[row] for rounds in done for part, row in rounds.places(prompt)]
        )
        shown: np.ndarray = found[found.any((1, 2, 3))]
        return shown

    def _join(self, done: list[Rounds], shape: tuple[int, int, int]) -> None:
        """One array out of the parts, and what they came to; the array last."""
        parts = [(rounds, i) for rounds in done for i in range(rounds.parts)]
        fates = np.concatenate([np.load(self._fates(*part)) for part in parts])
        texts = [self._prompts[prompt] for rounds, i in parts for prompt, _ in rounds.asked(i)]
        counts = np.bincount(fates[:, 0], minlength=len(FATES))
        attempts = self._sampler.attempts
        lost = int((fates[:, 1] == attempts).sum())
        asked = {
            "prompts": len(self._prompts),
            "each": self._each,
            "planned": len(self._prompts) * self._each,
            "drawn": len(texts),
            "abandoned": [
                {"after": before.end, "prompts": len(before.live) - len(after.live)} for before, after in pairwise(done)
            ],
            **{fate: int(count) for fate, count in zip(FATES, counts, strict=True) if fate != "shown"},
            "refused": lost,
        }
        write_json(self._directory / "asked.json", asked)
        if self._sampler.refuses:  # as of samples without prompts
            refused = int(fates[:, 1].sum())
            tally = {"samples": len(texts), "drawn": len(texts) + refused - lost, "refused": refused, "black": lost}
            write_json(self._directory / "refused.json", tally)
        write_json(self._directory / "prompts.json", texts)
        with atomic(self._directory / "images.npy") as partial:
            out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(texts), *shape))
            start = 0
            for part in parts:
                images = np.load(self._images(*part))
                out[start : start + len(images)] = images
                start += len(images)
            out.flush()
            del out
        _say(asked)

    def _sweep(self) -> None:
        """Remove what is in the joint files."""
        _opened.cache_clear()
        if self._accelerator.is_main_process:
            for file in (*self._directory.glob("part-*.npy"), *self._directory.glob("look-*.json")):
                file.unlink(missing_ok=True)

    def _shares(self, count: int) -> list[int]:
        """Which of so many pieces of work this process does."""
        return list(range(self._accelerator.process_index, count, self._accelerator.num_processes))

    def _images(self, rounds: Rounds, part: int) -> Path:
        """The file of a part's images."""
        return self._directory / f"part-{rounds.name}-{part:06d}.npy"

    def _fates(self, rounds: Rounds, part: int) -> Path:
        """The file of what became of a part's samples, int32 [n, 2]: fate, and draws that were refused."""
        return self._directory / f"part-{rounds.name}-{part:06d}-fates.npy"


@lru_cache(maxsize=64)
def _opened(file: Path) -> np.ndarray:
    """A part's images, memory-mapped."""
    found: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    return found


def _say(asked: dict[str, Any]) -> None:
    """What asking came to, where that is not simply what was planned."""
    if asked["drawn"] < asked["planned"]:
        saved = 1 - asked["drawn"] / asked["planned"]
        progress.say(f"{asked['drawn']} samples drawn of {asked['planned']} planned: {saved:.0%} saved")
    for fate, why in (
        ("checked", "the safety checker"),
        ("broken", "values that are not finite"),
        ("refused", "a rule"),
    ):
        if asked[fate]:
            progress.say(f"{asked[fate]} samples are black: {why}")
