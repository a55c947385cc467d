"""A saved diffusers pipeline with a UNet2DModel."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from unmem.component import UserError, component


@component
class Pipeline:
    """A pipeline folder of ours, or any saved DDPM or DDIM pipeline, with the images drawn from it.

    Schedule and prediction type are read from the folder, never declared again.

    Attributes:
        path: the folder that ``DiffusionPipeline.from_pretrained`` opens.
        images: an ``.npy`` file of images drawn from it, uint8 [n, h, w, c].
        device: where losses are computed.
    """

    path: str
    images: str
    device: str = "cpu"

    access: ClassVar[frozenset[str]] = frozenset({"samples", "losses", "gradients"})

    def samples(self, count: int) -> np.ndarray:
        """The first ``count`` drawn images, uint8 [count, h, w, c].

        Raises:
            UserError: when fewer were drawn.
        """
        drawn = np.load(self.images, mmap_mode="r", allow_pickle=False)
        if len(drawn) < count:
            raise UserError(f"{self.images}: holds {len(drawn)} images; {count} are asked for")
        return np.asarray(drawn[:count])

    def losses(self, images: np.ndarray, labels: np.ndarray | None, t: int, eps: np.ndarray) -> np.ndarray:
        """Denoising losses, float64 [n].

        Args:
            images: uint8 [n, h, w, c].
            labels: int64 [n]; used by class-conditional models alone.
            t: timestep, 0 .. T-1.
            eps: float32 [n, c, h, w], the noise.

        Raises:
            UserError: for a timestep that the schedule does not have.
        """
        import torch

        from unmem.train.diffusion import Diffusion, to_model

        unet, diffusion = self._loaded
        assert isinstance(diffusion, Diffusion)
        if t >= len(diffusion.alphas_cumprod):
            raise UserError(f"timestep {t} is not among the model's 0..{len(diffusion.alphas_cumprod) - 1}")
        conditional = unet.config.num_class_embeds is not None
        given = torch.from_numpy(labels).to(self.device) if conditional and labels is not None else None
        x0 = to_model(np.ascontiguousarray(images), self.device)
        times = torch.full((len(images),), t, device=self.device)
        with torch.no_grad():
            losses = diffusion.losses(unet, x0, times, torch.from_numpy(eps).to(self.device), given)
        return losses.double().cpu().numpy()

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The network and the diffusion that it was trained for."""
        from unmem.train.diffusion import Diffusion
        from unmem.train.sampling import open_pipeline

        pipeline = open_pipeline(Path(self.path))
        unet = pipeline.unet.to(self.device).eval()
        return unet, Diffusion.of(pipeline.scheduler, self.device)
