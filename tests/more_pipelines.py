"""Tiny pipelines of further kinds, made on the spot: flows, cascades on pixels, unCLIP; random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.pipelines import TOKENS, text_encoder, text_unet, tokenizer, vae

WIDE = 32  # of the T5 encoder
SIMPLE = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
}


def t5_tokenizer(folder: Path) -> Any:
    """Letter by letter, over printable ASCII."""
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    letters = [(chr(code), -4.0) for code in range(33, 127)]
    T5Tokenizer(vocab=special + letters, extra_ids=0, model_max_length=TOKENS).save_pretrained(folder)
    return T5Tokenizer.from_pretrained(folder)


def t5_encoder(vocabulary: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=vocabulary, d_model=WIDE, d_kv=8, d_ff=2 * WIDE, num_layers=1, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config)


def flow(**config: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def flow_vae() -> Any:
    """As of Stable Diffusion 3 and Flux: latents are shifted and scaled."""
    return vae(scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)


def stable_diffusion_3(path: Path, t5: bool = True, **schedule: Any) -> Path:
    """Text-to-image by a transformer on a flow, with two CLIP encoders and, if wanted, T5; images of 8x8."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    words, more = tokenizer(path / "tokenizer"), tokenizer(path / "tokenizer_2")
    letters = t5_tokenizer(path / "tokenizer_3") if t5 else None
    network = SD3Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=WIDE, caption_projection_dim=16, pooled_projection_dim=12 + 16,
        pos_embed_max_size=4,
    )  # fmt: skip
    StableDiffusion3Pipeline(
        transformer=network, scheduler=flow(**{"shift": 3.0, **schedule}), vae=flow_vae(),
        text_encoder=text_encoder(8, len(words), pooled=12), tokenizer=words,
        text_encoder_2=text_encoder(16, len(more), pooled=16), tokenizer_2=more,
        text_encoder_3=t5_encoder(len(letters)) if t5 else None, tokenizer_3=letters,
    ).save_pretrained(path)  # fmt: skip
    return path


def flux(path: Path, guided: bool = False, **schedule: Any) -> Path:
    """Text-to-image by a transformer on a flow, with a CLIP encoder's pooled text and T5; images of any size."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    words, letters = tokenizer(path / "tokenizer"), t5_tokenizer(path / "tokenizer_2")
    network = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDE, pooled_projection_dim=8, guidance_embeds=guided, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    FluxPipeline(
        transformer=network, scheduler=flow(**{"shift": 3.0, "use_dynamic_shifting": True, **schedule}),
        vae=flow_vae(), text_encoder=text_encoder(8, len(words)), tokenizer=words,
        text_encoder_2=t5_encoder(len(letters)), tokenizer_2=letters,
    ).save_pretrained(path)  # fmt: skip
    return path


def deep_floyd(path: Path) -> tuple[Path, Path]:
    """A cascade on pixels, a folder a stage: 8x8 images from text, then 16x16 images from those and the text."""
    from diffusers import IFPipeline, IFSuperResolutionPipeline

    torch.manual_seed(0)
    first, second = path / "first", path / "second"
    letters = t5_tokenizer(path / "letters")
    encoder = t5_encoder(len(letters))
    schedule = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range", "clip_sample": True}
    rest = {"safety_checker": None, "feature_extractor": None, "watermarker": None, "requires_safety_checker": False}
    IFPipeline(
        tokenizer=letters, text_encoder=encoder, unet=_cascaded(8, 3), scheduler=_ddpm(**schedule), **rest
    ).save_pretrained(first)
    IFSuperResolutionPipeline(
        tokenizer=letters, text_encoder=encoder, unet=_cascaded(16, 6, class_embed_type="timestep"),
        scheduler=_ddpm(**schedule), image_noising_scheduler=_ddpm(beta_schedule="squaredcos_cap_v2"), **rest,
    ).save_pretrained(second)  # fmt: skip
    return first, second


def unclip(path: Path) -> Path:
    """Kandinsky 2.2: from text the embedding of an image, from that latents, from those an image of 8x8."""
    from diffusers import KandinskyV22CombinedPipeline, PriorTransformer, UnCLIPScheduler, VQModel
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    words, width = tokenizer(path / "prior_tokenizer"), 16
    seeing = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=width,
    )  # fmt: skip
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=width, num_embeddings=TOKENS
    )
    torch.nn.init.ones_(prior.clip_std)  # all zeros until it is trained, and embeddings with it
    KandinskyV22CombinedPipeline(
        unet=text_unet(
            width, in_channels=4, out_channels=8, addition_embed_type="image", encoder_hid_dim=width,
            encoder_hid_dim_type="image_proj", resnet_time_scale_shift="scale_shift", **SIMPLE,
        ),
        scheduler=_ddpm(),
        movq=VQModel(
            in_channels=3, out_channels=3, latent_channels=4, num_vq_embeddings=16, norm_num_groups=4, vq_embed_dim=4,
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        prior_prior=prior,
        prior_image_encoder=CLIPVisionModelWithProjection(seeing),
        prior_text_encoder=text_encoder(width, len(words), pooled=width), prior_tokenizer=words,
        prior_scheduler=UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample"),
        prior_image_processor=CLIPImageProcessor(size=8, crop_size=8),
    ).save_pretrained(path)  # fmt: skip
    return path


def _ddpm(**config: Any) -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(**config)


def _cascaded(size: int, channels: int, **config: Any) -> Any:
    """A network of colour images with T5's text, which learns the variance too."""
    return text_unet(
        16, sample_size=size, in_channels=channels, out_channels=6, encoder_hid_dim=WIDE,
        encoder_hid_dim_type="text_proj", addition_embed_type="text", addition_embed_type_num_heads=2,
        resnet_time_scale_shift="scale_shift", **SIMPLE, **config,
    )  # fmt: skip
