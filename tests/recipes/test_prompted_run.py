"""Runs in which models are asked by prompts: a tiny trained pipeline, and one whose answers are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import pipelines
from tests.recipes.test_cli import unmem
from unmem.component import Problem, UserError
from unmem.evaluate.audit import Audit, given
from unmem.evaluate.prompting import Prompts
from unmem.recipes import fleet, runner
from unmem.recipes.recipe import Recipe, check
from unmem.recipes.runner import run
from unmem.rng import stream
from unmem.train import prompted
from unmem.train.imageset import ImageSet, concatenate

WORDS = ("zebra", "quilt", "apple", "mountain", "jam", "violin", "box", "kiwi", "rhythm", "elbow", "gate", "harbour")
MEMBERS = HELD_OUT = 6
EACH, CLIQUE = 16, 5


def write_npz(file: Path, data: ImageSet) -> None:
    np.savez(file, x=data.images(), captions=np.array(data.captions))


@pytest.fixture(scope="module")
def folder(digits: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members and held-out images with captions, in one array each, and a text-to-image pipeline of random weights."""
    root = tmp_path_factory.mktemp("prompted")
    images = digits.take(np.arange(MEMBERS + HELD_OUT))
    images = replace(images, captions=WORDS)
    write_npz(root / "members.npz", images.take(np.arange(MEMBERS)))
    write_npz(root / "held_out.npz", images.take(np.arange(MEMBERS, MEMBERS + HELD_OUT)))
    pipelines.stable_diffusion(root / "pipeline")
    return root


def plain_of(root: Path, pipeline: str = "pipeline", attacks: Any = None, **sections: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "data": {
            side: {"kind": "npz", "path": str(root / f"{file}.npz"), "captions": "captions"}
            for side, file in (("members", "members"), ("nonmembers", "held_out"))
        },
        "sampling": {"steps": 2, "batch": 16},
        "prompts": {"each": EACH},
        "targets": {"model": {"kind": "pipeline", "path": str(root / pipeline)}},
        "attacks": attacks or [{"kind": "prompted_extraction", "tiles": 2, "clique": CLIQUE}],
        **sections,
    }


def built(plain: dict[str, Any]) -> Recipe:
    problems: list[Problem] = []
    found = check(plain, "prompted", problems)
    assert found is not None, problems
    return found


def problems_of(plain: dict[str, Any]) -> list[str]:
    problems: list[Problem] = []
    assert check(plain, "prompted", problems) is None
    return [str(problem) for problem in problems]


@dataclass
class Memory:
    """In place of a network: prompts of ``known`` are answered with their image nine times of ten; else with noise.

    Attributes:
        known: images by caption, float [h, w, c].
        most: images that there is memory for at once.
        calls: how many there were.
        dies_at: the call that is killed.
        flagged: prompts whose images a safety checker takes away.
    """

    known: dict[str, np.ndarray]
    most: int = 1000
    calls: int = 0
    dies_at: int | None = None
    flagged: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)

    def __call__(self, pipeline: Any, wanted: Any) -> tuple[np.ndarray, np.ndarray]:
        prompts = wanted.prompts
        if len(prompts) > self.most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.asked += prompts
        images = np.stack([self.answer(*pair) for pair in zip(prompts, wanted.generators, strict=True)])
        flags = np.array([prompt in self.flagged for prompt in prompts])
        images[flags] = 0
        return images, flags

    def answer(self, prompt: str, generator: Any) -> np.ndarray:
        rng = stream(generator.initial_seed(), "answer")
        if prompt in self.known and rng.random() < 0.9:
            return np.clip(self.known[prompt] + rng.normal(0, 0.02, (8, 8, 1)), 0, 1)
        return rng.random((8, 8, 1))


@contextmanager
def remembering(folder: Path, count: int = 4, **options: Any) -> Iterator[Memory]:
    """Jobs are done in this process, by a model that knows the first members by heart."""

    def run_here(jobs: list[Any], threads: int | None, cluster: Any, *more: Any, **rest: Any) -> None:
        for job in jobs:
            runner.run_job(job)

    with np.load(folder / "members.npz") as file:
        known = dict(zip(WORDS[:count], file["x"][:count] / 255, strict=True))
    memory = Memory(known, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet, "run", run_here)
        patch.setitem(prompted.CALLS, "StableDiffusionPipeline", memory)
        yield memory


def result(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attack's report, and what was asked."""
    arm = json.loads((root / "comparison.json").read_text())["arms"]["model"]
    return arm["attacks"]["prompted_extraction"], arm["sampling"]["asked"]


def counts(report: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: tuple(figure["n"].values()) for name, figure in report["estimates"].items()}


def test_memorized_prompts_are_found_and_no_others(folder: Path, tmp_path: Path) -> None:
    with remembering(folder):
        root = run(built(plain_of(folder)), tmp_path / "run", (), [])
    report, asked = result(root)
    assert counts(report) == {
        "flagged": (4, 12), "extracted": (4, 6), "false_positives": (0, 6), "precision": (4, 4), "recall": (4, 4),
    }  # fmt: skip
    assert asked == {
        "prompts": 12, "each": EACH, "planned": 12 * EACH, "drawn": 12 * EACH, "abandoned": [], "checked": 0,
        "broken": 0, "refused": 0,
    }  # fmt: skip
    samples = root / "arms" / "model" / "samples"
    chosen = json.loads((samples / "chosen.json").read_text())
    assert chosen == {"members": 6, "nonmembers": 6, "own": 0, "quarantined": 0}
    assert len(np.load(samples / "images.npy")) == len(json.loads((samples / "prompts.json").read_text())) == 12 * EACH


def test_stopping_finds_the_same_with_fewer_samples(folder: Path, tmp_path: Path) -> None:
    stop = {"rate": 0.8, "looks": [8], "tiles": 2}
    with remembering(folder):
        whole = run(built(plain_of(folder)), tmp_path / "whole", (), [])
        stopped = run(built(plain_of(folder, prompts={"each": EACH, "stop": stop})), tmp_path / "stopped", (), [])
    (before, _), (after, asked) = result(whole), result(stopped)
    assert asked["abandoned"] == [{"after": 8, "prompts": 8}]
    assert asked["drawn"] == 4 * EACH + 8 * 8 < asked["planned"] == 12 * EACH
    for name in ("extracted", "false_positives", "precision", "recall"):
        assert counts(after)[name] == counts(before)[name]
    assert [match["id"] for match in after["matches"]] == [match["id"] for match in before["matches"]]


def test_a_killed_run_resumes_at_the_part(folder: Path, tmp_path: Path) -> None:
    recipe = built(plain_of(folder))
    with remembering(folder) as memory:
        whole = run(recipe, tmp_path / "whole", (), [])
        in_all = memory.calls
    with remembering(folder, dies_at=8) as memory, pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "killed", (), [])
    with remembering(folder) as memory:
        killed = run(recipe, tmp_path / "killed", (), [])
        assert memory.calls == in_all - 7
    for name in ("images.npy", "prompts.json", "asked.json"):
        file = Path("arms", "model", "samples", name)
        assert (whole / file).read_bytes() == (killed / file).read_bytes()
    assert result(whole) == result(killed)


def test_short_memory_changes_nothing_but_the_batch(folder: Path, tmp_path: Path) -> None:
    with remembering(folder):
        whole = run(built(plain_of(folder)), tmp_path / "whole", (), [])
    with remembering(folder, most=2):
        short = run(built(plain_of(folder)), tmp_path / "short", (), [])
    file = Path("arms", "model", "samples", "images.npy")
    assert (whole / file).read_bytes() == (short / file).read_bytes()


def test_what_the_safety_checker_takes_away_is_not_extracted(folder: Path, tmp_path: Path) -> None:
    with remembering(folder, flagged=WORDS[:1]):
        root = run(built(plain_of(folder)), tmp_path / "run", (), [])
    report, asked = result(root)
    assert (asked["checked"], report["black"]) == (EACH, EACH)
    assert counts(report)["extracted"] == (3, 5)
    assert "black samples are left out" in report["estimates"]["flagged"]["note"]


def test_prompts_of_ones_own(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"zebra\n\nsomething else\ncaf\xe9\nzebra\n" + b"x" * 10_001 + b"\n")
    with remembering(folder) as memory:
        root = run(built(plain_of(folder, prompts={"each": EACH, "file": str(file)})), tmp_path / "run", (), [])
    assert set(memory.asked) == {"zebra", "something else"}
    samples = root / "arms" / "model" / "samples"
    assert len(json.loads((samples / "quarantine.json").read_text())) == 3
    assert counts(result(root)[0])["extracted"] == (1, 1)
    file.write_text("quilt\n")
    with remembering(folder), pytest.raises(UserError, match="made from other inputs"):
        run(built(plain_of(folder, prompts={"each": EACH, "file": str(file)})), root, (), [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": None}, "attacks.prompted_extraction: needs samples, and model's model is asked for"),
        ({"prompts": {"each": 0}}, "prompts.each: input should be greater than 0; got 0"),
        ({"prompts": {"each": 4, "stop": {"rat": 1}}}, "prompts.stop.rat: unknown field, did you mean 'rate'?"),
        ({"sampling": {"guidance": 0.5}}, "sampling.guidance: must be 1 or more with prompts; got 0.5"),
        ({"sampling": {"scheduler": "euler", "churn": 1.0}}, "sampling.churn: is for networks on pixels"),
    ],
)  # fmt: skip
def test_validation_says_what_is_wrong(folder: Path, change: dict[str, Any], message: str) -> None:
    assert any(problem.startswith(message) for problem in problems_of(plain_of(folder, **change)))


def test_prompts_need_a_model_that_takes_them(folder: Path, tmp_path: Path) -> None:
    pipelines.pixels(tmp_path / "pixels")
    plain = plain_of(
        folder, attacks=[{"kind": "loss"}], targets={"model": {"kind": "pipeline", "path": str(tmp_path / "pixels")}}
    )
    assert problems_of(plain) == ["prompts: no model of this recipe takes texts; leave the section out"]


def test_too_few_prompts_for_what_is_measured(folder: Path, tmp_path: Path) -> None:
    stop = {"rate": 0.8, "looks": [8]}
    attacks = [{"kind": "nearest_distance", "samples": 12 * 8 + 1}]
    with remembering(folder), pytest.raises(UserError, match=r"96 samples are certain, and attacks .* want 97"):
        run(built(plain_of(folder, attacks=attacks, prompts={"each": EACH, "stop": stop})), tmp_path / "run", (), [])


def test_without_captions_there_is_nothing_to_choose_among(folder: Path, tmp_path: Path) -> None:
    plain = plain_of(folder)
    for side in plain["data"].values():
        del side["captions"]
    with pytest.raises(UserError, match="prompts: are chosen among captions, and the images have none"):
        run(built(plain), tmp_path / "run", (), [])


def test_a_pipeline_without_its_vae_is_one_clear_error(folder: Path, tmp_path: Path) -> None:
    import shutil

    path = shutil.copytree(folder / "pipeline", tmp_path / "pipeline")
    shutil.rmtree(path / "vae")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(plain_of(folder, targets={"model": {"kind": "pipeline", "path": str(path)}})))
    code, _, err = unmem("run", recipe, "--out", tmp_path / "run")
    assert code == 2 and f"{path / 'vae'}: no such folder; model_index.json names AutoencoderKL there" in err
    assert "Traceback" not in err


def test_the_command_line_asks_and_draws(folder: Path, tmp_path: Path) -> None:
    data = ("--members", folder / "members.npz", "--nonmembers", folder / "held_out.npz", "--captions", "captions")
    options = ("--set", "sampling.steps=2", "--set", "attacks.prompted_extraction.tiles=2", "--out", tmp_path / "run")
    model = ("audit", "--model", folder / "pipeline", *data)
    with remembering(folder, MEMBERS):
        code, _, err = unmem(
            *model, "--prompts", 3, "--each", EACH, "--attacks", "prompted_extraction,nearest_distance",
            "--samples", 20, *options,
        )  # fmt: skip
    assert code == 0, err
    arm = json.loads((tmp_path / "run" / "comparison.json").read_text())["arms"]["pipeline"]
    assert arm["sampling"]["asked"]["drawn"] == 6 * EACH
    assert counts(arm["attacks"]["prompted_extraction"])["extracted"] == (3, 3)
    for more, message in (
        (("--samples", 8), "takes texts; say what it is to be asked with --prompts"),
        (("--prompts", "none.txt"), "--prompts none.txt: needs a number of captions, or a file of prompts"),
        (("--each", 8), "--each: says how often each of --prompts is asked; there are none"),
        (("--generated", tmp_path), "needs a pipeline (--model) or images that one generated"),
    ):
        code, _, err = unmem(*model, *more)
        assert code == 2 and message in err


def test_the_command_line_takes_generated_images(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "members.npz") as file:
        np.save(tmp_path / "drawn.npy", np.repeat(file["x"][:2], 10, axis=0))
    rows = [f"{i},{WORDS[i // 10]}" for i in range(20)]
    (tmp_path / "manifest.csv").write_text("\n".join(["file_name,prompt", *rows]))
    data = ("--members", folder / "members.npz", "--nonmembers", folder / "held_out.npz", "--captions", "captions")
    images = ("audit", "--generated", tmp_path / "drawn.npy", *data)
    options = ("--attacks", "prompted_extraction", "--set", "attacks.prompted_extraction.tiles=2")
    code, _, err = unmem(*images, "--manifest", tmp_path / "manifest.csv", *options, "--out", tmp_path / "run")
    assert code == 0, err
    arm = json.loads((tmp_path / "run" / "comparison.json").read_text())["arms"]["drawn_npy"]
    assert counts(arm["attacks"]["prompted_extraction"])["extracted"] == (2, 2)
    for more, message in (
        ((), "--generated: say how many images to look at with --samples, or what they show with --manifest"),
        (("--prompts", 3, "--manifest", tmp_path / "manifest.csv"), "generated images cannot be asked"),
    ):
        code, _, err = unmem(*images, *more)
        assert code == 2 and message in err


def captioned(digits: ImageSet, texts: tuple[str, ...], held_out: tuple[str, ...]) -> Audit:
    both = replace(digits.take(np.arange(len(texts) + len(held_out))), captions=texts + held_out)
    return given(both, both.ids[: len(texts)], both.ids[len(texts) :], 0)


def test_the_most_frequent_captions_are_chosen_first(digits: ImageSet) -> None:
    audit = captioned(digits, ("one", "two", " two ", "three", "three", "three", ""), ("two", "five", "six", "six"))
    chosen = Prompts(each=1, members=2).chosen(audit)
    assert chosen.texts == ("three", "two", "six", "five")
    assert (chosen.members, chosen.nonmembers, len(chosen.rejected)) == (2, 2, 1)
    assert Prompts(each=1, members=1, nonmembers=0).chosen(audit).texts == ("three",)
    assert len(Prompts(each=1, choose="all").chosen(audit).texts) == 5


def test_planted_copies_count(digits: ImageSet) -> None:
    audit = captioned(digits, ("one", "two", "three"), ("four",))
    position = audit.member_images.captions.index("two")  # type: ignore[union-attr]
    copy = replace(audit.member_images.take(np.array([position])), ids=("copy",))
    copies = {"copy": audit.members[position]}
    planted = replace(audit, data=concatenate(audit.data, copy), copies=copies)
    assert Prompts(each=1, members=1).chosen(planted).texts[0] == "two"


def test_images_far_from_their_neighbours_are_outlying(digits: ImageSet) -> None:
    """Against distances between features, pair by pair."""
    audit = captioned(digits, tuple(f"m{i}" for i in range(30)), tuple(f"h{i}" for i in range(20)))
    section = Prompts(each=1, choose="outlying", members=5, neighbor=3)
    features = section._extractor()(audit.member_images.images()).astype(np.float32)
    apart = np.sort(np.linalg.norm(features[:, None] - features[None], axis=2), axis=1)[:, 3]
    assert audit.member_images.captions is not None
    expected = [audit.member_images.captions[i] for i in np.argsort(-apart)[:5]]
    assert list(section.chosen(audit).texts[:5]) == expected
    assert all(text.startswith("h") for text in section.chosen(audit).texts[5:])


def test_arms_that_take_texts_are_asked_the_same_by_their_own_rules(folder: Path, tmp_path: Path) -> None:
    """Trained for a moment, with and without a mitigation that refuses every sample; attacks and quality read both."""
    text = {
        "kind": "text_to_image", "channels": [8, 16], "vae_channels": [8, 16], "vae_images": 32, "text_width": 16,
        "norm_groups": 4, "tokens": 20,
    }  # fmt: skip
    plain = {
        "schema": 1,
        "data": {
            "kind": "npz", "path": str(folder / "members.npz"), "captions": "captions", "members": 4, "nonmembers": 2,
        },
        "model": text,
        "train": {"images": 16, "batch": 8},
        "sampling": {"steps": 2, "batch": 5},
        "prompts": {"each": 3, "nonmembers": 1, "members": 2},
        "arms": {"plain": [], "guarded": [{"kind": "reject_copies", "max_distance": 256, "attempts": 2}]},
        "attacks": [
            {"kind": "prompted_extraction", "tiles": 2, "clique": 2}, {"kind": "loss", "timesteps": [100], "draws": 1},
        ],
        "quality": [{"kind": "frechet", "samples": 9, "resamples": 2}],
        "compare": {"against": "plain"},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet, "run", lambda jobs, *_, **__: [runner.run_job(job) for job in jobs])
        root = run(built(plain), tmp_path / "run", (), [])
    plainly, guarded = (root / "arms" / arm / "samples" for arm in ("plain", "guarded"))
    assert (plainly / "prompts.json").read_text() == (guarded / "prompts.json").read_text()
    assert np.load(plainly / "images.npy").any() and not np.load(guarded / "images.npy").any()
    arms = json.loads((root / "comparison.json").read_text())["arms"]
    assert [arms[arm]["sampling"]["asked"]["refused"] for arm in arms] == [0, 9]
    assert arms["guarded"]["sampling"]["refused"] == {"samples": 9, "drawn": 18, "refused": 18, "black": 9}
    steered = {**plain, "arms": {"plain": [], "steered": [{"kind": "dissimilarity_guidance"}]}}
    assert problems_of(steered)[0].startswith("arms.steered[0]: steers the steps of networks on pixels")
    asked_nothing = {name: section for name, section in plain.items() if name != "prompts"}
    assert [problem.partition(":")[0] for problem in problems_of(asked_nothing)] == [
        "attacks.prompted_extraction", "quality.frechet",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(digits: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that was trained on three captioned digits until it knows them; three more were held out."""
    root = tmp_path_factory.mktemp("trained")
    images = replace(digits.take(np.arange(6)), captions=("zebra", "quilt", "aaaa", "MOUNTAIN 7", "jam", "0123456789"))
    members = images.take(np.arange(3))
    write_npz(root / "members.npz", members)
    write_npz(root / "held_out.npz", images.take(np.arange(3, 6)))
    ids, captions = tuple(f"{k}:{name}" for k in range(4) for name in members.ids), members.captions
    assert captions is not None
    batch = replace(members, rows=np.tile(members.rows, 4), ids=ids, captions=4 * captions, labels=None)
    pipelines.memorized(root / "pipeline", batch)
    return root


def test_a_trained_model_gives_its_images_away(trained: Path, tmp_path: Path) -> None:
    sections = {
        "sampling": {"steps": 20, "guidance": 3.0},
        "prompts": {"each": EACH, "stop": {"rate": 0.3, "tiles": 2}},
    }
    attacks = [{"kind": "prompted_extraction", "tiles": 2, "clique": CLIQUE, "threshold": 0.2}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet, "run", lambda jobs, *_, **__: [runner.run_job(job) for job in jobs])
        root = run(built(plain_of(trained, attacks=attacks, **sections)), tmp_path / "run", (), [])
    found = counts(result(root)[0])
    assert found["extracted"] == (3, 3) and found["recall"] == (3, 3) and found["precision"] == (3, 3)
    assert found["false_positives"][0] == 0
