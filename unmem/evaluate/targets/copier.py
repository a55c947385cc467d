"""The negative control: a model that gives images back which it was never trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from unmem.component import component
from unmem.rundir import write_array

if TYPE_CHECKING:
    from unmem.evaluate.audit import Audit
    from unmem.train.config import Sampling


@component
class Copier:
    """A generator that copies held-out images, one after the other: it knows no member.

    What an extraction attack finds of members is what happens to look like a held-out image, whatever the number of
    samples; what it finds of held-out images is all of them, given as many samples: these count as false positives,
    and no model could have more. Attacks that need more than samples are not run on it.
    """

    access: ClassVar[frozenset[str]] = frozenset({"samples"})
    classes: ClassVar[int] = 0
    is_control: ClassVar[bool] = True

    def fingerprint(self) -> str:
        """What it is; the held-out images are the run's own."""
        return "copier"

    def sample_to_disk(
        self, audit: Audit, sampling: Sampling, count: int, directory: Path, *, seed: int, accelerator: Any
    ) -> None:
        """Copy held-out images 0..count-1, over again when these are fewer, into ``directory/images.npy``."""
        if accelerator.is_main_process:
            held_out = audit.nonmember_images
            write_array(directory / "images.npy", held_out.images(np.arange(count) % len(held_out)))
        accelerator.wait_for_everyone()
