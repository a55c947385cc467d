"""What a prompt's first step says: does the model know already what it will draw?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unmem.evaluate.matrix.denoiser import Denoiser
from unmem.rng import torch_stream

SCREENS = ("noise", "move", "edges")
LEAST = 1e-5  # alpha_bar below which a prediction is too much noise to read an image from


def first_step(
    denoiser: Denoiser, prompts: Sequence[str], *, draws: int, edge: float, batch: int, seed: int
) -> np.ndarray:
    """float64 [prompts, 3]: the numbers of :data:`SCREENS`, each the larger the more the prompt looks memorized.

    All are read from one prediction with the text and one without, from pure noise at the schedule's noisiest timestep;
    the noise is the same for all prompts.

    * ``noise``: |eps(z, text) - eps(z, no text)|, the L2 norm, mean over draws (Wen et al. 2024, arXiv 2407.21720).
    * ``move``: mean squared difference of the image that one step leads to and the noise that it starts from, in what
      the network works on (Webster 2023, arXiv 2305.08694, the white-box score).
    * ``edges``: share of the pixels at which more than half of these images have an edge (the same, black-box).

    Args:
        denoiser: the network, by text.
        prompts: texts.
        draws: noises a prompt.
        edge: length of the Sobel gradient, grey values in [0, 1], above which a pixel is one of an edge.
        batch: images at once, at least one prompt's.
        seed: of the noises.
    """
    diffusion, device = denoiser.diffusion, denoiser.diffusion.alphas_cumprod.device
    height, width, channels = denoiser.shape
    with torch.inference_mode():
        shape = denoiser.encode(torch.zeros(1, channels, height, width, device=device)).shape[1:]
        noises = [torch.randn(shape, generator=torch_stream(seed, "screen", k)) for k in range(draws)]
        noise = torch.stack(noises).to(device)
        at_once, rows = max(1, batch // draws), []
        t = int((diffusion.alphas_cumprod >= LEAST).sum()) - 1
        for start in range(0, len(prompts), at_once):
            texts = [text for text in prompts[start : start + at_once] for _ in range(draws)]
            z = noise.repeat(len(texts) // draws, 1, 1, 1)
            times = torch.full((len(z),), t, device=device)
            said, free = (_eps(denoiser, z, times, given) for given in (tuple(texts), None))
            alpha_bar = float(diffusion.alphas_cumprod[t])
            image = (z - (1 - alpha_bar) ** 0.5 * said) / alpha_bar**0.5
            numbers = (
                (said - free).flatten(1).norm(dim=1).view(-1, draws).mean(1),
                (image - z).square().flatten(1).mean(1).view(-1, draws).mean(1),
                _agreeing(denoiser.decode(image).clamp(-1, 1), draws, edge),
            )
            rows.append(torch.stack(numbers, dim=1).double().cpu().numpy())
    return np.concatenate(rows)


def _eps(denoiser: Denoiser, z: Tensor, times: Tensor, texts: tuple[str, ...] | None) -> Tensor:
    """The noise that the network sees in z [n, c, h, w]; without texts by the empty one."""
    condition: Any = denoiser.condition(len(z), None, texts)
    return denoiser.diffusion.eps(denoiser.predict(z, times, condition).float(), z, times)


def _agreeing(images: Tensor, draws: int, edge: float) -> Tensor:
    """float32 [prompts]: the share of pixels at which more than half of a prompt's images [n, c, h, w] have an edge."""
    grey = (images.mean(1, keepdim=True) + 1) / 2
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device)
    sobel = torch.stack([across, across.T])[:, None]
    slope = functional.conv2d(functional.pad(grey, (1, 1, 1, 1), mode="replicate"), sobel).norm(dim=1)
    often = (slope > edge).float().view(-1, draws, *slope.shape[1:]).mean(1)
    share: Tensor = (often > 0.5).float().flatten(1).mean(1)
    return share
