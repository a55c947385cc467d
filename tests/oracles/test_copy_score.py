"""Copies by embeddings: against the plain formula, on generators whose answer is known, and features by TorchScript."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import Generator
from unmem.component import UserError, dump
from unmem.evaluate.analysis import Compare, analyse
from unmem.evaluate.attacks.copy_score import CopyScore
from unmem.evaluate.audit import Audit, Split, draw
from unmem.evaluate.features.random_convolutions import RandomConvolutions
from unmem.evaluate.features.torchscript import TorchScript
from unmem.evaluate.quality.frechet import Frechet
from unmem.evaluate.results import Similarities, load, save
from unmem.evaluate.statistics import quantile
from unmem.rng import stream
from unmem.train.imageset import ImageSet

COMPARE = Compare(confidence=0.95)


@pytest.fixture(scope="module")
def split(digits: ImageSet) -> Audit:
    return draw(digits, Split(members=300, nonmembers=300), seed=1)


@pytest.fixture(scope="module")
def fresh(split: Audit, digits: ImageSet) -> np.ndarray:
    """Digits of neither side."""
    known = set(split.data.ids)
    return digits.take(np.array([i for i, name in enumerate(digits.ids) if name not in known])).images()


def jittered(images: np.ndarray, seed: int = 0) -> np.ndarray:
    noise = stream(seed, "jitter").normal(0, 4, images.shape)
    return np.clip(images + noise, 0, 255).round().astype(np.uint8)


def figures(attack: CopyScore, images: np.ndarray, split: Audit) -> dict[str, Any]:
    return analyse(attack.run(Generator(images), split, 0), split, frozenset(), COMPARE, 0)


@pytest.mark.parametrize("centre", [True, False])
def test_similarities_are_cosines_one_by_one(centre: bool, split: Audit, fresh: np.ndarray, tmp_path: Path) -> None:
    small = replace(split, members=split.members[:30], nonmembers=split.nonmembers[:20])
    result = CopyScore(samples=15, centre=centre).run(Generator(fresh), small, 0)
    extract = RandomConvolutions()
    members, held_out = (extract(data.images())[:20] for data in (small.member_images, small.nonmember_images))
    mean = held_out.mean(0) if centre else 0 * held_out[0]

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        a, b = a - mean, b - mean
        return float(a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b)))

    for i, x in enumerate(extract(fresh[:15])):
        for points, at, similarity in (
            (members, result.member, result.member_similarity),
            (held_out, result.nonmember, result.nonmember_similarity),
        ):
            cosines = [cosine(x, y) for y in points]
            assert at[i] == np.argmax(cosines)
            assert similarity[i] == pytest.approx(max(cosines), abs=1e-6)
    among = [max(cosine(x, y) for j, y in enumerate(held_out) if i != j) for i, x in enumerate(held_out)]
    np.testing.assert_allclose(result.held_out, among, atol=1e-6)
    assert float(result.threshold) == pytest.approx(max(among), abs=1e-6)
    save(result, tmp_path / "scores.npz")
    again = load(tmp_path / "scores.npz")
    assert isinstance(again, Similarities)
    assert analyse(again, small, frozenset(), COMPARE, 0) == analyse(result, small, frozenset(), COMPARE, 0)


def test_the_threshold_lets_the_stated_share_of_held_out_images_pass(split: Audit, fresh: np.ndarray) -> None:
    for exceeded in (0.0, 0.01, 0.1):
        result = CopyScore(samples=5, exceeded=exceeded).run(Generator(fresh), split, 0)
        share = (result.held_out > result.threshold).mean()
        assert exceeded - 1 / 300 - 1e-9 <= share <= exceeded
    report = figures(CopyScore(samples=5), fresh, split)["estimates"]["copied"]
    assert report["note"].endswith("is exceeded by 2 of 300 of them")  # cosines are mutual, and so come in pairs
    given = CopyScore(samples=5, threshold=0.5).run(Generator(fresh), split, 0)
    assert (float(given.threshold), bool(given.taken)) == (0.5, False)


def test_copies_of_members_are_found_and_fresh_images_are_as_near_to_either_side(
    split: Audit, fresh: np.ndarray
) -> None:
    attack = CopyScore(samples=300)
    copies = figures(attack, jittered(split.member_images.images()), split)
    found = copies["estimates"]
    assert found["copied"]["low"] > 0.5
    assert found["copied_held_out"]["value"] < 0.1
    assert found["similarity[0.75]"]["low"] > found["similarity_held_out[0.75]"]["high"]
    assert all(split.members[match["sample"]] == match["id"] for match in copies["matches"][:100])
    similarity = [match["similarity"] for match in copies["matches"]]
    assert similarity == sorted(similarity, reverse=True)
    held_out = figures(attack, jittered(split.nonmember_images.images()), split)["estimates"]
    assert held_out["copied"]["value"] < 0.1
    assert held_out["copied_held_out"]["low"] > 0.5
    new = figures(CopyScore(samples=1000), fresh, split)["estimates"]
    assert new["copied"]["value"] == pytest.approx(new["copied_held_out"]["value"], abs=0.02)
    for level in ("0.75", "0.9", "0.95"):
        inside, outside = new[f"similarity[{level}]"], new[f"similarity_held_out[{level}]"]
        assert inside["low"] <= outside["high"]
        assert outside["low"] <= inside["high"]


def test_the_larger_side_has_no_advantage(split: Audit, fresh: np.ndarray) -> None:
    few = replace(split, nonmembers=split.nonmembers[:50])
    result = CopyScore(samples=200).run(Generator(fresh), few, 0)
    assert result.member.max() < 50
    alone = replace(split, nonmembers=split.nonmembers[:1])
    report = figures(CopyScore(samples=20), fresh, alone)
    assert report["estimates"]["copied"]["n"]["trials"] == 20


def test_a_quantiles_interval_holds_its_level() -> None:
    for level, n in ((0.75, 40), (0.9, 200), (0.95, 100)):
        hits = wrong = 0
        for k in range(600):
            values = stream(0, "quantile", n, k).exponential(size=n)
            found = quantile(values, level, 0.9)
            truth = -np.log(1 - level)
            low, high = -np.inf if found.low is None else found.low, np.inf if found.high is None else found.high
            hits += low <= truth <= high
            wrong += low <= truth * 1.6 <= high
        assert hits / 600 > 0.88
        assert wrong / 600 < 0.8
    assert quantile(np.arange(5.0), 0.5, 0.9999).low is None
    assert quantile(np.empty(0), 0.5, 0.9).value is None


class Means(nn.Module):
    """Two numbers an image: mean colour of each half."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[3] // 2
        return torch.stack([x[:, :, :, :half].mean((1, 2, 3)), x[:, :, :, half:].mean((1, 2, 3))], dim=1)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(-x.flatten(1).abs())


def scripted(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(module), str(path))
    return path


def test_a_torchscript_network_sees_images_as_its_settings_say(split: Audit, tmp_path: Path) -> None:
    path = scripted(Means(), tmp_path / "means.pt")
    extract = TorchScript(path=path, size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5), batch=7)
    images = split.member_images.images()[:20]
    x = (np.repeat(images, 3, 3) / 255 - 0.5) / [0.5, 0.25, 0.5]
    wanted = np.stack([x[:, :, :4].mean((1, 2, 3)), x[:, :, 4:].mean((1, 2, 3))], axis=1)
    np.testing.assert_allclose(extract(images), wanted, atol=1e-6)
    assert extract.dimension == 2
    larger = TorchScript(path=path, size=32)
    assert larger(images).shape == (20, 2)
    report = figures(
        CopyScore(samples=40, features={"kind": "torchscript", **dump(extract)}), images.repeat(2, 0), split
    )
    assert report["estimates"]["copied"]["n"]["trials"] == 40
    assert Frechet(samples=20, features={"kind": "torchscript", "path": str(path), "size": 8}).fingerprint()


def test_the_files_contents_are_part_of_what_a_stage_depends_on(tmp_path: Path) -> None:
    path = scripted(Means(), tmp_path / "network.pt")
    attack = CopyScore(samples=1, features={"kind": "torchscript", "path": str(path)})
    before = attack.fingerprint()
    assert before == attack.fingerprint() != CopyScore(samples=1).fingerprint() == ""
    scripted(Odd(), path)
    assert attack.fingerprint() != before


def test_files_that_are_no_such_network_are_named(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8, 1), np.uint8)
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04 not a whole file")
    for path, message in (
        (tmp_path / "nowhere.pt", r"nowhere\.pt: no such file"),
        (tmp_path / "damaged.pt", r"damaged\.pt: cannot be opened as TorchScript"),
        (scripted(Odd(), tmp_path / "odd.pt"), r"odd\.pt: its network gives \[3, 3, 8, 8\] for 3 images"),
        (scripted(Failing(), tmp_path / "nan.pt"), r"nan\.pt: its network gives NaN"),
        (scripted(nn.Linear(3, 2), tmp_path / "linear.pt"), r"linear\.pt: its network does not take 8 x 8 images"),
    ):
        with pytest.raises(UserError, match=message):
            TorchScript(path=path, size=8)(images)


def test_features_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind 'inceptoin', did you mean 'inception'"):
        CopyScore(samples=1, features={"kind": "inceptoin"})
