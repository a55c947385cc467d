"""Control targets: a perfect memorizer gives all away, a copier of held-out images nothing of the members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.optimal import OptimalDenoiser as Reference
from unmem.evaluate.audit import Audit
from unmem.evaluate.posterior import PosteriorMean
from unmem.evaluate.targets.copier import Copier
from unmem.evaluate.targets.optimal_denoiser import OptimalDenoiser
from unmem.recipes import fleet, runner
from unmem.recipes.recipe import Recipe, check
from unmem.recipes.runner import run
from unmem.rundir import read_json
from unmem.train.config import Sampling
from unmem.train.diffusion import make_scheduler

PLANTED = {"images": 4, "copies": 16}
PLAIN: dict[str, Any] = {
    "schema": 1,
    "data": {"kind": "digits", "members": 60, "nonmembers": 60, "planted": PLANTED},
    "model": {"kind": "unet", "channels": [8], "layers": 1, "conditioning": "class"},
    "train": {"images": 64, "batch": 32},
    "sampling": {"steps": 5},
    "arms": {"baseline": []},
    "targets": {"memorizer": {"kind": "optimal_denoiser"}, "copier": {"kind": "copier"}},
    "attacks": [
        {"kind": "generate_and_filter", "samples": 400, "threshold": 0.3},
        {"kind": "nearest_distance", "samples": 400},
        {"kind": "loss", "timesteps": [100], "draws": 1},
        {"kind": "blind"},
    ],
    "quality": [{"kind": "frechet", "samples": 60, "resamples": 3}],
}


def checked(**changes: Any) -> tuple[Recipe | None, list[str]]:
    problems: list[Any] = []
    return check({**PLAIN, **changes}, "test", problems), [str(problem) for problem in problems]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    recipe, problems = checked()
    assert recipe is not None, problems
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet, "run", lambda jobs, *_, **__: [runner.run_job(job) for job in jobs])
        return run(recipe, tmp_path_factory.mktemp("controls") / "run", (), [])


def test_controls_stand_beside_an_arm_and_are_asked_for_samples_alone(root: Path) -> None:
    arms = read_json(root / "comparison.json")["arms"]
    assert [arm["control"] for arm in arms.values()] == [None, "optimal_denoiser", "copier"]
    assert set(arms["baseline"]["attacks"]) == {attack["kind"] for attack in PLAIN["attacks"]}
    for name in ("memorizer", "copier"):
        assert set(arms[name]["attacks"]) == {"generate_and_filter", "nearest_distance", "blind"}
        assert set(arms[name]["quality"]) == {"frechet"}
        assert not arms[name]["trained"]


def test_the_memorizer_gives_its_members_away(root: Path) -> None:
    found = read_json(root / "comparison.json")["arms"]["memorizer"]["attacks"]
    counts = {name: estimate["n"] for name, estimate in found["generate_and_filter"]["estimates"].items()}
    assert counts["extracted_planted"] == {"successes": 4, "trials": 4}
    assert counts["extracted"]["successes"] >= 57  # of 60
    assert counts["false_positives"]["successes"] == 0
    assert found["nearest_distance"]["estimates"]["nearer_to_training"]["value"] == 1


def test_the_copier_gives_nothing_away_but_what_looks_like_a_held_out_image(root: Path) -> None:
    arm = read_json(root / "comparison.json")["arms"]["copier"]["attacks"]
    counts = {name: estimate["n"] for name, estimate in arm["generate_and_filter"]["estimates"].items()}
    assert counts["false_positives"] == {"successes": 60, "trials": 60}
    assert counts["extracted"]["successes"] == 0
    assert arm["nearest_distance"]["estimates"]["nearer_to_training"]["value"] == 0
    verdict = read_json(root / "comparison.json")["verdict"]
    assert not any(text.startswith("Caution: in copier") for text in verdict)
    assert "a control" in (root / "report.md").read_text()


def test_a_run_with_controls_is_finished_when_it_is(root: Path) -> None:
    recipe, _ = checked()
    assert recipe is not None
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*.np*")}
    run(recipe, root, (), [])
    assert before == {file: file.stat().st_mtime_ns for file in root.rglob("*.np*")}


class Alone:
    """One process, as accelerate shows it."""

    device, process_index, num_processes, is_main_process = torch.device("cpu"), 0, 1, True

    def wait_for_everyone(self) -> None:
        pass


def samples_of(target: Any, audit: Audit, directory: Path, count: int, seed: int = 0, **sampling: Any) -> np.ndarray:
    config = Sampling(**{"steps": 10, **sampling})
    target.sample_to_disk(audit, config, count, directory, seed=seed, accelerator=Alone())
    found: np.ndarray = np.load(directory / "images.npy")
    return found


def test_the_memorizer_draws_training_images_a_planted_one_as_often_as_it_has_copies(
    audit: Audit, tmp_path: Path
) -> None:
    drawn = samples_of(OptimalDenoiser(), audit, tmp_path, 600).reshape(600, -1).astype(float)
    points = audit.training.images().reshape(len(audit.training), -1).astype(float)
    distances = np.abs(drawn[:, None] - points[None]).max(2)
    assert (distances.min(1) <= 1).all()  # a level of rounding
    shown = np.array([audit.copies.get(name, name) for name in audit.training.ids])[distances.argmin(1)]
    expected = len(audit.planted) * 4 / len(audit.training)
    assert np.isin(shown, audit.planted).mean() == pytest.approx(expected, abs=4 * np.sqrt(expected / 600))
    known = set(audit.members)
    assert set(shown) <= known


@pytest.mark.parametrize("sampling", [{"scheduler": "heun", "karras_sigmas": True}, {"scheduler": "dpm_solver++"}])
def test_any_sampler_and_any_batch_lead_to_the_same_kind_of_samples(
    sampling: dict[str, Any], audit: Audit, tmp_path: Path
) -> None:
    drawn = samples_of(OptimalDenoiser(), audit, tmp_path / "a", 40, **sampling)
    again = samples_of(OptimalDenoiser(), audit, tmp_path / "b", 40, batch=7, **sampling)
    np.testing.assert_array_equal(drawn, again)
    points = audit.member_images.images().astype(int)
    near = [np.abs(points - image).max((1, 2, 3)).min() for image in drawn.astype(int)]
    assert np.median(near) <= 2


def test_the_closed_form_is_the_posterior_mean(audit: Audit) -> None:
    scheduler = make_scheduler("linear", "epsilon", 1000)
    network, reference = PosteriorMean(audit.training.images(), scheduler), Reference(audit.training, schedule="linear")
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in (3, 100, 500, 999):
        wanted = reference.predict(x, torch.full((5,), t), None)
        torch.testing.assert_close(network(x, torch.tensor(t)).sample, wanted, rtol=1e-4, atol=1e-5)
    between = network(x, torch.tensor(100.5)).sample
    low, high = (network(x, torch.tensor(t)).sample for t in (100, 101))
    assert ((between - low).norm() < (high - low).norm()) and ((between - high).norm() < (high - low).norm())


def test_the_copier_copies_in_turn(audit: Audit, tmp_path: Path) -> None:
    drawn = samples_of(Copier(), audit, tmp_path, 100)
    held_out = audit.nonmember_images.images()
    np.testing.assert_array_equal(drawn, np.concatenate([held_out, held_out, held_out[:20]]))


def test_a_control_is_nothing_to_compare_with_unless_there_is_nothing_else() -> None:
    assert checked(compare={"against": "copier"})[1] == [
        "compare.against: copier is a control, on which not every attack is run"
    ]
    alone = {key: value for key, value in PLAIN.items() if key not in ("model", "train", "arms")}
    problems: list[Any] = []
    recipe = check({**alone, "attacks": PLAIN["attacks"][:1], "quality": []}, "test", problems)
    assert recipe is not None, problems
    assert recipe.compare.against == "memorizer"
    assert recipe.of_arm("copier").of_arm("copier").resolved == recipe.of_arm("copier").resolved


def test_shadow_models_go_with_controls() -> None:
    attacks = [*PLAIN["attacks"], {"kind": "rmia"}]
    assert checked(attacks=attacks, shadows={"count": 2})[1] == []


def test_a_measure_of_classes_is_not_taken_of_a_control() -> None:
    recipe, problems = checked(quality=[*PLAIN["quality"], {"kind": "classifier", "samples": 60}])
    assert recipe is not None, problems
    assert {name: list(recipe.of_arm(name).quality) for name in recipe.models} == {
        "baseline": ["frechet", "classifier"], "memorizer": ["frechet"], "copier": ["frechet"],
    }  # fmt: skip
