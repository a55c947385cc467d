"""Rules that sampling obeys: against slow counterparts, on generators whose copies are known, and in parts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import Generator
from tests.optimal import OptimalDenoiser
from unmem.component import Problem, build
from unmem.evaluate.analysis import Compare, analyse
from unmem.evaluate.attacks.generate_and_filter import GenerateAndFilter
from unmem.evaluate.audit import Audit, Planted, Split, draw
from unmem.evaluate.statistics import rate
from unmem.mitigations.dedup import perceptual
from unmem.mitigations.dissimilarity_guidance import DissimilarityGuidance
from unmem.mitigations.reject_copies import RejectCopies
from unmem.neighbors import top_k
from unmem.recipes.arm import Arm
from unmem.recipes.recipe import load
from unmem.recipes.verdict import verdict
from unmem.rng import stream
from unmem.train.config import Sampling
from unmem.train.diffusion import make_scheduler
from unmem.train.imageset import ImageSet, as_vectors
from unmem.train.sampling import sample, sample_by_rules, sample_to_disk
from unmem.train.sampling_rule import Free

COPIED = 0.05  # distance below which a sample is a copy: other digits are at least 0.08 apart
SAMPLERS = [
    Sampling(steps=25, scheduler="dpm_solver++"),
    Sampling(steps=50, scheduler="ddim", eta=0.5),
    Sampling(steps=25, scheduler="euler"),
    Sampling(steps=25, scheduler="heun", karras_sigmas=True),
]
FAST = SAMPLERS[0]


class Ideal(nn.Module):
    """The best denoiser of some images, with as much of a UNet2DModel as the sampler reads."""

    def __init__(self, images: ImageSet, prediction: str = "epsilon") -> None:
        super().__init__()
        self.config = SimpleNamespace(sample_size=8, in_channels=1, num_class_embeds=None)
        self._best, self._prediction = OptimalDenoiser(images), prediction

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None) -> Any:
        steps = torch.full((len(x),), round(float(t)))
        eps = self._best.predict(x, steps, None)
        alpha_bar = self._best.diffusion.alphas_cumprod[steps[0]]
        if self._prediction == "v_prediction":
            eps = (eps - (1 - alpha_bar).sqrt() * x) / alpha_bar.sqrt()
        return SimpleNamespace(sample=eps)


def pipeline(images: ImageSet, prediction: str = "epsilon") -> Any:
    return SimpleNamespace(unet=Ideal(images, prediction), scheduler=make_scheduler("cosine", prediction, 1000))


@pytest.fixture(scope="module")
def world(digits: ImageSet) -> Audit:
    return draw(digits, Split(members=300, nonmembers=300, planted=Planted(images=8, copies=4)), seed=0)


@pytest.fixture(scope="module")
def planted(world: Audit) -> ImageSet:
    return world.data.select(world.planted)


@pytest.fixture(scope="module")
def novel(digits: ImageSet, world: Audit) -> ImageSet:
    """Digits that are neither in the training set nor held out: what a model makes that has learnt to write."""
    others = sorted(set(digits.ids) - set(world.members) - set(world.nonmembers))[:256]
    return digits.select(others)


def united(images: np.ndarray) -> ImageSet:
    return ImageSet.of(images, [f"image/{i}" for i in range(len(images))])


@pytest.fixture(scope="module")
def memorizing(planted: ImageSet, novel: ImageSet) -> ImageSet:
    """What a model draws that has memorized the planted images and writes new digits otherwise, half and half."""
    return united(np.concatenate([np.repeat(planted.images(), 32, axis=0), novel.images()]))


def distances(images: np.ndarray, data: ImageSet) -> np.ndarray:
    return top_k(as_vectors(images), data.flat(), 1).distances[:, 0] / np.sqrt(64)


def attacked(images: np.ndarray, world: Audit) -> dict[str, Any]:
    result = GenerateAndFilter(samples=len(images), threshold=0.5).run(Generator(images), world, 0)
    found: dict[str, Any] = analyse(result, world, frozenset(), Compare(), 0)["estimates"]
    return found


# refusal


@pytest.mark.parametrize(("hash", "bits"), [("phash", 64), ("phash", 256), ("dhash", 64)])
@pytest.mark.parametrize("max_distance", [0, 4, 12, 64])
def test_refusal_is_by_the_hashes_one_by_one(
    world: Audit, tmp_path: Path, hash: Any, bits: Any, max_distance: int
) -> None:
    data, asked = world.member_images.take(np.arange(60)), world.nonmember_images.images(slice(0, 60)).copy()
    asked[:5], asked[5] = data.images(slice(0, 5)), 90  # copies, and one that is flat
    rule = RejectCopies(hash=hash, bits=bits, max_distance=max_distance).sampling_rule(data, tmp_path)

    def number(image: np.ndarray) -> int:
        words = perceptual.codes_of_arrays(image[None], hash, bits)[0]
        return sum(int(word) << 64 * i for i, word in enumerate(words))

    known = [number(image) for image in data.images()]
    near = [min((number(image) ^ other).bit_count() for other in known) <= max_distance for image in asked]
    near[5] = False
    np.testing.assert_array_equal(rule.accept(asked), ~np.array(near))
    assert not rule.accept(asked)[:5].any()
    assert rule.accept(asked[:0]).shape == (0,)


def test_the_index_holds_hashes_alone_in_their_own_order(world: Audit, tmp_path: Path) -> None:
    data, settings = world.training, RejectCopies()
    settings.sampling_rule(data, tmp_path)
    index = np.load(tmp_path / "hashes.npy", allow_pickle=False)
    assert index.dtype == np.uint64
    assert index.shape[1:] == (4,)
    assert len(index) <= len(world.members)  # copies are there once
    assert [file.name for file in tmp_path.iterdir()] == ["hashes.npy"]
    (tmp_path / "turned").mkdir()
    settings.sampling_rule(data.take(np.arange(len(data))[::-1]), tmp_path / "turned")
    np.testing.assert_array_equal(np.load(tmp_path / "turned" / "hashes.npy"), index)
    flat = united(np.full((3, 8, 8, 1), 255, np.uint8) - np.arange(3, dtype=np.uint8)[:, None, None, None])
    rule = settings.sampling_rule(flat, tmp_path)
    assert len(np.load(tmp_path / "hashes.npy")) == 0
    assert rule.accept(data.images()).all()


def test_planted_copies_are_refused_and_extraction_falls_to_what_is_left(
    memorizing: ImageSet, world: Audit, planted: ImageSet, tmp_path: Path
) -> None:
    numbers, drawn = np.arange(256), pipeline(memorizing)
    rule = RejectCopies().sampling_rule(world.training, tmp_path)
    before = sample(drawn, FAST, numbers, 0, "cpu")
    after, refused = sample_by_rules(drawn, FAST, numbers, 0, "cpu", [rule])
    copies = distances(before, planted) < COPIED
    assert 0.4 < copies.mean() < 0.6
    assert (refused[copies] > 0).all()
    assert (distances(after, planted) >= COPIED).all()
    assert refused.max() < rule.attempts  # none is black
    np.testing.assert_array_equal(after[refused == 0], before[refused == 0])
    assert attacked(before, world)["extracted_planted"]["n"]["successes"] == 8
    assert attacked(after, world)["extracted_planted"]["n"]["successes"] == 0


def test_what_is_just_outside_the_radius_is_given_out_and_extracted(world: Audit, tmp_path: Path) -> None:
    """The limit: a copy that is rough enough gets past the rule, and the attack counts it."""
    rule = RejectCopies(bits=64, max_distance=2).sampling_rule(world.training, tmp_path)
    members = np.repeat(world.member_images.images(), 4, axis=0)
    rough = np.clip(members + stream(0, "rough").normal(0, 12, members.shape), 0, 255).astype(np.uint8)
    passed = rough[rule.accept(rough)]
    assert len(passed) > 0.2 * len(rough)
    assert attacked(passed, world)["extracted"]["n"]["successes"] > 50
    assert rule.accept(members).sum() == 0


def test_held_out_images_are_hardly_refused(digits: ImageSet, tmp_path: Path) -> None:
    split = draw(digits, Split(members=800, nonmembers=800), seed=0)

    def false(max_distance: int) -> Any:
        rule = RejectCopies(max_distance=max_distance).sampling_rule(split.member_images, tmp_path)
        return rate(int((~rule.accept(split.nonmember_images.images())).sum()), 800, 0.95)

    assert false(24).high < 0.04
    assert false(32).high < 0.15
    assert false(48).low > 0.3  # the negative control: so coarse a rule refuses new digits too


def test_where_nothing_is_left_samples_are_black(planted: ImageSet, tmp_path: Path) -> None:
    rule = RejectCopies(attempts=3).sampling_rule(planted, tmp_path)
    images, refused = sample_by_rules(pipeline(planted), FAST, np.arange(10), 0, "cpu", [rule])
    assert images.shape == (10, 8, 8, 1)
    assert (images == 0).all()
    assert (refused == 3).all()


# the law that sample k depends on k alone


@pytest.fixture
def rules(world: Audit, planted: ImageSet, tmp_path: Path) -> list[Any]:
    """Both, the guidance so weak that there is something left to refuse."""
    guided = DissimilarityGuidance(strength=0.2).sampling_rule(world.training, tmp_path)
    return [guided, RejectCopies().sampling_rule(planted, tmp_path)]


@pytest.mark.parametrize("config", [FAST, SAMPLERS[1]], ids=lambda config: config.scheduler)
def test_a_sample_is_the_same_image_at_any_batch_size(config: Sampling, memorizing: ImageSet, rules: list[Any]) -> None:
    drawn = pipeline(memorizing)
    whole, refused = sample_by_rules(drawn, config, np.arange(24), 0, "cpu", rules)
    assert refused.sum() > 3
    odd, again = sample_by_rules(drawn, replace(config, batch=5), np.arange(24), 0, "cpu", rules)
    np.testing.assert_array_equal(again, refused)
    assert np.abs(whole.astype(int) - odd).max() <= 1
    for k in (int(refused.argmax()), 3):
        alone, once = sample_by_rules(drawn, config, np.array([k]), 0, "cpu", rules)
        assert once[0] == refused[k]
        assert np.abs(whole[k].astype(int) - alone[0]).max() <= 1
    other, _ = sample_by_rules(drawn, config, np.arange(24), 1, "cpu", rules)
    assert not np.array_equal(other, whole)


class Process:
    """One of a launcher's processes, the others of which wait for nobody."""

    device = "cpu"

    def __init__(self, index: int, count: int) -> None:
        self.process_index, self.num_processes = index, count
        self.is_main_process = index == 0

    def wait_for_everyone(self) -> None:
        pass


def test_parts_resume_and_are_shared_among_processes(
    memorizing: ImageSet, rules: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmem.train.sampling.PART", 8)
    drawn = pipeline(memorizing)

    def to_disk(name: str, index: int = 0, count: int = 1) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        sample_to_disk(
            drawn, FAST, 20, tmp_path / name, seed=0, accelerator=Process(index, count), rules=rules
        )  # fmt: skip

    def outcome(name: str) -> tuple[bytes, dict[str, int]]:
        folder = tmp_path / name
        assert sorted(file.name for file in folder.iterdir()) == ["images.npy", "refused.json"]
        return (folder / "images.npy").read_bytes(), json.loads((folder / "refused.json").read_text())

    to_disk("whole")
    images, refused = sample_by_rules(drawn, FAST, np.arange(20), 0, "cpu", rules)
    found = np.load(tmp_path / "whole" / "images.npy")
    assert np.abs(found.astype(int) - images).max() <= 1
    expected = {"samples": 20, "drawn": 20 + int(refused.sum()), "refused": int(refused.sum()), "black": 0}
    assert outcome("whole")[1] == expected
    to_disk("shared", 1, 2)
    to_disk("shared", 0, 2)
    assert outcome("shared") == outcome("whole")

    class KilledError(Exception):
        pass

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("unmem.train.sampling._join", killed)
        with pytest.raises(KilledError):
            to_disk("killed")
    (tmp_path / "killed" / "part-00001.npy").unlink()  # killed between the two files of a part
    to_disk("killed")
    assert outcome("killed") == outcome("whole")


# guidance


def shares(guarded: ImageSet, model: ImageSet, config: Sampling, settings: DissimilarityGuidance) -> tuple[Any, ...]:
    """Share of copies of the guarded images without and with guidance; and of other samples that stay as they were."""
    numbers, drawn = np.arange(200), pipeline(model)
    rule = settings.sampling_rule(guarded, Path())
    before = sample(drawn, config, numbers, 0, "cpu")
    after, _ = sample_by_rules(drawn, config, numbers, 0, "cpu", [rule])
    copies = distances(before, guarded) < COPIED
    same = np.abs(after.astype(int) - before).reshape(len(before), -1).max(1) <= 1
    return copies.mean(), (distances(after, guarded) < COPIED).mean(), same[~copies].mean() if not copies.all() else 1.0


@pytest.mark.parametrize("config", SAMPLERS, ids=lambda config: config.scheduler)
def test_guidance_leads_away_from_what_is_memorized(config: Sampling, memorizing: ImageSet, planted: ImageSet) -> None:
    before, after, same = shares(planted, memorizing, config, DissimilarityGuidance())
    assert before > 0.25
    assert after < before / 3
    assert same > 0.95


@pytest.mark.parametrize("config", SAMPLERS, ids=lambda config: config.scheduler)
def test_guidance_leaves_alone_who_has_memorized_nothing(config: Sampling, novel: ImageSet, world: Audit) -> None:
    before, _, same = shares(world.training, novel, config, DissimilarityGuidance())
    assert before == 0
    assert same > 0.9  # a few new digits are within the radius of a training image


def test_guidance_cannot_help_where_there_is_nothing_but_copies(planted: ImageSet) -> None:
    """The limit: the gradient vanishes at the copy."""
    assert shares(planted, planted, FAST, DissimilarityGuidance())[1] == 1


def test_the_push_is_the_gradient_of_the_stated_similarity(world: Audit) -> None:
    """By automatic differentiation, image by image, where no clipping and no rounding interferes."""
    from unmem.train.diffusion import to_model

    settings, sigma = DissimilarityGuidance(radius=0.2, strength=0.7), 0.8
    rule = settings.sampling_rule(world.training, Path())
    points = to_model(world.training.images()).double()
    members, others = to_model(world.member_images.images()) * 0.9, to_model(world.nonmember_images.images()) * 0.9
    x0 = torch.cat([members[:40] + 0.05, others[:40]])
    found, reach, pushed = rule.steer(x0, sigma), 0.2 / (1 + 0.8**2) ** 0.5, 0
    for image, steered in zip(x0.double(), found, strict=True):
        image.requires_grad_()
        far = ((image - points).square().flatten(1).mean(1).sqrt() / 2).min()
        (gradient,) = torch.autograd.grad((reach - far).clamp(min=0).square() / 2, image)
        # d is in pixels from 0 to 1 and a mean over 64: the chain rule's factor is taken out again
        expected = (image - settings.strength * gradient * 4 * 64).detach().clamp(-1, 1)
        torch.testing.assert_close(steered.double(), expected, atol=1e-4, rtol=0)
        pushed += int(far < reach)
        if far >= reach:
            assert torch.equal(steered.double(), image)
    assert 10 < pushed < 80


@pytest.mark.parametrize("config", SAMPLERS, ids=lambda config: config.scheduler)
def test_what_the_network_predicts_makes_no_difference(config: Sampling, memorizing: ImageSet) -> None:
    class Grey(Free):
        def steer(self, x0: Tensor, sigma: float) -> Tensor:
            return 0.5 * x0 if sigma < 1 else x0

    first, second = (
        sample_by_rules(pipeline(memorizing, kind), config, np.arange(8), 0, "cpu", [Grey()])[0].astype(int)
        for kind in ("epsilon", "v_prediction")
    )
    assert np.abs(first - second).max() <= 2
    assert np.abs(first - sample(pipeline(memorizing), config, np.arange(8), 0, "cpu")).max() > 20


@pytest.mark.parametrize("config", SAMPLERS, ids=lambda config: config.scheduler)
def test_a_rule_that_changes_nothing_changes_no_bit(config: Sampling, memorizing: ImageSet) -> None:
    drawn = pipeline(memorizing)
    images, refused = sample_by_rules(drawn, config, np.arange(16), 0, "cpu", [Free()])
    np.testing.assert_array_equal(images, sample(drawn, config, np.arange(16), 0, "cpu"))
    assert not refused.any()


# in a run


def test_an_arm_with_a_guard_is_trained_as_the_plain_one(tmp_path: Path) -> None:
    guards = "arms.guarded=[{kind: dissimilarity_guidance}, {kind: reject_copies}]"
    recipes = [
        load("quickstart", settings=(guards, *more)) for more in ((), ("arms.guarded.reject_copies.max_distance=24",))
    ]
    plain, guarded, other = (
        Arm(recipe, name, tmp_path, "upstream").model_stages
        for recipe, name in ((recipes[0], "baseline"), (recipes[0], "guarded"), (recipes[1], "guarded"))
    )
    assert plain["train"].key == guarded["train"].key == other["train"].key
    assert len({plain["samples"].key, guarded["samples"].key, other["samples"].key}) == 3
    assert "rules" not in plain["samples"].inputs


def test_the_verdict_says_what_is_not_guarded() -> None:
    auc = {"value": 0.7, "low": 0.6, "high": 0.8}
    loss = {"type": "membership", "kind": "loss", "estimates": {"auc": auc}}
    sampling = {
        "guards": ["reject_copies"],
        "refused": {"samples": 100, "drawn": 130, "refused": 31, "black": 1},
    }
    arm = {"attacks": {"loss": loss, "blind": {**loss, "kind": "blind"}}, "privacy": None, "measured": []}
    comparison = {"data": {}, "confidence": 0.95, "unfinished": []}
    sentences = verdict(comparison | {"arms": {"guarded": arm | {"sampling": sampling}, "plain": arm}})
    assert "guarded: 31 of 130 draws were refused; 1 of 100 samples are black instead." in sentences
    caution = "Caution: in guarded, reject_copies stands before samples alone; loss would see the same without"
    assert sum(sentence.startswith(caution) for sentence in sentences) == 1
    assert not any("in plain" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "reject_copies", "hash": "dhash"}, "bits: 256 goes with hash: phash, not dhash"),
        ({"kind": "reject_copies", "max_distance": 257}, "max_distance must be at most bits (256), got 257"),
        ({"kind": "reject_copies", "attempts": 0}, "attempts: input should be greater than 0; got 0"),
        ({"kind": "dissimilarity_guidance", "radius": 2}, "radius: input should be less than or equal to 1; got 2"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: dict[str, Any], message: str) -> None:
    problems: list[Problem] = []
    assert build("unmem.mitigations", spec, "arms.a[0]", problems) is None
    assert message in str(problems[0])
