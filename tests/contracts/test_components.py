"""Laws over every component that is found, so that a new file is held to them without being named here."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tests import pipelines
from tests.conftest import Asked
from unmem.component import Kind, UserError, build, dump, kinds
from unmem.evaluate.audit import Audit, Planted, Split, draw
from unmem.evaluate.canaries import Canaries
from unmem.evaluate.results import CanaryScores, Distances, Matches, Scores, SetScores, Similarities
from unmem.evaluate.shadows import Shadows, inside
from unmem.recipes.recipe import ROOMS, load, shipped
from unmem.rng import stream
from unmem.train.config import Sampling
from unmem.train.diffusion import Diffusion, make_scheduler, to_model
from unmem.train.imageset import ImageSet

ALL = [pytest.param(room, kind, id=f"{room}/{kind.name}") for room, p in ROOMS.items() for kind in kinds(p).values()]
IN_ROOM = {room: list(kinds(package).values()) for room, package in ROOMS.items()}

# what a component's required fields may be in a test; everything else is at its default
EXAMPLES: dict[str, dict[str, Any]] = {
    "image_folder": {"path": "somewhere"},
    "npz": {"path": "somewhere.npz"},
    "huggingface": {"path": "somewhere"},
    "unet": {"channels": [8, 16]},
    "pretrained": {"init_from": "somewhere", "public_data": "digits"},
    "stable_diffusion": {"init_from": "somewhere", "public_data": "captioned images"},
    "embedding_duplicates": {"model": "tests.oracles.test_duplicates:mean_colour"},
    "dp_sgd": {"epsilon": 8.0, "delta": 1e-5},
    "generate_and_filter": {"samples": 40},
    "nearest_distance": {"samples": 40},
    "frechet": {"samples": 40},
    "classifier": {"samples": 40, "steps": 60},
    "pipeline": {"path": "somewhere"},
    "generated": {"path": "somewhere"},
    "copy_score": {"samples": 40},
    "torchscript": {"path": "somewhere.pt"},
    "surrogate_guided": {"samples": 40, "clusters": 3, "cohesion": 0.0, "images": 320, "batch": 32, "width": 8},
    "initial_noise": {"target": 0.1},
}
ACCESS = {"samples", "prompts", "predictions", "gradients", "shadows", "canaries", "captions"}


def example(room: str, kind: Kind) -> Any:
    problems: list[Any] = []
    built = build(ROOMS[room], {"kind": kind.name, **EXAMPLES.get(kind.name, {})}, "test", problems)
    assert not problems, problems
    return built


@pytest.mark.parametrize(("room", "kind"), ALL)
def test_a_component_is_frozen_strict_documented_and_round_trips(room: str, kind: Kind) -> None:
    built = example(room, kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(built, next(iter(dump(built)), "anything"), 1)
    problems: list[Any] = []
    assert build(ROOMS[room], {"kind": kind.name, **dump(built), "no_such_field": 1}, "test", problems) is None
    assert "unknown field" in problems[0].message
    again = build(ROOMS[room], {"kind": kind.name, **dump(built)}, "test", [])
    assert again == built
    assert kind.summary.endswith((".", ";", ",")) or len(kind.summary) > 20, kind.summary
    documented = set(re.findall(r"^\s{4}(\w+): ", inspect.getdoc(type(built)) or "", re.MULTILINE))
    assert set(dump(built)) <= documented, f"undocumented: {set(dump(built)) - documented}"
    methods = {name: getattr(type(built), name) for name in vars(type(built)) if not name.startswith("_")}
    assert all(inspect.getdoc(method) for method in methods.values() if callable(method))


@pytest.mark.parametrize(
    "kind", [k for k in IN_ROOM["mitigations"] if hasattr(k.load(), "apply")], ids=lambda k: k.name
)
def test_a_data_mitigation_accounts_for_every_image(kind: Kind, audit: Audit) -> None:
    mitigation, data = example("mitigations", kind), audit.training
    data = dataclasses.replace(data, captions=tuple(f"a handwritten digit, number {i // 3}" for i in range(len(data))))
    kept, ledger = mitigation.apply(data, stream(0, "contract"))
    assert len(kept) >= 1
    assert set(kept.ids) | {entry.id for entry in ledger} == set(data.ids)
    assert len(kept) + len(ledger) == len(data)
    assert {entry.kept for entry in ledger} - {None} <= set(kept.ids)
    again, same = mitigation.apply(data, stream(0, "contract"))
    assert (again.ids, same) == (kept.ids, ledger)
    alone, nothing = mitigation.apply(data.take(np.array([0])), stream(0, "contract"))
    assert (len(alone), nothing) == (1, [])


@pytest.mark.parametrize(
    "kind", [k for k in IN_ROOM["mitigations"] if hasattr(k.load(), "sampling_rule")], ids=lambda k: k.name
)
def test_a_sampling_mitigation_judges_each_image_by_itself(kind: Kind, audit: Audit, tmp_path: Path) -> None:
    mitigation = example("mitigations", kind)
    assert mitigation.protects == "samples"
    rule = mitigation.sampling_rule(audit.training, tmp_path)
    assert rule.attempts >= 1
    images = np.concatenate([audit.member_images.images(), noise_images(40)])
    accepted, order = rule.accept(images), stream(0, "order").permutation(len(images))
    assert (accepted.shape, accepted.dtype) == ((80,), bool)
    assert accepted[40:].all()
    assert rule.attempts > 1 or accepted.all()
    np.testing.assert_array_equal(rule.accept(images[order]), accepted[order])
    x0 = to_model(images) * 0.9
    for sigma in (0.01, 1.0, 100.0):
        steered = rule.steer(x0.clone(), sigma)
        assert (steered.shape, steered.dtype) == (x0.shape, x0.dtype)
        assert steered.abs().max() <= 1
        assert torch.equal(steered[40:], x0[40:])  # what is like no training image is left alone
        torch.testing.assert_close(rule.steer(x0[order], sigma), steered[order])
        torch.testing.assert_close(rule.steer(x0[3:4], sigma), steered[3:4])
    again = mitigation.sampling_rule(audit.training, tmp_path)
    np.testing.assert_array_equal(again.accept(images), accepted)


@pytest.mark.parametrize(
    "kind", [k for k in IN_ROOM["mitigations"] if hasattr(k.load(), "prompt_rule")], ids=lambda k: k.name
)
def test_a_mitigation_of_prompts_depends_on_the_prompt_and_its_generator_alone(
    kind: Kind, audit: Audit, tmp_path: Path
) -> None:
    mitigation = example("mitigations", kind)
    assert mitigation.protects == "samples"
    rules = [mitigation.prompt_rule(audit.training, tmp_path) for _ in range(2)]
    texts = [[rule.rewrite("a sea, at night", stream(0, "rewrite", k)) for k in range(20)] for rule in rules]
    assert texts[0] == texts[1]
    assert rules[0].starts or len(set(texts[0])) > 10
    assert list(tmp_path.iterdir()) == []


class Untrained:
    """A denoiser that has never seen any image of the audit: one random convolution, and a caption's length."""

    conditioning: Literal["none", "class", "text"] = "text"
    shape = (8, 8, 1)

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.network = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
        self.diffusion = Diffusion.of(make_scheduler("linear", "epsilon", 1000))

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z

    def condition(self, count: int, labels: np.ndarray | None, captions: tuple[str, ...] | None) -> Tensor:
        return torch.tensor([[len(text) / 100] for text in captions or [""] * count])

    def predict(self, z_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        predicted: Tensor = self.network(z_t) + condition[:, :, None, None]
        return predicted


@pytest.fixture(scope="module")
def captioned(digits: ImageSet) -> Audit:
    """An audit with everything: captions, planted images, canaries."""
    texts = tuple(f"a handwritten digit, number {i} of many" for i in range(len(digits)))
    canaries = Canaries(images=40, source="noise", copies=(1, 1, 1, 2))
    split = Split(members=100, nonmembers=100, planted=Planted(images=2, copies=4), canaries=canaries)
    return draw(dataclasses.replace(digits, captions=texts), split, seed=0)


@pytest.fixture(scope="module")
def stranger(captioned: Audit) -> Asked:
    """A target that knows nothing, and shadows that know nothing of what they are said to have seen."""
    config = Shadows(count=8)
    samples = noise_images(50)
    shadows = [
        Asked(Untrained(k + 1), captioned, generated=samples, inside=inside(captioned, config, k, 0)) for k in range(8)
    ]
    return Asked(Untrained(0), captioned, generated=samples, shadows=shadows)


def noise_images(count: int) -> np.ndarray:
    return stream(1, "samples").integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def drawn_from(target: Asked, attack: Any, directory: Path) -> Asked:
    """The target, with what the attack draws by itself from a pipeline that never saw any image."""
    make = pipelines.stable_diffusion if "prompts" in attack.needs else pipelines.pixels
    samples = directory / "samples"
    samples.mkdir(parents=True)
    prompts = target.prompts
    np.save(samples / "images.npy", target.samples(len(prompts)))
    (samples / "prompts.json").write_text(json.dumps(prompts))
    attack.draw(
        make(directory / "pipeline"), samples, Sampling(steps=2), directory / "drawn", seed=3, accelerator=Accelerator()
    )
    found = copy.copy(target)
    found.drawn = directory / "drawn"
    return found


@pytest.mark.parametrize("kind", IN_ROOM["attacks"], ids=lambda k: k.name)
def test_an_attack_repeats_itself_and_finds_nothing_where_there_is_nothing(
    kind: Kind, captioned: Audit, stranger: Asked, tmp_path: Path
) -> None:
    from unmem.evaluate.analysis import Compare, analyse

    attack = example("attacks", kind)
    assert attack.needs <= ACCESS
    draws = hasattr(attack, "draw")
    assert bool(attack.readings) == (bool(attack.needs & {"predictions", "gradients"}) and not draws)
    assert all(reading.probe.access in attack.needs and reading.probe.queries > 0 for reading in attack.readings)
    targets = [drawn_from(stranger, attack, tmp_path / name) if draws else stranger for name in ("one", "other")]
    result, again = (attack.run(target, captioned, 3) for target in targets)
    for name, array in vars(result).items():
        np.testing.assert_array_equal(array, getattr(again, name))
        assert np.isfinite(array).all(), name
    report = analyse(result, captioned, frozenset(), Compare(confidence=0.999, tpr_at_fpr=(0.2,)), 0)
    for name, estimate in report["estimates"].items():
        assert estimate["n"], name
        if estimate["value"] is None:
            assert estimate["note"], name
        else:
            assert estimate["low"] <= estimate["value"] <= (estimate["high"] or np.inf), name
    found = report["estimates"]
    if isinstance(result, SetScores):
        assert found["p_value"]["value"] > 0.001
    elif isinstance(result, Scores) and kind.name != "blind":
        assert found["auc"]["low"] <= 0.5 <= found["auc"]["high"]
        assert found["permutation_p_value"]["value"] > 0.005
        assert len(result.generated) == 50
        assert len(result.canaries) == 40
    if isinstance(result, Matches):
        assert found["extracted"]["value"] == 0
    if isinstance(result, Distances):
        assert found["nearer_to_training"]["low"] <= 0.5 <= found["nearer_to_training"]["high"]
    if isinstance(result, Similarities):
        assert found["copied"]["low"] <= found["copied_held_out"]["high"]
        assert found["copied_held_out"]["low"] <= found["copied"]["high"]
    if isinstance(result, CanaryScores):
        assert found["epsilon"]["value"] < 1


@pytest.mark.parametrize("kind", IN_ROOM["features"], ids=lambda k: k.name)
def test_features_have_the_promised_shape(kind: Kind) -> None:
    extract = example("features", kind)
    images = stream(0, "features").integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    try:
        features = extract(images)
    except UserError:  # weights that are not on this machine: a message that names a way out is the contract
        with pytest.raises(UserError, match="random_convolutions"):
            extract(images)
        return
    assert features.shape == (5, extract.dimension)
    assert features.dtype == np.float64
    np.testing.assert_allclose(extract(images[2:3]), features[2:3], atol=1e-5)


@pytest.mark.parametrize("kind", IN_ROOM["quality"], ids=lambda k: k.name)
def test_quality_prefers_real_images_to_noise(kind: Kind, audit: Audit) -> None:
    torch.set_num_threads(1)
    measure = example("quality", kind)
    labels = audit.member_images.labels if measure.needs_labels else None
    real = measure.measure(audit.member_images.images(), labels, audit, 0)
    noise = measure.measure(noise_images(40), labels, audit, 0)
    for measured in (real, noise):
        estimate = measured.estimate
        assert estimate.low is not None
        assert estimate.low <= estimate.value <= estimate.high
        assert measured.reference_name
    better = real.estimate.value < noise.estimate.value
    assert better if real.better == "lower" else real.estimate.value > noise.estimate.value
    again = measure.measure(noise_images(40), labels, audit, 0)
    assert again == noise


@pytest.mark.parametrize("name", shipped())
@pytest.mark.parametrize("smoke", [False, True])
def test_a_shipped_recipe_is_valid_has_a_smoke_section_and_a_header(name: str, smoke: bool) -> None:
    recipe = load(name, smoke=smoke)
    assert recipe.run_name.startswith(f"{name}-smoke-" if smoke else f"{name}-")
    header = shipped()[name].read_text().split("schema:")[0]
    assert f"unmem run {name}" in header
    assert "not yet measured" in header or "docs/results" in header
    assert (load(name, smoke=True).resolved != load(name).resolved) is True
