"""Open any pipeline folder as a denoiser: which kind it is follows from what it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unmem import progress
from unmem.component import UserError
from unmem.evaluate.denoisers.dit import DiT
from unmem.evaluate.denoisers.folder import NEEDLESS, parts, pipeline_class
from unmem.evaluate.denoisers.latents import Latents, vae_of
from unmem.evaluate.denoisers.pixels import Pixels
from unmem.evaluate.denoisers.quiet import quiet
from unmem.evaluate.denoisers.stable_diffusion import StableDiffusion
from unmem.evaluate.denoisers.stable_diffusion_xl import StableDiffusionXL
from unmem.evaluate.matrix.denoiser import Denoiser
from unmem.train.imageset import ImageSet

Kind = Callable[[Any, Any], Denoiser]

KINDS: dict[tuple[str, bool, tuple[str, ...]], Kind] = {  # by the network, whether there is a VAE, and text encoders
    ("UNet2DModel", False, ()): Pixels,
    ("UNet2DModel", True, ()): Latents,
    ("DiTTransformer2DModel", True, ()): DiT,
    ("Transformer2DModel", True, ()): DiT,  # its name in older folders
    ("UNet2DConditionModel", True, ("CLIPTextModel",)): StableDiffusion,
    ("UNet2DConditionModel", True, ("CLIPTextModel", "CLIPTextModelWithProjection")): StableDiffusionXL,
}
NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
VAES = ("AutoencoderKL", "VQModel")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
UNKNOWN = {  # inputs beside image, timestep, class or text, by the networks' settings that ask for them
    "UNet2DModel": ("class_embed_type",),
    "UNet2DConditionModel": ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim"),
}


def open_denoiser(path: Path, device: torch.device | str) -> Denoiser:
    """The network of a saved pipeline, as attacks ask it.

    Args:
        path: a folder that ``DiffusionPipeline.save_pretrained`` wrote.
        device: where to compute.

    Raises:
        UserError: when it cannot be opened, is of a kind that is not known, or has weights that are not finite.
    """
    held = parts(path)
    _check_schedule(path, held)  # before the weights are read, which may take minutes
    kind = _kind(path, held)
    pipeline = open_any(path)
    _check_weights(path, pipeline)
    _check_network(path, pipeline)
    return kind(pipeline, device)


def open_any(path: Path) -> Any:
    """The diffusers pipeline of a folder in float32, quietly, without safety checker and without running its code.

    Raises:
        UserError: when it cannot be opened.
    """
    from diffusers import DiffusionPipeline

    texts = {name: cls for name, cls in parts(path).items() if name.startswith("text_encoder")}
    with quiet(texts=bool(texts)):
        try:
            given = {name: _text_encoder(path / name, cls) for name, cls in texts.items()}
            pipeline = DiffusionPipeline.from_pretrained(
                path, local_files_only=True, **given, **dict.fromkeys(NEEDLESS)
            )
        except UserError:
            raise
        except Exception as error:  # diffusers and transformers raise many kinds for damaged folders
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{path}: cannot be opened as a {pipeline_class(path)} ({reason})") from None
    for name, module in _modules(pipeline).items():
        if missing := [key for key, value in module.state_dict().items() if value.is_meta]:
            raise UserError(f"{path / name}: its files hold no weights {missing[0]}")
        module.float()
    return pipeline


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
    texts = tuple(held[name] for name in ("text_encoder", "text_encoder_2") if name in held)
    kind = KINDS.get((network, vae is not None, texts))
    if kind is None or vae not in (None, *VAES):
        names = ", ".join(f"{name} ({cls})" for name, cls in held.items())
        raise UserError(
            f"{path}: is a {pipeline_class(path)} of {names}, which is not supported; supported are a UNet2DModel with "
            f"or without a VAE ({' or '.join(VAES)}), a DiTTransformer2DModel with a VAE, and a UNet2DConditionModel "
            "with a VAE and CLIP text encoders, as in Stable Diffusion 1, 2 and XL"
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
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(
            f"{path / 'scheduler'}: a {cls} has no alphas_cumprod; flow matching (Flux, Stable Diffusion 3) and "
            "continuous noise levels are not supported yet"
        )
    prediction = scheduler.config.get("prediction_type")
    if prediction not in PREDICTIONS:
        raise UserError(
            f"{path / 'scheduler'}: prediction_type {prediction!r} is not known; needs one of {', '.join(PREDICTIONS)}"
        )


def _check_weights(path: Path, pipeline: Any) -> None:
    """Refuse weights that no number comes out of."""
    for name, module in _modules(pipeline).items():
        for key, value in module.state_dict().items():
            if not bool(value.isfinite().all()):
                raise UserError(f"{path / name}: the weights {key} hold NaN or infinity")


def _check_network(path: Path, pipeline: Any) -> None:
    """Refuse a network that wants more than image, timestep and class or text, or gives something else."""
    network = pipeline.components.get("unet") or pipeline.components["transformer"]
    name, config, vae = type(network).__name__, network.config, vae_of(pipeline)
    if name not in NETWORKS:
        raise UserError(f"{path}: its network is a {name}; needs one of {', '.join(NETWORKS)}")
    if config.sample_size is None:
        raise UserError(f"{path}: its {name} does not say what size of images it is for (sample_size in config.json)")
    for setting in UNKNOWN.get(name, ()):
        if config.get(setting) is not None:
            raise UserError(f"{path}: its {name} has {setting} {config[setting]!r}; such inputs are not supported")
    expected = config.in_channels if vae is None else vae.config.get("vq_embed_dim") or vae.config.latent_channels
    given = config.in_channels, config.out_channels or config.in_channels
    if given[0] != expected or given[1] not in (expected, 2 * expected):  # twice: with a learnt variance
        raise UserError(
            f"{path}: its {name} has {given[0]} channels in and {given[1]} out where latents have {expected}; networks "
            "for inpainting, upscaling or depth are not supported"
        )


def _text_encoder(part: Path, cls: str) -> nn.Module:
    """A text encoder; loaded apart, since within a pipeline what its files lack is drawn at random without a word."""
    import transformers

    encoder, report = getattr(transformers, cls).from_pretrained(part, local_files_only=True, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{part}: its files hold no weights {missing[0]}")
    found: nn.Module = encoder
    return found


def _modules(pipeline: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline by its parts' names."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def _size(height: int, width: int, channels: int) -> str:
    """The size of images in words."""
    return f"{height}x{width} images with {channels} channel{'s' if channels > 1 else ''}"
