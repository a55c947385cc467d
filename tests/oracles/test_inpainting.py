"""Completions of a hidden half: RePaint written out image by image, and targets whose answer is known."""

from __future__ import annotations

import copy
import dataclasses
import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import Asked
from tests.optimal import OptimalDenoiser
from unmem.component import UserError
from unmem.evaluate.analysis import Compare, analyse
from unmem.evaluate.attacks.inpainting import Inpainting
from unmem.evaluate.audit import Audit, Split, draw
from unmem.evaluate.denoisers.pixels import Pixels
from unmem.evaluate.matrix.batch import Batch
from unmem.evaluate.statistics import auc_value
from unmem.train.diffusion import make_scheduler
from unmem.train.imageset import ImageSet

IMAGES = 5


@pytest.fixture(scope="module")
def few(digits: ImageSet) -> Audit:
    return draw(digits, Split(members=IMAGES, nonmembers=IMAGES), seed=3)


@pytest.fixture(scope="module")
def split(digits: ImageSet) -> Audit:
    return draw(digits, Split(members=100, nonmembers=100), seed=1)


class Latent(Pixels):
    """A network behind an encoder that mixes an image's columns, so that what is hidden could leak to the others."""

    def encode(self, x: Tensor) -> Tensor:
        return torch.sinh(x + 0.25 * x.flip(-1))

    def decode(self, z: Tensor) -> Tensor:
        y = torch.asinh(z)
        return (y - 0.25 * y.flip(-1)) / (1 - 0.25**2)


def denoiser_of(cls: type[Pixels] = Pixels, prediction: str = "epsilon", timesteps: int = 1000) -> Pixels:
    from diffusers import UNet2DModel

    torch.manual_seed(5)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return cls(SimpleNamespace(unet=network, scheduler=make_scheduler("linear", prediction, timesteps)), "cpu")


def slow_scores(denoiser: Pixels, images: np.ndarray, group: str, attack: Inpainting) -> list[float]:
    """Image by image in float64; the ancestral step in the form of Song et al. 2021, eq. 12, with eta = 1."""
    network = copy.deepcopy(denoiser.network).double()
    alphas = denoiser.diffusion.alphas_cumprod.double()
    batch = Batch(denoiser, images, None, None, start=0, place=("matrix", group), seed=0)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[..., :4] = attack.hidden == "left"
    mask[..., 4:] = attack.hidden == "right"
    times = [round(999 * (1 - k / attack.steps)) for k in range(attack.steps)]
    scores = []
    for i in range(len(images)):
        x = torch.from_numpy(images[i]).permute(2, 0, 1).double() / 127.5 - 1
        z0 = denoiser.encode(torch.where(mask, 0, x))

        def noise(*name: str | int, i: int = i) -> Tensor:
            return batch.noise("inpainting", *name)[i].double()

        def said(z: Tensor, t: int) -> tuple[Tensor, Tensor]:
            """The clean image, and the noise that goes with it."""
            with torch.no_grad():
                out = network(z[None], torch.tensor([t])).sample[0]
            if denoiser.diffusion.prediction == "v_prediction":
                out = alphas[t].sqrt() * out + (1 - alphas[t]).sqrt() * z
            clean = (z - (1 - alphas[t]).sqrt() * out) / alphas[t].sqrt()
            if type(denoiser) is Pixels:
                clean = clean.clamp(-1, 1)
            return clean, (z - alphas[t].sqrt() * clean) / (1 - alphas[t]).sqrt()

        found = []
        for k in range(attack.draws):
            z = noise("start", k)
            for t, s in pairwise(times):
                for again in range(attack.resamplings):
                    if again:
                        beta = 1 - alphas[t] / alphas[s]
                        z = (1 - beta).sqrt() * z + beta.sqrt() * noise("again", t, again, k)
                    clean, eps = said(z, t)
                    sigma = ((1 - alphas[s]) / (1 - alphas[t]) * (1 - alphas[t] / alphas[s])).sqrt()
                    fresh = noise("step", t, again, k)
                    stepped = alphas[s].sqrt() * clean + (1 - alphas[s] - sigma**2).sqrt() * eps + sigma * fresh
                    z = torch.where(mask, stepped, alphas[s].sqrt() * z0 + (1 - alphas[s]).sqrt() * fresh)
            z = torch.where(mask, said(z, times[-1])[0], z0)
            picture = denoiser.decode(z).clamp(-1, 1)
            distance = math.sqrt(float((((picture - x) / 2)[mask] ** 2).mean()))
            losses = []
            for t in attack.timesteps:
                eps = noise("loss", t, k)
                noised = alphas[t].sqrt() * z + (1 - alphas[t]).sqrt() * eps
                with torch.no_grad():
                    out = network(noised[None], torch.tensor([t])).sample[0]
                wanted = eps
                if denoiser.diffusion.prediction == "v_prediction":
                    wanted = alphas[t].sqrt() * eps - (1 - alphas[t]).sqrt() * z
                losses.append(float(((out - wanted) ** 2).mean()))
            found.append((np.mean(losses), distance))
        scores.append(-float(np.mean([distance for _, distance in sorted(found)[: attack.keep]])))
    return scores


@pytest.mark.parametrize(
    ("cls", "prediction", "attack"),
    [
        (Pixels, "epsilon", Inpainting(steps=6, draws=3, keep=2, timesteps=(50, 300))),
        (Pixels, "v_prediction", Inpainting(steps=5, draws=2, hidden="left", resamplings=3, timesteps=(100,))),
        (Latent, "epsilon", Inpainting(steps=4, draws=3, resamplings=2, timesteps=(100,))),
    ],
)
def test_inpainting_is_repaint_written_out(cls: type[Pixels], prediction: str, attack: Inpainting, few: Audit) -> None:
    denoiser = denoiser_of(cls, prediction)
    scores = attack.run(Asked(denoiser, few), few, 0)
    for group, images, found in (
        ("members", few.member_images, scores.members), ("nonmembers", few.nonmember_images, scores.nonmembers),
    ):  # fmt: skip
        np.testing.assert_allclose(found, slow_scores(denoiser, images.images(), group, attack), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("hidden", ["left", "right"])
def test_nothing_of_the_hidden_half_reaches_its_completion(hidden: Any, few: Audit) -> None:
    """Two images that differ in the hidden half alone are completed alike."""
    attack, denoiser = Inpainting(hidden=hidden, steps=4, draws=1), denoiser_of(Latent)
    images = few.member_images.images()
    other = images.copy()
    half = slice(0, 4) if hidden == "left" else slice(4, 8)
    other[:, :, half] = 255 - other[:, :, half]
    completed = []
    for pixels in (images, other):
        batch = Batch(denoiser, pixels, None, None, start=0, place=("matrix", "members"), seed=0)
        difference = next(iter(attack.reading.probe.residuals(batch)))
        completed.append(difference + batch.x[..., half])
    torch.testing.assert_close(*completed)


def test_the_ideal_memorizer_brings_its_members_hidden_halves_back(split: Audit) -> None:
    attack = Inpainting(draws=8, resamplings=4)
    scores = attack.run(Asked(OptimalDenoiser(split.training), split), split, 0)
    assert (scores.members > -1e-3).mean() > 0.97  # pixel by pixel
    assert auc_value(scores.members, scores.nonmembers) > 0.99
    assert scores.nonmembers.max() < -0.02
    held_out = attack.run(Asked(OptimalDenoiser(split.nonmember_images), split), split, 0)
    assert auc_value(held_out.members, held_out.nonmembers) < 0.01


def test_the_choice_by_loss_finds_the_completion_that_was_trained_on(split: Audit) -> None:
    """Not every draw hits the member; one that does has the least loss, so keeping one is better than keeping all."""
    target = Asked(OptimalDenoiser(split.training), split)
    one, every = (Inpainting(draws=4, steps=10, keep=keep).run(target, split, 0) for keep in (1, 4))
    assert (one.members >= every.members - 1e-6).mean() > 0.9
    assert one.members.mean() > every.members.mean() / 2


def test_an_untrained_network_gives_nothing_away(split: Audit) -> None:
    result = Inpainting(draws=2, steps=6).run(Asked(denoiser_of(), split), split, 0)
    found = analyse(result, split, frozenset(), Compare(confidence=0.99), 0)["estimates"]["auc"]
    assert found["low"] <= 0.5 <= found["high"]


def test_queries_are_counted_and_scores_do_not_depend_on_the_batch(split: Audit) -> None:
    some = dataclasses.replace(split, members=split.members[:70], nonmembers=split.nonmembers[:4])
    attack = Inpainting(draws=2, steps=4, resamplings=2, timesteps=(50,))
    denoiser, asked = denoiser_of(), []
    predict = denoiser.predict
    denoiser.predict = lambda z, t, condition: asked.append(len(z)) or predict(z, t, condition)  # type: ignore[method-assign, func-returns-value]
    whole, part = (attack.run(Asked(denoiser, some, batch=batch), some, 0) for batch in (100, 33))
    assert sum(asked) == 2 * 74 * attack.reading.probe.queries == 2 * 74 * 2 * (3 * 2 + 1 + 1)
    np.testing.assert_allclose(whole.members, part.members, rtol=1e-4)
    np.testing.assert_allclose(whole.nonmembers, part.nonmembers, rtol=1e-4)


def test_settings_that_cannot_be_are_the_users_to_mend(few: Audit) -> None:
    with pytest.raises(ValueError, match=r"keep must be at most draws \(2\), got 3"):
        Inpainting(draws=2, keep=3)
    with pytest.raises(UserError, match="25 steps are asked for, but the model's schedule has 20"):
        Inpainting(timesteps=(5,)).run(Asked(denoiser_of(timesteps=20), few), few, 0)
