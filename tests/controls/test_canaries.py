"""Canaries: fair coins, as many copies as promised; what a model remembers of them shows, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import Asked
from tests.optimal import OptimalDenoiser
from unmem.component import UserError, build
from unmem.evaluate.analysis import Compare, analyse
from unmem.evaluate.attacks.canary_audit import CanaryAudit
from unmem.evaluate.attacks.generate_and_filter import GenerateAndFilter
from unmem.evaluate.attacks.loss import Loss
from unmem.evaluate.audit import Audit, Planted, Split, draw
from unmem.evaluate.canaries import Canaries
from unmem.evaluate.canary_figures import canary_figures
from unmem.evaluate.denoisers.pixels import Pixels
from unmem.evaluate.results import CanaryScores, load, save
from unmem.evaluate.rows import Rows
from unmem.evaluate.shadows import Shadows, inside
from unmem.rng import stream, uniform_of
from unmem.train.config import Train
from unmem.train.imageset import ImageSet, Rejected, content_of
from unmem.train.models.unet import UNet
from unmem.train.sampling import open_pipeline
from unmem.train.trainer import make_accelerator, train
from unmem.train.update import Plain

SOURCES = ("mislabelled", "noise", "out_of_distribution")
COPIES = (1, 2, 4)
FAR = 4.5  # standard errors: a false alarm in 150,000 tests


def split_of(images: int = 90, copies: tuple[int, ...] = COPIES, source: str = "noise") -> Split:
    canaries = Canaries(images=images, copies=copies, source=source)
    return Split(members=40, nonmembers=41, planted=Planted(images=2, copies=4), canaries=canaries)


@pytest.fixture(scope="module", params=SOURCES)
def drawn(request: pytest.FixtureRequest, digits: ImageSet) -> Audit:
    return draw(digits, split_of(source=request.param), seed=3)


def correlation(coins: np.ndarray, values: np.ndarray) -> float:
    """In standard errors."""
    return float(np.corrcoef(coins, values)[0, 1]) * len(coins) ** 0.5


def test_the_coins_are_fair_and_independent_of_all_else(digits: ImageSet) -> None:
    splits = [(seed, draw(digits, split_of(400, (1, 2), "mislabelled"), seed)) for seed in range(25)]
    coins = np.concatenate([audit.inside.canaries for _, audit in splits])
    assert abs(coins.mean() - 0.5) * 2 * len(coins) ** 0.5 < FAR
    canaries = [audit.groups["canaries"] for _, audit in splits]
    order = np.concatenate([[uniform_of(s, content_of(name), salt="split") for name in a.canaries] for s, a in splits])
    beside = {
        "place": np.concatenate([np.arange(400)] * 25),
        "place, odd or even": np.concatenate([np.arange(400) % 2] * 25),
        "the number that orders them": order,
        "copies": np.concatenate([audit.canary_copies for _, audit in splits]),
        "class": np.concatenate([part.labels for part in canaries if part.labels is not None]),
        "brightness": np.concatenate([part.images().mean((1, 2, 3)) for part in canaries]),
        "the coin before": np.roll(coins, 1),
        "a shadow model's": np.concatenate([inside(a, Shadows(count=4), 1, s).canaries for s, a in splits]),
        "another seed's": np.concatenate([[uniform_of(s + 1, n, salt="coin") for n in a.canaries] for s, a in splits]),
    }
    for name, values in beside.items():
        assert abs(correlation(coins, values)) < FAR, name
    assert abs(correlation(order < np.median(order), beside["place"])) > FAR  # one number for two draws would be seen


def test_calibration_halves(digits: ImageSet) -> None:
    audit = draw(digits, split_of(), seed=3)
    halves = audit.is_calibration()
    assert (halves.members.sum(), halves.nonmembers.sum()) == (20, 20)
    assert set(audit.calibration) == {
        *np.array(audit.members)[halves.members],
        *np.array(audit.nonmembers)[halves.nonmembers],
    }
    shuffled = draw(digits.take(stream(0, "order").permutation(len(digits))), split_of(), seed=3)
    assert shuffled.calibration == audit.calibration
    assert draw(digits, Split(members=40, nonmembers=41), seed=3).calibration == audit.calibration
    often = np.mean([draw(digits, Split(members=40, nonmembers=40), s).is_calibration().members for s in range(60)], 0)
    assert abs(often - 0.5).max() < FAR / 2 / 60**0.5


def test_equal_images_are_in_one_half(digits: ImageSet) -> None:
    few = digits.images(slice(0, 60))
    doubled = ImageSet.of(np.concatenate([few] * 3), [f"file/{i}" for i in range(180)])
    audit = draw(doubled, Split(members=60, nonmembers=60), seed=0)
    halves = audit.is_calibration()
    for names, mask in ((audit.members, halves.members), (audit.nonmembers, halves.nonmembers)):
        contents = np.array([content_of(name) for name in names])
        assert not set(contents[mask]) & set(contents[~mask])
        assert 0.3 < mask.mean() < 0.7


def test_canaries_are_new_different_images_in_the_form_of_the_data(drawn: Audit, digits: ImageSet) -> None:
    contents = [content_of(name) for name in (*drawn.members, *drawn.nonmembers, *drawn.canaries)]
    assert len(set(contents[81:])) == 90
    assert not set(contents[:81]) & set(contents[81:])
    canaries = drawn.groups["canaries"]
    assert canaries.labels is not None
    assert canaries.label_names == digits.label_names
    assert set(canaries.labels.tolist()) == set(range(10))


def test_the_wrong_class_is_wrong_and_any(digits: ImageSet) -> None:
    canaries = draw(digits, split_of(1000, source="mislabelled"), seed=3).groups["canaries"]
    true = digits.select(canaries.ids).labels
    assert true is not None
    assert canaries.labels is not None
    further = np.bincount((canaries.labels - true) % 10, minlength=10)
    assert further[0] == 0
    assert (abs(further[1:] - 1000 / 9) < FAR * (1000 / 9) ** 0.5).all()


def test_every_copy_is_there_and_no_other(drawn: Audit) -> None:
    assert drawn.canary_copies == COPIES * 30
    stands = {name: 1 + list(drawn.copies.values()).count(name) for name in (*drawn.members, *drawn.canaries)}
    planned = dict(zip(drawn.canaries, drawn.canary_copies, strict=True)) | dict.fromkeys(drawn.planted, 4)
    assert stands == {name: planned.get(name, 1) for name in stands}
    for copy, original in drawn.copies.items():
        first, second = drawn.data.select([original]), drawn.data.select([copy])
        np.testing.assert_array_equal(first.images(), second.images())
        np.testing.assert_array_equal(first.labels, second.labels)
    assert drawn.data.ids[: 81 + 90] == drawn.members + drawn.nonmembers + drawn.canaries


def test_the_training_set_is_what_is_inside(drawn: Audit) -> None:
    def originals(images: ImageSet) -> list[str]:
        return sorted(drawn.copies.get(name, name) for name in images.ids)

    inserted = [name for name, coin in zip(drawn.canaries, drawn.inserted, strict=True) if coin]
    times = dict(zip(drawn.canaries, drawn.canary_copies, strict=True)) | dict.fromkeys(drawn.planted, 4)
    expected = [name for name in (*drawn.members, *inserted) for _ in range(times.get(name, 1))]
    assert originals(drawn.training) == sorted(expected)
    assert originals(drawn.member_training) == sorted(
        name for name in expected if name not in times or name in drawn.planted
    )
    rng = stream(1, "inside")
    some = Rows(rng.random(40) < 0.5, rng.random(41) < 0.5, rng.random(90) < 0.5)
    groups = zip(
        (drawn.members, drawn.nonmembers, drawn.canaries), (some.members, some.nonmembers, some.canaries), strict=True
    )
    chosen = [names[i] for names, mask in groups for i in np.flatnonzero(mask)]
    assert originals(drawn.training_of(some)) == sorted(name for name in chosen for _ in range(times.get(name, 1)))


def test_extraction_speaks_of_members_alone(drawn: Audit, digits: ImageSet) -> None:
    attack = GenerateAndFilter(samples=90, threshold=0.5)
    target = Asked(OptimalDenoiser(drawn.training), drawn, generated=drawn.groups["canaries"].images())
    assert attack.run(target, drawn, 0).member.max() < 40


def test_save_and_open(drawn: Audit, tmp_path: Path) -> None:
    drawn.save(tmp_path)
    again = Audit.open(tmp_path)
    for name in ("canaries", "inserted", "canary_copies", "calibration", "copies"):
        assert getattr(again, name) == getattr(drawn, name), name
    np.testing.assert_array_equal(again.training.images(), drawn.training.images())
    np.testing.assert_array_equal(again.inside.canaries, drawn.inside.canaries)
    ids = json.loads((tmp_path / "audit.json").read_text())
    del ids["calibration"]
    (tmp_path / "audit.json").write_text(json.dumps(ids))
    with pytest.raises(UserError, match=r"audit\.json: not an audit split of this version"):
        Audit.open(tmp_path)


def test_the_split_is_the_same_with_canaries_and_without(digits: ImageSet) -> None:
    plain = draw(digits, Split(members=40, nonmembers=41, planted=Planted(images=2, copies=4)), seed=3)
    audit = draw(digits, split_of(), seed=3)
    assert (plain.members, plain.nonmembers, plain.planted) == (audit.members, audit.nonmembers, audit.planted)
    assert plain.groups.keys() == {"members", "nonmembers"}
    assert plain.training.ids == plain.member_training.ids == audit.member_training.ids


def test_captions_go_with_images(digits: ImageSet) -> None:
    few = digits.take(np.arange(300))
    said = ImageSet.of(
        few.images(), list(few.ids), few.labels, few.label_names, tuple(f"digit {i}" for i in range(300))
    )
    own = draw(said, split_of(source="mislabelled"), seed=0).groups["canaries"]
    assert own.captions == said.select(own.ids).captions
    made = draw(said, split_of(source="noise"), seed=0).groups["canaries"]
    assert made.captions is not None
    assert len(set(made.captions)) == 90
    assert all(caption.startswith("canary ") for caption in made.captions)


def test_a_folder_of_canaries(digits: ImageSet, tmp_path: Path) -> None:
    rng = stream(0, "files")
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG and no more")
    canaries = Canaries(images=10, source="folder", path=tmp_path)
    rejected: list[Rejected] = []
    audit = draw(digits, Split(members=20, nonmembers=20, canaries=canaries), 0, rejected)
    assert [r.source for r in rejected] == ["canary/broken.png"]
    assert audit.groups["canaries"].shape == (8, 8, 1)
    assert all(":canary/" in name for name in audit.canaries)
    before = canaries.fingerprint()
    (tmp_path / "one more.png").write_bytes((tmp_path / "0.png").read_bytes())
    assert canaries.fingerprint() != before
    wide = ImageSet.of(rng.integers(0, 256, (50, 6, 8, 3), dtype=np.uint8), [f"wide/{i}" for i in range(50)])
    assert draw(wide, Split(members=20, nonmembers=20, canaries=canaries), 0).groups["canaries"].shape == (6, 8, 3)


def test_what_is_refused(digits: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.canaries\.images: 1718 canaries are wanted.*there are only 1717 "):
        draw(digits, Split(members=40, nonmembers=40, canaries=Canaries(images=1718, source="mislabelled")), 0)
    unlabelled = ImageSet.of(digits.images(), list(digits.ids))
    with pytest.raises(UserError, match="need data with two classes or more"):
        draw(unlabelled, split_of(source="mislabelled"), 0)
    assert draw(unlabelled, split_of(source="noise"), 0).groups["canaries"].labels is None
    for path, why in ((tmp_path / "none", "no such folder"), (tmp_path, "holds no image file")):
        with pytest.raises(UserError, match=why):
            draw(digits, Split(members=4, nonmembers=4, canaries=Canaries(images=1, source="folder", path=path)), 0)
    for wrong in ({"source": "folder"}, {"source": "noise", "path": tmp_path}):
        with pytest.raises(ValueError, match="path goes with source folder, and only with it"):
            Canaries(images=4, **wrong)
    problems: list = []
    built = build("unmem.evaluate.attacks", {"kind": "canary_audit", "base": {"kind": "blind"}}, "attacks[0]", problems)
    with_canaries = draw(digits, split_of(), 0)
    with pytest.raises(UserError, match="base Blind gives canaries no scores"):
        built.run(Asked(OptimalDenoiser(with_canaries.training), with_canaries), with_canaries, 0)


def figures(target: Asked, audit: Audit, **settings: object) -> dict[str, dict]:
    result = CanaryAudit(base=Loss(draws=4), **settings).run(target, audit, 0)
    return canary_figures(result, Compare(), 0)["estimates"]


def test_a_perfect_memory_shows_all_that_the_canaries_can(drawn: Audit, tmp_path: Path) -> None:
    target = Asked(OptimalDenoiser(drawn.training), drawn)
    result = CanaryAudit(selection="split").run(target, drawn, 0)
    save(result, tmp_path / "scores.npz")
    again = load(tmp_path / "scores.npz")
    assert isinstance(again, CanaryScores)
    assert bool(again.split) is True
    found = analyse(again, drawn, frozenset(), Compare(), 0)
    assert (found["type"], found["selection"], found["delta"]) == ("canaries", "split", 1e-5)
    estimates = found["estimates"]
    assert estimates["epsilon"]["n"]["canaries"] == 15  # of 30 with one copy a half is scored
    for name in ("epsilon", "epsilon_gdp"):
        assert 0.5 < estimates[name]["low"] == estimates[name]["value"]
        assert estimates[name]["high"] is None
    assert estimates["auc"]["value"] > 0.99
    left_out = estimates["auc"]["n"]["left_out"]
    for copies in COPIES:
        exposure = estimates[f"exposure[{copies}]"]
        assert exposure["value"] == exposure["high"] == pytest.approx(np.log2(left_out + 1))
        assert exposure["low"] < exposure["value"] - 1


def test_a_model_that_saw_no_canary_shows_nothing(drawn: Audit) -> None:
    found = figures(Asked(OptimalDenoiser(drawn.member_training), drawn), drawn)
    assert found["epsilon"]["value"] == found["epsilon_gdp"]["value"] == 0
    assert found["auc"]["low"] <= 0.5 <= found["auc"]["high"]
    for copies in COPIES:
        assert found[f"exposure[{copies}]"]["low"] <= 1.5


def test_the_bound_rests_on_single_copies_and_is_withheld_without(digits: ImageSet) -> None:
    audit = draw(digits, split_of(40, copies=(2, 3)), seed=0)
    found = figures(Asked(OptimalDenoiser(audit.training), audit), audit)
    assert found["epsilon"]["value"] is None
    assert "with one copy" in found["epsilon"]["note"]
    few = draw(digits, split_of(6, copies=(1, 3)), seed=0)
    found = figures(Asked(OptimalDenoiser(few.training), few), few)
    assert found["exposure[1]"]["value"] is None
    assert "needs 6 inserted" in found["exposure[1]"]["note"]


@pytest.fixture(scope="module")
def overfit(digits: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Audit, Asked]:
    """A small U-Net trained long on few members and the inserted canaries, by plain training."""
    torch.set_num_threads(1)
    canaries = Canaries(images=150, copies=(1, 1, 8), source="out_of_distribution")
    audit = draw(digits, Split(members=20, nonmembers=20, canaries=canaries), seed=0)
    config = Train(images=20_000, batch=64, lr=3e-3, decay="cosine", noise_schedule="cosine", ema=0.99, threads=1)
    data, directory = audit.training, tmp_path_factory.mktemp("canaries")
    rule = Plain(len(data), config, 0)
    train(
        data, UNet(channels=(16, 32), layers=1), config, rule, directory,
        key="k", seed=0, accelerator=make_accelerator(config),
    )  # fmt: skip
    return audit, Asked(Pixels(open_pipeline(directory / "pipeline"), "cpu"), audit)


def test_a_trained_model_shows_its_canaries_the_more_the_more_copies(overfit: tuple[Audit, Asked]) -> None:
    audit, target = overfit
    found = figures(target, audit)
    assert found["epsilon"]["low"] > 0.5
    assert found["auc"]["low"] > 0.7
    assert found["exposure[1]"]["low"] > 1
    assert found["exposure[8]"]["value"] > found["exposure[1]"]["value"] + 1


def test_it_shows_them_by_the_split_rule_too_and_never_by_strangers_coins(overfit: tuple[Audit, Asked]) -> None:
    audit, target = overfit
    assert figures(target, audit, selection="split")["epsilon"]["low"] > 0.3
    result = CanaryAudit(base=Loss(draws=4)).run(target, audit, 0)
    others = np.array([uniform_of(7, name, salt="coin") < 0.5 for name in audit.canaries])
    strangers = CanaryScores(**{**vars(result), "inserted": others})
    assert canary_figures(strangers, Compare(), 0)["estimates"]["epsilon"]["value"] == 0
