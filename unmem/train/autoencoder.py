"""The autoencoder of a latent diffusion model, trained from scratch on the training images, before the network.

Rombach et al. 2022 (arXiv 2112.10752), section 3.1, without perceptual and adversarial losses: squared error of the
reconstruction, and a tiny weight on the KL divergence of the latents from N(0, I). It ends with latents that are
centred channel by channel, and the config's ``scaling_factor`` one over their standard deviation.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmem import progress
from unmem.component import UserError
from unmem.rng import stream, torch_stream
from unmem.rundir import atomic
from unmem.train.diffusion import to_model
from unmem.train.imageset import ImageSet

BATCH = 64
RATE = 2e-3  # peak, of Adam; it falls to 0 along a cosine
KL = 1e-6  # weight a latent value, against the error a pixel value
WARMUP = 20  # steps over which the rate rises
MEASURED = 1024  # images by which latents are centred and scaled


def trained(vae: Any, data: ImageSet, images: int, file: Path, *, key: str, seed: int, accelerator: Any) -> Any:
    """Train an AutoencoderKL, or read what was trained before; the main process trains, and the others read.

    Args:
        vae: untrained.
        data: the training images.
        images: training images seen in all.
        file: keeps the weights; a file of another ``key`` is made anew.
        key: the stage's key.
        seed: of batches and noise.
        accelerator: accelerate's.

    Returns:
        The autoencoder on the CPU.
    """
    if accelerator.is_main_process and _key_of(file) != key:
        _fit(vae.to(accelerator.device), data, images, seed)
        _save(_centred(vae, data), file, key)
    accelerator.wait_for_everyone()
    return _load(vae.to("cpu"), file)


def _fit(vae: Any, data: ImageSet, images: int, seed: int) -> None:
    """Train it; every step is a function of the seed and the step's number."""
    device = next(vae.parameters()).device
    optimizer, steps = torch.optim.Adam(vae.parameters()), max(1, images // BATCH)
    vae.train()
    with progress.track("autoencoder", steps * BATCH) as advance:
        for step in range(steps):
            fall = 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = RATE * fall * min(1.0, (step + 1) / WARMUP)
            random = stream(seed, "autoencoder", step)
            x = to_model(data.images(random.integers(len(data), size=BATCH)), device)
            loss = _loss(vae, x, torch_stream(seed, "autoencoder", step, device=device))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            advance(BATCH)
    if not math.isfinite(float(loss.detach())):
        raise UserError("model: the autoencoder's loss is not finite; change vae_channels")
    vae.eval()


def _loss(vae: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the reconstruction from drawn latents, plus the weighted divergence."""
    latents = vae.encode(x).latent_dist
    restored = vae.decode(latents.sample(generator)).sample
    divergence = 0.5 * (latents.mean.square() + latents.var - 1 - latents.logvar)
    loss: Tensor = (restored - x).square().mean() + KL * divergence.mean()
    return loss


@torch.no_grad()
def _centred(vae: Any, data: ImageSet) -> Any:
    """The same autoencoder, but for the means of its latents and the scale that its config states.

    A Stable Diffusion pipeline knows a scale and no shift, so the means go into the 1x1 convolutions at the latents.
    """
    device, channels = next(vae.parameters()).device, vae.config.latent_channels
    latents = torch.cat([
        vae.encode(to_model(data.images(slice(start, start + BATCH)), device)).latent_dist.mode()
        for start in range(0, min(len(data), MEASURED), BATCH)
    ])  # fmt: skip
    mean = latents.mean((0, 2, 3))
    vae.quant_conv.bias[:channels] -= mean
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    deviation = float((latents - mean.view(1, -1, 1, 1)).std())
    vae.register_to_config(scaling_factor=1 / max(deviation, 1e-6))
    return vae


def _key_of(file: Path) -> str | None:
    """The key of the weights that a file keeps; None without a whole file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as kept:
            return str(kept.metadata()["key"])
    except (OSError, SafetensorError):
        return None


def _save(vae: Any, file: Path, key: str) -> None:
    """Write weights and scale, whole or not at all."""
    from safetensors.torch import save_file

    weights = {name: value.cpu().contiguous() for name, value in vae.state_dict().items()}
    with atomic(file) as partial:
        save_file(weights, partial, metadata={"key": key, "scale": repr(float(vae.config.scaling_factor))})


def _load(vae: Any, file: Path) -> Any:
    """Read them into an autoencoder."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as kept:
        vae.load_state_dict({name: kept.get_tensor(name) for name in kept.keys()})  # noqa: SIM118 (not a mapping)
        vae.register_to_config(scaling_factor=float(kept.metadata()["scale"]))
    return vae
