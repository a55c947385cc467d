"""What a recipe may say about training and about sampling."""

from __future__ import annotations

from typing import Literal

from unmem.component import Fraction, NonNegativeFloat, Positive, PositiveFloat, component


@component
class Train:
    """The plain trainer's settings; progress is counted in images, not in steps or epochs.

    Attributes:
        images: training images seen in all.
        batch: images an update, over all processes.
        lr: peak learning rate of AdamW.
        warmup: fraction of training over which the rate rises linearly from 0.
        decay: what the rate does then: stay, or fall to 0 along a cosine.
        weight_decay: AdamW's.
        max_grad_norm: clipping of the mean gradient, for stability (has nothing to do with privacy).
        ema: decay of the weights' exponential moving average an update; it warms up as (1 + n) / (10 + n).
        prediction: what the network predicts.
        noise_schedule: linear (Ho et al. 2020) or cosine (Nichol & Dhariwal 2021).
        timesteps: length of the noise schedule.
        flip: mirror images left-right at random.
        label_dropout: how often a class-conditional model sees the null class (classifier-free guidance).
        precision: ``no`` is float32; ``bf16`` through accelerate.
        micro_batch: most images a process holds at once; all of its share when unset.
        checkpoint_seconds: least time between two checkpoints.
        threads: CPU threads of one arm; torch's choice when unset. With a number, arms run side by side on the
            cores there are.
        trackers: accelerate's trackers, such as tensorboard, wandb, mlflow.
    """

    images: Positive
    batch: Positive = 128
    lr: PositiveFloat = 2e-4
    warmup: Fraction = 0.05
    decay: Literal["none", "cosine"] = "none"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    ema: Fraction = 0.9999
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    noise_schedule: Literal["linear", "cosine"] = "linear"
    timesteps: Positive = 1000
    flip: bool = False
    label_dropout: Fraction = 0.1
    precision: Literal["no", "bf16"] = "no"
    micro_batch: Positive | None = None
    checkpoint_seconds: NonNegativeFloat = 60.0
    threads: Positive | None = None
    trackers: tuple[str, ...] = ()


@component
class Sampling:
    """How images are drawn from a trained model.

    Attributes:
        scheduler: ``ddim`` or ``dpm_solver++``.
        steps: network evaluations a sample (twice as many with guidance).
        guidance: classifier-free guidance w of eps_null + w (eps_class - eps_null); 1 is none. Class-conditional only.
        batch: samples drawn at once.
    """

    scheduler: Literal["ddim", "dpm_solver++"] = "ddim"
    steps: Positive = 50
    guidance: NonNegativeFloat = 1.0
    batch: Positive = 256
