"""How pipelines of each class are called for samples: most alike, some by arguments of their own.

In each, a sample's noise comes from its own generator alone, so that it depends on no other of its batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmem.component import UserError
from unmem.train.config import Sampling

IMAGENET = 1000  # classes, and so the null class, of the one network that DiTPipeline guides


@dataclass(frozen=True)
class Wanted:
    """Samples that are drawn at once.

    Attributes:
        prompts: n texts.
        generators: one a sample.
        config: steps and guidance.
        noise: initial noise; without it the pipeline draws its own, from the generators.
        size: height and width, for pipelines that draw images of any.
    """

    prompts: list[str]
    generators: list[torch.Generator]
    config: Sampling
    noise: Tensor | None = None
    size: tuple[int, int] | None = None


Call = Callable[[Any, Wanted], tuple[np.ndarray, np.ndarray]]
"""``call(pipeline, wanted)``: finished images, float [n, h, w, c] in [0, 1], and bool [n], which of them a safety
checker took away."""


def called(pipeline: Any, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """A pipeline that takes the usual arguments, or some of them."""
    noise = None if wanted.noise is None else wanted.noise.to(pipeline.dtype)
    return _finished(_call(pipeline, wanted, prompt=wanted.prompts, latents=noise), wanted)


def of_any_size(pipeline: Any, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """Flux."""
    height, width = (None, None) if wanted.size is None else wanted.size
    return _finished(_call(pipeline, wanted, prompt=wanted.prompts, height=height, width=width), wanted)


def by_class(pipeline: Any, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """DiT, whose prompts are numbers of classes.

    Raises:
        UserError: for guidance, where its null class is not the one that the pipeline takes.
    """
    classes = pipeline.transformer.config.num_embeds_ada_norm
    if wanted.config.guidance > 1 and classes != IMAGENET:
        raise UserError(
            f"sampling.guidance: a DiTPipeline knows guidance for {IMAGENET} classes alone; it has {classes}"
        )
    return _finished(_call(pipeline, wanted, class_labels=[int(prompt) for prompt in wanted.prompts]), wanted)


def of_nothing(pipeline: Any, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """Unconditional latent diffusion, whose prompts mean nothing."""
    return _finished(_call(pipeline, wanted, batch_size=len(wanted.prompts)), wanted)


def by_embedding(pipeline: Any, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """Kandinsky 2.2, an unCLIP: both of its networks take the same steps and guidance.

    Raises:
        UserError: for a scheduler that it cannot call.
    """
    decoder, config = pipeline.decoder_pipe, wanted.config
    if "generator" not in inspect.signature(decoder.scheduler.step).parameters:
        raise UserError(f"sampling.scheduler: {config.scheduler} does not go with a {type(pipeline).__name__}")
    side = decoder.unet.config.sample_size * decoder.movq_scale_factor
    found = _call(
        pipeline, wanted, prompt=wanted.prompts, height=side, width=side,
        prior_num_inference_steps=config.steps, prior_guidance_scale=config.guidance,
    )  # fmt: skip
    return _finished(found, wanted)


def one_after_the_other(cascade: Any, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """A cascade; those of DeepFloyd IF share the first one's encoded text.

    A sample's generator serves all stages in turn. Images go from stage to stage unchecked; the last one's checker sees
    what is given out.
    """
    first, *further = cascade.stages
    texts: dict[str, Any] = {"prompt": wanted.prompts}
    if _is_deep_floyd(first):
        encoded = first.encode_prompt(wanted.prompts, do_classifier_free_guidance=wanted.config.guidance > 1)
        texts = dict(zip(("prompt_embeds", "negative_prompt_embeds"), encoded, strict=True))
    found = _call(first, wanted, **texts, output_type="pt" if further else "np")
    for stage in further:
        image, given = found.images, texts  # of IF in [-1, 1]
        if not _is_deep_floyd(stage):
            image, given = (image / 2 + 0.5).clamp(0, 1), {"prompt": wanted.prompts}
        found = _call(stage, wanted, **given, image=image, output_type="np" if stage is further[-1] else "pt")
    return _finished(found, wanted)


CALLS: dict[str, Call] = {  # pipelines that are called otherwise, by the names of their classes
    "FluxPipeline": of_any_size,
    "DiTPipeline": by_class,
    "LDMPipeline": of_nothing,
    "KandinskyV22CombinedPipeline": by_embedding,
    "Cascade": one_after_the_other,
}


def drawing(pipeline: Any) -> tuple[Any, ...]:
    """The pipelines whose schedulers matter to what a pipeline draws: mostly itself."""
    if hasattr(pipeline, "stages"):
        return tuple(pipeline.stages)
    return (getattr(pipeline, "decoder_pipe", pipeline),)


def takes_noise(pipeline: Any) -> bool:
    """Whether a pipeline's initial noise can be given to it."""
    return type(pipeline).__name__ not in CALLS and "latents" in inspect.signature(pipeline.__call__).parameters


def _call(pipeline: Any, wanted: Wanted, **given: Any) -> Any:
    """Call it with what it knows of the usual arguments, and with what is given and not None."""
    usual = {
        "generator": wanted.generators,
        "num_inference_steps": wanted.config.steps,
        "guidance_scale": wanted.config.guidance,
        "eta": wanted.config.eta,
        "output_type": "np",
        "clean_caption": False,  # would need further packages, and be left out without them
    }
    known = inspect.signature(pipeline.__call__).parameters
    options = {name: value for name, value in usual.items() if name in known}
    return pipeline(**{**options, **{name: value for name, value in given.items() if value is not None}})


def _finished(output: Any, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """A pipeline's images, and which of them its safety checker took away."""
    lost = np.zeros(len(wanted.prompts), bool)
    for name in ("nsfw_content_detected", "nsfw_detected", "watermark_detected"):
        flags = getattr(output, name, None)
        if flags is not None:
            lost |= np.array([bool(flag) for flag in flags])
    return output.images, lost


def _is_deep_floyd(pipeline: Any) -> bool:
    """Whether a pipeline is a stage of DeepFloyd IF, which takes encoded text."""
    return type(pipeline).__name__.startswith("IF")
