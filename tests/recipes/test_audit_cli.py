"""Audits of finished models by the command line: whole runs, wrong input, risk lists, and limits."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import pipelines
from tests.recipes.test_cli import unmem
from tests.recipes.test_run import outcome
from unmem import progress
from unmem.component import UserError
from unmem.evaluate.results import Scores, load
from unmem.mitigations.dedup.perceptual import codes_of_arrays, flat_of_arrays
from unmem.mitigations.near_duplicates import NearDuplicates
from unmem.recipes import yaml_file
from unmem.recipes.auditing import audit_recipe, data_set
from unmem.recipes.check import Limit, check
from unmem.recipes.fleet import Job
from unmem.recipes.given import Given
from unmem.recipes.recipe import check as read_recipe
from unmem.recipes.risk import Exposure
from unmem.recipes.runner import prepare, run_job
from unmem.train.fine_tuning import SHIPPED
from unmem.train.imageset import ImageSet, Rejected

MODEL = SHIPPED / "digits8"
FAST = ("--set", "sampling.steps=2", "--set", "attacks.loss.draws=1")


def pictures(folder: Path, images: np.ndarray, labels: np.ndarray, captions: list[str] | None = None) -> Path:
    """Images uint8 [n, h, w] as PNG files in folders of their classes, with captions beside them."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = folder / str(label) / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
        if captions is not None:
            file.with_suffix(".txt").write_text(captions[i])
    return folder


@pytest.fixture(scope="module")
def data(digits: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 members in a folder, the first two alike; 122 non-members in an archive, the last two in both sets.

    Of those two one is a member's very pixels, the other a member that was touched up.
    """
    folder = tmp_path_factory.mktemp("data")
    images, labels = digits.images()[..., 0], digits.labels
    assert labels is not None
    members = np.concatenate([images[:1], images[:29]])
    pictures(folder / "members", members, np.concatenate([labels[:1], labels[:29]]))
    touched = images[5].copy()
    touched[0, 0] ^= 1
    np.savez(
        folder / "held_out.npz",
        x=np.concatenate([images[100:220], images[3:4], touched[None]]),
        y=np.concatenate([labels[100:220], labels[[3, 5]]]),
    )
    pictures(folder / "large", np.kron(images[300:304], np.ones((1, 2, 2), np.uint8)), labels[300:304])
    return folder


def audit(data: Path, *more: object, nonmembers: str = "held_out.npz") -> tuple[str, ...]:
    """A command."""
    sets = "--members", data / "members", "--nonmembers", data / nonmembers
    return tuple(map(str, ("audit", "--model", MODEL, *sets, *more)))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished audit, with samples and the list of members."""
    root = tmp_path_factory.mktemp("runs") / "whole"
    code, out, err = unmem(*audit(data, *FAST, "--samples", 24, "--per-image", "--out", root))
    assert code == 0, err
    assert "digits8: " in out
    assert f"report: {root / 'report.html'}" in out
    assert f"member by member: {root / 'risk.csv'}" in out
    return root


def test_a_whole_audit(whole: Path, data: Path) -> None:
    comparison = json.loads((whole / "comparison.json").read_text())
    names = ["loss", "sima", "pia", "pian", "secmi", "blind", "generate_and_filter", "nearest_distance"]
    assert list(comparison["arms"]["digits8"]["attacks"]) == names
    assert comparison["data"]["kind"] == "given"
    assert (comparison["data"]["members"], comparison["data"]["nonmembers"]) == (30, 120)
    assert "digits8" in (whole / "report.html").read_text()
    recipe = yaml_file.read(whole / "recipe.yaml")
    assert recipe["data"]["members"] == {
        "kind": "image_folder", "path": str(data / "members"), "size": 8, "channels": 1,
    }  # fmt: skip
    assert recipe["targets"] == {"digits8": {"kind": "pipeline", "path": str(MODEL), "then": []}}
    assert recipe["matrix"] == {"batch": 256, "precision": "no", "generated": 24}
    again = read_recipe(recipe, "again")
    assert again is not None
    assert again.resolved == recipe
    scores = load(whole / "arms" / "digits8" / "attacks" / "loss" / "scores.npz")
    assert isinstance(scores, Scores)
    assert (len(scores.members), len(scores.nonmembers), len(scores.generated)) == (30, 120, 24)


def test_nonmembers_that_are_members_are_left_out_and_named(whole: Path) -> None:
    exact, near = json.loads((whole / "quarantine.json").read_text())
    assert exact["source"].endswith("held_out/x/000120")
    assert exact["reason"].startswith("has the pixels of the member ")
    assert exact["reason"].endswith("004.png")
    assert near["source"].endswith("held_out/x/000121")
    assert near["reason"].startswith("looks like the member ")
    assert "006.png (" in near["reason"]
    ids = json.loads((whole / "audit.json").read_text())
    assert not set(ids["nonmembers"]) & {exact["source"], near["source"]}
    half = set(ids["calibration"])
    assert len(half & set(ids["nonmembers"])) == 60
    assert len(half & set(ids["members"])) == 14  # of 29 pictures, since the two that are equal stay together


def test_classes_that_are_numbers_are_the_models(whole: Path) -> None:
    index = json.loads((whole / "data" / "index.json").read_text())
    assert index["label_names"] == [str(i) for i in range(10)]
    files = {name.split(":", 1)[1]: label for name, label in zip(index["ids"], index["labels"], strict=True)}
    assert all(int(name[0]) == label for name, label in files.items() if name.endswith(".png"))


def test_the_same_command_again_does_nothing(whole: Path, data: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*.json") if file.name != "risk.json"}
    listed = (whole / "risk.json").read_bytes()
    code, out, _ = unmem(*audit(data, *FAST, "--samples", 24, "--per-image", "--out", whole))
    assert code == 0
    assert "nothing to do" in out
    assert before == {file: file.stat().st_mtime_ns for file in whole.rglob("*.json") if file.name != "risk.json"}
    assert (whole / "risk.json").read_bytes() == listed


def test_killed_and_started_again(whole: Path, data: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    command = audit(data, *FAST, "--samples", 24, "--per-image", "--out", root)
    with subprocess.Popen(
        [sys.executable, "-m", "unmem", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wanted, until = root / "arms" / "digits8" / "samples" / "key.json", time.monotonic() + 60
        while not wanted.exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert wanted.exists()
    assert not (root / "comparison.json").exists()
    assert unmem(*command)[0] == 0
    assert outcome(root) == outcome(whole)
    assert (root / "risk.csv").read_text() == (whole / "risk.csv").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model", "no_such_model"), "no_such_model: no such folder"),
        (("--model", "."), "holds no model_index.json"),
        (("--members", "no_such_data"), "--members no_such_data: no such file or folder"),
        (("--nonmembers", __file__), "test_audit_cli.py: is neither a folder nor an .npz file"),
        (("--attacks", "loss,simo"), "--attacks simo: no such attack, did you mean 'sima'?; have "),
        (("--attacks", "lira"), "attacks.lira: needs shadow models, trained as the audited one was"),
        (("--attacks", "nearest_distance"), "say how many with --samples"),
        (("--attacks", "clid"), "attacks.clid: needs images with captions"),
        (("--captions", "text"), "whose captions are found by themselves"),
        (("--set", "attacks.loss.drows=2"), "unmem audit: attacks[0].drows: unknown field, did you mean 'draws'?"),
        (("--set", "data.members.siz=8"), "unmem audit: data.members.siz: unknown field, did you mean 'size'?"),
        (("--precision", "fp8"), "'fp8' is not one of"),
    ],
)
def test_bad_input_is_one_message(data: Path, tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    code, _, err = unmem(*audit(data, *more, "--out", tmp_path / "run"))
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("nonmembers", "message"),
    [
        ("members", "data.nonmembers: is the same data set as data.members"),
        ("members/../members", "of 30 images 30 are, or look like, members; 0 left"),
    ],
)
def test_sets_that_do_not_go_together(data: Path, tmp_path: Path, nonmembers: str, message: str) -> None:
    code, _, err = unmem(*audit(data, "--out", tmp_path / "run", nonmembers=nonmembers))
    assert code == 2
    assert message in err


def test_images_that_the_model_is_not_for(data: Path, tmp_path: Path) -> None:
    recipe = audit_recipe(MODEL, data / "members", data / "large", size=16)
    prepare(recipe, tmp_path / "run")
    with pytest.raises(UserError, match="is for 8x8 images with 1 channel; these are 16x16"):
        run_job(Job(tmp_path / "run", "digits8", "model"))


def test_sizes_that_differ(data: Path, tmp_path: Path) -> None:
    sizes = ("--set", "data.members.size=16")
    code, _, err = unmem(*audit(data, *sizes, "--out", tmp_path / "run"))
    assert code == 2
    assert "members are 16 x 16 grey, nonmembers 8 x 8 grey; bring both to one `size`" in err


def test_no_samples_of_latents_by_class(data: Path, tmp_path: Path) -> None:
    model = tmp_path / "latents"
    parts = {"unet": "UNet2DModel", "vae": "AutoencoderKL"}
    for part in parts:
        (model / part).mkdir(parents=True)
        (model / part / "config.json").write_text('{"sample_size": 4, "num_class_embeds": 11}')
    index = {"_class_name": "LDMPipeline", **{name: ["diffusers", part] for name, part in parts.items()}}
    (model / "model_index.json").write_text(json.dumps(index))
    code, _, err = unmem(*audit(data, "--model", model, "--samples", 8))
    assert code == 2
    assert "--samples: " in err
    assert "is a LDMPipeline, of which no images can be drawn here" in err


def test_a_text_conditional_model(digits: ImageSet, tmp_path: Path) -> None:
    """The size is the autoencoder's, clid comes by itself, and one member is enough."""
    model = pipelines.stable_diffusion(tmp_path / "model of mine")
    images, captions = digits.images()[..., 0], [f"a digit, number {i}" for i in range(40)]
    some = np.zeros(40, dtype=int)
    pictures(tmp_path / "members", images[:1], some[:1], captions[:1])
    pictures(tmp_path / "held_out", images[40:60], some[:20], captions[:20])
    root = tmp_path / "run"
    sets = "--members", tmp_path / "members", "--nonmembers", tmp_path / "held_out"
    changes = "--set", "attacks.loss.draws=1", "--set", "attacks.secmi=null"
    code, _, err = unmem("audit", "--model", model, *sets, *changes, "--out", root)
    assert code == 0, err
    recipe = yaml_file.read(root / "recipe.yaml")
    assert list(recipe["targets"]) == ["model_of_mine"]
    assert recipe["data"]["members"]["size"] == 8
    assert [attack["kind"] for attack in recipe["attacks"]] == ["loss", "sima", "pia", "pia", "blind", "clid"]
    assert (root / "report.html").exists()


# Given data.


class Held:
    """A data set that is in memory."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def load(self, scratch: Path) -> tuple[ImageSet, list[Rejected]]:
        return self.images, [Rejected("broken.png", "no image")]


def test_what_only_one_of_the_sets_has_is_not_used(
    digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)
    texts = tuple(f"picture {i}" for i in range(40))
    members, nonmembers = digits.take(np.arange(40)), digits.take(np.arange(100, 140))
    sets = Given(Held(replace(members, captions=texts)), Held(replace(nonmembers, labels=None)))
    split, left_out = sets.audit(tmp_path, seed=0)
    assert "data: the members alone have classes; they are not used" in said
    assert "data: the members alone have captions; they are not used" in said
    assert (split.data.labels, split.data.captions) == (None, None)
    assert [entry.source for entry in left_out[:2]] == ["members: broken.png", "nonmembers: broken.png"]
    assert np.array_equal(split.member_images.images(), members.select(split.members).images())


def test_classes_of_both_sets_have_one_numbering(digits: ImageSet, tmp_path: Path) -> None:
    def some(first: int, names: tuple[str, ...]) -> Held:
        labels = np.arange(20) % len(names)
        return Held(replace(digits.take(np.arange(first, first + 20)), labels=labels, label_names=names))

    for ours, theirs, names in (
        (("3", "10"), ("0", "3"), tuple(str(i) for i in range(11))),
        (("cat", "dog"), ("ant", "cat"), ("ant", "cat", "dog")),
        (("07", "8"), ("8",), ("07", "8")),
    ):
        split, _ = Given(some(0, ours), some(100, theirs)).audit(tmp_path, seed=0)
        assert split.data.label_names == names
        for side, original, known in (
            (split.members, some(0, ours), ours),
            (split.nonmembers, some(100, theirs), theirs),
        ):
            found, before = split.data.select(side).labels, original.images.select(side).labels
            assert found is not None
            assert [names[label] for label in found] == [known[label] for label in before]


def test_a_single_nonmember_is_too_few(digits: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of 1 images 0 are, or look like, members; 1 left, but 2 are needed"):
        Given(Held(digits.take(np.arange(1))), Held(digits.take(np.arange(100, 101)))).audit(tmp_path, seed=0)


def test_repeated_images_by_brute_force(digits: ImageSet) -> None:
    data, others, rng = digits.take(np.arange(0, 200)), digits.take(np.arange(200, 500)), np.random.default_rng(0)
    found = NearDuplicates(max_distance=6).repeated(others, data, rng)
    codes = [codes_of_arrays(part.images(), "phash")[:, 0] for part in (others, data)]
    firm = [~flat_of_arrays(part.images()) for part in (others, data)]
    bits = np.array([[int(a ^ b).bit_count() for b in codes[1]] for a in codes[0]])
    near = (bits <= 6) & firm[0][:, None] & firm[1]
    assert sorted(entry.id for entry in found) == sorted(others.ids[i] for i in np.flatnonzero(near.any(1)))
    assert len(found) > 5
    for entry in found:
        assert entry.distance == bits[others.ids.index(entry.id), data.ids.index(entry.kept)]
    assert NearDuplicates().repeated(others.take(np.arange(0)), data, rng) == []


def test_repeated_images_that_were_turned(digits: ImageSet) -> None:
    images = digits.images()[:50]
    data, turned = digits.take(np.arange(50)), ImageSet.of(np.rot90(images, axes=(1, 2)), [f"{i}" for i in range(50)])
    rng = np.random.default_rng(0)
    found = NearDuplicates(max_distance=2, dihedral=True).repeated(turned, data, rng)
    assert sum(turned.ids.index(entry.id) == data.ids.index(entry.kept) for entry in found) > 45
    assert len(NearDuplicates(max_distance=2).repeated(turned, data, rng)) < 5


def test_the_kind_of_data_goes_by_the_path(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "state.json").write_text("{}")
    assert data_set("--members", saved, 32, 3, "text") == {
        "kind": "huggingface", "path": str(saved), "size": 32, "channels": 3, "caption": "text",
    }  # fmt: skip
    archive = tmp_path / "set.npz"
    assert data_set("--members", archive, 32, 3, None) == {"kind": "npz", "path": str(archive)}
    assert data_set("--members", tmp_path, None, None, None) == {"kind": "image_folder", "path": str(tmp_path)}


GIVEN = """
schema: 1
data:
  members: {kind: image_folder, path: members, size: 8, channels: 1}
  nonmembers: {kind: npz, path: held_out.npz}
model: {kind: unet, channels: [8, 16], layers: 1, conditioning: class}
train: {images: 64, batch: 32, lr: 3e-3, threads: 1}
arms: {dedup: [{kind: exact_duplicates}], plain: []}
matrix: {generated: 0}
attacks: [{kind: loss, draws: 1}]
compare: {against: dedup}
"""


def test_arms_may_be_trained_on_given_members(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "given.yaml"
    file.write_text(GIVEN.replace("path: ", f"path: {data}/"))
    assert unmem("validate", file)[0] == 0
    root = tmp_path / "run"
    code, _, err = unmem("run", file, "--out", root, "--arm", "dedup")
    assert code == 0, err
    code, out, err = unmem("risk", root)
    assert code == 0, err
    assert "dedup: " in out
    (members,) = json.loads((root / "risk.json").read_text())["arms"].values()
    by_name = {member["id"].split(":")[1]: member for member in members}
    assert by_name["0/000.png"]["copies"] == by_name["0/001.png"]["copies"] >= 2
    assert [name for name, member in by_name.items() if not member["trained_on"]] == ["0/001.png"]
    code, _, err = unmem("risk", root, "--arm", "dedub")
    assert code == 2
    assert "--arm dedub: no such finished arm, did you mean 'dedup'?" in err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("path: members, ", "", "data.members.path: is required"),
        ("kind: npz", "kind: npx", "data.nonmembers.kind: unknown kind 'npx', did you mean 'npz'?"),
        ("data:", "data:\n  kind: digits", "data.kind: goes with members that are drawn from one data set"),
        ("data:", "data:\n  planted: {images: 1, copies: 2}", "data.planted: goes with members that are drawn"),
        ("data:", "data:\n  size: 3", "data.size: unknown field; have members, nonmembers"),
        ("nonmembers: {kind: npz, path: held_out.npz}", "nonmembers: 30", "data.nonmembers: needs a mapping with"),
    ],
)
def test_validate_names_the_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "given.yaml"
    assert old in GIVEN
    file.write_text(GIVEN.replace(old, new, 1))
    code, _, err = unmem("validate", file)
    assert code == 2
    assert f"given.yaml: {message}" in err


# Member by member.


def test_p_values_and_ranks_by_hand() -> None:
    scores = Scores(members=np.array([3.0, 1.0, 5.0, 3.0]), nonmembers=np.array([3.0, 0.0, 2.0, 4.0]))
    found = Exposure.of(scores)
    assert found.p.tolist() == [3 / 5, 4 / 5, 1 / 5, 3 / 5]  # two of the non-members score at least 3
    assert found.rank.tolist() == [2, 4, 1, 2]
    learnt = Scores(
        scores.members, scores.nonmembers,
        fitted_members=np.array([False, False, True, False]),
        fitted_nonmembers=np.array([True, False, False, False]),
    )  # fmt: skip
    found = Exposure.of(learnt)
    assert found.tested.tolist() == [True, True, False, True]
    assert found.p[[0, 1, 3]].tolist() == [2 / 4, 3 / 4, 2 / 4]
    assert found.rank[[0, 1, 3]].tolist() == [1, 3, 1]


def test_the_list_of_members(whole: Path) -> None:
    found = json.loads((whole / "risk.json").read_text())
    assert (found["members"], found["nonmembers"]) == (30, 120)
    members = found["arms"]["digits8"]
    ids = json.loads((whole / "audit.json").read_text())
    assert sorted(member["id"] for member in members) == sorted(ids["members"])
    assert [member["risk"] for member in members] == sorted(member["risk"] for member in members)
    assert all(member["trained_on"] for member in members)
    twins = [member for member in members if member["id"].endswith((":0/000.png", ":0/001.png"))]
    assert len(twins) == 2
    assert all(member["copies"] >= 2 for member in twins)
    assert sum(member["copies"] == 1 for member in members) > 15
    scores = {
        name: load(whole / "arms" / "digits8" / "attacks" / name / "scores.npz")
        for name in ("loss", "sima", "pia", "pian", "secmi")
    }
    for member in members:
        assert list(member["attacks"]) == list(scores)  # blind never sees the model, the others score no members
        i = ids["members"].index(member["id"])
        for name, word in member["attacks"].items():
            mine = scores[name].members[i]
            assert word["score"] == mine
            assert word["p"] == (1 + sum(other >= mine for other in scores[name].nonmembers)) / 121
            assert word["rank"] == 1 + sum(other > mine for other in scores[name].members)
        assert member["risk"] == min(1.0, 5 * min(word["p"] for word in member["attacks"].values()))
    rows = list(csv.DictReader((whole / "risk.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == [member["id"] for member in members]
    assert [float(row["secmi_p"]) for row in rows] == [member["attacks"]["secmi"]["p"] for member in members]
    assert [row["place"] for row in rows] == [str(i) for i in range(1, 31)]
    assert json.loads(unmem("risk", whole, "--json")[1]) == found


def test_risk_needs_scores_of_members(whole: Path, tmp_path: Path) -> None:
    code, _, err = unmem("risk", tmp_path)
    assert code == 2
    assert "holds no finished run" in err
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    comparison = json.loads((root / "comparison.json").read_text())
    attacks = comparison["arms"]["digits8"]["attacks"]
    comparison["arms"]["digits8"]["attacks"] = {"blind": attacks["blind"]}
    (root / "comparison.json").write_text(json.dumps(comparison))
    code, _, err = unmem("risk", root)
    assert code == 2
    assert "no attack on digits8 scores members" in err


# Limits.


def estimate(value: float | None, low: float | None = None, high: float | None = None, note: str = "", **n: int):
    return {"value": value, "low": low, "high": high, "n": n, "note": note}


def an_arm(tpr: float, epsilon: float | None = None, measured: float = 0.0, found: int = 1, fid: float = 4.0):
    attacks = {
        name: {"type": "membership", "kind": name, "estimates": {
            "tpr_at_fpr[0.01]": estimate(value, value / 2, value * 2),
            "tpr_at_fpr[0.001]": estimate(None, note="withheld: needs 10,000 nonmembers"),
            "permutation_p_value": estimate(0.5),
        }}
        for name, value in (("loss", tpr), ("blind", 0.9))
    }  # fmt: skip
    counted = {"extracted": estimate(found / 40, 0.0, 0.1, successes=found, trials=40)}
    attacks["draw"] = {"type": "extraction", "kind": "generate_and_filter", "estimates": counted}
    privacy = None if epsilon is None else {"epsilon": epsilon, "delta": 1e-5, "void": None}
    contradicts = epsilon is not None and measured > epsilon
    audits = [{"attack": "coins", "epsilon": estimate(measured, measured), "contradicts": contradicts}]
    quality = {
        "frechet": {"better": "lower", "estimate": estimate(fid, fid - 1, fid + 1)},
        "classifier": {"better": "higher", "estimate": estimate(0.8, 0.7, 0.9)},
    }
    return {"attacks": attacks, "quality": quality, "privacy": privacy, "measured": audits if privacy else []}


RUN = {"arms": {"plain": an_arm(0.04), "dp": an_arm(0.02, epsilon=4.0, found=0)}, "unfinished": []}


@pytest.mark.parametrize(
    ("most", "quality", "options", "failed"),
    [
        ("tpr_at_fpr[0.01]=0.05", None, {}, []),
        ("tpr_at_fpr[0.01]=0.04", None, {}, []),
        ("tpr_at_fpr[0.01]=0.03", None, {}, ["plain: loss.tpr_at_fpr[0.01] 0.04 (0.02 to 0.08): above the limit 0.03"]),
        ("tpr_at_fpr[0.01]=0.05", None, {"by": "interval"},
         ["plain: loss.tpr_at_fpr[0.01] 0.04 (0.02 to 0.08): upper end above the limit 0.05"]),
        ("tpr_at_fpr[0.01]=0.03", None, {"only": ("dp",)}, []),
        ("blind.tpr_at_fpr[0.01]=0.5", None, {"only": ("dp",)},
         ["dp: blind.tpr_at_fpr[0.01] 0.9 (0.45 to 1.8): above the limit 0.5"]),
        ("loss.tpr_at_fpr[0.001]=1", None, {"only": ("dp",)},
         ["dp: loss.tpr_at_fpr[0.001]: withheld: needs 10,000 nonmembers"]),
        ("extracted=1", None, {}, []),
        ("extracted=0", None, {}, ["plain: draw.extracted 1 (0 to 4): above the limit 0"]),
        ("extracted=3", None, {"by": "interval", "only": ("dp",)},
         ["dp: draw.extracted 0 (0 to 4): upper end above the limit 3"]),
        ("epsilon=8", None, {}, ["plain: epsilon: nothing is proven"]),
        ("epsilon=8", None, {"only": ("dp",), "by": "interval"}, []),
        ("epsilon=3", None, {"only": ("dp",)}, ["dp: epsilon at delta 1e-05 4: above the limit 3"]),
        (None, "frechet=4", {}, []),
        (None, "frechet=4", {"by": "interval", "only": ("dp",)},
         ["dp: frechet 4 (3 to 5): upper end above the limit 4"]),
        (None, "classifier=0.75", {}, []),
        (None, "classifier=0.85", {"only": ("dp",)}, ["dp: classifier 0.8 (0.7 to 0.9): below the limit 0.85"]),
        (None, "classifier=0.75", {"by": "interval", "only": ("dp",)},
         ["dp: classifier 0.8 (0.7 to 0.9): lower end below the limit 0.75"]),
    ],
)  # fmt: skip
def test_limits(most: str | None, quality: str | None, options, failed: list[str]) -> None:
    limits = [[Limit.parse("", text)] if text else [] for text in (most, quality)]
    found = check(RUN, *limits, **options)
    assert found
    assert [str(finding) for finding in found if not finding.passed] == failed


def test_an_epsilon_that_is_no_proof_keeps_no_limit() -> None:
    limit = [Limit("epsilon", 8.0)]
    refuted = {"arms": {"dp": an_arm(0.1, epsilon=4.0, measured=5.0)}, "unfinished": []}
    (failed,) = (finding for finding in check(refuted, limit, []) if not finding.passed)
    assert str(failed) == "dp: coins.epsilon 5: above the limit 4"
    void = {"arms": {"dp": an_arm(0.1, epsilon=4.0)}, "unfinished": []}
    void["arms"]["dp"]["privacy"]["void"] = "seed known"
    assert str(check(void, limit, [])[0]) == "dp: epsilon: no guarantee (seed known)"


def test_an_arm_that_is_missing_keeps_no_limit() -> None:
    limit = [Limit("tpr_at_fpr[0.01]", 1.0)]
    unfinished = {**RUN, "unfinished": ["dedup"]}
    assert [str(f) for f in check(unfinished, limit, []) if not f.passed] == ["dedup: is not finished"]
    assert [f.passed for f in check(unfinished, limit, [], only=("dp",))] == [True]
    lacking = an_arm(0.1)
    del lacking["attacks"]["loss"]
    found = check({"arms": {"plain": an_arm(0.1), "other": lacking}, "unfinished": []}, limit, [])
    assert [str(f) for f in found if not f.passed] == ["other: tpr_at_fpr[0.01]: this arm has no such figure"]


@pytest.mark.parametrize(
    ("most", "quality", "only", "message"),
    [
        ("tpr_at_fpr[0.1]=1", None, (), "did you mean 'tpr_at_fpr[0.01]'?"),
        ("lost.extracted=1", None, (), "no such figure"),
        ("permutation_p_value=0.1", None, (), "the smaller a p-value, the surer the leak"),
        (None, "freshet=1", (), "--min-quality freshet: no such figure, did you mean 'frechet'?"),
        ("extracted=1", None, ("plane",), "--arm plane: no such arm, did you mean 'plain'?"),
        (None, None, (), "nothing to check"),
    ],
)
def test_unknown_names_are_bad_input(most: str | None, quality: str | None, only, message: str) -> None:
    limits = [[Limit.parse("", text)] if text else [] for text in (most, quality)]
    with pytest.raises(UserError) as error:
        check(RUN, *limits, only=only)
    assert message in str(error.value)


def test_exit_codes_of_check(whole: Path, tmp_path: Path) -> None:
    code, out, _ = unmem("check", whole, "--max", "auc=1", "--max", "extracted=30", "--arm", "digits8")
    assert code == 0
    assert "6 figures within their limits" in out  # five attacks on membership, one extraction
    code, out, err = unmem("check", whole, "--max", "auc=0.01", "--max", "extracted=30")
    assert code == 1
    assert len(err.splitlines()) == 5
    assert "digits8: loss.auc 0." in err
    code, out, _ = unmem("check", whole, "--max", "loss.auc=0.01", "--max", "tpr_at_fpr[0.01]=1", "--json")
    assert code == 1
    found = json.loads(out)
    assert found["passed"] is False
    assert found["checks"][0]["figure"] == "loss.auc"
    withheld = [entry for entry in found["checks"] if "tpr_at_fpr" in entry["figure"]]
    assert all(not entry["passed"] and entry["reason"].startswith("withheld: ") for entry in withheld)
    for wrong in (
        ("--max", "auk=1"),
        ("--max", "auc"),
        ("--max", "auc=nan"),
        ("--arm", "digit8", "--max", "auc=1"),
        (),
    ):
        assert unmem("check", whole, *wrong)[0] == 2
    assert unmem("check", tmp_path, "--max", "auc=1")[0] == 2
