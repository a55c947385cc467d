"""Samples by prompts from pipelines of every kind: each its own, whatever the batch; cascades; whole recipes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import more_pipelines, pipelines
from unmem.component import UserError
from unmem.evaluate.targets.pipeline import Pipeline
from unmem.mitigations.initial_noise import InitialNoise
from unmem.recipes import fleet
from unmem.recipes.execution import run_model
from unmem.recipes.recipe import check
from unmem.recipes.runner import arm_of, prepare, run, run_job
from unmem.rng import torch_stream
from unmem.train import cascade
from unmem.train.calls import Wanted
from unmem.train.cascade import Cascade, open_drawing
from unmem.train.config import Sampling
from unmem.train.imageset import ImageSet
from unmem.train.opening import modules_of, open_any
from unmem.train.prompted import Prompted

MAKERS: dict[str, Callable[[Path], Path | tuple[Path, ...]]] = {
    "text": pipelines.stable_diffusion,
    "dit": pipelines.dit,
    "latents": pipelines.latents,
    "sd3": more_pipelines.stable_diffusion_3,
    "sd3 without t5": lambda path: more_pipelines.stable_diffusion_3(path, t5=False),
    "flux": more_pipelines.flux,
    "if": more_pipelines.deep_floyd,
    "unclip": more_pipelines.unclip,
}
SHAPES = {"if": (16, 16, 3), "unclip": (8, 8, 3)}
ASKED = [("a three", 0), ("a three", 1), ("seven", 0), ("", 3), ("a three", 2)]
BY_CLASS = [("3", 0), ("3", 1), ("7", 0), ("0", 3), ("3", 2)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ...]]:
    root = tmp_path_factory.mktemp("pipelines")
    made = {name: make(root / name) for name, make in MAKERS.items()}
    return {name: paths if isinstance(paths, tuple) else (paths,) for name, paths in made.items()}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs import all libraries once."""
    monkeypatch.setattr(fleet, "run", lambda jobs, *_, **__: [run_job(job) for job in jobs])


def sampler(paths: tuple[Path, ...], seed: int = 0, **settings: Any) -> Prompted:
    config = Sampling(**{"steps": 3, "batch": 5, **settings})
    return Prompted(open_drawing(paths, "cpu"), config, seed, "cpu", size=(8, 8))


@pytest.mark.parametrize(
    ("name", "guidance"),
    [(name, 4.0) for name in MAKERS if name != "latents"]
    + [(name, 1.0) for name in ("dit", "latents", "if", "unclip")],
)
def test_a_sample_depends_on_its_prompt_and_number_alone(
    saved: dict[str, tuple[Path, ...]], name: str, guidance: float
) -> None:
    if name == "dit" and guidance > 1:
        with pytest.raises(UserError, match=r"sampling\.guidance: a DiTPipeline .* 1000 classes alone; it has 10"):
            sampler(saved[name], guidance=guidance).draw(BY_CLASS)
        return
    asked = {"dit": BY_CLASS, "latents": [("", number) for number in range(5)]}.get(name, ASKED)
    whole = sampler(saved[name], guidance=guidance).draw(asked)
    assert whole.images.shape == (5, *SHAPES.get(name, (8, 8, 1))) and whole.images.dtype == np.uint8
    assert not whole.broken.any() and not whole.checked.any() and whole.images.any((1, 2, 3)).all()
    order = [4, 2, 0, 1, 3]
    again = sampler(saved[name], guidance=guidance, batch=2).draw([asked[i] for i in order])
    assert int(np.abs(again.images.astype(int) - whole.images[order]).max()) <= 1
    other = sampler(saved[name], seed=1, guidance=guidance).draw(asked[:1])
    for different in (whole.images[1], whole.images[2], other.images[0]):
        assert int(np.abs(different.astype(int) - whole.images[0]).max()) > 3


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "latents"])
def test_the_prompt_matters_beside_its_noise(saved: dict[str, tuple[Path, ...]], name: str) -> None:
    """With the same generators, other words give another image: the prompt is not lost on the way."""
    asking, found = sampler(saved[name]), []
    for prompt in ("3", "8", "3"):
        wanted = Wanted([prompt], [torch_stream(0, "noise")], Sampling(steps=3), size=(8, 8))
        with torch.no_grad():
            found.append(asking._call(asking._pipeline, wanted)[0])
    assert float(np.abs(found[0] - found[1]).max()) > 1e-4
    np.testing.assert_array_equal(found[0], found[2])


KNOWN = [(name, way) for name in ("if", "unclip") for way in ("ddim", "dpm_solver++", "euler", "heun")]


@pytest.mark.parametrize(("name", "scheduler"), [pair for pair in KNOWN if pair != ("unclip", "heun")])
def test_networks_that_learnt_a_variance_go_with_each_scheduler(
    saved: dict[str, tuple[Path, ...]], name: str, scheduler: str
) -> None:
    drawn = sampler(saved[name], scheduler=scheduler, guidance=2.0).draw(ASKED[:2])
    assert drawn.images.shape[0] == 2 and not drawn.broken.any()


def test_a_scheduler_that_a_pipeline_cannot_call(saved: dict[str, tuple[Path, ...]]) -> None:
    with pytest.raises(UserError, match=r"sampling\.scheduler: heun does not go with a KandinskyV22CombinedPipeline"):
        sampler(saved["unclip"], scheduler="heun").draw(ASKED[:1])


def test_a_cascade_is_its_stages_called_by_hand(saved: dict[str, tuple[Path, ...]]) -> None:
    drawn = sampler(saved["if"], guidance=3.0).draw([("seven", 2)])
    first, second = (open_any(path) for path in saved["if"])
    for stage in (first, second):
        from diffusers import DDIMScheduler

        stage.scheduler = DDIMScheduler.from_config(stage.scheduler.config)
        stage.scheduler.register_to_config(variance_type=None)
        stage.set_progress_bar_config(disable=True)
    generator = torch_stream(0, "sample", "seven", 2)
    given = {"prompt": "seven", "clean_caption": False, "num_inference_steps": 3, "guidance_scale": 3.0}
    small = first(**given, generator=generator, output_type="pt").images
    large = second(**given, image=small, generator=generator, output_type="np").images
    assert small.shape == (1, 3, 8, 8) and large.shape == (1, 16, 16, 3)
    assert int(np.abs(drawn.images.astype(int) - np.round(255 * large)).max()) <= 1


def test_a_cascade_of_folders(saved: dict[str, tuple[Path, ...]]) -> None:
    assert isinstance(open_drawing(saved["if"], "cpu"), Cascade)
    assert type(open_drawing(saved["if"][:1], "cpu")).__name__ == "IFPipeline"
    assert sampler(saved["if"][:1]).draw(ASKED[:1]).images.shape == (1, 8, 8, 3)
    with pytest.raises(
        UserError, match=r"text: is a StableDiffusionPipeline, which takes no image to enlarge; see then"
    ):
        open_drawing((saved["if"][0], saved["text"][0]), "cpu")


@pytest.mark.parametrize("name", ["text", "sd3", "flux", "if", "unclip"])
def test_half_precision_is_drawn_from(saved: dict[str, tuple[Path, ...]], name: str) -> None:
    stages = [open_any(path, dtype=torch.bfloat16) for path in saved[name]]
    dtypes = {p.dtype for stage in stages for part in modules_of(stage).values() for p in part.parameters()}
    assert torch.bfloat16 in dtypes
    pipeline = Cascade(stages) if len(stages) > 1 else stages[0]
    rules = [InitialNoise(target=1e-3, steps=1).prompt_rule(None, Path())] if name == "text" else []
    drawn = Prompted(pipeline, Sampling(steps=2), 0, "cpu", size=(8, 8), prompt_rules=rules).draw(ASKED[:2])
    assert drawn.images.any((1, 2, 3)).all() and not drawn.broken.any()


def test_what_was_saved_in_half_precision_stays_so_on_a_gpu(
    saved: dict[str, tuple[Path, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = open_any(saved["sd3"][0])
    half.to(torch.float16).save_pretrained(tmp_path / "half")
    for supported, there in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert cascade._precision(tmp_path / "half", "cuda") == there
        assert cascade._precision(tmp_path / "half", "cpu") == torch.float32
        assert cascade._precision(saved["sd3"][0], torch.device("cuda", 0)) == torch.float32


def test_a_size_is_read_where_any_will_do(saved: dict[str, tuple[Path, ...]]) -> None:
    pipeline = open_drawing(saved["flux"], "cpu")
    drawn = Prompted(pipeline, Sampling(steps=2), 0, "cpu", size=(12, 16)).draw(ASKED[:2])
    assert drawn.images.shape == (2, 12, 16, 1)


def test_what_targets_give(saved: dict[str, tuple[Path, ...]], tmp_path: Path) -> None:
    whole = frozenset({"predictions", "gradients"})
    for name, paths in saved.items():
        target = Pipeline(path=paths[0], then=paths[1:])
        drawn = {"samples"} if name in ("dit", "latents") else set()
        assert target.access == (frozenset() if name in SHAPES else whole | drawn)
        assert target.takes_texts == (name not in ("dit", "latents"))
        assert target.classes == (10 if name == "dit" else 0)
    first, second = saved["if"]
    assert Pipeline(path=first).access == whole  # alone, it is a denoiser by text
    marks = {Pipeline(path=first).fingerprint(), Pipeline(path=first, then=(second,)).fingerprint()}
    assert len(marks) == 2
    with pytest.raises(UserError, match="nowhere: no such folder"):
        Pipeline(path=first, then=(tmp_path / "nowhere",)).fingerprint()


# Whole recipes


ASKING = {"choose": "all", "members": 4, "each": 4}  # four members' captions, and as many of held-out images


def recipe(
    tmp_path: Path, digits: ImageSet, paths: tuple[Path, ...], attacks: list[dict[str, Any]], prompts: Any = ASKING
) -> Any:
    """One finished model; and what is wrong with it."""
    images = digits.take(np.arange(24)).images()
    if len(paths) > 1:  # a cascade's are 16x16, in colour
        images = images.repeat(2, 1).repeat(2, 2).repeat(3, 3)
    names = np.array([f"a digit, number {i}" for i in range(24)])
    np.savez(tmp_path / "digits.npz", x=images, name=names)
    plain = {
        "schema": 1,
        "data": {"kind": "npz", "path": str(tmp_path / "digits.npz"), "members": 12, "nonmembers": 12},
        "sampling": {"steps": 2, "guidance": 2.0 if prompts else 1.0, "batch": 16},
        **({"prompts": prompts} if prompts else {}),
        "targets": {
            "model": {"kind": "pipeline", "path": str(paths[0]), "then": [str(path) for path in paths[1:]]},
        },
        "attacks": attacks,
    }
    problems: list[Any] = []
    return check(plain, "model", problems), [str(problem) for problem in problems]


@pytest.mark.parametrize("name", ["sd3", "if"])
def test_models_that_never_saw_the_images_give_none_back(
    saved: dict[str, tuple[Path, ...]], digits: ImageSet, name: str, tmp_path: Path
) -> None:
    attacks: list[dict[str, Any]] = [{"kind": "prompted_extraction", "clique": 3, "tiles": 2}]
    if name == "sd3":
        attacks.append({"kind": "loss", "timesteps": [100], "draws": 1})
    found, problems = recipe(tmp_path, digits, saved[name], attacks)
    assert found is not None, problems
    root = run(found, tmp_path / "run", (), [])
    arm = json.loads((root / "comparison.json").read_text())["arms"]["model"]["attacks"]
    counts = arm["prompted_extraction"]["estimates"]
    assert counts["extracted"]["n"] == {"successes": 0, "trials": 4}
    assert counts["false_positives"]["n"] == {"successes": 0, "trials": 4}
    asked = json.loads((root / "arms/model/samples/asked.json").read_text())
    assert (asked["drawn"], asked["checked"], asked["broken"]) == (32, 0, 0)
    if len(attacks) > 1:
        estimate = arm["loss"]["estimates"]["auc"]
        assert estimate["low"] < 0.5 < estimate["high"]


@pytest.mark.parametrize("name", ["if", "unclip"])
def test_predictions_of_what_gives_samples_alone_are_refused(
    saved: dict[str, tuple[Path, ...]], digits: ImageSet, name: str, tmp_path: Path
) -> None:
    found, problems = recipe(tmp_path, digits, saved[name], [{"kind": "loss"}])
    assert found is not None, problems
    prepare(found, tmp_path / "run")
    with pytest.raises(UserError, match=r"attacks\.loss: needs predictions, which model does not give"):
        run_model(arm_of(tmp_path / "run", "model"))
    assert not (tmp_path / "run/arms").exists()


@pytest.mark.parametrize("name", ["dit", "latents"])
def test_pipelines_on_latents_without_texts_are_drawn_from_by_number(
    saved: dict[str, tuple[Path, ...]], digits: ImageSet, name: str, tmp_path: Path
) -> None:
    found, problems = recipe(tmp_path, digits, saved[name], [{"kind": "generate_and_filter", "samples": 30}], None)
    assert found is not None, problems
    root = run(found, tmp_path / "run", (), [])
    drawn = np.load(root / "arms/model/samples/images.npy")
    assert drawn.shape == (30, 8, 8, 1)
    counts = json.loads((root / "comparison.json").read_text())["arms"]["model"]["attacks"]["generate_and_filter"]
    assert counts["estimates"]["false_positives"]["n"]["successes"] == 0
    label = "7" if name == "dit" else ""
    alone = sampler(saved[name], steps=2).draw([(label, 17)]).images
    assert int(np.abs(alone.astype(int) - drawn[17:18]).max()) <= 1
