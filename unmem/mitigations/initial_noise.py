"""The noise that samples start from is led away from where the prompt alone decides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unmem.component import Positive, PositiveFloat, UserError, component
from unmem.train.config import Sampling
from unmem.train.imageset import ImageSet
from unmem.train.prompt_rule import AsAsked

if TYPE_CHECKING:
    from torch import Tensor


@component
class InitialNoise:
    """Adjust each sample's initial noise until the prompt says less about the first step (arXiv 2510.08625).

    For prompts that are memorized, what the text changes in the predicted noise is large from the first step on (Wen et
    al. 2024, arXiv 2407.21720). Its magnitude there,

        m(x_T) = |eps(x_T, text) - eps(x_T, empty text)|       (L2 over the root of the number of values),

    is lowered by gradient steps on x_T, each brought back to the length that it had, until it is at most ``target``.
    Of each sample's steps the best counts, and a sample that is under the target already is drawn as ever. This is the
    paper's adjustment of each sample by itself, with steps of a fixed length.

    It helps where the initial noise decides whether a sample becomes a copy. A model that makes of a caption its
    training image whatever it starts from does so still: of the tests' tiny models, one is led away from half of its
    copies and more, another gives as many as ever. A step takes two evaluations of the network, their gradient, and the
    memory for it. Whoever draws without this, or attacks the network itself, sees what was always there.

    Attributes:
        target: the magnitude at which a sample is let go. It depends on the model: take what is usual for captions that
            it was not trained on.
        steps: at most.
        lr: length of a step, as a part of that of the noise.
    """

    target: PositiveFloat
    steps: Positive = 20
    lr: PositiveFloat = 0.05

    protects: ClassVar[str] = "samples"

    def prompt_rule(self, data: ImageSet | None, directory: Path) -> Adjustment:
        """The adjustment, which needs no data; nothing is written."""
        return Adjustment(self)


class Adjustment(AsAsked):
    """Leads initial noise to where the text matters less."""

    starts = True

    def __init__(self, settings: InitialNoise) -> None:
        self._settings = settings

    def start(self, pipeline: Any, noise: Tensor, prompts: Sequence[str], config: Sampling) -> Tensor:
        """The adjusted noise, float32 [n, c, h, w], each as long as it was.

        Raises:
            UserError: for a pipeline that is not of the kind of Stable Diffusion 1 and 2.
        """
        import torch

        magnitude = Magnitude(pipeline, prompts, config)
        length = noise.flatten(1).norm(dim=1)[:, None, None, None]
        x, best = noise, noise
        least = torch.full((len(noise),), torch.inf, device=noise.device)
        for step in range(self._settings.steps + 1):
            found, slope = magnitude.with_slope(x)
            better = found < least
            best, least = torch.where(better[:, None, None, None], x, best), torch.where(better, found, least)
            if step == self._settings.steps or bool((least <= self._settings.target).all()):
                break
            slope = slope / slope.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
            moved = x - self._settings.lr * length * slope
            moved = moved * (length / moved.flatten(1).norm(dim=1)[:, None, None, None])
            x = torch.where((least <= self._settings.target)[:, None, None, None], x, moved)
        return best


class Magnitude:
    """How much texts matter to the first step from some noise."""

    def __init__(self, pipeline: Any, prompts: Sequence[str], config: Sampling) -> None:
        """Args: a pipeline on its device, in use; n texts; steps.

        Raises:
            UserError: for a pipeline that is not of the kind of Stable Diffusion 1 and 2.
        """
        import torch

        network = getattr(pipeline, "unet", None)
        if network is None or network.config.addition_embed_type is not None or not hasattr(pipeline, "vae"):
            raise UserError(
                f"initial_noise: is for pipelines like Stable Diffusion 1 and 2, not for a {type(pipeline).__name__}"
            )
        self._network, self._scheduler = network, pipeline.scheduler
        device = pipeline.device
        text, empty = pipeline.encode_prompt(list(prompts), device, 1, True)[:2]
        self._texts = torch.cat([text, empty])
        self._scheduler.set_timesteps(config.steps, device=device)

    def with_slope(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The magnitude, float32 [n], at unscaled noise [n, c, h, w], and its gradient in it."""
        import torch

        first = self._scheduler.timesteps[0]
        with torch.enable_grad():
            x = noise.detach().requires_grad_(True)
            scaled = self._scheduler.scale_model_input(x * self._scheduler.init_noise_sigma, first)
            both = torch.cat([scaled, scaled]).to(self._texts.dtype)
            text, empty = self._network(both, first, encoder_hidden_states=self._texts).sample.float().chunk(2)
            found = (text - empty).square().flatten(1).mean(1).sqrt()
            (slope,) = torch.autograd.grad(found.sum(), x)
        return found.detach(), slope
