"""Text-to-image training: a model that memorizes, exact resume, other captions, masks, and what is refused."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.oracles.test_training import Interrupted, weights
from tests.pipelines import captioned, stable_diffusion
from tests.processes import Killed, dying
from tests.recipes.test_schemas import complaints
from unmem.component import ConfigError, Problem, UserError, build
from unmem.mitigations.caption_diversification import CaptionDiversification
from unmem.mitigations.dp_sgd import DPSGD
from unmem.mitigations.rules.text_masked import TextMasked
from unmem.mitigations.text_noise_mask import TextNoiseMask
from unmem.recipes import yaml_file
from unmem.recipes.recipe import check, load
from unmem.recipes.training import left_by, mitigate
from unmem.rng import stream
from unmem.train import byte_text
from unmem.train.config import Train
from unmem.train.diffusion import Diffusion, make_latent_scheduler, to_model
from unmem.train.draw import Draw, NetworkLosses
from unmem.train.imageset import ImageSet, concatenate
from unmem.train.inputs import Pixels
from unmem.train.latents import Latents
from unmem.train.models.stable_diffusion import StableDiffusion
from unmem.train.models.text_to_image import TextToImage
from unmem.train.noise_levels import NoiseLevels
from unmem.train.opening import open_any
from unmem.train.text_network import TextNetwork
from unmem.train.trainer import make_accelerator, train
from unmem.train.update import Plain

SMALL: dict[str, Any] = {
    "channels": (8, 16), "vae_channels": (8, 8), "norm_groups": 4, "text_width": 16, "vae_images": 64, "tokens": 40
}  # fmt: skip
TINY = TextToImage(**SMALL)
BRIEF = Train(
    images=64, batch=16, lr=3e-3, ema=0.9, prediction="v_prediction", noise_schedule="cosine", flip=True,
    checkpoint_seconds=3600.0, threads=1,
)  # fmt: skip
GIVEN = Train(images=48, batch=16, lr=3e-3, ema=0.5, checkpoint_seconds=3600.0, threads=1)


@pytest.fixture(scope="module")
def data(digits: ImageSet) -> ImageSet:
    return captioned(digits).take(np.arange(16))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("given"))


def fit(
    data: ImageSet, config: Train, directory: Path, *, model: Any = TINY, die_at: int = -1, rule: Any = None
) -> None:
    if rule is None:
        rule = Interrupted(len(data), config, seed=0)
        rule.die_at = die_at
    train(data, model, config, rule, directory, key="k", seed=0, accelerator=make_accelerator(config))


def autoencoder(directory: Path) -> bytes:
    return (directory / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()


def state(directory: Path, part: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = getattr(open_any(directory), part).state_dict()
    return found


# The model


def test_a_trained_model_draws_a_members_image_by_its_caption(data: ImageSet, tmp_path: Path) -> None:
    few = data.take(np.arange(8))
    model = replace(TINY, channels=(16, 32), vae_channels=(8, 16), text_width=64, vae_images=12_800)
    config = replace(BRIEF, images=16 * 400, lr=5e-3, decay="cosine", flip=False)
    fit(few, config, tmp_path, model=model)
    pipeline = open_any(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert few.captions is not None
    drawn = pipeline(
        list(few.captions), num_inference_steps=20, guidance_scale=1.0, output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert drawn.shape == (8, 8, 8, 1)
    distance = np.sqrt(np.square(drawn[:, None] - few.images()[None] / 255).mean((2, 3, 4)))
    own = distance.diagonal()
    assert (distance.argmin(1) == np.arange(8)).sum() >= 7, distance.round(2)
    assert np.median(own) < 0.15
    assert np.median(distance[~np.eye(8, dtype=bool)]) > 0.3  # any image would be near, were they alike


def test_a_run_that_died_anywhere_ends_in_the_same_bits(data: ImageSet, tmp_path: Path) -> None:
    often = replace(BRIEF, checkpoint_seconds=0.0)
    varied = replace(data, alternatives=tuple(("one", "another") if i % 2 else () for i in range(len(data))))
    fit(varied, often, tmp_path / "whole")
    for die_at in (0, 2):
        broken = tmp_path / str(die_at)
        with pytest.raises(Killed):
            fit(varied, often, broken, die_at=die_at)
        if die_at:  # as if the autoencoder had not been finished, or were another training's
            (broken / "state" / "autoencoder.safetensors").write_bytes(b"cut sho")
        fit(varied, often, broken)
        assert weights(broken) == weights(tmp_path / "whole")
        assert autoencoder(broken) == autoencoder(tmp_path / "whole")
        assert (broken / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_the_autoencoder_is_kept_while_training_goes_on(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        fit(data, BRIEF, tmp_path, die_at=0)

    def never(*arguments: Any) -> None:
        raise AssertionError("trained a second time")

    monkeypatch.setattr("unmem.train.autoencoder._fit", never)
    fit(data, BRIEF, tmp_path)
    with pytest.raises(AssertionError, match="a second time"):
        train(
            data, TINY, BRIEF, Plain(16, BRIEF, 0), tmp_path, key="other", seed=0, accelerator=make_accelerator(BRIEF)
        )


@pytest.mark.parametrize(
    ("shape", "fields"),
    [((8, 8, 1), {}), ((16, 24, 3), {}), ((64, 64, 3), {"vae_channels": (4, 8, 8), "channels": (8, 8, 8)})],
)
def test_images_of_any_size_and_colour_are_trained_on_and_drawn(
    shape: tuple[int, int, int], fields: Any, tmp_path: Path
) -> None:
    images = stream(0, "images").integers(256, size=(4, *shape), dtype=np.uint8)
    any_language = ("a cat", "日本語 ☃", "Größe " * 30, "")
    data = ImageSet.of(images, list("abcd"), captions=any_language)
    model = replace(TINY, **fields)
    fit(data, replace(BRIEF, images=16, batch=4), tmp_path, model=model)
    pipeline = open_any(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(["a cat"], num_inference_steps=2, output_type="np").images
    assert drawn.shape == (1, *shape)


def test_latents_are_centred_and_of_unit_scale_and_restored(digits: ImageSet, tmp_path: Path) -> None:
    data = captioned(digits).take(np.arange(64))
    fit(data, replace(BRIEF, images=16), tmp_path, model=replace(TINY, vae_images=6_400))
    pipeline = open_any(tmp_path / "pipeline")
    inputs, x = Latents(pipeline, "cpu"), to_model(data.images())
    z = inputs.points(data, np.arange(64), mirrored=False)
    assert float(z.std()) == pytest.approx(1, abs=1e-3)
    assert float(z.mean((0, 2, 3)).abs().max()) < 1e-3
    with torch.no_grad():
        restored = pipeline.vae.decode(z / pipeline.vae.config.scaling_factor).sample
    assert float((restored - x).square().mean()) < 0.4 * float(x.var())
    mirrored = inputs.points(data, np.array([5]), mirrored=True)
    turned = replace(data, store=data.store[:, :, ::-1])
    torch.testing.assert_close(Latents(pipeline, "cpu").points(turned, np.array([5]), mirrored=False), mirrored)


def test_texts_are_encoded_as_the_pipeline_does_it(given: Path) -> None:
    pipeline = open_any(given)
    texts = ["a handwritten three", "", "x" * 200]
    expected = pipeline.encode_prompt(texts, "cpu", 1, False)[0]
    inputs = Latents(pipeline, "cpu")
    data = ImageSet.of(np.zeros((3, 8, 8, 1), np.uint8), list("abc"), captions=tuple(texts))
    torch.testing.assert_close(inputs.conditions(data, np.array([2, 0, 1]), None), expected[[2, 0, 1]])
    torch.testing.assert_close(inputs.null, expected[1:2])


def test_what_does_not_fit_in_memory_is_encoded_batch_by_batch(
    data: ImageSet, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, positions = Latents(open_any(given), "cpu"), np.array([3, 1, 3])
    expected = kept.points(data, positions, mirrored=True), kept.conditions(data, positions, None)
    monkeypatch.setattr("unmem.train.latents.KEPT", 0)
    batchwise = Latents(open_any(given), "cpu")
    found = batchwise.points(data, positions, mirrored=True), batchwise.conditions(data, positions, None)
    torch.testing.assert_close(found, expected)


def test_every_byte_has_a_token_and_words_are_told_apart() -> None:
    words = byte_text.tokenizer(20)
    every = "".join(chr(code) for code in (*range(1, 0x250), 0x65E5, 0x1F600))
    assert words.unk_token_id not in words(every, add_special_tokens=False).input_ids
    assert words("日").input_ids != words("月").input_ids
    torch.manual_seed(0)
    encoder = byte_text.encoder(32, 20)
    texts = ["red apple", "red maple", "green apple", "grinning cat"]
    found = encoder(words(texts, padding="max_length", return_tensors="pt").input_ids)[0].detach().flatten(1)
    distances = torch.pdist(found) / found.norm(dim=1).mean()
    assert float(distances.min()) > 0.2


@pytest.mark.parametrize("model", ["text_to_image", "stable_diffusion"])
def test_images_without_captions_are_one_message(digits: ImageSet, given: Path, tmp_path: Path, model: str) -> None:
    made = TINY if model == "text_to_image" else StableDiffusion(init_from=given, public_data="noise")
    with pytest.raises(UserError, match=rf"a {model} is trained on images with captions; the data set has none"):
        fit(digits.take(np.arange(4)), GIVEN, tmp_path, model=made)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({}, (12, 12, 1), r"multiples of 8 pixels; these are 12x12"),
        ({"channels": (8, 8, 8, 8)}, (8, 8, 1), r"halves 1 times and the network 3 times"),
    ],
)
def test_images_that_do_not_fit_are_refused(fields: Any, shape: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(TINY, **fields).build(shape, None)


# Training on


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({}, lambda name: True),
        ({"trainable": "attention"}, lambda name: "attn" in name),
        ({"trainable": "lora"}, lambda name: "attn" in name and "to_" in name and name.endswith("weight")),
    ],
    ids=["all", "attention", "lora"],
)
def test_what_is_not_trained_stays_bit_for_bit(
    data: ImageSet, given: Path, tmp_path: Path, fields: Any, changed: Any
) -> None:
    fit(data, GIVEN, tmp_path, model=StableDiffusion(init_from=given, public_data="noise", **fields))
    for part in ("vae", "text_encoder"):
        before, after = state(given, part), state(tmp_path / "pipeline", part)
        assert all(torch.equal(value, before[name]) for name, value in after.items())
    before, after = state(given, "unet"), state(tmp_path / "pipeline", "unet")
    assert before.keys() == after.keys()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(changed(name) for name in moved)
    if fields:
        assert moved == {name for name in after if changed(name)}
    ours, theirs = (
        (folder / "scheduler" / "scheduler_config.json").read_text() for folder in (tmp_path / "pipeline", given)
    )
    assert json.loads(ours) == json.loads(theirs)


def test_a_pipeline_for_other_images_or_of_another_kind_is_refused(given: Path, tmp_path: Path) -> None:
    from tests.pipelines import pixels

    model = StableDiffusion(init_from=given, public_data="noise")
    with pytest.raises(UserError, match="is for 8x8 images; these are 16x16"):
        model.build((16, 16, 1), None)
    with pytest.raises(UserError, match="is for images with 1 channels; these have 3"):
        model.build((8, 8, 3), None)
    with pytest.raises(UserError, match=r"train\.prediction: v_prediction is not the pretrained pipeline's, epsilon"):
        model.scheduler(replace(GIVEN, prediction="v_prediction"))
    other = StableDiffusion(init_from=pixels(tmp_path), public_data="noise")
    with pytest.raises(UserError, match=r"unet \(UNet2DModel\); needs UNet2DConditionModel"):
        other.build((8, 8, 1), None)


# Privacy


def recipe(model: str, mitigation: str) -> list[Problem]:
    problems: list[Problem] = []
    text = (
        f"{{schema: 1, data: {{kind: digits, members: 20, nonmembers: 20}}, model: {model}, train: {{images: 8}}, "
        f"arms: {{baseline: [], other: [{mitigation}]}}}}"
    )
    check(yaml_file.parse(text, "test"), "test", problems)
    return problems


def test_dp_sgd_is_refused_where_the_autoencoder_would_not_be_covered(given: Path) -> None:
    dp = "{kind: dp_sgd, epsilon: 8, delta: 1.0e-5}"
    problems = recipe("{kind: text_to_image}", dp)
    assert [problem.path for problem in problems] == ["arms.other[0]"]
    assert "which DP-SGD does not cover; use kind: stable_diffusion" in problems[0].message
    assert recipe(f"{{kind: stable_diffusion, init_from: '{given}', public_data: noise}}", dp) == []


def test_mitigations_of_captions_need_a_model_that_takes_them() -> None:
    for kind in ("caption_diversification", "text_noise_mask"):
        problems = recipe("{kind: unet, channels: [8, 16]}", f"{{kind: {kind}}}")
        assert [problem.path for problem in problems] == ["arms.other[0]"]
        assert "deals with captions" in problems[0].message
        assert recipe("{kind: text_to_image}", f"{{kind: {kind}}}") == []


@pytest.mark.parametrize("fields", [{}, {"trainable": "lora"}], ids=["all", "lora"])
def test_stable_diffusion_is_trained_on_with_dp_sgd(data: ImageSet, given: Path, tmp_path: Path, fields: Any) -> None:
    model = StableDiffusion(init_from=given, public_data="noise", **fields)
    dp = DPSGD(epsilon=8.0, delta=1e-2, engine="bookkeeping", noise_multiplicity=2, known_seed=0)
    rule = dp.update_rule(data, GIVEN, "a test", tmp_path / "state", 0)
    fit(data, GIVEN, tmp_path, model=model, rule=rule)
    privacy = json.loads((tmp_path / "privacy.json").read_text())
    assert privacy["self_check"]["passed"]
    assert privacy["noise_multiplier"] > 0
    moved = state(tmp_path / "pipeline", "unet")
    assert any(not torch.equal(value, moved[name]) for name, value in state(given, "unet").items())


# Other captions


class Seen(nn.Module):
    """Predicts nothing, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Any:
        self.told.append(class_labels)
        return SimpleNamespace(sample=torch.zeros_like(x))


def told(data: ImageSet, inputs: Any, size: int, multiplicity: int = 1) -> tuple[Tensor, Tensor]:
    """What an untrained network is told in one step, a row a draw; and the losses."""
    config = Train(images=1, label_dropout=0.0)
    diffusion = Diffusion.of(make_latent_scheduler("cosine", "epsilon", 1000))
    rule: Any = SimpleNamespace(seed=4, multiplicity=multiplicity)
    draw = Draw(data, np.arange(size) % len(data), config, NoiseLevels.of(config, diffusion), inputs, rule, step=3)
    seen = Seen()
    each = NetworkLosses(draw, diffusion, seen, make_accelerator(None))(np.arange(size))
    return seen.told[0], each


def test_alternatives_stand_for_an_image_as_often_as_its_caption(data: ImageSet, given: Path) -> None:
    inputs, few = Latents(open_any(given), "cpu"), data.take(np.arange(2))
    varied = replace(few, alternatives=(("one", "one", "another"), ()))
    size, k = 1200, 2
    conditions, each = told(varied, inputs, size, k)
    assert few.captions is not None
    texts = [few.captions[0], "one", "another", few.captions[1]]
    one = ImageSet.of(np.zeros((4, 8, 8, 1), np.uint8), list("abcd"), captions=tuple(texts))
    encoded = inputs.conditions(one, np.arange(4), None)
    rows = (conditions[:, None] - encoded[None]).abs().amax((2, 3)).argmin(1).view(size, k)
    first, second = rows[0::2].flatten().tolist(), rows[1::2].flatten().tolist()
    assert set(second) == {3}
    counts = Counter(first)
    assert set(counts) == {0, 1, 2}
    for text, share in ((0, 0.25), (1, 0.5), (2, 0.25)):
        sigma = (share * (1 - share) / len(first)) ** 0.5
        assert abs(counts[text] / len(first) - share) < 4 * sigma
    assert any(len(set(pair)) > 1 for pair in rows[0::2].tolist())  # an image's draws choose by themselves
    torch.testing.assert_close(told(few, inputs, size, k)[1], each, rtol=0, atol=0)  # nothing else is drawn otherwise


def test_alternatives_of_images_go_where_their_images_go(data: ImageSet, tmp_path: Path) -> None:
    varied = replace(data, alternatives=tuple((f"other {i}",) for i in range(16)))
    assert varied.take(np.array([3, 1])).alternatives == (("other 3",), ("other 1",))
    varied.save(tmp_path / "with")
    assert ImageSet.open(tmp_path / "with").alternatives == varied.alternatives
    data.save(tmp_path / "without")
    assert ImageSet.open(tmp_path / "without").alternatives is None
    assert "alternatives" not in json.loads((tmp_path / "without" / "index.json").read_text())
    both = concatenate(varied.take(np.array([0])), data.take(np.array([1])))
    assert both.alternatives == (("other 0",), ())
    assert concatenate(data.take(np.array([0])), data.take(np.array([1]))).alternatives is None


def applied(data: ImageSet, **fields: Any) -> tuple[tuple[str, ...], ...]:
    kept, ledger = CaptionDiversification(**fields).apply(data, stream(0, "test"))
    assert (kept.ids, kept.captions, ledger) == (data.ids, data.captions, [])
    assert kept.alternatives is not None
    return kept.alternatives


@pytest.mark.parametrize("way", ["random_replacement", "word_insertion", "word_repetition"])
def test_captions_are_changed_as_their_way_says(data: ImageSet, way: str) -> None:
    words = 1 if way == "random_replacement" else 2
    found = applied(data, way=way, probability=0.4, variants=10, words=words)
    assert data.captions is not None
    vocabulary = {word for caption in data.captions for word in caption.split()}
    for caption, others in zip(data.captions, found, strict=True):
        own, before = others.count(caption), caption.split()
        assert len(others) == 9
        assert own >= 5
        for text in others[5:]:
            after = text.split()
            assert set(after) <= (set(before) if way == "word_repetition" else vocabulary)
            assert len(after) == len(before) + (0 if way == "random_replacement" else 2)
            if way != "random_replacement":
                left = iter(after)
                assert all(word in left for word in before)  # in their order, with others among them
    assert len({text for others in found for text in others[5:]}) > 40
    assert applied(data, way=way, words=words) == found


def test_captions_come_from_a_file_by_any_name_of_an_image(digits: ImageSet, tmp_path: Path) -> None:
    images = digits.images(np.arange(4))
    data = ImageSet.of(images, ["a/1.png", "a/2.png", "b/3.png", "b/4.png"], captions=("one", "two", "three", "four"))
    copy = data.take(np.array([1]))
    data = concatenate(data, replace(copy, ids=(f"{copy.ids[0]}#copy-1",)))
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({data.ids[0]: ["I", "eins"], "a/2.png": ["II"], "3.png": ["III"], "9.png": ["IX"]}))
    expected = (("I", "eins"), ("II",), ("III",), (), ("II",))
    assert applied(data, way="several", captions=file) == expected
    lines = tmp_path / "captions.jsonl"
    rows = [{"id": data.ids[0], "captions": ["I"]}, {"file_name": "a/2.png", "captions": ["II"]}]
    rows += [{"file_name": "3.png", "captions": ["III"]}, {"id": data.ids[0], "captions": ["eins"]}]
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert applied(data, way="several", captions=lines) == expected
    mitigation = CaptionDiversification(way="several", captions=file)
    before = mitigation.fingerprint()
    file.write_text(json.dumps({"nobody": ["x"]}))
    assert mitigation.fingerprint() != before
    with pytest.raises(UserError, match=r"captions\.json: names none of the 5 images"):
        applied(data, way="several", captions=file)
    for bad in ("[1]", "{", '{"a": "b"}', '{"a": [1]}'):
        file.write_text(bad)
        with pytest.raises(UserError, match=r"captions\.json: needs"):
            applied(data, way="several", captions=file)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"way": "several"}, "several needs a file"),
        ({"words": 2}, "words: 2 goes with way: word_insertion or word_repetition alone"),
        ({"way": "several", "captions": "x.json", "variants": 3}, "variants: 3 goes with the other ways alone"),
        ({"probability": 0.01}, "is none or all of them"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptionDiversification(**fields)


def test_images_without_captions_cannot_be_given_others(digits: ImageSet) -> None:
    with pytest.raises(UserError, match="the data have no captions"):
        CaptionDiversification().apply(digits, stream(0, "test"))


def test_an_arm_trains_on_the_captions_that_its_data_stage_wrote(data: ImageSet, tmp_path: Path) -> None:
    mitigate(data, [CaptionDiversification()], 0, ("m",), tmp_path / "with")
    found = left_by(tmp_path / "with", data)
    assert found.alternatives == CaptionDiversification().apply(data, stream(0, "m", 0))[0].alternatives
    written = json.loads((tmp_path / "with" / "captions.json").read_text())
    assert complaints("captions.json", "captions", written) == []
    mitigate(data, [], 0, ("m",), tmp_path / "without")
    assert left_by(tmp_path / "without", data).alternatives is None
    assert not (tmp_path / "without" / "captions.json").exists()
    assert left_by(tmp_path / "with", data.take(np.array([3]))).alternatives == found.alternatives[3:4]


class Renames:
    """Changes a caption itself, which no mitigation may."""

    def apply(self, data: ImageSet, rng: np.random.Generator) -> tuple[ImageSet, list[Any]]:
        return replace(data, captions=("else", *(data.captions or ())[1:])), []


def test_a_mitigation_that_changes_captions_is_refused(data: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither change nor add any image, label or caption"):
        mitigate(data, [Renames()], 0, ("m",), tmp_path)


# The mask


class Told(nn.Module):
    """Predicts a constant times the text's first number; dropout everywhere it is not evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Any:
        first = class_labels[:, 0, 0].view(-1, 1, 1, 1) * t.view(-1, 1, 1, 1) / 1000
        return SimpleNamespace(sample=self.dropout(x * first * self.weight))


class Numbers(Pixels):
    """Pixels that are told a number each, the text's."""

    def __init__(self) -> None:
        super().__init__(None, "cpu")
        self.null = torch.zeros(1, 1, 1)

    def conditions(self, data: ImageSet, positions: np.ndarray, chance: Tensor | None) -> Tensor:
        assert data.captions is not None
        return torch.tensor([float(data.captions[i]) for i in positions.tolist()]).view(-1, 1, 1)


@pytest.mark.parametrize("relative", [True, False])
def test_the_mask_skips_what_a_slow_loop_skips(digits: ImageSet, tmp_path: Path, relative: bool) -> None:
    data = replace(digits.take(np.arange(12)), captions=tuple(str(1 + 3 * (i % 4 == 0)) for i in range(12)))
    config = Train(images=48, batch=12, lr=1e-3, label_dropout=0.3)
    threshold = 1.5 if relative else 10.0
    rule = TextMasked(
        12, config, 0, threshold=threshold, relative=relative, decay=0.5, level=0.9, record=tmp_path / "mask.json"
    )
    diffusion, network = Diffusion.of(make_latent_scheduler("cosine", "epsilon", 1000)), Told()
    accelerator = make_accelerator(config)
    rule.prepare(network, torch.optim.SGD(network.parameters(), lr=0.0), accelerator)
    average, skipped = 0.0, 0
    for step in range(4):
        draw = Draw(data, rule.positions(step), config, NoiseLevels.of(config, diffusion), Numbers(), rule, step)
        losses = NetworkLosses(draw, diffusion, network, accelerator)
        x0, _, eps, condition = draw._rows(np.arange(12), torch.device("cpu"))
        assert condition is not None
        found, total = [], torch.zeros(())
        for i in range(12):
            x_t = diffusion.noised(x0[i : i + 1], torch.tensor([899]), eps[i : i + 1])
            found.append(float(condition[i]) * 0.899 * float(x_t.norm()))
        limit = threshold * average if relative else threshold
        judged = [value > limit and (average > 0 or not relative) for value in found]
        present = [value for value in found if value]
        mean = sum(present) / len(present)
        average = 0.5 * (average or mean) + 0.5 * mean
        skipped += sum(judged)
        torch.manual_seed(step)
        rule.update(step, 12, losses)
        torch.manual_seed(step)
        total = losses(np.arange(12))[torch.tensor([not judge for judge in judged])].sum() / 12
        (expected,) = torch.autograd.grad(total, [network.weight])
        assert network.weight.grad is None
        assert expected.isfinite()
        assert float(rule.memory.magnitude) == pytest.approx(average, rel=1e-4)
        assert int(rule.memory.skipped) == skipped
    assert 0 < skipped < 40
    rule.finish()
    assert json.loads((tmp_path / "mask.json").read_text()) == {"images": 48, "skipped": skipped, "share": skipped / 48}


def test_a_masked_run_that_died_ends_in_the_same_bits(data: ImageSet, tmp_path: Path) -> None:
    often = replace(BRIEF, checkpoint_seconds=0.0)

    def masked(directory: Path, die_at: int) -> None:
        rule: Any = TextNoiseMask(threshold=1.01).update_rule(data, often, "", directory / "state", 0)
        fit(data, often, directory, rule=dying(rule, die_at))

    masked(tmp_path / "whole", -1)
    with pytest.raises(Killed):
        masked(tmp_path / "broken", 2)
    masked(tmp_path / "broken", -1)
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
    records = [(tmp_path / name / "text_noise_mask.json").read_text() for name in ("whole", "broken")]
    assert records[0] == records[1]
    assert json.loads(records[0])["skipped"] > 0
    assert complaints("text_noise_mask.json", "text_noise_mask", json.loads(records[0])) == []


def test_the_magnitude_is_the_papers(data: ImageSet, given: Path) -> None:
    """Against diffusers' own network, image by image, with the pipeline's own texts."""
    pipeline = open_any(given)
    inputs, diffusion = Latents(pipeline, "cpu"), Diffusion.of(pipeline.scheduler)
    config, rule = Train(images=1, label_dropout=0.0), SimpleNamespace(seed=1, multiplicity=1)
    draw = Draw(data, np.arange(5), config, NoiseLevels.of(config, diffusion), inputs, rule, 0)  # type: ignore[arg-type]
    losses = NetworkLosses(draw, diffusion, TextNetwork(pipeline.unet), make_accelerator(None))
    found = losses.text_noise(np.arange(5), 0.9)
    x0, _, eps, _ = draw._rows(np.arange(5), torch.device("cpu"))
    texts = pipeline.encode_prompt([*(data.captions or ())[:5], ""], "cpu", 1, False)[0]
    t = torch.tensor([899])
    with torch.no_grad():
        for i in range(5):
            x_t = pipeline.scheduler.add_noise(x0[i : i + 1], eps[i : i + 1], t)
            told, untold = (pipeline.unet(x_t, t, encoder_hidden_states=texts[j : j + 1]).sample for j in (i, 5))
            assert float(found[i]) == pytest.approx(float((told - untold).norm()), rel=1e-3)


def test_without_transformers_a_recipe_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    problems: list[Problem] = []
    assert build("unmem.train.models", {"kind": "text_to_image"}, "model", problems) is None
    assert [str(problem) for problem in problems] == ['model: needs transformers; run pip install "unmem[text]"']
    with pytest.raises(ConfigError) as error:
        load("text_to_image")
    assert [str(problem) for problem in error.value.problems] == [str(problem) for problem in problems]
