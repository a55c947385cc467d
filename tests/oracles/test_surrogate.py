"""Samples led to clusters: the guidance against its formula, clusters of a known kind, and a rare one brought out."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import pipelines
from tests.processes import Process
from unmem.component import UserError
from unmem.evaluate.analysis import extracted
from unmem.evaluate.attacked import Attacked
from unmem.evaluate.attacks.generate_and_filter import GenerateAndFilter
from unmem.evaluate.attacks.surrogate_guided import SurrogateGuided
from unmem.evaluate.audit import Audit
from unmem.evaluate.posterior import PosteriorMean
from unmem.evaluate.surrogate import Guide, clustered, trained
from unmem.rng import stream
from unmem.rundir import read_json
from unmem.train.config import Sampling
from unmem.train.diffusion import Diffusion, make_scheduler
from unmem.train.imageset import ImageSet
from unmem.train.sampling import sample

RARE, COMMON, TIMES = 12, 30, 20  # different images of each kind; how often the common ones are in the training set
CLUSTERS = 4


class Memorizer:
    """The closed form of a training set, as a denoiser on pixels."""

    conditioning = "none"

    def __init__(self, images: np.ndarray) -> None:
        self.scheduler = make_scheduler("cosine", "epsilon", 1000)
        self.diffusion = Diffusion.of(self.scheduler)
        self.unet = PosteriorMean(images, self.scheduler)
        self.shape = images.shape[1:]

    def condition(self, count: int, labels: Any, captions: Any) -> None:
        return None

    def predict(self, z_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        found: Tensor = self.unet(z_t, t[0]).sample
        return found


@pytest.fixture(scope="module")
def sides(digits: ImageSet) -> Audit:
    """Members: zeros, most of them many times in the training set, and few light ones; held out are others."""
    assert digits.labels is not None
    zeros, ones = (digits.take(np.flatnonzero(digits.labels == label)) for label in (0, 1))
    zeros, ones = (group.take(np.unique(group.images(), axis=0, return_index=True)[1]) for group in (zeros, ones))
    images = [zeros.images(slice(0, 2 * COMMON)), 255 - ones.images(slice(0, 2 * RARE))]
    data = ImageSet.of(np.concatenate(images), [f"image/{i}" for i in range(2 * COMMON + 2 * RARE)])
    inside = [*range(COMMON), *range(2 * COMMON, 2 * COMMON + RARE)]
    outside = [i for i in range(len(data)) if i not in inside]
    return Audit(data, tuple(data.ids[i] for i in inside), tuple(data.ids[i] for i in outside), (), {})


@pytest.fixture(scope="module")
def memorizer(sides: Audit) -> Memorizer:
    images = sides.member_images.images()
    return Memorizer(np.concatenate([images[:COMMON]] * TIMES + [images[COMMON:]]))


@pytest.fixture(scope="module")
def own(memorizer: Memorizer) -> np.ndarray:
    return sample(memorizer, Sampling(steps=12), np.arange(1500), 0, "cpu")


def guide_of(memorizer: Memorizer, own: np.ndarray, scale: float) -> tuple[Guide, np.ndarray]:
    found = clustered(own.reshape(len(own), -1) / 255, CLUSTERS, 0.0, 0)
    classifier = trained(
        own, found, memorizer.diffusion, seen=20_000, batch=100, lr=3e-3, width=16, seed=0, device="cpu"
    )
    return Guide(memorizer, memorizer.scheduler, classifier, scale), found.of


def kinds(images: np.ndarray, sides: Audit) -> np.ndarray:
    """bool [n]: whether the nearest member is a rare one."""
    points = sides.member_images.images().reshape(len(sides.members), -1).astype(float)
    distances = ((images.reshape(len(images), 1, -1) - points) ** 2).sum(2)
    return distances.argmin(1) >= COMMON


def test_guided_samples_land_in_their_cluster_and_a_rare_one_gives_its_members_away(
    memorizer: Memorizer, own: np.ndarray, sides: Audit, tmp_path: Path
) -> None:
    guide, cluster = guide_of(memorizer, own, 5.0)
    rare = kinds(own, sides)
    assert rare.mean() < 0.08
    wanted = np.bincount(cluster[rare]).argmax()
    assert (cluster[rare] == wanted).all()
    numbers = np.arange(200)
    led = guide.draw(numbers, numbers % CLUSTERS, None, Sampling(steps=12), 0)
    assert kinds(led, sides)[numbers % CLUSTERS == wanted].mean() > 0.8
    assert kinds(led, sides)[numbers % CLUSTERS != wanted].mean() < 0.05
    rule = GenerateAndFilter(samples=200, threshold=0.3)
    found = {}
    for name, images in (("plain", own[:200]), ("led", led)):
        np.save(tmp_path / f"{name}.npy", images)
        target = Attacked(frozenset({"samples"}), tmp_path / f"{name}.npy", tmp_path)
        matches = rule.run(target, sides, 0)
        found[name] = extracted(matches, len(sides.members))
        assert (matches.nonmember_ratio < 0.3).mean() < 0.02
    assert found["led"][COMMON:].sum() > found["plain"][COMMON:].sum() + 3
    assert found["led"].sum() >= found["plain"].sum()


def test_without_guidance_nothing_is_led(memorizer: Memorizer, own: np.ndarray) -> None:
    guide, _ = guide_of(memorizer, own[:300], 0.0)
    numbers = np.arange(20)
    one, other = (guide.draw(numbers, np.full(20, c), None, Sampling(steps=8), 0) for c in (0, 1))
    np.testing.assert_array_equal(one, other)


def test_a_guided_sample_depends_on_its_number_alone(memorizer: Memorizer, own: np.ndarray) -> None:
    guide, _ = guide_of(memorizer, own[:300], 3.0)
    numbers = np.arange(30)
    whole = guide.draw(numbers, numbers % CLUSTERS, None, Sampling(steps=8), 7)
    some = guide.draw(numbers[11:], numbers[11:] % CLUSTERS, None, Sampling(steps=8, batch=4), 7)
    np.testing.assert_array_equal(whole[11:], some)
    assert (guide.draw(numbers, numbers % CLUSTERS, None, Sampling(steps=8), 8) != whole).any()


class Bowl(nn.Module):
    """log p(c | x_t) whose gradient is known: minus half the squared distance to a constant image, c."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x_t: Tensor, log_sigma: Tensor) -> Tensor:
        return torch.stack([-(x_t - c).square().sum((1, 2, 3)) / 2 for c in (0.0, 1.0)], dim=1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_guidance_is_its_formula(prediction: str) -> None:
    """The noise that the guided prediction stands for, less the network's own: - scale sqrt(1 - alpha_bar) gradient."""
    diffusion = Diffusion.of(make_scheduler("linear", prediction, 1000))
    said = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    denoiser = SimpleNamespace(diffusion=diffusion, predict=lambda x, t, condition: said)
    guide = Guide(denoiser, None, Bowl(), 2.5)
    x, towards = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0])
    for t in (10, 400, 900):
        at = torch.full((4,), t)
        found = diffusion.eps(guide.predict(towards, None, x, torch.tensor(float(t))), x, at)
        gradient = towards.view(-1, 1, 1, 1) - x
        wanted = diffusion.eps(said, x, at) - 2.5 * math.sqrt(1 - float(diffusion.alphas_cumprod[t])) * gradient
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_clusters_that_do_not_hang_together_are_left_out() -> None:
    rng = stream(0, "clusters")
    centres = 10 * np.eye(8)[:3]
    tight = np.concatenate([centre + rng.normal(0, 0.1, (40, 8)) for centre in centres])
    loose = 10 * rng.normal(size=(40, 8))
    found = clustered(np.concatenate([tight, loose]), 4, 0.9, 0)
    assert found.left_out + len(found.sizes) == 4
    assert found.left_out >= 1
    assert (found.cohesion >= 0.9).all()
    groups = [set(found.of[start : start + 40].tolist()) for start in (0, 40, 80)]
    assert all(len(group) == 1 for group in groups)
    again = clustered(np.concatenate([tight, loose]), 4, 0.9, 0)
    np.testing.assert_array_equal(found.of, again.of)
    alone = clustered(np.ones((5, 3)), 4, 0.5, 0)
    assert len(alone.sizes) + alone.left_out == 1


@pytest.mark.parametrize("classes", [None, 3])
def test_a_whole_drawing_on_a_saved_pipeline(
    classes: int | None, digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmem.evaluate.attacks.surrogate_guided.PART", 20)
    folder = pipelines.pixels(tmp_path / "pipeline", classes=classes)
    samples = tmp_path / "samples"
    samples.mkdir()
    np.save(samples / "images.npy", digits.images(slice(0, 60)))
    attack = SurrogateGuided(samples=50, clusters=5, cohesion=0.3, images=320, batch=32, width=8)
    drawn = []
    for name, batch, processes in (("a", 16, 1), ("b", 50, 2)):
        directory = tmp_path / name
        for index in reversed(range(processes)):  # the first joins what the others have left
            process = Process(index, processes)
            attack.draw(folder, samples, Sampling(steps=3, batch=batch), directory, seed=3, accelerator=process)
        drawn.append(np.load(directory / "images.npy"))
        assert sorted(file.name for file in directory.iterdir()) == ["clusters.json", "images.npy"]
    np.testing.assert_array_equal(*drawn)
    assert drawn[0].shape == (50, 8, 8, 1)
    said = read_json(tmp_path / "a" / "clusters.json")
    assert sum(said["sizes"]) <= 50 == said["samples"]
    assert len(said["sizes"]) + said["left_out"] == 5


def test_what_cannot_be_guided_is_the_users_to_mend(digits: ImageSet, tmp_path: Path) -> None:
    folder = pipelines.pixels(tmp_path / "pipeline")
    np.save(tmp_path / "images.npy", digits.images(slice(0, 20)))
    args = {"sampling": Sampling(steps=2), "directory": tmp_path / "out", "seed": 0, "accelerator": Process()}
    with pytest.raises(UserError, match="holds 20 images; 30 are asked for"):
        SurrogateGuided(samples=30).draw(folder, tmp_path, **args)
    with pytest.raises(UserError, match=r"no cluster has a cohesion of 1\.0"):
        SurrogateGuided(samples=20, clusters=2, cohesion=1.0).draw(folder, tmp_path, **args)
    other = pipelines.pixels(tmp_path / "sample", prediction_type="sample")
    with pytest.raises(UserError, match="predicts neither noise nor v"):
        SurrogateGuided(samples=20).draw(other, tmp_path, **args)
