"""Arms that differ in sampling alone are trained once, and attacked as if each had been trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from unmem.recipes.recipe import Recipe, load
from unmem.recipes.runner import arms_of, phases, prepare, run
from unmem.rundir import read_json

RECIPE = """
schema: 1
data: {kind: digits, members: 24, nonmembers: 24}
model: {kind: unet, channels: [8], layers: 1}
train: {images: 64, batch: 16, threads: 1}
sampling: {steps: 2}
arms:
  guarded: [{kind: reject_copies}]
  baseline: []
  masked: [{kind: loss_mask}]
attacks: [{kind: nearest_distance, samples: 16}]
"""
WEIGHTS = "train/pipeline/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(RECIPE)
    return load(str(file))


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(recipe, tmp_path_factory.mktemp("whole") / "run", (), [])


def test_trained_once(whole: Path) -> None:
    files = [whole / "arms" / arm / WEIGHTS for arm in ("guarded", "baseline", "masked")]
    assert files[0].samefile(files[1])
    assert not files[0].samefile(files[2])
    assert read_json(whole / "arms/guarded/samples/refused.json")["samples"] == 16


def test_an_arm_alone_trains_the_same(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    alone = run(recipe, tmp_path / "run", ("baseline",), [])
    assert (alone / "arms/baseline" / WEIGHTS).read_bytes() == (whole / "arms/baseline" / WEIGHTS).read_bytes()
    assert not (alone / "arms/guarded").exists()
    run(recipe, alone, (), [])
    assert (alone / "arms/guarded" / WEIGHTS).samefile(alone / "arms/baseline" / WEIGHTS)


def test_who_takes_over_waits(recipe: Recipe, tmp_path: Path) -> None:
    prepare(recipe, tmp_path / "run")
    waves = [[job.arm for job in jobs] for jobs in phases(list(arms_of(tmp_path / "run").values()))]
    assert waves == [["guarded", "masked"], ["baseline"]]


def test_training_that_has_begun_goes_on(recipe: Recipe, whole: Path, tmp_path: Path) -> None:
    """Nothing is put in place of what is there already."""
    root = tmp_path / "run"
    prepare(recipe, root)
    arms_of(root)["baseline"].model_stages["train"].begin()
    run(recipe, root, (), [])
    weights = [root / "arms" / arm / WEIGHTS for arm in ("guarded", "baseline")]
    assert not weights[0].samefile(weights[1])
    assert weights[0].read_bytes() == weights[1].read_bytes()
