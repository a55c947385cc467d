"""Controls: what an attack must find when there is something, and must not find when there is nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import Asked, Generator
from tests.optimal import OptimalDenoiser
from unmem.evaluate.analysis import Compare, analyse, extracted
from unmem.evaluate.attacks.blind import Blind
from unmem.evaluate.attacks.generate_and_filter import GenerateAndFilter
from unmem.evaluate.attacks.loss import Loss
from unmem.evaluate.attacks.nearest_distance import NearestDistance
from unmem.evaluate.audit import Audit, Planted, Split, draw
from unmem.evaluate.denoisers.opening import open_denoiser
from unmem.evaluate.results import Matches, Scores
from unmem.rng import stream
from unmem.train.config import Sampling, Train
from unmem.train.imageset import ImageSet
from unmem.train.models.unet import UNet
from unmem.train.sampling import open_pipeline, sample_to_disk
from unmem.train.trainer import make_accelerator, train
from unmem.train.update import Plain

COMPARE = Compare(confidence=0.99, tpr_at_fpr=(0.1,))


@pytest.fixture(scope="module")
def split(digits: ImageSet) -> Audit:
    return draw(digits, Split(members=150, nonmembers=150, planted=Planted(images=3, copies=5)), seed=1)


def noisy(images: np.ndarray, seed: int) -> np.ndarray:
    """The images with a little noise, as a generator would give them back."""
    noise = stream(seed, "noisy").normal(0, 6, images.shape)
    return np.clip(images + noise, 0, 255).round().astype(np.uint8)


def figures(attack, target, split: Audit) -> dict[str, dict]:
    return analyse(attack.run(target, split, 0), split, frozenset(), COMPARE, 0)["estimates"]


def test_a_generator_that_copies_members_is_caught(split: Audit) -> None:
    copies = noisy(split.member_images.images(), 0)
    attack = GenerateAndFilter(samples=150, threshold=0.5)
    found = figures(attack, Generator(copies), split)
    assert found["extracted"]["value"] > 0.95
    assert found["extracted_planted"]["value"] == 1  # five copies do not hide behind one another
    assert found["false_positives"]["value"] < 0.02
    assert figures(NearestDistance(samples=150), Generator(copies), split)["nearer_to_training"]["low"] > 0.9


def test_a_generator_that_copies_held_out_images_extracts_no_member_and_is_flagged(split: Audit) -> None:
    copies = noisy(split.nonmember_images.images(), 0)
    found = figures(GenerateAndFilter(samples=150, threshold=0.5), Generator(copies), split)
    assert found["extracted"]["value"] < 0.02
    assert found["false_positives"]["value"] > 0.95
    assert figures(NearestDistance(samples=150), Generator(copies), split)["nearer_to_training"]["high"] < 0.1


def test_new_digits_are_no_extraction(split: Audit, digits: ImageSet) -> None:
    """Real images of the same kind, which are neither members nor held out: what a perfect model would draw."""
    known = {name.split("#")[0] for name in split.data.ids}
    fresh = digits.take(np.array([i for i, name in enumerate(digits.ids) if name not in known]))
    found = figures(GenerateAndFilter(samples=1000, threshold=0.5), Generator(fresh.images()), split)
    assert found["extracted"]["n"]["successes"] <= 1
    estimate = figures(NearestDistance(samples=1000), Generator(fresh.images()), split)["nearer_to_training"]
    assert estimate["low"] <= 0.5 <= estimate["high"]


def test_the_optimal_denoiser_is_a_perfect_target(split: Audit) -> None:
    found = figures(Loss(timesteps=(100,), draws=2), Asked(OptimalDenoiser(split.training), split), split)
    assert found["auc"]["value"] > 0.99
    assert found["tpr_at_fpr[0.1]"]["value"] > 0.95


def test_the_optimal_denoiser_of_other_images_is_no_target(split: Audit, digits: ImageSet) -> None:
    known = {name.split("#")[0] for name in split.data.ids}
    others = digits.take(np.array([i for i, name in enumerate(digits.ids) if name not in known]))
    found = figures(Loss(timesteps=(100,), draws=2), Asked(OptimalDenoiser(others), split), split)
    assert found["auc"]["low"] <= 0.5 <= found["auc"]["high"]
    swapped = figures(Loss(timesteps=(100,), draws=2), Asked(OptimalDenoiser(split.nonmember_images), split), split)
    assert swapped["auc"]["value"] < 0.01  # larger means member: the direction is not the attack's to choose


@pytest.fixture(scope="module")
def overfit(split: Audit, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """A small U-Net trained long on the split's members, and its samples."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("overfit")
    config = Train(images=32_000, batch=32, lr=3e-3, decay="cosine", noise_schedule="cosine", ema=0.99, threads=1)
    data, accelerator = split.training, make_accelerator(config)
    train(
        data, UNet(channels=(16, 32), layers=1, conditioning="class"), config, Plain(len(data), config, 0), directory,
        key="k", seed=0, accelerator=accelerator,
    )  # fmt: skip
    pipeline = open_pipeline(directory / "pipeline")
    sample_to_disk(pipeline, Sampling(steps=20), 256, directory / "samples", seed=0, accelerator=accelerator)
    samples = np.load(directory / "samples" / "images.npy")
    return Asked(open_denoiser(directory / "pipeline", "cpu"), split, generated=samples)


@pytest.mark.slow
def test_an_overfit_model_gives_its_members_away(overfit: Asked, split: Audit) -> None:
    found = figures(Loss(timesteps=(50, 100, 200), draws=4), overfit, split)
    assert found["auc"]["low"] > 0.6
    assert found["auc_planted"]["value"] > found["auc"]["value"]
    fresh = figures(NearestDistance(samples=256), overfit, split)
    assert fresh["nearer_to_training"]["low"] > 0.5


def test_the_blind_control_sees_a_guessable_split_and_only_that(split: Audit, digits: ImageSet) -> None:
    fair = Blind().run(None, split, 0)
    assert isinstance(fair, Scores)
    report = analyse(fair, split, frozenset(), COMPARE, 0)["estimates"]["auc"]
    assert report["low"] < 0.55
    by_class = np.argsort(digits.labels, kind="stable")
    low, high = digits.take(by_class[:150]), digits.take(by_class[-150:])
    data = ImageSet.of(np.concatenate([low.images(), high.images()]), [*low.ids, *high.ids])
    unfair = Audit(data, data.ids[:150], data.ids[150:], (), {})
    assert analyse(Blind().run(None, unfair, 0), unfair, frozenset(), COMPARE, 0)["estimates"]["auc"]["low"] > 0.9


def test_scores_do_not_depend_on_the_batch(split: Audit) -> None:
    """The noise of an image is named by its place: scores of a prefix are a prefix of the scores."""
    denoiser, attack = OptimalDenoiser(split.training), Loss(timesteps=(50,), draws=1, flips=True)
    whole = attack.run(Asked(denoiser, split), split, 7)
    fewer = dataclasses.replace(split, nonmembers=split.nonmembers[:20])
    part = attack.run(Asked(denoiser, fewer, batch=37), fewer, 7)
    np.testing.assert_allclose(part.members, whole.members, rtol=1e-5)
    np.testing.assert_allclose(part.nonmembers, whole.nonmembers[:20], rtol=1e-5)


def test_matching_by_hand(split: Audit) -> None:
    """The ratio written out for one sample: distance over alpha times the mean over n nearest, copies once."""
    attack = GenerateAndFilter(samples=1, neighbors=10, group_threshold=0.0)
    generated = noisy(split.member_images.images()[7:8], 3)
    result = attack.run(Generator(generated), split, 0)
    assert isinstance(result, Matches)
    members = split.member_images.flat().astype(np.float64)
    d = np.sqrt(((members - generated.reshape(1, -1) / 255.0) ** 2).mean(1))
    assert result.member[0] == d.argmin() == 7
    assert result.member_distance[0] == pytest.approx(d.min(), rel=1e-5)
    assert result.member_ratio[0] == pytest.approx(d.min() / (0.5 * np.sort(d)[:10].mean()), rel=1e-5)
    assert extracted(result, len(members), threshold=0.0).sum() == 0
