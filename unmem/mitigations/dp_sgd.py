"""Training with a differential-privacy guarantee."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from unmem.component import Positive, PositiveFloat, component
from unmem.mitigations.dp.warmup import Warmup
from unmem.train.config import Train
from unmem.train.imageset import ImageSet

if TYPE_CHECKING:
    from unmem.train.update import UpdateRule


@component
class DPSGD:
    """DP-SGD (Abadi et al. 2016): Poisson batches, per-image clipping, Gaussian noise calibrated to epsilon.

    Attributes:
        epsilon: the target, for all private queries together; the noise is the least whose PRV epsilon stays below.
        delta: at most 1/n for n training images.
        clip: L2 bound of one image's gradient.
        batch: expected images a batch; ``train.batch`` when unset. Larger is better, up to n.
        images: training images in all, in expectation; ``train.images`` when unset.
        lr: peak learning rate; ``train.lr`` when unset.
        noise_multiplicity: K, draws of timestep, noise and flip over which an image's gradient is averaged before it is
            clipped (Dockhorn et al. 2023, arXiv 2210.09929); costs time, not privacy.
        physical_batch: most rows of the network (images times draws) that a process holds at once; memory, not privacy.
        engine: how clipped per-image gradients are computed (docs/how-it-works.md); ``auto`` measures the ways on the
            network before the first step and takes the fastest that is right.
        warmup: plain training on noisy central images before DP-SGD, paid from the same epsilon; none when unset.
        tuning_runs: how many runs on this data, this one included, were tried to choose the settings; stated, with
            what they spend together, in the report.
        known_seed: for debugging: makes the run reproducible and its guarantee void, which the report says.
    """

    epsilon: PositiveFloat
    delta: Annotated[float, Field(gt=0, lt=1)]
    clip: PositiveFloat = 1.0
    batch: Positive | None = None
    images: Positive | None = None
    lr: PositiveFloat | None = None
    noise_multiplicity: Positive = 1
    physical_batch: Positive = 256
    engine: Literal["auto", "bookkeeping", "opacus-hooks", "opacus-ghost", "functorch"] = "auto"
    warmup: Warmup | None = None
    tuning_runs: Positive | None = None
    known_seed: int | None = None

    guarantees: ClassVar[bool] = True

    def update_rule(self, data: ImageSet, train: Train, holds_for: str, state: Path, seed: int) -> UpdateRule:
        """The rule that trains on ``data`` with this guarantee.

        Args:
            data: the training set, after the arm's data mitigations.
            train: the recipe's settings, used where this component sets none.
            holds_for: the data set that the guarantee is about, in words.
            state: the trainer's resumable state; the secret lies there until training ends, and ``budget.json``
                beside it.
            seed: unused: which images a step sees must not be known, so the secret decides that, too.
        """
        from accelerate import PartialState

        from unmem.mitigations.dp import budget
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
            before=self.warmup.queries if self.warmup else (),
            tuning_runs=self.tuning_runs,
        )
        with PartialState().main_process_first():  # the others read what the first has written
            secret = budget.begin(plan, data, state, self.known_seed)
        return PrivateUpdate(
            plan,
            secret=secret,
            lr=self.lr or train.lr,
            physical_batch=self.physical_batch,
            multiplicity=self.noise_multiplicity,
            engine=self.engine,
            chosen=state / "engine.json",
            warmup=self.warmup.prepare(data, train, secret) if self.warmup else None,
            holds_for=holds_for,
            void=None if self.known_seed is None else "privacy_void: seed known",
        )
