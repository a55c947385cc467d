"""A text-to-image network that somebody trained before, trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unmem.component import UserError, component
from unmem.train.config import Train
from unmem.train.fine_tuning import FineTuned
from unmem.train.imageset import ImageSet

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unmem.train.inputs import Inputs

PARTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}


@component
class StableDiffusion(FineTuned):
    """A saved Stable Diffusion 1 or 2, or a like pipeline, trained on with captions: its UNet, or a part of that.

    Autoencoder and text encoder stay bit for bit as they are, so that a guarantee of the training covers all that is
    trained. Noise schedule and prediction type are the pipeline's; ``prediction``, ``noise_schedule`` and ``timesteps``
    of the training section are left out. A caption is dropped with probability ``train.label_dropout``.

    Attributes:
        init_from: the pipeline's folder, for images of the data's size.
        public_data: what it was trained on before, in words. A guarantee of the training does not cover it.
        trainable: ``all`` weights of the UNet; those of its ``attention`` blocks; or ``lora``, low-rank additions to
            frozen weights (Hu et al. 2021, arXiv 2106.09685; needs peft), which are saved as part of the weights that
            they add to.
        rank: of LoRA's additions.
        lora_targets: names (endings) of the linear and convolution layers with additions; unset, the attention's
            projections.
    """

    conditioning: ClassVar[str] = "text"

    def build(
        self, shape: tuple[int, int, int], num_classes: int | None, device: torch.device | str = "cpu"
    ) -> nn.Module:
        """The network for images of ``shape`` (height, width, channels), what is not trained frozen; no classes.

        Raises:
            UserError: when the pipeline cannot be used, or was made for other images.
        """
        from unmem.train.text_network import TextNetwork

        pipeline = self._open()
        self._check(pipeline, shape)
        network = pipeline.unet.to(device).train()  # before anything is added: additions are made where the weights lie
        self.freeze(network)
        return TextNetwork(network)

    def scheduler(self, config: Train) -> Any:
        """The pipeline's own.

        Raises:
            UserError: when it cannot be trained with, or the recipe says otherwise.
        """
        scheduler = self._open().scheduler
        if not hasattr(scheduler, "alphas_cumprod"):
            raise UserError(
                f"model.init_from: {self.init_from} has a {type(scheduler).__name__}, without alphas_cumprod; flow "
                "matching is not trained here"
            )
        self.check_schedule(scheduler.config, config)
        return scheduler

    def plain(self, network: nn.Module) -> nn.Module:
        """The network without what feeds it, and LoRA's additions summed into the weights.

        Raises:
            UserError: when training left an addition where it began.
        """
        return super().plain(network.get_submodule("unet"))

    def inputs(self, data: ImageSet, config: Train, state: Path, *, key: str, seed: int, accelerator: Any) -> Inputs:
        """Latents and texts by the pipeline's own autoencoder and text encoder; nothing is kept.

        Raises:
            UserError: for images without captions.
        """
        from unmem.train.latents import Latents, check_captions

        check_captions(data, "stable_diffusion")
        pipeline = self._open()
        pipeline.register_to_config(requires_safety_checker=False)
        return Latents(pipeline, accelerator.device)

    def _open(self) -> Any:
        """The pipeline, whole and of the right parts."""
        from unmem.train.folder import parts
        from unmem.train.opening import open_any

        held = parts(self.folder)
        if any(held.get(name) != cls for name, cls in PARTS.items()) or "text_encoder_2" in held:
            names = ", ".join(f"{name} ({cls})" for name, cls in held.items())
            raise UserError(
                f"model.init_from: {self.init_from} holds {names}; needs {', '.join(PARTS.values())} and a tokenizer, "
                "as in Stable Diffusion 1 and 2"
            )
        return open_any(self.folder)

    def _check(self, pipeline: Any, shape: tuple[int, int, int]) -> None:
        """Refuse a pipeline that was made for other images, or whose network takes more than latents and text."""
        from unmem.train.sampling import image_size

        network, vae = pipeline.unet.config, pipeline.vae.config
        factor = 2 ** (len(vae.block_out_channels) - 1)
        size = tuple(factor * side for side in image_size(pipeline.unet))
        if size != shape[:2]:
            raise UserError(
                f"model.init_from: {self.init_from} is for {size[0]}x{size[1]} images; these are {shape[0]}x{shape[1]}"
            )
        if vae.in_channels != shape[2]:
            raise UserError(
                f"model.init_from: {self.init_from} is for images with {vae.in_channels} channels; "
                f"these have {shape[2]}"
            )
        if (network.in_channels, network.out_channels) != (vae.latent_channels, vae.latent_channels):
            raise UserError(
                f"model.init_from: the UNet of {self.init_from} has {network.in_channels} channels in and "
                f"{network.out_channels} out where latents have {vae.latent_channels}; networks for inpainting or "
                "depth are not trained here"
            )
