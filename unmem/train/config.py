"""What a recipe may say about training and about sampling."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from pydantic import FiniteFloat

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
        noise_levels: how timesteps are drawn: ``uniform``, or ``lognormal``, so that ln sigma is normal (Karras et al.
            2022, arXiv 2206.00364; with ``v_prediction`` it is their loss, see ``unmem/train/noise_levels.py``).
        lognormal_mean: mean of ln sigma, their P_mean.
        lognormal_std: standard deviation of ln sigma, their P_std.
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
    noise_levels: Literal["uniform", "lognormal"] = "uniform"
    lognormal_mean: FiniteFloat = -1.2
    lognormal_std: PositiveFloat = 1.2
    flip: bool = False
    label_dropout: Fraction = 0.1
    precision: Literal["no", "bf16"] = "no"
    micro_batch: Positive | None = None
    checkpoint_seconds: NonNegativeFloat = 60.0
    threads: Positive | None = None
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.noise_levels != "lognormal":
            refuse_unused(self, ("lognormal_mean", "lognormal_std"), "noise_levels: lognormal")


@component
class Sampling:
    """How images are drawn from a trained model.

    Attributes:
        scheduler: ``ddim``, ``dpm_solver++``, ``euler``, or ``heun``.
        steps: network evaluations a sample (twice as many with guidance, and twice as many but one with ``heun``).
        guidance: classifier-free guidance w of eps_null + w (eps_class - eps_null); 1 is none. Class-conditional only.
        batch: samples drawn at once.
        eta: of ``ddim``: fresh noise in each step, from 0, none, to 1, as much as in ancestral sampling.
        karras_sigmas: of ``euler`` and ``heun``: noise levels by eq. 5 of Karras et al. 2022 (arXiv 2206.00364), rho 7,
            from 80 or what the schedule reaches; else the levels of evenly spaced timesteps.
        churn: of ``euler`` and ``heun``: S_churn of their algorithm 2, fresh noise in each step; 0 is none. The more of
            it, the more steps: with too few, samples of ``euler`` lose variance, and those of ``heun`` gain some.
        churn_min: S_tmin, the least sigma that gets fresh noise.
        churn_max: S_tmax, the largest; no bound when unset.
        churn_noise: S_noise, the standard deviation of fresh noise.
    """

    scheduler: Literal["ddim", "dpm_solver++", "euler", "heun"] = "ddim"
    steps: Positive = 50
    guidance: NonNegativeFloat = 1.0
    batch: Positive = 256
    eta: Fraction = 0.0
    karras_sigmas: bool = False
    churn: NonNegativeFloat = 0.0
    churn_min: NonNegativeFloat = 0.0
    churn_max: PositiveFloat | None = None
    churn_noise: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        if self.scheduler != "ddim":
            refuse_unused(self, ("eta",), "scheduler: ddim")
        if self.scheduler not in ("euler", "heun"):
            refuse_unused(
                self, ("karras_sigmas", "churn", "churn_min", "churn_max", "churn_noise"), "scheduler: euler or heun"
            )
        if not self.churn:
            refuse_unused(self, ("churn_min", "churn_max", "churn_noise"), "churn above 0")
        if self.churn_max is not None and self.churn_max < self.churn_min:
            raise ValueError(f"churn_max must be at least churn_min ({self.churn_min}), got {self.churn_max}")


def refuse_unused(settings: Any, names: tuple[str, ...], owner: str) -> None:
    """Refuse values that nothing would read; the default is no value, since a resolved recipe spells it out.

    Raises:
        ValueError: for a field that is not at its default.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in names and value != field.default:
            raise ValueError(f"{field.name}: {value} goes with {owner} alone; leave it out")
