"""Are the samples good enough to learn from?"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from unmem.component import Confidence, Positive, PositiveFloat, component
from unmem.evaluate.audit import Audit
from unmem.evaluate.measure import Measured
from unmem.evaluate.statistics import rate
from unmem.rng import derive, stream


@component
class Classifier:
    """Accuracy on held-out real images of a small CNN trained on samples alone; higher is better.

    The figure of the DP literature (Dockhorn et al. 2023 and others). Nothing is selected on the held-out images: the
    last step's weights are scored. The reference is the same network trained on the real members.

    Attributes:
        samples: generated images, of all classes in turn.
        steps: of Adam.
        batch: images a step.
        lr: learning rate.
        confidence: of the interval (Clopper-Pearson).
    """

    samples: Positive
    steps: Positive = 500
    batch: Positive = 128
    lr: PositiveFloat = 1e-3
    confidence: Confidence = 0.95

    needs_labels: ClassVar[bool] = True

    def measure(self, samples: np.ndarray, labels: np.ndarray | None, audit: Audit, seed: int) -> Measured:
        """Accuracy of a classifier that learned from ``samples`` (uint8 [n, h, w, c]) and ``labels`` (int64 [n])."""
        real, members = audit.nonmember_images, audit.member_images
        assert labels is not None and real.labels is not None and members.labels is not None
        classes = len(real.label_names)
        right = [
            int((self._predict(images, given, real.images(), classes, seed) == real.labels).sum())
            for images, given in ((samples, labels), (members.images(), members.labels))
        ]
        estimate = rate(right[0], len(real), self.confidence, "a CNN trained on samples, tested on held-out images")
        return Measured(
            estimate, better="higher", reference=right[1] / len(real), reference_name="trained on real members"
        )

    def _predict(self, images: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, seed: int) -> np.ndarray:
        """int64 [len(test)]: classes predicted by a network trained on ``images``."""
        import torch
        from torch import nn
        from torch.nn import functional

        from unmem.train.diffusion import to_model

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "classifier"))
            network = nn.Sequential(
                nn.Conv2d(images.shape[3], 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
                nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, classes),
            ).to(device)  # fmt: skip
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        for step in range(self.steps):
            chosen = stream(seed, "classifier", step).integers(0, len(images), self.batch)
            target = torch.from_numpy(labels[chosen]).to(device)
            loss = functional.cross_entropy(network(to_model(images[chosen], device)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            logits = [network(to_model(test[i : i + 1024], device)) for i in range(0, len(test), 1024)]
        return torch.cat(logits).argmax(1).cpu().numpy()
