"""Open any pipeline folder as a denoiser: which kind it is follows from what it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unmem import progress
from unmem.component import UserError
from unmem.evaluate.denoisers.deep_floyd import DeepFloyd
from unmem.evaluate.denoisers.dit import DiT
from unmem.evaluate.denoisers.flux import PATCH, Flux
from unmem.evaluate.denoisers.latents import Latents, vae_of
from unmem.evaluate.denoisers.pixels import Pixels
from unmem.evaluate.denoisers.stable_diffusion import StableDiffusion
from unmem.evaluate.denoisers.stable_diffusion_3 import StableDiffusion3
from unmem.evaluate.denoisers.stable_diffusion_xl import StableDiffusionXL
from unmem.evaluate.matrix.denoiser import Denoiser
from unmem.train.folder import parts, pipeline_class
from unmem.train.imageset import ImageSet
from unmem.train.opening import modules_of, open_any

Kind = Callable[[Any, Any], Denoiser]

KINDS: dict[tuple[str, bool, tuple[str, ...]], Kind] = {  # by the network, whether there is a VAE, and text encoders
    ("UNet2DModel", False, ()): Pixels,
    ("UNet2DModel", True, ()): Latents,
    ("DiTTransformer2DModel", True, ()): DiT,
    ("Transformer2DModel", True, ()): DiT,  # its name in older folders
    ("UNet2DConditionModel", True, ("CLIPTextModel",)): StableDiffusion,
    ("UNet2DConditionModel", True, ("CLIPTextModel", "CLIPTextModelWithProjection")): StableDiffusionXL,
    ("UNet2DConditionModel", False, ("T5EncoderModel",)): DeepFloyd,
    ("SD3Transformer2DModel", True, ("CLIPTextModelWithProjection",) * 2): StableDiffusion3,
    ("SD3Transformer2DModel", True, (*("CLIPTextModelWithProjection",) * 2, "T5EncoderModel")): StableDiffusion3,
    ("FluxTransformer2DModel", True, ("CLIPTextModel", "T5EncoderModel")): Flux,
}
FLOWS = ("SD3Transformer2DModel", "FluxTransformer2DModel")
FLOW = "FlowMatchEulerDiscreteScheduler"  # which flows come with
NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", *FLOWS)
VAES = ("AutoencoderKL", "VQModel")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
UNKNOWN = {  # inputs beside image, timestep, class or text, by the networks' settings that ask for them
    "UNet2DModel": ("class_embed_type",),
    "UNet2DConditionModel": ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim"),
}


def open_denoiser(path: Path, device: torch.device | str, size: tuple[int, int] | None = None) -> Denoiser:
    """The network of a saved pipeline, as attacks ask it.

    Args:
        path: a folder that ``DiffusionPipeline.save_pretrained`` wrote.
        device: where to compute.
        size: height and width of the images that it will be asked about; read only of networks that are made for any.

    Raises:
        UserError: when it cannot be opened, is of a kind that is not known, or has weights that are not finite.
    """
    held = parts(path)
    _check_schedule(path, held)  # before the weights are read, which may take minutes
    kind = _kind(path, held)
    pipeline = open_any(path)
    _check_weights(path, pipeline)
    _set_size(pipeline, size)
    _check_network(path, pipeline)
    return kind(pipeline, device)


def check_images(denoiser: Denoiser, images: ImageSet, path: Path) -> None:
    """Refuse images that a network was not made for; say so where it is asked without their labels or captions.

    Args:
        denoiser: the network.
        images: what it is to be asked about.
        path: its pipeline's folder, for messages.

    Raises:
        UserError: for images of another size, or labels that the network does not know.
    """
    if images.shape != denoiser.shape:
        raise UserError(f"{path}: is for {_size(*denoiser.shape)}; these are {_size(*images.shape)}")
    if denoiser.conditioning == "text" and images.captions is None:
        progress.say(f"{path}: takes texts, and the images have no captions; the empty text stands for all of them")
    if denoiser.conditioning == "class" and images.labels is None:
        progress.say(f"{path}: takes classes, and the images have no labels; the null class stands for all of them")
    if denoiser.conditioning == "class" and images.labels is not None:
        try:
            denoiser.condition(len(images), images.labels, None)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _kind(path: Path, held: dict[str, str]) -> Kind:
    """The class of denoiser for what a pipeline holds."""
    network = held.get("unet") or held.get("transformer") or ""
    vae = held.get("vae") or held.get("vqvae")
    texts = tuple(held[name] for name in ("text_encoder", "text_encoder_2", "text_encoder_3") if name in held)
    kind = KINDS.get((network, vae is not None, texts))
    if kind is None or vae not in (None, *VAES):
        names = ", ".join(f"{name} ({cls})" for name, cls in held.items())
        raise UserError(
            f"{path}: is a {pipeline_class(path)} of {names}, which is not supported; supported are a UNet2DModel with "
            f"or without a VAE ({' or '.join(VAES)}), a DiTTransformer2DModel with a VAE, a UNet2DConditionModel with "
            "a VAE and CLIP text encoders, as in Stable Diffusion 1, 2 and XL, or on pixels with T5, as in the first "
            "stage of DeepFloyd IF, and the transformers of Stable Diffusion 3 and Flux; of others, such as unCLIP, "
            "samples alone can be attacked"
        )
    return kind


def _check_schedule(path: Path, held: dict[str, str]) -> None:
    """Refuse a schedule that is none of alphas_cumprod, and predictions of other things."""
    import diffusers

    cls = held.get("scheduler")
    if cls is None or not hasattr(diffusers, cls):
        raise UserError(f"{path}: holds no scheduler that diffusers knows; got {cls}")
    try:
        scheduler = getattr(diffusers, cls).from_pretrained(path / "scheduler", local_files_only=True)
    except Exception as error:  # whatever its constructor raises
        raise UserError(f"{path / 'scheduler'}: cannot be opened as a {cls} ({error})") from None
    if held.get("transformer") in FLOWS:
        _check_flow(path / "scheduler", cls, scheduler)
        return
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(
            f"{path / 'scheduler'}: a {cls} has no alphas_cumprod; of flow matching, the transformers of Stable "
            "Diffusion 3 and Flux are supported, and continuous noise levels are not"
        )
    prediction = scheduler.config.get("prediction_type")
    if prediction not in PREDICTIONS:
        raise UserError(
            f"{path / 'scheduler'}: prediction_type {prediction!r} is not known; needs one of {', '.join(PREDICTIONS)}"
        )


def _check_flow(part: Path, cls: str, scheduler: Any) -> None:
    """Refuse a schedule that is none of a flow from images to noise."""
    if cls != FLOW:
        raise UserError(f"{part}: is a {cls}; the network is one of flow matching, which needs a {FLOW}")
    if scheduler.config.invert_sigmas:
        raise UserError(f"{part}: invert_sigmas is set; a flow from noise to images is not supported")


def _set_size(pipeline: Any, size: tuple[int, int] | None) -> None:
    """Give a network that is made for images of any size the one that it will be asked about, or its pipeline's own."""
    network = pipeline.components.get("transformer")
    if type(network).__name__ == "FluxTransformer2DModel":
        token = PATCH * pipeline.vae_scale_factor
        latents = pipeline.default_sample_size if size is None else [PATCH * (side // token) for side in size]
        network.register_to_config(sample_size=latents)


def _check_weights(path: Path, pipeline: Any) -> None:
    """Refuse weights that no number comes out of."""
    for name, module in modules_of(pipeline).items():
        for key, value in module.state_dict().items():
            if not bool(value.isfinite().all()):
                raise UserError(f"{path / name}: the weights {key} hold NaN or infinity")


def _check_network(path: Path, pipeline: Any) -> None:
    """Refuse a network that wants more than image, timestep and class or text, or gives something else."""
    network = pipeline.components.get("unet") or pipeline.components["transformer"]
    name, config, vae = type(network).__name__, network.config, vae_of(pipeline)
    if name not in NETWORKS:
        raise UserError(f"{path}: its network is a {name}; needs one of {', '.join(NETWORKS)}")
    if config.get("sample_size") is None:
        raise UserError(f"{path}: its {name} does not say what size of images it is for (sample_size in config.json)")
    for setting in UNKNOWN.get(name, ()):
        if config.get(setting) not in (None, "text_proj"):  # which is no input, but a layer on the text
            raise UserError(f"{path}: its {name} has {setting} {config[setting]!r}; such inputs are not supported")
    expected = config.in_channels if vae is None else vae.config.get("vq_embed_dim") or vae.config.latent_channels
    if name == "FluxTransformer2DModel":
        expected *= PATCH**2
    given = config.in_channels, config.out_channels or config.in_channels
    if given[0] != expected or given[1] not in (expected, 2 * expected):  # twice: with a learnt variance
        raise UserError(
            f"{path}: its {name} has {given[0]} channels in and {given[1]} out where latents have {expected}; networks "
            "for inpainting, upscaling or depth are not supported"
        )


def _size(height: int, width: int, channels: int) -> str:
    """The size of images in words."""
    return f"{height}x{width} images with {channels} channel{'s' if channels > 1 else ''}"
