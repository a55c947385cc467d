"""Whole runs with attacks that draw from the model by themselves: a stage of their own, resumed, in the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import pipelines
from tests.recipes.test_schemas import check as fit_schemas
from unmem.component import UserError
from unmem.recipes import fleet, runner
from unmem.recipes.auditing import audit_recipe
from unmem.recipes.execution import run_model
from unmem.recipes.recipe import Recipe, check
from unmem.recipes.runner import arm_of, prepare, run
from unmem.rundir import read_json
from unmem.train.imageset import ImageSet

GUIDED = {
    "kind": "surrogate_guided", "samples": 40, "threshold": 0.9, "clusters": 4, "cohesion": 0.0, "images": 640,
    "batch": 32, "width": 8,
}  # fmt: skip
SCREEN = {"kind": "prompt_screen", "rule": {"kind": "prompted_extraction", "tiles": 2, "clique": 3}, "draws": 2}
PLAIN: dict[str, Any] = {
    "schema": 1,
    "data": {"kind": "digits", "members": 40, "nonmembers": 40},
    "model": {"kind": "unet", "channels": [8], "layers": 1},
    "train": {"images": 64, "batch": 32},
    "sampling": {"steps": 3},
    "arms": {"baseline": []},
    "attacks": [
        GUIDED, {"kind": "copy_score", "samples": 40}, {"kind": "inpainting", "steps": 3, "draws": 2, "timesteps": [50]}
    ],
}  # fmt: skip


def built(**changes: Any) -> Recipe:
    problems: list[Any] = []
    found = check({**PLAIN, **changes}, "test", problems)
    assert found is not None, [str(problem) for problem in problems]
    return found


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "run", lambda jobs, *_, **__: [runner.run_job(job) for job in jobs])


def test_guided_samples_are_drawn_once_and_shown(tmp_path: Path) -> None:
    root = run(built(), tmp_path / "run", (), [])
    arm = root / "arms" / "baseline"
    drawn, own = (np.load(arm / name / "images.npy") for name in ("drawn/surrogate_guided", "samples"))
    assert drawn.shape == (40, 8, 8, 1)
    assert (drawn != own[:40]).any()
    report = read_json(root / "comparison.json")["arms"]["baseline"]
    found = report["attacks"]["surrogate_guided"]
    assert (found["kind"], found["type"], found["samples"]) == ("surrogate_guided", "extraction", 40)
    assert found["estimates"]["false_positives"]["n"]["trials"] == 40
    assert report["attacks"]["copy_score"]["estimates"]["copied"]["n"]["trials"] == 40
    assert report["attacks"]["inpainting"]["queries"] == 2 * (2 + 1 + 1)
    pairs = read_json(arm / "gallery" / "gallery.json")["pairs"]
    assert [pair["attack"] for pair in pairs].count("surrogate_guided") == min(24, len(found["matches"]))
    assert "surrogate_guided" in (root / "report.md").read_text()
    assert "clusters" in fit_schemas(root)

    before = (arm / "drawn/surrogate_guided/images.npy").stat().st_mtime_ns
    run(built(), root, (), [])
    assert (arm / "drawn/surrogate_guided/images.npy").stat().st_mtime_ns == before


def test_what_is_drawn_depends_on_the_attacks_settings_alone(tmp_path: Path) -> None:
    changed = [GUIDED | {"guidance": 2.0}, *PLAIN["attacks"][1:]]
    keys = []
    for name, attacks in (("one", PLAIN["attacks"]), ("other", changed)):
        prepare(built(attacks=attacks), tmp_path / name)
        stages = arm_of(tmp_path / name, "baseline").stages
        keys.append({stage: found.key for stage, found in stages.items()})
    differ = {stage for stage in keys[0] if keys[0][stage] != keys[1][stage]}
    assert differ == {"drawn/surrogate_guided", "attacks/surrogate_guided", "gallery"}


def test_prompts_are_screened_beside_the_full_rule(digits: ImageSet, tmp_path: Path) -> None:
    captions = ("zebra", "quilt", "apple", "mountain", "jam", "violin", "box", "kiwi")
    images = replace(digits.take(np.arange(8)), captions=captions)
    for name, part in (("members", slice(0, 4)), ("held_out", slice(4, 8))):
        np.savez(tmp_path / f"{name}.npz", x=images.images(part), captions=np.array(captions[part]))
    pipelines.stable_diffusion(tmp_path / "pipeline")
    sides = {
        side: {"kind": "npz", "path": str(tmp_path / f"{name}.npz"), "captions": "captions"}
        for side, name in (("members", "members"), ("nonmembers", "held_out"))
    }
    plain = {
        "schema": 1, "data": sides, "sampling": {"steps": 2, "guidance": 3.0}, "prompts": {"each": 4},
        "targets": {"model": {"kind": "pipeline", "path": str(tmp_path / "pipeline")}}, "attacks": [SCREEN],
    }  # fmt: skip
    problems: list[Any] = []
    recipe = check(plain, "test", problems)
    assert recipe is not None, problems
    root = run(recipe, tmp_path / "run", (), [])
    found = read_json(root / "comparison.json")["arms"]["model"]["attacks"]["prompt_screen"]
    assert (found["type"], found["prompts"]) == ("screens", 8)
    assert found["evaluations"] == {"full": 4 * 2 * 2, "noise": 4, "move": 2, "edges": 2}
    assert set(found["estimates"]) >= {"auc_noise", "recall_edges[0.2]"}
    assert np.load(root / "arms/model/drawn/prompt_screen/screens.npy").shape == (8, 3)
    assert "evaluations" in fit_schemas(root)


def test_a_model_that_answers_nothing_is_refused_before_anything_is_computed(digits: ImageSet, tmp_path: Path) -> None:
    np.save(tmp_path / "drawn.npy", digits.images(slice(0, 40)))
    targets = {"closed": {"kind": "generated", "path": str(tmp_path / "drawn.npy")}}
    sections = {key: value for key, value in PLAIN.items() if key not in ("model", "train", "arms")}
    problems: list[Any] = []
    recipe = check({**sections, "targets": targets, "attacks": [GUIDED]}, "test", problems)
    assert recipe is not None, problems
    prepare(recipe, tmp_path / "run")
    with pytest.raises(UserError, match=r"attacks\.surrogate_guided: needs predictions, which closed does not give"):
        run_model(arm_of(tmp_path / "run", "closed"))


def test_the_command_line_tells_such_attacks_how_many(digits: ImageSet, tmp_path: Path) -> None:
    for name, part in (("members", slice(0, 40)), ("held_out", slice(40, 80))):
        np.savez(tmp_path / f"{name}.npz", x=digits.images(part))
    paths = [pipelines.pixels(tmp_path / "model"), tmp_path / "members.npz", tmp_path / "held_out.npz"]
    chosen = ("copy_score", "surrogate_guided", "inpainting")
    recipe = audit_recipe(*paths, attacks=chosen, samples=30)
    assert [getattr(recipe.attacks[name], "samples", None) for name in chosen] == [30, 30, None]
    with pytest.raises(UserError, match="--attacks copy_score: looks at images drawn from the model; say how many"):
        audit_recipe(*paths, attacks=("copy_score",))
