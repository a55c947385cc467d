"""Plain training that leaves images out of a step, and the record of how many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unmem.rundir import write_json
from unmem.train.config import Train
from unmem.train.update import Plain


class Skipping(Plain):
    """What such rules share; ``memory`` counts the skipped images."""

    def __init__(self, n: int, config: Train, seed: int, record: Path) -> None:
        """Args: those of plain training, and where the record goes."""
        super().__init__(n, config, seed)
        self._record = record

    def finish(self) -> dict[str, Any] | None:
        """Write the record; there is no statement."""
        memory: Any = self.memory
        skipped, images = int(memory.skipped), self.steps * self.batch
        if self._accelerator.is_main_process:
            write_json(self._record, {"images": images, "skipped": skipped, "share": skipped / images})
        return None
