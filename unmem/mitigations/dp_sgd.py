"""Training with a differential-privacy guarantee."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from unmem.component import Positive, PositiveFloat, UserError, component
from unmem.train.config import Train
from unmem.train.imageset import ImageSet

if TYPE_CHECKING:
    from unmem.train.update import UpdateRule


@component
class DPSGD:
    """DP-SGD (Abadi et al. 2016): Poisson batches, per-image clipping, Gaussian noise calibrated to epsilon.

    Attributes:
        epsilon: the target; the noise is the least whose PRV epsilon stays below.
        delta: at most 1/n for n training images.
        clip: L2 bound of one image's gradient.
        batch: expected images a batch; ``train.batch`` when unset. Larger is better, up to n.
        images: training images in all, in expectation; ``train.images`` when unset.
        lr: peak learning rate; ``train.lr`` when unset.
        physical_batch: most images whose gradients a process holds at once; memory, not privacy.
        known_seed: for debugging: makes the run reproducible and its guarantee void, which the report says.
    """

    epsilon: PositiveFloat
    delta: Annotated[float, Field(gt=0, lt=1)]
    clip: PositiveFloat = 1.0
    batch: Positive | None = None
    images: Positive | None = None
    lr: PositiveFloat | None = None
    physical_batch: Positive = 256
    known_seed: int | None = None

    def update_rule(self, data: ImageSet, train: Train, holds_for: str, state: Path) -> UpdateRule:
        """The rule that trains on ``data`` with this guarantee.

        Args:
            data: the training set, after the arm's data mitigations.
            train: the recipe's settings, used where this component sets none.
            holds_for: the data set that the guarantee is about, in words.
            state: the trainer's resumable state; the secret lies there until training ends.
        """
        from accelerate import PartialState

        from unmem.mitigations.dp.plan import DPPlan
        from unmem.mitigations.dp.update import PrivateUpdate

        batch = self.batch or train.batch
        plan = DPPlan.calibrate(
            epsilon=self.epsilon,
            delta=self.delta,
            n=len(data),
            expected_batch=batch,
            steps=-(-(self.images or train.images) // batch),
            clip=self.clip,
        )
        secret = self.known_seed
        if secret is None:
            with PartialState().main_process_first():  # the others read what the first has written
                secret = _secret(state / "secret.json")
        return PrivateUpdate(
            plan,
            secret=secret,
            lr=self.lr or train.lr,
            physical_batch=self.physical_batch,
            holds_for=holds_for,
            void=None if self.known_seed is None else "privacy_void: seed known",
        )


def _secret(file: Path) -> int:
    """The randomness of batches and noise: from the system, never from the recipe; kept only to resume.

    A resumed run draws the very batches and noise again that it had drawn, so that nothing is released twice.
    """
    if file.exists():
        try:
            return int(json.loads(file.read_text())["secret"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: damaged ({error}); remove the state folder to train this arm again") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    secret = secrets.randbits(128)
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
        json.dump({"secret": str(secret)}, out)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)
    return secret
