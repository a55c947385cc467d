"""A small latent text-to-image model, from scratch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unmem.component import Fraction, Positive, UserError, component
from unmem.train.config import Train
from unmem.train.imageset import ImageSet

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unmem.train.inputs import Inputs

SIDE = 8  # StableDiffusionPipeline draws images whose sides are multiples of it


@component
class TextToImage:
    """Latent diffusion conditioned on captions (Rombach et al. 2022, arXiv 2112.10752), for sides of 8 to 64 pixels.

    Three parts. An autoencoder is trained first, on the training images, and then frozen. The text encoder, a
    transformer of CLIP's form, is random and stays so: it reads bytes, so that any caption in any language has tokens
    of its own and no vocabulary tells of the captions; the network learns to tell its outputs apart. A
    UNet2DConditionModel is trained on the latents by the recipe's update rule; a caption is dropped (the empty text
    stands in its place) with probability ``train.label_dropout``. Saved as a StableDiffusionPipeline.

    Needs ``pip install "unmem[text]"``. DP-SGD covers the network alone, so it is refused here: train
    ``stable_diffusion`` on, whose autoencoder is given.

    Attributes:
        channels: output channels of each level of the network, from the latents' resolution down; one halving between
            two levels. All but the last level look at the text, and the middle block.
        layers: residual blocks a level.
        dropout: in the network's residual blocks.
        norm_groups: groups of the group normalisation; must divide every entry of both lists of channels.
        vae_channels: output channels of each level of the autoencoder; one halving between two levels, so that a latent
            stands for 2 pixels along each side with two levels, and for 4 with three.
        latent_channels: of the latents.
        vae_images: training images that the autoencoder sees in all.
        text_width: of the encoded text; even.
        tokens: longest text in bytes, with one more at each end; what is longer is cut off.
    """

    channels: tuple[Positive, ...] = (32, 64)
    layers: Positive = 1
    dropout: Fraction = 0.0
    norm_groups: Positive = 8
    vae_channels: tuple[Positive, ...] = (16, 32)
    latent_channels: Positive = 4
    vae_images: Positive = 20_000
    text_width: Positive = 64
    tokens: Positive = 77

    conditioning: ClassVar[str] = "text"
    uncovered: ClassVar[str] = (
        "trains an autoencoder on the private images, too, which DP-SGD does not cover; use kind: stable_diffusion "
        "with a pipeline whose autoencoder was trained on public images"
    )

    def __post_init__(self) -> None:
        if find_spec("transformers") is None:
            raise ValueError('needs transformers; run pip install "unmem[text]"')
        if self.text_width % 2:
            raise ValueError(f"text_width must be even, got {self.text_width}")
        if self.tokens < 3:
            raise ValueError(f"tokens must be at least 3, got {self.tokens}")
        for name in ("channels", "vae_channels"):
            if odd := [c for c in getattr(self, name) if c % self.norm_groups]:
                raise ValueError(f"norm_groups: {self.norm_groups} does not divide {name} {odd}")

    def build(
        self, shape: tuple[int, int, int], num_classes: int | None, device: torch.device | str = "cpu"
    ) -> nn.Module:
        """The network for the latents of images of ``shape`` (height, width, channels); classes play no part.

        Raises:
            UserError: when the images do not fit the levels.
        """
        from diffusers import UNet2DConditionModel

        from unmem.train.text_network import TextNetwork

        height, width = self._latent_size(shape)
        looks = [True] * max(1, len(self.channels) - 1) + [False] * (len(self.channels) > 1)
        unet: nn.Module = UNet2DConditionModel(
            sample_size=height if height == width else (height, width),
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in looks),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(looks)),
            cross_attention_dim=self.text_width,
            attention_head_dim=4,
            dropout=self.dropout,
            norm_num_groups=self.norm_groups,
        )
        return TextNetwork(unet).to(device)

    def scheduler(self, config: Train) -> Any:
        """What the recipe's training section says; latents are not clipped, unlike pixels."""
        from unmem.train.diffusion import make_latent_scheduler

        return make_latent_scheduler(config.noise_schedule, config.prediction, config.timesteps)

    def plain(self, network: nn.Module) -> nn.Module:
        """The network without what feeds it."""
        unet: nn.Module = network.get_submodule("unet")
        return unet

    def inputs(self, data: ImageSet, config: Train, state: Path, *, key: str, seed: int, accelerator: Any) -> Inputs:
        """Latents by an autoencoder that is trained on ``data``, and texts by an encoder that is not.

        Raises:
            UserError: for images without captions.
        """
        import torch
        from diffusers import AutoencoderKL, StableDiffusionPipeline

        from unmem.rng import derive
        from unmem.train import autoencoder, byte_text
        from unmem.train.latents import Latents, check_captions
        from unmem.train.quiet import quiet

        check_captions(data, "text_to_image")
        levels = len(self.vae_channels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "text encoder"))
            encoder = byte_text.encoder(self.text_width, self.tokens)
            torch.manual_seed(derive(seed, "autoencoder"))
            vae = AutoencoderKL(
                in_channels=data.shape[2], out_channels=data.shape[2], latent_channels=self.latent_channels,
                block_out_channels=self.vae_channels, norm_num_groups=self.norm_groups, sample_size=max(data.shape[:2]),
                down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
            )  # fmt: skip
        file = state / "autoencoder.safetensors"
        vae = autoencoder.trained(vae, data, self.vae_images, file, key=key, seed=seed, accelerator=accelerator)
        with quiet(texts=True):
            pipeline = StableDiffusionPipeline(
                vae=vae, text_encoder=encoder, tokenizer=byte_text.tokenizer(self.tokens), unet=None,
                scheduler=self.scheduler(config), safety_checker=None, feature_extractor=None,
                requires_safety_checker=False,
            )  # fmt: skip
        return Latents(pipeline, accelerator.device)

    def _latent_size(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Height and width of the latents."""
        height, width, _ = shape
        if height % SIDE or width % SIDE:
            raise UserError(
                f"model: a text_to_image makes images whose sides are multiples of {SIDE} pixels; these are "
                f"{height}x{width}; give the data another size"
            )
        halvings = len(self.vae_channels) - 1, len(self.channels) - 1
        shrink = 2 ** sum(halvings)
        if height % shrink or width % shrink:
            raise UserError(
                f"model.channels: the autoencoder halves {halvings[0]} times and the network {halvings[1]} times, "
                f"which {height}x{width} images do not allow; use fewer vae_channels or channels"
            )
        factor = 2 ** halvings[0]
        return height // factor, width // factor
