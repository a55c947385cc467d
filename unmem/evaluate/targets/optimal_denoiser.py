"""The positive control: a model that has learnt nothing but its training set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from unmem.component import component

if TYPE_CHECKING:
    from unmem.evaluate.audit import Audit
    from unmem.train.config import Sampling


@component
class OptimalDenoiser:
    """A perfect memorizer: samples of the closed-form optimal denoiser of the training set (Gu et al. 2023).

    The minimiser of the denoising loss over the training images (arXiv 2310.02664, section 2) is the mean of these,
    each weighted by how likely it led to the noised image. What it draws are training images, a planted one as much
    oftener as it has copies; so an extraction attack that does not find them all is too weak, or has too few samples.
    It is sampled by the recipe's own settings, and stands beside arms or finished models: attacks that need more than
    samples are not run on it.
    """

    access: ClassVar[frozenset[str]] = frozenset({"samples"})
    classes: ClassVar[int] = 0
    is_control: ClassVar[bool] = True

    def fingerprint(self) -> str:
        """What it is; the training set is the run's own."""
        return "optimal_denoiser"

    def sample_to_disk(
        self, audit: Audit, sampling: Sampling, count: int, directory: Path, *, seed: int, accelerator: Any
    ) -> None:
        """Draw samples 0..count-1 into ``directory/images.npy``, as the project's own sampler does."""
        from unmem.evaluate.posterior import PosteriorMean
        from unmem.train.diffusion import make_scheduler
        from unmem.train.sampling import sample_to_disk

        scheduler = make_scheduler("cosine", "epsilon", 1000)
        pipeline = SimpleNamespace(unet=PosteriorMean(audit.training.images(), scheduler), scheduler=scheduler)
        sample_to_disk(pipeline, sampling, count, directory, seed=seed, accelerator=accelerator)
