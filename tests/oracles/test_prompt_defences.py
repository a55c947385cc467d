"""Defences that act on prompts and on initial noise: on models of which it is known what each text makes them draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import more_pipelines, pipelines
from unmem.component import UserError
from unmem.mitigations.initial_noise import InitialNoise, Magnitude
from unmem.mitigations.prompt_perturbation import PromptPerturbation
from unmem.recipes import fleet, runner
from unmem.recipes.recipe import check
from unmem.rng import stream, torch_stream
from unmem.train.config import Sampling
from unmem.train.imageset import ImageSet
from unmem.train.opening import open_any
from unmem.train.prompt_rule import PromptRule
from unmem.train.prompted import Prompted

CAPTIONS = tuple(f"{word}, number {i}" for i, word in enumerate(("a cat", "the sea", "two men", "a red car")))
WAYS: tuple[Literal["random_numbers", "random_words", "word_repetition"], ...] = (
    "random_numbers", "random_words", "word_repetition",
)  # fmt: skip
SAMPLING = Sampling(steps=10, batch=16)
EACH = 6  # samples a caption
SET = ImageSet.of(np.zeros((4, 8, 8, 1), np.uint8), [str(i) for i in range(4)])
DATA = replace(SET, captions=CAPTIONS)


class Recalling(nn.Module):
    """The best denoiser, with as much of a text-conditional UNet as pipelines read.

    For the very text of a caption it draws that caption's latents, in ``share`` of its samples; else any of the others.
    """

    def __init__(self, pipeline: Any, own: Tensor, others: Tensor, share: float) -> None:
        super().__init__()
        self.config, self.dtype, self.device = pipeline.unet.config, torch.float32, torch.device("cpu")
        self._texts = pipeline.encode_prompt(list(CAPTIONS), "cpu", 1, False)[0]
        self._points, self._count = torch.cat([own, others]).flatten(1), len(own)
        self._alphas, self._share = pipeline.scheduler.alphas_cumprod, share

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **rest: Any) -> Any:
        chances = torch.zeros(len(x), len(self._points))
        known = torch.cdist(encoder_hidden_states.flatten(1), self._texts.flatten(1)) < 1e-2
        chances[:, : self._count] = self._share * known
        chances[:, self._count :] = (1 - chances.sum(1, keepdim=True)) / (len(self._points) - self._count)
        alpha_bar = self._alphas[int(t)]
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        far = (x.flatten(1)[:, None] - signal * self._points).square().sum(2)
        mean = (chances.log() - far / (2 * noise**2)).softmax(1) @ self._points
        eps = (x - signal * mean.view_as(x)) / noise
        return SimpleNamespace(sample=eps) if rest.get("return_dict", True) else (eps,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    return pipelines.stable_diffusion(path, beta_schedule="scaled_linear", beta_end=0.012, beta_start=0.00085)


def model(folder: Path, share: float = 1.0) -> tuple[Any, np.ndarray]:
    """A pipeline, and what it recalls for each caption, uint8 [4, 8, 8, 1]."""
    pipeline = open_any(folder)
    points = torch.randn((20, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pipeline.unet = Recalling(pipeline, points[:4], points[4:], share)
        decoded = pipeline.vae.decode(points[:4] / pipeline.vae.config.scaling_factor).sample
    images = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
    return pipeline, images.numpy().astype(np.uint8)


def recalled(folder: Path, rules: list[PromptRule], share: float = 1.0, seed: int = 0) -> tuple[float, np.ndarray]:
    """The part of the samples for captions that are the captions' own images; and all samples."""
    pipeline, own = model(folder, share)
    asking = Prompted(pipeline, SAMPLING, seed, "cpu", prompt_rules=rules)
    drawn = asking.draw([(caption, j) for caption in CAPTIONS for j in range(EACH)])
    assert not drawn.broken.any()
    away = np.abs(drawn.images.astype(int) - own.repeat(EACH, 0)).mean((1, 2, 3))
    return float((away < 3).mean()), drawn.images


def test_undefended_captions_give_their_images_and_others_do_not(folder: Path) -> None:
    assert recalled(folder, [])[0] == 1.0
    assert recalled(folder, [], share=0.0)[0] == 0.0


# Words


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("words", [1, 4])
def test_changed_captions_recall_nothing(folder: Path, way: Any, words: int) -> None:
    rule = PromptPerturbation(way=way, words=words).prompt_rule(DATA, Path())
    rate, images = recalled(folder, [rule])
    assert rate <= 0.25  # a word that is added at the end may be all beyond what the encoder reads
    again, same = recalled(folder, [rule])
    assert again == rate and np.array_equal(images, same)


def test_words_beyond_what_the_encoder_reads_defend_nothing(folder: Path) -> None:
    """What the docstring says of it: a long caption is cut short before the words that stand behind."""
    pipeline, _ = model(folder)
    long, changed = "x" * 60, "x" * 60 + " 17"
    first, second = (pipeline.encode_prompt([text], "cpu", 1, False)[0] for text in (long, changed))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("way", WAYS)
def test_added_words_are_what_they_are_called(way: Any) -> None:
    known = {word for caption in CAPTIONS for word in caption.split()}
    rule = PromptPerturbation(way=way, words=3).prompt_rule(DATA, Path())
    prompt, places = "two men, number 2", set()
    for number in range(200):
        words = rule.rewrite(prompt, stream(0, "rewrite", number)).split()
        own = prompt.split()
        rest = list(words)
        for word in own:
            rest.remove(word)
        assert len(rest) == 3
        kept = iter(words)
        assert all(word in kept for word in own)  # the prompt's own stand in their order
        if way == "random_numbers":
            assert all(0 <= int(word) <= 1_000_000 for word in rest)
        else:
            assert set(rest) <= (set(own) if way == "word_repetition" else known)
        places.add(words.index(own[0]))
    assert places == {0, 1, 2, 3}
    assert rule.rewrite(prompt, stream(0, "a")) == rule.rewrite(prompt, stream(0, "a"))
    assert rule.rewrite(prompt, stream(0, "a")) != rule.rewrite(prompt, stream(0, "b"))
    assert (rule.rewrite("", stream(0, "a")) == "") == (way == "word_repetition")
    assert not rule.starts


def test_a_samples_words_are_its_own(folder: Path) -> None:
    rule = PromptPerturbation().prompt_rule(None, Path())

    def drawn(seed: int, asked: list[tuple[str, int]]) -> np.ndarray:
        return Prompted(model(folder)[0], SAMPLING, seed, "cpu", prompt_rules=[rule]).draw(asked).images.astype(int)

    whole = drawn(0, [("a", 0), ("a", 1), ("b", 0)])
    assert int(np.abs(drawn(0, [("b", 0), ("a", 1)]) - whole[[2, 1]]).max()) <= 1
    assert int(np.abs(drawn(1, [("a", 0)]) - whole[:1]).max()) > 1


def test_random_words_need_captions() -> None:
    for data in (None, SET, replace(SET, captions=("",) * 4)):
        with pytest.raises(UserError, match="prompt_perturbation: random_words are drawn from captions"):
            PromptPerturbation(way="random_words").prompt_rule(data, Path())


# Noise


def noises(count: int = 4) -> Tensor:
    return torch.stack([torch.randn((4, 4, 4), generator=torch_stream(0, "noise", k)) for k in range(count)])


def test_the_magnitude_is_that_of_two_direct_calls(folder: Path) -> None:
    pipeline = open_any(folder)
    found, slope = Magnitude(pipeline, CAPTIONS, SAMPLING).with_slope(noises())
    first = pipeline.scheduler.timesteps[0]
    with torch.no_grad():
        texts = pipeline.encode_prompt(list(CAPTIONS), "cpu", 1, False)[0]
        empty = pipeline.encode_prompt([""] * 4, "cpu", 1, False)[0]
        given, free = (pipeline.unet(noises(), first, encoder_hidden_states=text).sample for text in (texts, empty))
    torch.testing.assert_close(found, (given - free).square().mean((1, 2, 3)).sqrt(), atol=1e-6, rtol=1e-4)
    step = torch.randn((4, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    moved = [Magnitude(pipeline, CAPTIONS, SAMPLING).with_slope(noises() + h * step)[0] for h in (1e-2, -1e-2)]
    expected = (moved[0] - moved[1]) / 2e-2
    torch.testing.assert_close((slope * step).sum((1, 2, 3)), expected, atol=1e-4, rtol=0.05)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm_solver++"])
def test_adjusted_noise_lowers_the_magnitude_and_stays_noise(folder: Path, scheduler: Any) -> None:
    pipeline = Prompted(open_any(folder), Sampling(steps=10, scheduler=scheduler), 0, "cpu")._pipeline
    before = Magnitude(pipeline, CAPTIONS, SAMPLING).with_slope(noises())[0]
    target = float(0.8 * before.min())
    rule = InitialNoise(target=target).prompt_rule(None, Path())
    adjusted = rule.start(pipeline, noises(), CAPTIONS, SAMPLING)
    after = Magnitude(pipeline, CAPTIONS, SAMPLING).with_slope(adjusted)[0]
    assert bool((after < before).all()) and bool((after <= target).any())
    torch.testing.assert_close(adjusted.flatten(1).norm(dim=1), noises().flatten(1).norm(dim=1))
    assert not adjusted.requires_grad and rule.starts
    torch.testing.assert_close(rule.start(pipeline, noises(), CAPTIONS, SAMPLING), adjusted)
    alone = rule.start(pipeline, noises()[2:3], CAPTIONS[2:3], SAMPLING)
    torch.testing.assert_close(alone, adjusted[2:3], atol=1e-4, rtol=1e-3)
    lax = InitialNoise(target=float(before.max())).prompt_rule(None, Path())
    torch.testing.assert_close(lax.start(pipeline, noises(), CAPTIONS, SAMPLING), noises())  # nothing is to be done


def test_adjusted_noise_leaves_the_basin_where_there_is_another(folder: Path) -> None:
    """Half of a caption's samples are its image: the noise decides, and can be led away. Where all are, it cannot."""
    rule = InitialNoise(target=1e-3, steps=40).prompt_rule(None, Path())
    free, _ = recalled(folder, [], share=0.5)
    led, images = recalled(folder, [rule], share=0.5)
    assert free > 0.3 and led < free / 2
    assert images.std() > 1 and images.shape == (4 * EACH, 8, 8, 1)
    assert recalled(folder, [rule])[0] == 1.0  # of all samples, there is no way out
    again, same = recalled(folder, [rule], share=0.5)
    assert again == led and np.array_equal(same, images)


@pytest.mark.parametrize("make", [pipelines.stable_diffusion_xl, more_pipelines.stable_diffusion_3])
def test_pipelines_whose_noise_cannot_be_adjusted(make: Any, tmp_path: Path) -> None:
    rule = InitialNoise(target=0.1).prompt_rule(None, Path())
    asking = Prompted(open_any(make(tmp_path)), SAMPLING, 0, "cpu", prompt_rules=[rule])
    with pytest.raises(UserError, match=r"(initial_noise: is for|StableDiffusion3Pipeline: rules on initial noise)"):
        asking.draw([("a", 0)])


@pytest.mark.slow
def test_words_keep_a_trained_model_from_its_training_images(digits: ImageSet, tmp_path: Path) -> None:
    few = pipelines.captioned(digits.take(np.arange(8)))
    assert few.captions is not None
    ids = tuple(f"{k}:{name}" for k in range(12) for name in few.ids)
    often = replace(few, rows=np.tile(few.rows, 12), ids=ids, captions=12 * few.captions, labels=None)
    path = pipelines.memorized(tmp_path, often, steps=600)

    def rate(rules: list[PromptRule]) -> float:
        asking = Prompted(open_any(path), Sampling(steps=20, guidance=2.0), 0, "cpu", prompt_rules=rules)
        drawn = asking.draw([(caption, j) for caption in few.captions or () for j in range(4)]).images
        away = drawn.astype(float) - few.images().repeat(4, 0)
        return float((np.sqrt((away**2).mean((1, 2, 3))) / 255 < 0.1).mean())

    free = rate([])
    assert free > 0.7
    for way in WAYS:
        assert rate([PromptPerturbation(way=way).prompt_rule(few, Path())]) < free / 2
    # this one knows nothing but its images, and draws them from any noise
    assert rate([InitialNoise(target=0.1).prompt_rule(None, Path())]) > 0.7


def test_arms_that_differ_in_these_alone_have_one_model_and_other_samples(
    digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = digits.take(np.arange(8))
    np.savez(tmp_path / "digits.npz", x=images.images(), name=np.array([f"digit {i}" for i in range(8)]))
    plain = {
        "schema": 1,
        "data": {"kind": "npz", "path": str(tmp_path / "digits.npz"), "members": 4, "nonmembers": 4},
        "model": {
            "kind": "text_to_image", "channels": [8, 16], "vae_channels": [8, 16], "vae_images": 32, "text_width": 16,
            "norm_groups": 4,
        },
        "train": {"images": 32, "batch": 8},
        "sampling": {"steps": 2, "batch": 16},
        "prompts": {"choose": "all", "each": 4},
        "arms": {
            "plain": [],
            "words": [{"kind": "prompt_perturbation"}],
            "noise": [{"kind": "initial_noise", "target": 1e-6, "steps": 2, "lr": 0.2}],
        },
        "attacks": [{"kind": "prompted_extraction", "clique": 3, "tiles": 2}],
        "compare": {"against": "plain"},
    }  # fmt: skip
    problems: list[Any] = []
    found = check(plain, "words", problems)
    assert found is not None, problems
    monkeypatch.setattr(fleet, "run", lambda jobs, *_, **__: [runner.run_job(job) for job in jobs])  # in this process
    root = runner.run(found, tmp_path / "run", (), [])
    samples = {arm: np.load(root / f"arms/{arm}/samples/images.npy").astype(int) for arm in plain["arms"]}
    weights = "train/pipeline/unet/diffusion_pytorch_model.safetensors"
    assert len({(root / f"arms/{arm}" / weights).read_bytes() for arm in samples}) == 1
    assert all(np.abs(samples[arm] - samples["plain"]).max() > 1 for arm in ("words", "noise"))
    text = (root / "report.md").read_text()
    assert "prompt_perturbation" in text and "initial_noise" in text
    refused: list[Any] = []
    assert check({**plain, "model": {"kind": "unet", "channels": [8, 16]}, "prompts": None}, "words", refused) is None
    assert any("arms.words[0]" in str(p) and "needs a model that takes texts" in str(p) for p in refused)
