"""The model card says what is proven, what was measured and what neither covers, and names nobody's files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.recipes.test_report import GUARD, HASH, LAID_OUT, SPENT, TRAINED_WITH, comparison, cost, write  # noqa: F401
from unmem import cli
from unmem.component import UserError
from unmem.recipes.model_card import NAME
from unmem.recipes.model_card import write as write_card
from unmem.recipes.tables import counts, interval, number
from unmem.rundir import read_json, write_json

UNET = {"kind": "unet", "conditioning": "class", "saved_as": "pipeline"}


@pytest.fixture
def run(tmp_path: Path, comparison: dict[str, Any]) -> Path:  # noqa: F811
    for name, arm in comparison["arms"].items():
        arm |= {"model": UNET, "own": {}, "defences": [], "cost": {"train": cost(134.25), "samples": None}}
        for attack, report in arm["attacks"].items():
            report["needs"] = {"generate_and_filter": ["samples"], "blind": []}.get(attack, ["predictions"])
        assert name in ("baseline", "dp")
    dp = comparison["arms"]["dp"]
    dp |= {"defences": [TRAINED_WITH], "privacy": SPENT | LAID_OUT, "mitigations": [{"kind": "dp_sgd", "clip": 0.1}]}
    return write(tmp_path, comparison)


def front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The YAML at the head, and the rest."""
    empty, head, rest = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(head), rest


def card(root: Path, arm: str | None = "dp") -> str:
    return write_card(root, arm).read_text(encoding="utf-8")


def test_front_matter_is_what_hugging_face_reads_and_leaves_the_licence_open(run):
    head, _ = front_matter(card(run))
    assert head == {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["unmem", "memorization", "membership-inference", "differential-privacy"],
    }
    assert "# license: yours to choose" in card(run)
    assert "differential-privacy" not in front_matter(card(run, "baseline"))[0]["tags"]
    found = read_json(run / "comparison.json")
    found["arms"]["dp"]["model"] = {"kind": "gan", "conditioning": "none", "saved_as": "generator"}
    found["arms"]["baseline"]["model"] = UNET | {"conditioning": "text"}
    write_json(run / "comparison.json", found)
    assert front_matter(card(run))[0].keys() == {"tags"}  # no diffusers folder
    assert front_matter(card(run, "baseline"))[0]["pipeline_tag"] == "text-to-image"


def test_card_has_its_sections_and_every_figure_with_interval_and_counts(run):
    _, text = front_matter(card(run))
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads == [
        "# holiday &lt;b&gt;: dp", "## Training data", "## Memorization and privacy", "### What is proven",
        "### What was measured", "### What neither covers", "## Mitigations", "## Quality", "## How to reproduce",
    ]  # fmt: skip
    arm = read_json(run / "comparison.json")["arms"]["dp"]
    for attack, figures in (("generate_and_filter", ("extracted", "false_positives")), ("loss", ("auc",))):
        for figure in figures:
            found = arm["attacks"][attack]["estimates"][figure]
            (row,) = [
                line for line in text.splitlines()
                if line.startswith(f"| {attack} | ") and f"| {counts(found)} |" in line and interval(found) in line
                and number(found["value"], found["low"], found["high"]) in line
            ]  # fmt: skip
            assert row.count("|") == 7
    assert "withheld" in text
    assert "> Caution: members can be told apart." in text
    assert "| frechet | 7.77 | 7.56–8.00 | lower |" in text
    assert "torch 2.9" in text
    assert "train: 96000 images, 134.2 s, 812.4 MiB at most" in text


def test_what_is_proven_comes_with_its_assumptions(run):
    text = card(run)
    for expected in (
        "ε = 9.9943 and δ = 0.0005", "unit: one image", "add or remove one", "accountant: PRV", "Poisson, rate 0.32",
        "noise multiplier 3.10059", "the 800 images that near\\_duplicates left", "without amplification: ε = 56.6283",
        "Not under the guarantee: the loss curve.",
    ):  # fmt: skip
        assert expected.replace("\\_", "_") in text
    assert "Nothing: no part of the training carries a guarantee." in card(run, "baseline")
    found = read_json(run / "comparison.json")
    found["arms"]["dp"]["privacy"] |= {"void": "the seed is known"}
    found["arms"]["dp"]["measured"] = [{"attack": "canary_audit", "epsilon": {}, "contradicts": True}]
    write_json(run / "comparison.json", found)
    text = card(run)
    assert "The guarantee that was planned is void: the seed is known." in text
    assert "9.9943" not in text
    assert "differential-privacy" not in text
    assert "**Refuted: canary_audit measures more than what is proven." in text


def test_what_neither_covers_follows_from_what_was_run(run):
    text = card(run, "baseline")
    assert "No attack asked for the network's gradients." in text
    assert "No attack asked for what the network predicts." not in text
    assert "No attacker who trains models of the same kind was tried." in text
    found = read_json(run / "comparison.json")
    arm = found["arms"]["baseline"]
    arm |= {"defences": [GUARD], "mitigations": [{"kind": "reject_copies"}]}
    arm["attacks"] = {"loss": arm["attacks"]["loss"] | {"needs": ["gradients", "shadows"]}}
    found["shadows"] = 8
    write_json(run / "comparison.json", found)
    text = card(run, "baseline")
    assert (
        "reject_copies steps into sampling and is no part of the weights: whoever has these runs them without" in text
    )
    assert "No attack looked at samples" in text
    assert "No attacker who trains" not in text
    assert "adaptive: past it, the network itself is asked by loss" in text


def test_card_holds_no_name_and_no_id(run):
    found = read_json(run / "comparison.json")
    found["arms"]["dp"] |= {
        "mitigations": [{"kind": "dp_sgd", "clip": 0.1, "keep": "/srv/alice/keep.txt"}],
        "own": {"model": {"kind": "unet", "start": "/srv/alice/weights", "layers": 3}},
    }
    write_json(run / "comparison.json", found)
    for arm in ("dp", "baseline"):
        text = card(run, arm)
        for word in ("alice", "private", "holiday.", "script", HASH, "keep.txt", ".yaml", "data:image"):
            assert word not in text
    assert "dp_sgd clip 0.1" in card(run)
    assert "model of this arm, where it differs from the recipe's: unet layers 3" in card(run)


def test_a_card_of_little_renders(run):
    found = read_json(run / "comparison.json")
    bare = {
        key: value
        for key, value in found["arms"]["baseline"].items()
        if key not in ("model", "own", "defences", "cost")
    }
    found["arms"] = {"only": bare | {"attacks": {}, "quality": {}, "trained": False, "training_images": None}}
    found["verdict"] = []
    write_json(run / "comparison.json", found)
    (run / "provenance.json").unlink()
    text = card(run, None)
    for expected in ("Nothing: no attack was run.", "Not measured.", "no provenance was recorded", "a finished model"):
        assert expected in text


def test_bad_input_is_one_error(run, tmp_path):
    with pytest.raises(UserError, match="has 2 finished arms; choose one by --arm: baseline, dp"):
        write_card(run)
    with pytest.raises(UserError, match="--arm dpp: no such finished arm, did you mean 'dp'"):
        write_card(run, "dpp")
    taken = tmp_path / "README.md"
    taken.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_card(run, "dp", taken)
    assert taken.read_text() == "mine"
    with pytest.raises(UserError, match=r"comparison\.json: no such file"):
        write_card(tmp_path / "nothing")
    found = read_json(run / "comparison.json")
    del found["arms"]["dp"]["quality"]
    write_json(run / "comparison.json", found)
    with pytest.raises(UserError, match=r"comparison\.json: not a comparison of this version"):
        write_card(run, "dp")


def test_the_command_says_where_the_card_lies(run, monkeypatch, capsys, tmp_path):
    for more, place in ([], run / "arms" / "dp" / NAME), (["--out", str(tmp_path / "new.md")], tmp_path / "new.md"):
        monkeypatch.setattr(sys, "argv", ["unmem", "card", str(run), "--arm", "dp", *more])
        cli.main()
        assert capsys.readouterr().out.strip() == str(place)
        assert place.read_text().startswith("---\n")
    monkeypatch.setattr(sys, "argv", ["unmem", "card", str(run)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "choose one by --arm" in capsys.readouterr().err
