"""Samples by prompts: what they depend on, what becomes of black ones, and how surely prompts are given up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import pipelines
from unmem.component import UserError
from unmem.evaluate.prompting import Prompts
from unmem.evaluate.prompts import read_list
from unmem.evaluate.stopping import Stop
from unmem.rng import stream, torch_stream
from unmem.train.asking import Asking
from unmem.train.config import Sampling
from unmem.train.memory import Batches
from unmem.train.opening import open_any
from unmem.train.prompt_rule import AsAsked
from unmem.train.prompted import Drawn, Prompted, noise_shape
from unmem.train.sampling_rule import Free

ASKED = [("one", 0), ("two", 0), ("one", 1), ("three", 4), ("one", 2)]
ALONE = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True, wait_for_everyone=lambda: None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "sd": pipelines.stable_diffusion(root / "sd", beta_schedule="scaled_linear"),
        "xl": pipelines.stable_diffusion_xl(root / "xl"),
    }


def drawn(path: Path, asked: Sequence[tuple[str, int]], seed: int = 7, **config: Any) -> np.ndarray:
    settings: dict[str, Any] = {"steps": 3, "guidance": 3.0, "batch": 2, **config}
    return Prompted(open_any(path), Sampling(**settings), seed, "cpu").draw(asked).images


@pytest.mark.parametrize("name", ["sd", "xl"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"eta": 1.0},
        {"scheduler": "dpm_solver++"},
        {"scheduler": "euler", "karras_sigmas": True},
        {"scheduler": "heun"},
    ],
    ids=str,
)
def test_a_sample_depends_on_seed_prompt_and_number_alone(saved: dict[str, Path], name: str, config: Any) -> None:
    whole = drawn(saved[name], ASKED, batch=5, **config)
    single = drawn(saved[name], ASKED, batch=1, **config)
    assert whole.dtype == np.uint8 and whole.shape == (5, 8, 8, 1)
    assert np.abs(whole.astype(int) - single).max() <= 1
    alone = drawn(saved[name], [("one", 2)], **config)
    assert np.abs(alone[0].astype(int) - whole[4]).max() <= 1
    for other in (whole[1], whole[0], drawn(saved[name], [("one", 2)], seed=8, **config)[0]):
        assert np.abs(other.astype(int) - whole[4]).max() > 20


def test_it_is_what_the_pipeline_draws_when_it_is_called_by_hand(saved: dict[str, Path]) -> None:
    from diffusers import DPMSolverMultistepScheduler

    pipeline = open_any(saved["sd"])
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch_stream(7, "sample", "one", 2)
    by_hand = pipeline("one", num_inference_steps=3, guidance_scale=3.0, generator=generator, output_type="np").images
    ours = drawn(saved["sd"], [("one", 2)], scheduler="dpm_solver++")
    np.testing.assert_array_equal(ours, (255 * by_hand).round().astype(np.uint8))


def test_steps_are_taken_on_the_schedule_that_the_folder_names(tmp_path: Path) -> None:
    """A latent pipeline whose scheduler says nothing of clipping is not clipped; its betas are kept."""
    from diffusers import PNDMScheduler

    pipeline = open_any(pipelines.stable_diffusion(tmp_path / "sd"))
    pipeline.scheduler = PNDMScheduler(beta_schedule="scaled_linear", beta_end=0.012, skip_prk_steps=True)
    scheduler = Prompted(pipeline, Sampling(steps=2), 0, "cpu")._pipeline.scheduler
    assert (type(scheduler).__name__, scheduler.config.clip_sample) == ("DDIMScheduler", False)
    assert (scheduler.config.beta_schedule, scheduler.config.beta_end) == ("scaled_linear", 0.012)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Sampling(guidance=0.5), "sampling.guidance: .* no guidance below 1; got 0.5"),
        (Sampling(scheduler="euler", churn=1.0), "sampling.churn: is for networks on pixels"),
    ],
)
def test_settings_that_pipelines_do_not_know_are_refused(
    saved: dict[str, Path], config: Sampling, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Prompted(open_any(saved["sd"]), config, 0, "cpu")


def checked(path: Path, taken: list[bool]) -> Any:
    """A pipeline whose safety checker takes away every image of a batch for which ``taken`` says so, in turn."""
    pipeline = open_any(path)
    left = iter(taken)

    def run_safety_checker(image: Tensor, device: Any, dtype: Any) -> tuple[Tensor, list[bool]]:
        flags = [next(left) for _ in image]
        return torch.stack([-torch.ones_like(x) if flag else x for x, flag in zip(image, flags, strict=True)]), flags

    pipeline.run_safety_checker = run_safety_checker
    return pipeline


def test_what_a_safety_checker_takes_away_is_black_and_counted(saved: dict[str, Path]) -> None:
    flags = [False, True, True, False, False]
    found = Prompted(checked(saved["sd"], flags), Sampling(steps=2, batch=2), 7, "cpu").draw(ASKED)
    assert found.checked.tolist() == flags and not found.broken.any()
    assert (~found.images.any((1, 2, 3))).tolist() == flags


def test_a_folders_safety_checker_is_kept_for_samples_alone(tmp_path: Path) -> None:
    path = with_checker(pipelines.stable_diffusion(tmp_path / "sd"))
    assert open_any(path).safety_checker is None
    pipeline = open_any(path, checked=True)
    assert pipeline.safety_checker is not None and pipeline.feature_extractor is not None
    found = Prompted(pipeline, Sampling(steps=2), 7, "cpu").draw(ASKED)
    assert found.checked.all() and not found.images.any()


def with_checker(path: Path) -> Path:
    """The folder with a tiny safety checker that takes every image away: thresholds below any cosine."""
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**sizes, "image_size": 8, "patch_size": 4, "projection_dim": 4}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=4))
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(-2.0)
    sides = {"height": 8, "width": 8}
    extractor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=sides)
    pipeline = open_any(path)
    parts = {
        name: part for name, part in pipeline.components.items() if name not in ("safety_checker", "feature_extractor")
    }
    StableDiffusionPipeline(**parts, safety_checker=checker, feature_extractor=extractor).save_pretrained(path)
    return path


def test_images_that_are_not_finite_are_black_and_counted(saved: dict[str, Path]) -> None:
    pipeline = open_any(saved["sd"])
    decode = pipeline.vae.decode

    def broken(z: Tensor, **options: Any) -> Any:
        image = decode(z, **options)[0].clone()
        image[0, :, 0, 0] = torch.nan
        return (image,)

    pipeline.vae.decode = broken
    found = Prompted(pipeline, Sampling(steps=2, batch=2), 7, "cpu").draw(ASKED)
    assert found.broken.tolist() == [True, False, True, False, True]
    assert (~found.images.any((1, 2, 3))).tolist() == found.broken.tolist()


class Hungry:
    """A pipeline's ``decode`` that has memory for two images at once, or for fewer."""

    def __init__(self, decode: Any, most: int) -> None:
        self.decode, self.most, self.tried = decode, most, []

    def __call__(self, z: Tensor, **options: Any) -> Any:
        self.tried.append(len(z))
        if len(z) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.decode(z, **options)


def test_short_memory_halves_the_batch_and_says_so_once(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("unmem.progress.say", said.append)
    pipeline = open_any(saved["sd"])
    pipeline.vae.decode = hungry = Hungry(pipeline.vae.decode, 2)
    sampler = Prompted(pipeline, Sampling(steps=3, guidance=3.0, batch=5), 7, "cpu")
    images = sampler.draw(ASKED).images
    assert np.abs(images.astype(int) - drawn(saved["sd"], ASKED)).max() <= 1
    assert hungry.tried == [5, 2, 2, 1]
    sampler.draw(ASKED)
    assert hungry.tried[4:] == [2, 2, 1]
    assert said == ["out of memory with 5 at once; going on with smaller batches (sampling.batch)"]
    hungry.most = 0
    with pytest.raises(UserError, match=r"sampling\.batch: there is not enough memory for a single one"):
        sampler.draw(ASKED)


def test_other_errors_are_no_lack_of_memory() -> None:
    def wrong(batch: slice) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Batches(4, "sampling.batch").run(8, wrong)
    assert Batches(3, "x").run(7, lambda batch: (batch.start, batch.stop)) == [(0, 3), (3, 6), (6, 7)]
    assert Batches(3, "x").run(0, lambda batch: batch) == []


class Louder(AsAsked):
    """Rewrites by chance, and turns the noise about."""

    starts = True

    def rewrite(self, prompt: str, rng: np.random.Generator) -> str:
        return f"{prompt} {rng.integers(1000)}"

    def start(self, pipeline: Any, noise: Tensor, prompts: Sequence[str], config: Sampling) -> Tensor:
        assert all(prompt.split()[0] in ("one", "two", "three") and len(prompt.split()) == 2 for prompt in prompts)
        return -noise


class Quiet(AsAsked):
    """Changes nothing, by way of the noise."""

    starts = True


def test_rules_change_words_and_noise_of_each_sample_by_itself(saved: dict[str, Path]) -> None:
    def by(rule: Any, batch: int) -> np.ndarray:
        config = Sampling(steps=3, guidance=3.0, batch=batch)
        return Prompted(open_any(saved["sd"]), config, 7, "cpu", prompt_rules=[rule]).draw(ASKED).images.astype(int)

    assert noise_shape(open_any(saved["sd"])) == (4, 4, 4)
    plain = drawn(saved["sd"], ASKED)
    assert np.abs(by(Quiet(), 2) - plain).max() <= 1  # our own noise is the pipeline's
    assert np.abs(by(Louder(), 5) - by(Louder(), 1)).max() <= 1
    assert np.abs(by(Louder(), 5) - plain).max() > 20


class Picky(Free):
    """Refuses what has an odd first pixel."""

    attempts = 3

    def accept(self, images: np.ndarray) -> np.ndarray:
        return images[:, 0, 0, 0] % 2 == 0


def test_refused_samples_are_drawn_again_each_by_itself(saved: dict[str, Path]) -> None:
    def by(batch: int) -> Drawn:
        config = Sampling(steps=3, guidance=3.0, batch=batch)
        return Prompted(open_any(saved["sd"]), config, 7, "cpu", sampling_rules=[Picky()]).draw(ASKED)

    whole, single = by(5), by(1)
    np.testing.assert_array_equal(whole.images, single.images)
    np.testing.assert_array_equal(whole.refused, single.refused)
    black = whole.refused == 3
    assert whole.refused.sum() > 0 and not whole.images[black].any()
    assert (whole.images[~black][:, 0, 0, 0] % 2 == 0).all()


class Copier:
    """A sampler that answers even prompts with copies of one image at a rate, and all else with noise."""

    attempts, refuses = 1, False

    def __init__(self, rate: float, seed: int = 0, batch: int = 16) -> None:
        self.batch, self.rate, self.seed, self.calls = batch, rate, seed, 0
        self.stop_after: int | None = None

    def draw(self, asked: Sequence[tuple[str, int]]) -> Drawn:
        self.calls += 1
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt
        images = np.stack([self.image(int(prompt), number) for prompt, number in asked])
        none = np.zeros(len(asked), bool)
        return Drawn(images, none, none, np.zeros(len(asked), np.int64))

    def image(self, prompt: int, number: int) -> np.ndarray:
        rng = stream(self.seed, "copier", prompt, number)
        copied = prompt % 2 == 0 and rng.random() < self.rate
        known = stream(0, "image", prompt).integers(40, 216, (8, 8, 1))
        shown = known + rng.integers(-3, 4, known.shape) if copied else rng.integers(1, 256, known.shape)
        return shown.astype(np.uint8)


PROMPTS = tuple(str(i) for i in range(12))


def ask(sampler: Any, directory: Path, each: int = 40, stop: Stop | None = None, accelerator: Any = ALONE) -> Any:
    rule = None if stop is None else stop.rule(each)
    Asking(sampler, PROMPTS, each, directory, accelerator).run((8, 8, 1), rule)
    if not (directory / "images.npy").exists():
        return None
    texts = json.loads((directory / "prompts.json").read_text())
    asked = json.loads((directory / "asked.json").read_text())
    return np.load(directory / "images.npy"), texts, asked


STOP = Stop(rate=0.5, miss=0.01, looks=(12, 24), tiles=2)


def test_samples_come_round_by_round_and_are_each_prompts_own(tmp_path: Path) -> None:
    images, texts, asked = ask(Copier(0.5), tmp_path, each=3)
    assert texts == [*PROMPTS] * 3
    expected = [Copier(0.5).image(int(text), k // len(PROMPTS)) for k, text in enumerate(texts)]
    np.testing.assert_array_equal(images, expected)
    assert asked == {
        "prompts": 12, "each": 3, "planned": 36, "drawn": 36, "abandoned": [], "checked": 0, "broken": 0, "refused": 0,
    }  # fmt: skip
    assert {file.name for file in tmp_path.iterdir()} == {"images.npy", "prompts.json", "asked.json"}


def test_stopping_saves_samples_and_changes_none(tmp_path: Path) -> None:
    whole, texts, _ = ask(Copier(0.8), tmp_path / "whole")
    images, fewer, asked = ask(Copier(0.8), tmp_path / "stopped", stop=STOP)
    assert asked["abandoned"] == [{"after": 12, "prompts": 6}, {"after": 24, "prompts": 0}]
    assert asked["drawn"] == len(images) == 6 * 12 + 6 * 40 < asked["planned"] == len(whole)
    for prompt in PROMPTS:
        mine, all_of_it = (images[np.array(fewer) == prompt], whole[np.array(texts) == prompt])
        assert len(mine) == (40 if int(prompt) % 2 == 0 else 12)
        np.testing.assert_array_equal(mine, all_of_it[: len(mine)])


@pytest.mark.parametrize("stop", [None, STOP], ids=["all", "stopping"])
def test_a_kill_at_any_part_costs_that_part_alone(tmp_path: Path, stop: Stop | None) -> None:
    whole = ask(Copier(0.8), tmp_path / "whole", stop=stop)
    counted = Copier(0.8)
    ask(counted, tmp_path / "counted", stop=stop)
    calls = 0
    for after in range(counted.calls):
        sampler = Copier(0.8)
        sampler.stop_after = 1  # dies at its second part
        if after < counted.calls - 1:
            with pytest.raises(KeyboardInterrupt):
                ask(sampler, tmp_path / "killed", stop=stop)
        calls += 1
    found = ask(Copier(0.8), tmp_path / "killed", stop=stop)
    assert calls == counted.calls
    np.testing.assert_array_equal(found[0], whole[0])
    assert found[1:] == whole[1:]
    again = Copier(0.8)
    ask(again, tmp_path / "killed", stop=stop)
    assert again.calls == 0  # nothing is left to do


def test_a_kill_between_the_last_file_and_the_sweep_leaves_nothing_behind(tmp_path: Path) -> None:
    ask(Copier(0.8), tmp_path, each=3)
    (tmp_path / "part-00-000000.npy").write_bytes(b"left over")
    sampler = Copier(0.8)
    ask(sampler, tmp_path, each=3)
    assert sampler.calls == 0 and not list(tmp_path.glob("part-*"))


def test_processes_share_the_parts(tmp_path: Path) -> None:
    """Two, as threads with a barrier: the same files, and no part drawn twice."""
    whole, barrier, alone = ask(Copier(0.8), tmp_path / "whole", stop=STOP), Barrier(2), Copier(0.8)
    samplers, directory = (Copier(0.8), Copier(0.8)), tmp_path / "shared"

    def process(index: int) -> None:
        accelerator = SimpleNamespace(
            process_index=index, num_processes=2, is_main_process=index == 0, wait_for_everyone=barrier.wait
        )
        Asking(samplers[index], PROMPTS, 40, directory, accelerator).run((8, 8, 1), STOP.rule(40))  # type: ignore[arg-type]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(process, range(2)))
    ask(alone, tmp_path / "alone", stop=STOP)
    np.testing.assert_array_equal(np.load(directory / "images.npy"), whole[0])
    assert min(sampler.calls for sampler in samplers) > 0
    assert sum(sampler.calls for sampler in samplers) == alone.calls


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"draws images of 8 x 8 x 1 .* the data's are 16 x 16 x 1"):
        Asking(Copier(1.0), PROMPTS, 2, tmp_path, ALONE).run((16, 16, 1))  # type: ignore[arg-type]


def test_the_least_clique_is_the_largest_that_keeps_the_bound() -> None:
    from scipy.stats import binom

    for rate, miss in ((0.1, 0.05), (0.5, 0.01), (1.0, 0.05), (0.02, 0.3)):
        stop = Stop(rate=rate, miss=miss)
        for look, samples in ((0, 1), (0, 10), (1, 54), (2, 108), (3, 500)):
            least = stop.needed(samples, look)
            share = miss / 2 ** (look + 1)
            assert sum(binom.pmf(k, samples, rate) for k in range(least)) <= share * (1 + 1e-9)
            if least < samples:
                assert sum(binom.pmf(k, samples, rate) for k in range(least + 1)) > share
    assert Stop(rate=1.0).needed(10, 0) == 10


def test_looks_begin_where_a_prompt_may_be_given_up_and_double() -> None:
    rule = Stop(rate=0.1, miss=0.05).rule(500)
    assert rule.looks == (rule.looks[0], 2 * rule.looks[0], 4 * rule.looks[0], 8 * rule.looks[0])
    assert Stop().needed(rule.looks[0], 0) == 2 > Stop().needed(rule.looks[0] - 1, 0)
    assert Stop().rule(20).looks == ()  # too few samples to tell


def test_prompts_that_are_copied_are_missed_no_more_often_than_said() -> None:
    """10,000 prompts at exactly the rate: cliques are as large as there are copies, and no larger."""
    for rate, miss in ((0.1, 0.05), (0.3, 0.2)):
        rule = Stop(rate=rate, miss=miss).rule(500)
        copies = stream(0, "simulated", str(rate)).random((10_000, max(rule.looks))) < rate
        missed = np.zeros(len(copies), bool)
        for look, least in zip(rule.looks, rule.needed, strict=True):
            missed |= copies[:, :look].sum(1) < least
        assert 0 < missed.mean() <= miss + 3 * np.sqrt(miss / len(copies))
        wrong = (copies[:, : rule.looks[-1]].sum(1) < rule.needed[-1] + 40).mean()  # the check must reject a wrong rule
        assert wrong > miss


def test_whole_prompts_are_missed_no_more_often_than_said(tmp_path: Path) -> None:
    """The same with images: copies among noise, cliques by patch distance; prompts without copies stop at once."""
    stop = Stop(rate=0.3, miss=0.2, tiles=2)
    rule, copied, missed, others = stop.rule(60), 0, 0, 0
    for seed in range(40):
        sampler = Copier(0.3, seed)
        for prompt in range(12):
            images = np.stack([sampler.image(prompt, k) for k in range(rule.looks[-1])])
            kept = all(rule.goes_on(images[:look], i) for i, look in enumerate(rule.looks))
            copied, missed, others = (
                copied + (prompt % 2 == 0),
                missed + (prompt % 2 == 0 and not kept),
                others + (prompt % 2 == 1 and kept),
            )
    assert others == 0
    assert missed <= 0.2 * copied + 3 * np.sqrt(0.2 * copied)


def test_black_samples_are_no_copies(tmp_path: Path) -> None:
    class Censored(Copier):
        def draw(self, asked: Sequence[tuple[str, int]]) -> Drawn:
            found = super().draw(asked)
            flags = np.array([prompt == "0" for prompt, _ in asked])
            found.images[flags] = 0
            return Drawn(found.images, flags, found.broken, found.refused)

    images, texts, asked = ask(Censored(1.0), tmp_path, stop=STOP)
    assert asked["abandoned"][0]["prompts"] == 7
    assert asked["checked"] == 12 == (~images.any((1, 2, 3))).sum() == texts.count("0")


def test_a_list_of_100_000_lines_costs_only_its_bad_ones(tmp_path: Path) -> None:
    lines = [f"a photograph of number {i % 90_000}".encode() for i in range(100_000)]
    lines[5], lines[6], lines[7], lines[8] = b"", b"   ", b"caf\xe9", b"x" * 10_001
    lines[9], lines[10] = b"x" * 10_000, "  \N{SNOWMAN}  ".encode()
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines) + b"\n")
    texts, rejected = read_list(file)
    assert [(entry.source, entry.reason) for entry in rejected] == [
        ("prompts.txt, line 6", "is empty"),
        ("prompts.txt, line 7", "is empty"),
        ("prompts.txt, line 8", "is not UTF-8 (byte 3)"),
        ("prompts.txt, line 9", "has 10001 letters, more than 10000"),
    ]
    assert texts[0] == "a photograph of number 0" and texts[6] == "\N{SNOWMAN}" and len(texts) == len(set(texts))
    assert len(texts) == 90_002  # what was overwritten comes again in line 90,006 and after


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b"id,prompt\n1,one\n2,\n3,one\n4,caf\xe9\n5,two\n", (("one", "two"), 2)),
        ("a.jsonl", b'{"prompt": "one"}\n\n{"text": "two"}\n{"prompt": 3}\n{broken\n[1]\n', (("one", "two"), 3)),
    ],
)
def test_tables_of_prompts(tmp_path: Path, name: str, content: bytes, expected: tuple[tuple[str, ...], int]) -> None:
    (tmp_path / name).write_bytes(content)
    texts, rejected = read_list(tmp_path / name)
    assert (texts, len(rejected)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,words\n1,one\n", "needs the columns 'prompt'; its first line has id, words"),
        ("a.yaml", b"one\n", "prompts are read from .csv, .jsonl or .txt, not from .yaml"),
        ("a.txt", None, "cannot be read"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"each": 10, "file": "a.txt", "members": 3}, "leave one out"),
        ({"each": 10, "stop": {"rate": 0.9, "looks": [5, 10]}}, "looks must be below each"),
        ({"each": 10, "stop": {"rate": 0.9, "looks": [5, 5]}}, "looks must rise"),
        ({"each": 90, "stop": {"rate": 0.1, "looks": [10, 80]}}, "10 samples are too few to give a prompt up"),
        ({"each": 10, "features": {"kind": "nothing"}}, "unknown kind 'nothing'"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompts(**options)
