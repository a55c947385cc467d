"""Tiny pipelines of every kind that attacks can open, made on the spot: random weights, no download."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unmem.evaluate.denoisers.opening import open_any
from unmem.train.diffusion import to_model
from unmem.train.imageset import ImageSet

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TOKENS = 40


def scheduler(**config: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**{"clip_sample": False, **config})


def unet(size: int, channels: int, out: int | None = None, **config: Any) -> Any:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=size, in_channels=channels, out_channels=out or channels, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        **config,
    )  # fmt: skip


def vae(channels: int = 1, **config: Any) -> Any:
    """Images of 8x8 as latents of 4x4 with 4 channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=channels, out_channels=channels, latent_channels=4, norm_num_groups=4, block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **config,
    )  # fmt: skip


def text_unet(width: int, channels: tuple[int, int] = (8, 16), **config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    usual = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "sample_size": 4,
    }
    return UNet2DConditionModel(
        block_out_channels=channels, norm_num_groups=4, cross_attention_dim=width, attention_head_dim=4,
        **{**usual, **config},
    )  # fmt: skip


def tokenizer(folder: Path) -> Any:
    """Letter by letter, over printable ASCII."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: number for number, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    found = CLIPTokenizer(str(vocabulary), str(merges), model_max_length=TOKENS)
    found.save_pretrained(folder)  # what a pipeline's folder holds of it
    return CLIPTokenizer.from_pretrained(folder)


def text_encoder(width: int, vocabulary: int, pooled: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=TOKENS, projection_dim=pooled or width,
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if pooled else CLIPTextModel)(config)


def pixels(path: Path, size: int = 8, out: int | None = None, classes: int | None = None, **schedule: Any) -> Path:
    """UNet2DModel on pixels; with ``classes``, those and a null class."""
    from diffusers import DDIMPipeline

    torch.manual_seed(0)
    embedded = None if classes is None else classes + 1
    network = unet(size, 1, out, num_class_embeds=embedded)
    DDIMPipeline(unet=network, scheduler=scheduler(**schedule)).save_pretrained(path)
    return path


def latents(path: Path, quantized: bool = False, **schedule: Any) -> Path:
    """UNet2DModel on the latents of a VAE or VQ-VAE."""
    from diffusers import LDMPipeline, VQModel

    torch.manual_seed(0)
    space = vae(scaling_factor=0.7, shift_factor=0.2)
    if quantized:
        space = VQModel(
            in_channels=1, out_channels=1, latent_channels=4, num_vq_embeddings=16, norm_num_groups=4,
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.7,
        )  # fmt: skip
    LDMPipeline(vqvae=space, unet=unet(4, 4), scheduler=scheduler(**schedule)).save_pretrained(path)
    return path


def dit(path: Path, learned_sigma: bool = True, **schedule: Any) -> Path:
    """A class-conditional transformer of ten classes."""
    from diffusers import DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8 if learned_sigma else None,
        num_layers=2, sample_size=4, patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    DiTPipeline(transformer=network, vae=vae(), scheduler=scheduler(**schedule)).save_pretrained(path)
    return path


def stable_diffusion(path: Path, space: Any = None, network: Any = None, **schedule: Any) -> Path:
    """Text-to-image with one text encoder."""
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(0)
    words = tokenizer(path / "tokenizer")
    network = network or text_unet(16)
    StableDiffusionPipeline(
        vae=space or vae(), text_encoder=text_encoder(network.config.cross_attention_dim, len(words)), tokenizer=words,
        unet=network, scheduler=scheduler(steps_offset=1, **schedule), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path)  # fmt: skip
    return path


def stable_diffusion_xl(path: Path, force_zeros: bool = True, **schedule: Any) -> Path:
    """Text-to-image with two text encoders, pooled text and sizes."""
    from diffusers import StableDiffusionXLPipeline

    torch.manual_seed(0)
    words = tokenizer(path / "tokenizer")
    network = text_unet(
        8 + 16, addition_embed_type="text_time", addition_time_embed_dim=4, use_linear_projection=True,
        projection_class_embeddings_input_dim=12 + 6 * 4,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=vae(), text_encoder=text_encoder(8, len(words)), text_encoder_2=text_encoder(16, len(words), pooled=12),
        tokenizer=words, tokenizer_2=tokenizer(path / "tokenizer_2"), unet=network, scheduler=scheduler(**schedule),
        force_zeros_for_empty_prompt=force_zeros,
    ).save_pretrained(path)  # fmt: skip
    return path


def captioned(digits: ImageSet) -> ImageSet:
    """Each with a caption of its own, such as "a handwritten three, number 17"."""
    assert digits.labels is not None
    captions = tuple(f"a handwritten {NAMES[label]}, number {i}" for i, label in enumerate(digits.labels))
    return replace(digits, captions=captions)


def memorized(path: Path, data: ImageSet, steps: int = 400, seed: int = 0) -> Path:
    """A text-to-image pipeline that was trained on 8x8 grey images with captions until it knows them by heart.

    The VAE is trained first, on the same images; the text encoder is random and stays so.
    """
    torch.manual_seed(seed)
    x = to_model(data.images())
    space = vae()
    optimizer = torch.optim.Adam(space.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        (space.decode(space.encode(x).latent_dist.mode()).sample - x).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        scale = 1 / float(space.encode(x).latent_dist.mode().std())
    space.register_to_config(scaling_factor=scale)
    stable_diffusion(path, space, text_unet(32, (16, 32)), beta_schedule="scaled_linear")
    pipeline = open_any(path)
    network, schedule, captions = pipeline.unet.train(), pipeline.scheduler, data.captions
    assert captions is not None
    with torch.no_grad():
        z = scale * pipeline.vae.encode(x).latent_dist.mode()
        texts = pipeline.encode_prompt(list(captions), "cpu", 1, False)[0]
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        t, eps = torch.randint(0, 1000, (len(z),)), torch.randn_like(z)
        predicted = network(schedule.add_noise(z, eps, t), t, encoder_hidden_states=texts).sample
        optimizer.zero_grad()
        (predicted - eps).square().mean().backward()
        optimizer.step()
        decay.step()
    pipeline.save_pretrained(path)
    return path
