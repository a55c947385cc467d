"""Conditions that an unconditional model never had: clusters of its own samples, and a classifier of these to guide it.

Chen et al. 2024, "SIDE" (arXiv 2410.02467): a classifier p(c | x_t) that was trained on a model's own samples, noised,
leads its sampling to each cluster c in turn (Dhariwal & Nichol 2021, arXiv 2105.05233, algorithm 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from unmem.evaluate.matrix.denoiser import Denoiser
from unmem.rng import derive, torch_stream
from unmem.train.config import Sampling
from unmem.train.diffusion import Diffusion, to_images, to_model
from unmem.train.karras import by_levels

SPOT = 4  # pixels a side of the map that the classifier decides by


@dataclass(frozen=True)
class Clusters:
    """Groups of images that are alike.

    Attributes:
        of: int64 [n], each image's cluster; -1 in one that was left out.
        sizes: int64 [clusters], images of each that was kept.
        cohesion: float64 [clusters], its images' mean cosine to its centre.
        left_out: how many were not kept.
    """

    of: np.ndarray
    sizes: np.ndarray
    cohesion: np.ndarray
    left_out: int


def clustered(features: np.ndarray, count: int, cohesion: float, seed: int) -> Clusters:
    """k-means on the directions of centred features; clusters below a cohesion are left out.

    Args:
        features: float64 [n, d].
        count: clusters, at most.
        cohesion: the least mean cosine of a cluster's images to its centre.
        seed: of the first centres.
    """
    from sklearn.cluster import KMeans

    points = features - features.mean(0)
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    count = min(count, len(np.unique(points, axis=0)))
    state = derive(seed, "clusters") % (1 << 32)
    found = KMeans(count, n_init=4, random_state=state).fit_predict(points)
    sizes, means = np.zeros(count, np.int64), np.zeros(count)
    for cluster in range(count):
        inside = points[found == cluster]
        centre = inside.mean(0)
        sizes[cluster] = len(inside)
        means[cluster] = (inside @ centre).mean() / max(float(np.linalg.norm(centre)), np.finfo(np.float64).tiny)
    kept = np.flatnonzero(means >= cohesion)
    place = np.full(count, -1)
    place[kept] = np.arange(len(kept))
    return Clusters(place[found], sizes[kept], means[kept], count - len(kept))


class Classifier(nn.Module):
    """log p(cluster | x_t) by four convolutions, told the noise level."""

    def __init__(self, shape: tuple[int, int, int], clusters: int, width: int) -> None:
        """Args: height, width and channels of an image; how many clusters; channels of the first convolution."""
        super().__init__()
        sizes = [width, width, 2 * width, 2 * width]
        halve = [1, 2 if min(shape[:2]) > SPOT else 1, 2 if min(shape[:2]) > 2 * SPOT else 1, 1]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride, padding=1)
            for before, after, stride in zip([shape[2], *sizes], sizes, halve, strict=False)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(8, channels), channels) for channels in sizes)
        self.levels = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 2 * sum(sizes)))
        self.last = nn.Linear(sizes[-1] * SPOT**2, clusters)

    def forward(self, x_t: Tensor, log_sigma: Tensor) -> Tensor:
        """float32 [n, clusters] of x_t [n, c, h, w] and ln sigma [n]."""
        told = self.levels(log_sigma[:, None] / 4)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x_t = norm(conv(x_t))
            scale, shift = told[:, : x_t.shape[1]], told[:, x_t.shape[1] : 2 * x_t.shape[1]]
            told = told[:, 2 * x_t.shape[1] :]
            x_t = functional.silu(x_t * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
        spots = functional.adaptive_avg_pool2d(x_t, SPOT)
        return functional.log_softmax(self.last(spots.flatten(1)), dim=1)


def trained(
    images: np.ndarray,
    clusters: Clusters,
    diffusion: Diffusion,
    *,
    seen: int,
    batch: int,
    lr: float,
    width: int,
    seed: int,
    device: torch.device | str,
) -> Classifier:
    """A classifier of noised images, which sees every cluster equally often.

    Args:
        images: uint8 [n, h, w, c], the clustered ones.
        clusters: theirs.
        diffusion: the schedule by which they are noised.
        seen: images in all.
        batch: images a step.
        lr: Adam's rate at the start; it falls to 0 along a cosine.
        width: channels of the classifier's first convolution.
        seed: of its weights and batches.
        device: where to compute.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
        classifier = Classifier(shape, len(clusters.sizes), width).to(device)
    logs = diffusion.sigmas.log().float().to(device)
    members = [torch.from_numpy(np.flatnonzero(clusters.of == cluster)) for cluster in range(len(clusters.sizes))]
    steps = max(1, seen // batch)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        generator = torch_stream(seed, "batch", step)
        wanted = torch.randint(len(members), (batch,), generator=generator)
        which = [members[c][torch.randint(len(members[c]), (), generator=generator)] for c in wanted.tolist()]
        t = torch.randint(len(logs), (batch,), generator=generator)
        x0 = to_model(images[torch.stack(which).numpy()], device)
        eps = torch.randn(x0.shape, generator=generator).to(device)
        said = classifier(diffusion.noised(x0, t.to(device), eps), logs[t.to(device)])
        optimizer.zero_grad()
        functional.nll_loss(said, wanted.to(device)).backward()
        optimizer.step()
        decay.step()
    return classifier.eval().requires_grad_(False)


@dataclass(frozen=True)
class Guide:
    """A network on pixels that is led to clusters.

    Attributes:
        denoiser: the network.
        scheduler: the diffusers scheduler that it was trained with.
        classifier: whose gradient leads it.
        scale: of the gradient; at 1 these are draws from p(x | cluster), were both networks right.
    """

    denoiser: Denoiser
    scheduler: Any
    classifier: Classifier
    scale: float

    def draw(
        self, numbers: np.ndarray, towards: np.ndarray, classes: np.ndarray | None, sampling: Sampling, seed: int
    ) -> np.ndarray:
        """The guided samples with these numbers, uint8 [n, h, w, c]: functions of the seed and their number.

        Args:
            numbers: int [n], which samples.
            towards: int [n], the cluster of each.
            classes: int [n], the class of each, for a class-conditional network.
            sampling: how many steps of Euler's, and how many samples at once.
            seed: of the initial noise.
        """
        device = next(self.classifier.parameters()).device
        height, width, channels = self.denoiser.shape
        config, drawn = Sampling(scheduler="euler", steps=sampling.steps), []
        for start in range(0, len(numbers), sampling.batch):
            part = slice(start, start + sampling.batch)
            generators = [torch_stream(seed, "guided", k) for k in numbers[part].tolist()]
            shape = channels, height, width
            noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
            condition = self.denoiser.condition(len(noise), None if classes is None else classes[part], None)
            predict = partial(self.predict, torch.from_numpy(towards[part]).to(device), condition)
            with torch.no_grad():
                drawn.append(to_images(by_levels(self.scheduler, predict, noise, generators, config)))
        return np.concatenate(drawn)

    def predict(self, towards: Tensor, condition: Any, x_t: Tensor, t: Tensor) -> Tensor:
        """The prediction at x_t [n, c, h, w] that goes with eps - scale sqrt(1 - alpha_bar) grad log p(cluster | x_t).

        ``t`` is one number for all, perhaps between two timesteps.
        """
        diffusion = self.denoiser.diffusion
        logs = diffusion.sigmas.log().cpu().numpy()
        log_sigma = float(np.interp(float(t), np.arange(len(logs)), logs))
        sigma = math.exp(log_sigma)
        signal, noise = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            said = self.classifier(x, torch.full((len(x),), log_sigma, device=x.device))
            (gradient,) = torch.autograd.grad(said.gather(1, towards[:, None]).sum(), x)
        predicted = self.denoiser.predict(x_t, t.expand(len(x_t)), condition)
        step = noise * self.scale * gradient
        # with x_t fixed, v = (eps - noise x_t) / signal
        return predicted - (step if diffusion.prediction == "epsilon" else step / signal)
