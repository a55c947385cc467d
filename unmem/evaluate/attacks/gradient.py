"""Membership inference by the gradients of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from unmem.component import Positive, UserError, component
from unmem.evaluate.audit import Audit
from unmem.evaluate.matrix.reading import Norm, Reading
from unmem.evaluate.population import flags, joined, parted
from unmem.evaluate.results import Scores, Target
from unmem.rng import derive

if TYPE_CHECKING:
    from torch import Tensor

    from unmem.evaluate.matrix.batch import Batch

HELD = 1 << 29  # gradient values held at once: 2 GiB in float32
FINEST = 1e-6  # a norm's share of the image's largest, below which it is the rounding of zero


@component
class _GradientNorms:
    """The length of the loss's gradient, a column for each parameter tensor: of every image by itself."""

    timesteps: int
    variant: Literal["gsa1", "gsa2"]

    access: ClassVar[str] = "gradients"

    @property
    def queries(self) -> int:
        """One a timestep, with its gradient."""
        return self.timesteps

    def residuals(self, batch: Batch) -> Iterator[Tensor]:
        """L2 norms, float32 [n, 1] a parameter tensor, in the network's order.

        Raises:
            UserError: when the schedule is shorter than the timesteps.
        """
        import torch

        network, last = batch.denoiser.network, len(batch.denoiser.diffusion.alphas_cumprod)
        if self.timesteps > last:
            raise UserError(f"attacks.gradient.timesteps: {self.timesteps} is more than the schedule's {last}")
        times = [last * (k + 1) // self.timesteps - 1 for k in range(self.timesteps)]
        noises = [batch.noise("gradient", t) for t in times]
        chunk = max(1, HELD // (2 * sum(p.numel() for p in network.parameters())))
        gradients = _per_image(batch)
        parts = [
            self._norms(gradients, batch, times, noises, slice(start, start + chunk))
            for start in range(0, len(batch), chunk)
        ]
        for column in torch.cat(parts).unbind(1):
            yield column.unsqueeze(1)

    def _norms(
        self, gradients: Callable[..., Any], batch: Batch, times: list[int], noises: list[Tensor], rows: slice
    ) -> Tensor:
        """float32 [rows, parameter tensors]: the norm of the mean gradient, or the mean of the norms."""
        import torch

        total: list[Tensor] = []
        for t, eps in zip(times, noises, strict=True):
            condition = None if batch.condition is None else batch.condition[rows]
            found = gradients(batch.z[rows], batch.at(t)[rows], eps[rows], condition)
            if self.variant == "gsa2":
                found = [_lengths(gradient) for gradient in found]
            total = [old.add_(new) for old, new in zip(total, found, strict=True)] if total else list(found)
        if self.variant == "gsa1":
            total = [_lengths(gradient) for gradient in total]
        return torch.stack(total, dim=1) / len(times)


def _per_image(batch: Batch) -> Callable[..., Any]:
    """(z [k, ...], t [k], eps [k, ...], condition [k, ...] or None) -> gradients of each loss, [k, ...] a parameter."""
    import torch
    from torch import nn
    from torch.func import functional_call, grad, vmap
    from torch.nn.attention import SDPBackend, sdpa_kernel

    denoiser = batch.denoiser

    class Predict(nn.Module):
        """The denoiser's own way to ask its network, so that parameters can be put in its place."""

        def __init__(self) -> None:
            super().__init__()
            self.network = denoiser.network

        def forward(self, z_t: Tensor, t: Tensor, condition: Any) -> Tensor:
            return denoiser.predict(z_t, t, condition)

    ask = Predict()
    parameters = {name: value.detach() for name, value in ask.named_parameters()}

    def loss(values: dict[str, Tensor], z: Tensor, t: Tensor, eps: Tensor, condition: Any) -> Tensor:
        z, t, eps = z.unsqueeze(0), t.unsqueeze(0), eps.unsqueeze(0)
        condition = None if condition is None else condition.unsqueeze(0)
        z_t = denoiser.diffusion.noised(z, t, eps)
        predicted: Tensor = functional_call(ask, values, (z_t, t, condition))
        error = predicted.float() - denoiser.diffusion.target(z, t, eps)
        return error.square().mean()

    def gradients(z: Tensor, t: Tensor, eps: Tensor, condition: Any) -> list[Tensor]:
        over = (None, 0, 0, 0, None if condition is None else 0)
        # the plain form of attention can be mapped over images, the fused ones cannot
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            found = vmap(grad(loss), in_dims=over)(parameters, z, t, eps, condition)
        return list(found.values())

    return gradients


def _lengths(gradient: Tensor) -> Tensor:
    """float32 [k] of [k, ...]: L2 norms."""
    lengths: Tensor = gradient.float().flatten(1).norm(dim=1)
    return lengths


@component
class Gradient:
    """GSA: a classifier of gradient norms, trained on shadow models (Pang et al. 2025, arXiv 2308.06405); white-box.

    What is read of an image is the L2 norm of the gradient of its loss, one for each parameter tensor, at equidistant
    timesteps. A classifier learns on the shadow models, whose training sets are known, what the norms of members look
    like; its scaling is the shadows' too, and the audited model's labels are never used.

    Attributes:
        timesteps: how many, from T / timesteps - 1 to T - 1.
        variant: ``gsa1``, norms of the mean loss's gradient; ``gsa2``, means of the timesteps' norms.
        classifier: of the logs of the norms: ``logistic`` regression, which needs fewer shadow models, or
            gradient-boosted ``trees``, the paper's kind.
    """

    timesteps: Positive = 10
    variant: Literal["gsa1", "gsa2"] = "gsa1"
    classifier: Literal["logistic", "trees"] = "logistic"

    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "shadows"})

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The norms."""
        # the first power of a norm is the norm itself
        return (Reading(_GradientNorms(timesteps=self.timesteps, variant=self.variant), Norm(order=1.0)),)

    def run(self, target: Target, audit: Audit, seed: int) -> Scores:
        """Log-odds of being a member.

        Raises:
            UserError: without shadow models.
        """
        if not target.shadows:
            raise UserError("attacks.gradient: there are no shadow models to learn from (shadows.count)")
        reading, rows = self.readings[0], target.read(self.readings[0])
        real = replace(rows, generated=np.empty(0))  # the audited model's samples: a control, nothing to learn from
        norms = [joined(replace(shadow.read(reading), generated=np.empty(0))) for shadow in target.shadows]
        inside = [flags(shadow.inside, real) for shadow in target.shadows]
        model = _classifier(self.classifier, derive(seed, "gradient") % (1 << 32))
        model.fit(_logs(np.concatenate(norms)), np.concatenate(inside))
        return parted(model.decision_function(_logs(joined(rows))), rows)


def _logs(norms: np.ndarray) -> np.ndarray:
    """Norms change by factors, from layer to layer and from image to image.

    Some parameters have no gradient, such as a bias that the next normalisation takes away: what is left of it is
    rounding, which changes with the batch, and whose log would weigh as much as any.
    """
    least = FINEST * norms.max(1, keepdims=True)
    return np.asarray(np.log(np.maximum(norms, least).astype(np.float64) + np.finfo(np.float32).tiny))


def _classifier(name: str, state: int) -> Any:
    """With ``fit`` and ``decision_function``."""
    if name == "trees":
        from sklearn.ensemble import HistGradientBoostingClassifier

        return HistGradientBoostingClassifier(random_state=state)
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # strongly regularised: many layers' norms say much the same
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, random_state=state))
