"""Untargeted extraction by samples that are led to what the model draws rarely."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from unmem import progress
from unmem.component import Fraction, NonNegativeFloat, Positive, PositiveFloat, UserError, component, nested
from unmem.evaluate.attacked import Attacked
from unmem.evaluate.attacks.generate_and_filter import GenerateAndFilter
from unmem.evaluate.audit import Audit
from unmem.evaluate.features import Features, files_of
from unmem.evaluate.features.random_convolutions import RandomConvolutions
from unmem.evaluate.results import Matches, Target
from unmem.rng import derive
from unmem.rundir import write_array, write_json
from unmem.train.config import Sampling

if TYPE_CHECKING:
    from unmem.evaluate.surrogate import Clusters, Guide

    Extractor = Features
else:  # in a recipe: a mapping with the extractor's kind and fields
    Extractor = nested("unmem.evaluate.features", Features)

PART = 1024  # samples a file: what a killed run has to draw again


@component
class SurrogateGuided(GenerateAndFilter):
    """Extraction by surrogate conditions (SIDE; Chen et al. 2024, arXiv 2410.02467), scored on held-out images too.

    A model without conditions, or with few, is given some of its own: as many of its samples as are wanted in the end
    are clustered, a small classifier learns the clusters from these samples under noise, and its gradient leads the
    model to each cluster in turn; so what lies in a rare one is drawn as often as what lies in a common one. Guided
    samples are held against members and held-out images by the rule of ``generate_and_filter``, whose figures at the
    same ``samples`` are what there is without guidance. The model itself is asked, on pixels, past any mitigation that
    stands between it and who asks for samples; a class-conditional one is asked for the class that most of a cluster
    was drawn of. The paper's features are a trained ResNet's, its clusters 100 of 50,000 samples.

    Attributes:
        samples: generated images that are clustered, and guided ones that are drawn.
        alpha: as in ``generate_and_filter``, like the next three.
        neighbors: likewise.
        threshold: likewise.
        group_threshold: likewise.
        clusters: at most; as many of them as are kept are drawn in turn.
        cohesion: the least mean cosine of a cluster's samples to its centre; others are left out.
        features: what samples are clustered by.
        images: noised samples that the classifier is trained on, in all.
        batch: of these, a step.
        lr: Adam's learning rate at the start.
        width: channels of the classifier's first convolution.
        guidance: factor of the classifier's gradient; 0 is none.
    """

    clusters: Annotated[int, Field(ge=2)] = 100
    cohesion: Fraction = 0.5
    features: Extractor = RandomConvolutions()
    images: Positive = 256_000
    batch: Positive = 128
    lr: PositiveFloat = 1e-3
    width: Positive = 32
    guidance: NonNegativeFloat = 5.0

    needs: ClassVar[frozenset[str]] = frozenset({"samples", "predictions"})

    def fingerprint(self) -> str:
        """A digest of the files that the features are read from; empty where there are none."""
        return files_of(self.features)

    def draw(
        self, pipeline: Path, samples: Path, sampling: Sampling, directory: Path, *, seed: int, accelerator: Any
    ) -> None:
        """Write ``images.npy``, the guided samples, and ``clusters.json``: what they were led to.

        Steps are the recipe's number of Euler's, without fresh noise. Every process clusters and trains for itself.

        Raises:
            UserError: when the model is none on pixels, or no cluster hangs together.
        """
        from unmem.train.sampling import null_class, open_pipeline

        network = open_pipeline(pipeline)
        own = _images(samples / "images.npy").samples(self.samples)
        found = self._clusters(own, seed)
        guide = self._guide(network, pipeline, own, found, seed, accelerator.device)
        labels = _labels(found.of, len(found.sizes), null_class(network.unet))
        parts = [np.arange(start, min(start + PART, self.samples)) for start in range(0, self.samples, PART)]
        files = [directory / f"part-{number:05d}.npy" for number in range(len(parts))]
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        with progress.track("guide", sum(len(part) for part in parts[mine])) as advance:
            for numbers, file in zip(parts[mine], files[mine], strict=True):
                if not file.exists():
                    towards = numbers % len(found.sizes)
                    classes = None if labels is None else labels[towards]
                    write_array(file, guide.draw(numbers, towards, classes, sampling, seed))
                advance(len(numbers))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            kept = {"sizes": found.sizes.tolist(), "cohesion": found.cohesion.round(4).tolist()}
            write_json(directory / "clusters.json", {**kept, "left_out": found.left_out, "samples": len(own)})
            write_array(directory / "images.npy", np.concatenate([np.load(file) for file in files]))
            for file in files:
                file.unlink()
        accelerator.wait_for_everyone()

    def run(self, target: Target, audit: Audit, seed: int) -> Matches:
        """Nearest member and nearest held-out image of each guided sample, with distance and ratio."""
        return super().run(_images(target.drawn / "images.npy"), audit, seed)

    def _clusters(self, own: np.ndarray, seed: int) -> Clusters:
        """The clusters of the model's own samples."""
        from unmem.evaluate.surrogate import clustered

        found = clustered(self.features(own), self.clusters, self.cohesion, seed)
        if not len(found.sizes):
            raise UserError(f"surrogate_guided: no cluster has a cohesion of {self.cohesion}; lower `cohesion`")
        return found

    def _guide(self, network: Any, pipeline: Path, own: np.ndarray, found: Clusters, seed: int, device: Any) -> Guide:
        """The network with a classifier of its own samples."""
        from unmem.evaluate.denoisers.pixels import Pixels
        from unmem.evaluate.surrogate import Guide, trained

        if network.scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(f"{pipeline}: predicts neither noise nor v, which surrogate_guided needs")
        denoiser = Pixels(network, device)
        classifier = trained(
            own, found, denoiser.diffusion, seen=self.images, batch=self.batch, lr=self.lr, width=self.width,
            seed=derive(seed, "classifier"), device=device,
        )  # fmt: skip
        return Guide(denoiser, network.scheduler, classifier, self.guidance)


def _images(file: Path) -> Attacked:
    """Images in a file, as attacks ask for them."""
    return Attacked(frozenset({"samples"}), file, Path())


def _labels(cluster: np.ndarray, clusters: int, classes: int | None) -> np.ndarray | None:
    """int64 [clusters]: the class that most of a cluster's samples were drawn of, in turn; None without classes."""
    if classes is None:
        return None
    drawn = np.arange(len(cluster)) % classes
    return np.array([np.bincount(drawn[cluster == c], minlength=classes).argmax() for c in range(clusters)])
