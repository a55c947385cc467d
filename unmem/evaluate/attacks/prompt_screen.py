"""Screens of prompts by a first step: how much of what is memorized do they keep, at what cost?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from unmem import progress
from unmem.component import Fraction, Positive, PositiveFloat, UserError, component, nested
from unmem.evaluate.attacks.prompted_extraction import PromptedExtraction
from unmem.evaluate.audit import Audit
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.results import Screened, Target
from unmem.rundir import read_json, write_array, write_json
from unmem.train.config import Sampling

if TYPE_CHECKING:
    Rule = PromptedExtraction
else:  # in a recipe: a mapping with the attack's fields
    Rule = nested("unmem.evaluate.attacks", PromptedExtraction)

PART = 256  # prompts a file: what a killed run has to ask again


@component
class PromptScreen:
    """Cheap screens of prompts, held against the full rule: many samples of each prompt that agree.

    A model that has memorized what belongs to a prompt knows where to go in its first step. Three numbers of that step
    rank the prompts: ``noise``, the size of what the text adds to the predicted noise (Wen et al. 2024, arXiv
    2407.21720); ``move``, how far the one step goes; and ``edges``, how much the images that it leads to have in common
    (both Webster 2023, arXiv 2305.08694). What is stated of each is how well it tells the prompts that ``rule`` flags
    from the others, and how many of these are among the prompts that it ranks first. Prompts that were given up early
    count as not flagged.

    Attributes:
        rule: ``prompted_extraction`` with its settings.
        draws: noises a prompt, the same for all; both papers take 4.
        keep: shares of the prompts that a screen would let through.
        edge: length of the Sobel gradient, grey values in [0, 1], above which a pixel is one of an edge.
        batch: images at once.
    """

    rule: Rule = PromptedExtraction()
    draws: Positive = 4
    keep: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.01, 0.05, 0.1, 0.2)
    edge: PositiveFloat = 0.5
    batch: Positive = 32

    needs: ClassVar[frozenset[str]] = frozenset({"samples", "prompts", "predictions"})
    readings: ClassVar[tuple[Reading, ...]] = ()

    def draw(
        self, pipeline: Path, samples: Path, sampling: Sampling, directory: Path, *, seed: int, accelerator: Any
    ) -> None:
        """Write ``screens.npy``, float64 [prompts, 3] in the order of the prompts' first samples; ``evaluations.json``.

        Raises:
            UserError: when the model cannot be asked by text.
        """
        from unmem.evaluate.denoisers.opening import open_denoiser
        from unmem.evaluate.screening import first_step

        asked = read_json(samples / "prompts.json")
        prompts = list(dict.fromkeys(text.strip() for text in asked if text is not None and text.strip()))
        size = np.load(samples / "images.npy", mmap_mode="r", allow_pickle=False).shape[1:3]
        denoiser = open_denoiser(pipeline, accelerator.device, (int(size[0]), int(size[1])))
        if denoiser.conditioning != "text":
            raise UserError(f"{pipeline}: takes no texts, which prompt_screen asks it by")
        parts = [prompts[start : start + PART] for start in range(0, len(prompts), PART)]
        files = [directory / f"part-{number:05d}.npy" for number in range(len(parts))]
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        with progress.track("screen", sum(len(part) for part in parts[mine])) as advance:
            for part, file in zip(parts[mine], files[mine], strict=True):
                if not file.exists():
                    write_array(
                        file,
                        first_step(denoiser, part, draws=self.draws, edge=self.edge, batch=self.batch, seed=seed),
                    )
                advance(len(part))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._join(files, directory, len(asked) / len(prompts), sampling)
        accelerator.wait_for_everyone()

    def run(self, target: Target, audit: Audit, seed: int) -> Screened:
        """The screens' numbers beside what the full rule says of each prompt."""
        agreements = self.rule.run(target, audit, seed)
        scores, cost = np.load(target.drawn / "screens.npy"), read_json(target.drawn / "evaluations.json")
        if len(scores) != len(agreements.medoid):
            raise UserError(f"{target.drawn}: holds {len(scores)} prompts; the samples have {len(agreements.medoid)}")
        noise, move, edges = scores.T
        keep, screen, full = (np.array(values) for values in (self.keep, cost["screen"], cost["full"]))
        return Screened(noise, move, edges, agreements.medoid >= 0, keep, screen, full)

    def _join(self, files: list[Path], directory: Path, samples: float, sampling: Sampling) -> None:
        """One array out of the parts, and what a prompt costs, in evaluations of the network."""
        each = sampling.steps * (1 if sampling.guidance == 1 else 2)
        cost = {"noise": 2 * self.draws, "move": self.draws, "edges": self.draws}
        write_json(directory / "evaluations.json", {"screen": list(cost.values()), "full": samples * each})
        write_array(directory / "screens.npy", np.concatenate([np.load(file) for file in files]))
        for file in files:
            file.unlink()
