"""A folder of generated images in place of a model: whole runs, prompts, and whatever such a folder may hold."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Generator
from unmem.component import UserError
from unmem.evaluate.analysis import Compare, analyse
from unmem.evaluate.attacks.prompted_extraction import PromptedExtraction
from unmem.evaluate.audit import Audit, given
from unmem.evaluate.prompts import read_prompts
from unmem.evaluate.targets.generated import Generated
from unmem.recipes.recipe import Recipe, check
from unmem.recipes.runner import run
from unmem.rng import stream
from unmem.train.imageset import ImageSet

MEMBERS, HELD_OUT, MEMORIZED = 60, 60, 6  # images; captions that the model answers with its training image
SAMPLES = 12  # a prompt


def caption(i: int) -> str:
    return f"handwritten digit, number {i}"


def jittered(image: np.ndarray, *names: object) -> np.ndarray:
    """A near-copy: a normalised L2 of some 0.03."""
    noise = stream(0, "jitter", *names).normal(0, 8, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def write_images(folder: Path, images: np.ndarray, names: list[str]) -> None:
    for name, image in zip(names, images, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / name)


@pytest.fixture(scope="module")
def large(digits: ImageSet) -> np.ndarray:
    """Real digits, uint8 [n, 16, 16, 1]; no two alike."""
    images = np.unique(digits.images(), axis=0)
    order = stream(0, "order").permutation(len(images))
    return images[order].repeat(2, 1).repeat(2, 2)


@pytest.fixture(scope="module")
def closed(large: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one has of a closed model: members and held-out images with captions, and samples of 16 prompts.

    The model copies the training image for the first six members' captions. For six further members', and for four
    held-out images', it draws other digits.
    """
    root = tmp_path_factory.mktemp("closed")
    for side, start, count in (("members", 0, MEMBERS), ("held_out", MEMBERS, HELD_OUT)):
        names = [f"{i:03d}.png" for i in range(count)]
        write_images(root / side, large[start : start + count], names)
        for i, name in enumerate(names):
            (root / side / name).with_suffix(".txt").write_text(caption(start + i))
    fresh = iter(range(MEMBERS + HELD_OUT, len(large)))
    rows = []
    for number in (*range(2 * MEMORIZED), *range(MEMBERS, MEMBERS + 4)):
        for k in range(SAMPLES):
            image = jittered(large[number], number, k) if number < MEMORIZED else large[next(fresh)]
            name = f"{number:03d}/{k:02d}.png"
            write_images(root / "drawn", image[None], [name])
            rows.append((name, caption(number)))
    with (root / "prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "prompt"), *rows])
    return root


def recipe_of(root: Path, attacks: list[dict[str, Any]], **target: Any) -> Recipe:
    sides = {
        side: {"kind": "image_folder", "path": str(root / folder), "channels": 1}
        for side, folder in (("members", "members"), ("nonmembers", "held_out"))
    }
    plain = {
        "schema": 1,
        "data": sides,
        "targets": {"closed": {"kind": "generated", "path": str(root / "drawn"), **target}},
        "attacks": attacks,
    }
    problems: list[Any] = []
    found = check(plain, "closed", problems)
    assert found is not None, problems
    return found


ATTACKS = [
    {"kind": "generate_and_filter", "samples": 192, "threshold": 0.4},
    {"kind": "nearest_distance", "samples": 192},
    {"kind": "prompted_extraction", "tiles": 2},
]


def test_a_whole_run_extracts_what_the_closed_model_copies(closed: Path, tmp_path: Path) -> None:
    recipe = recipe_of(closed, ATTACKS, prompts=str(closed / "prompts.csv"))
    root = run(recipe, tmp_path / "run", (), [])
    arm = json.loads((root / "comparison.json").read_text())["arms"]["closed"]
    ratio, nearness, prompted = (arm["attacks"][attack["kind"]] for attack in ATTACKS)
    assert ratio["estimates"]["extracted"]["n"]["successes"] == MEMORIZED
    assert ratio["estimates"]["false_positives"]["n"]["successes"] == 0
    assert nearness["estimates"]["nearer_to_training"]["value"] > 0.5
    counts = {name: estimate["n"] for name, estimate in prompted["estimates"].items()}
    assert counts == {
        "flagged": {"successes": MEMORIZED, "trials": 16},
        "extracted": {"successes": MEMORIZED, "trials": 2 * MEMORIZED},
        "false_positives": {"successes": 0, "trials": 4},
        "precision": {"successes": MEMORIZED, "trials": MEMORIZED},
        "recall": {"successes": MEMORIZED, "trials": MEMORIZED},
    }
    assert [match["distance"] for match in prompted["matches"]] == pytest.approx([0.03] * MEMORIZED, abs=0.015)
    means = [prompt["mean_distance"] for prompt in prompted["prompts"]]
    assert means == sorted(means)
    pairs = json.loads((root / "arms/closed/gallery/gallery.json").read_text())["pairs"]
    assert {pair["attack"] for pair in pairs} == {"generate_and_filter", "prompted_extraction"}
    assert "6 of 60 training images can be extracted" in (root / "report.md").read_text()
    before = (root / "comparison.json").stat().st_mtime_ns
    run(recipe, root, (), [])
    assert (root / "comparison.json").stat().st_mtime_ns == before


def test_an_attack_that_asks_the_model_itself_is_refused_before_anything_is_computed(
    closed: Path, tmp_path: Path
) -> None:
    from unmem.recipes.execution import run_model
    from unmem.recipes.runner import arm_of, prepare

    recipe = recipe_of(closed, [{"kind": "prompted_extraction"}, {"kind": "loss"}])
    prepare(recipe, tmp_path / "run")
    with pytest.raises(UserError, match=r"attacks\.prompted_extraction: needs prompts, which closed does not give"):
        run_model(arm_of(tmp_path / "run", "closed"))
    assert not (tmp_path / "run/arms").exists()


def test_a_trained_arm_has_no_prompts() -> None:
    problems: list[Any] = []
    plain = {
        "schema": 1,
        "data": {"kind": "digits", "members": 8, "nonmembers": 8},
        "model": {"kind": "unet", "channels": [8]},
        "train": {"images": 8, "batch": 4},
        "arms": {"baseline": []},
        "attacks": [{"kind": "prompted_extraction"}],
    }
    check(plain, "test", problems)
    assert "attacks.prompted_extraction: needs images with prompts" in str(problems[0])


def collected(target: Generated, directory: Path, shape: tuple[int, int, int] = (16, 16, 1)) -> dict[str, Any]:
    target.collect(directory, shape)
    assert not (directory / "scratch").exists()
    found: dict[str, Any] = {
        name: json.loads((directory / f"{name}.json").read_text())
        for name in ("prompts", "quarantine")
        if (directory / f"{name}.json").exists()
    }
    return {**found, "images": np.load(directory / "images.npy")}


def test_what_is_no_image_is_listed_and_the_others_stay_in_the_order_of_their_names(
    large: np.ndarray, tmp_path: Path
) -> None:
    folder = tmp_path / "drawn"
    write_images(folder, large[:3], ["b.png", "a/x.png", "c.png"])
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image")
    (folder / "asked.csv").write_text("file_name,prompt\nb.png,bee\nbroken.png,bang\nnowhere.png,none\n./a/x.png,ex\n")
    found = collected(Generated(path=folder, prompts=folder / "asked.csv"), tmp_path / "out")
    np.testing.assert_array_equal(found["images"], large[[1, 0, 2]])
    assert found["prompts"] == ["ex", "bee", None]
    assert {entry["source"]: entry["reason"] for entry in found["quarantine"]}.keys() == {
        "broken.png", "empty.jpg", "asked.csv: broken.png", "asked.csv: nowhere.png",
    }  # fmt: skip
    assert "cannot be read" in found["quarantine"][2]["reason"]
    assert "is not there" in found["quarantine"][3]["reason"]


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_an_array_of_images_is_taken_as_it_is(ending: str, large: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / f"drawn.{ending}"
    if ending == "npy":
        np.save(file, large[:5, ..., 0])
    else:
        np.savez_compressed(file, images=large[:5])
    (tmp_path / "asked.jsonl").write_text('{"file_name": "3", "prompt": "three"}\n')
    target = Generated(path=file, prompts=tmp_path / "asked.jsonl")
    assert target.access == {"samples", "prompts"}
    found = collected(target, tmp_path / "out")
    np.testing.assert_array_equal(found["images"], large[:5])
    assert found["prompts"] == [None, None, None, "three", None]
    with pytest.raises(UserError, match=r"images are 16 x 16 x 1 .*, the data's are 8 x 8 x 1"):
        target.collect(tmp_path / "other", (8, 8, 1))


def test_larger_images_are_brought_to_the_datas_size_and_wrong_ones_refused(large: np.ndarray, tmp_path: Path) -> None:
    write_images(tmp_path / "drawn", large[:2].repeat(4, 1).repeat(4, 2), ["a.png", "b.png"])
    found = collected(Generated(path=tmp_path / "drawn"), tmp_path / "out")
    assert found["images"].shape == (2, 16, 16, 1)
    assert np.abs(found["images"].astype(int) - large[:2]).mean() < 16
    with pytest.raises(UserError, match=r"images are 64 x 64 x 3 .*, the data's are 16 x 32 x 3"):
        Generated(path=tmp_path / "drawn").collect(tmp_path / "other", (16, 32, 3))


def test_a_fingerprint_changes_with_images_and_prompts(large: np.ndarray, tmp_path: Path) -> None:
    write_images(tmp_path / "drawn", large[:2], ["a.png", "b.png"])
    (tmp_path / "asked.csv").write_text("file_name,prompt\na.png,one\n")
    target = Generated(path=tmp_path / "drawn", prompts=tmp_path / "asked.csv")
    seen = [target.fingerprint(), Generated(path=tmp_path / "drawn").fingerprint()]
    (tmp_path / "asked.csv").write_text("file_name,prompt\na.png,another\n")
    seen.append(target.fingerprint())
    write_images(tmp_path / "drawn", large[:1], ["c.png"])
    seen.append(target.fingerprint())
    assert len(set(seen)) == 4
    assert target.fingerprint() == seen[-1]


@pytest.mark.parametrize(
    ("path", "prompts", "message"),
    [
        ("nowhere", None, "no such folder"),
        ("nowhere.npy", None, "no such file"),
        ("drawn", "nowhere.csv", "no such file"),
    ],
)
def test_what_is_missing_is_named(path: str, prompts: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    target = Generated(path=tmp_path / path, prompts=None if prompts is None else tmp_path / prompts)
    with pytest.raises(UserError, match=message):
        target.fingerprint()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("asked.csv", b"image,prompt\na.png,one\n", "needs the columns 'file_name' and 'prompt'; .* image, prompt"),
        ("asked.tsv", b"", "from .csv or .jsonl, not from .tsv"),
        ("asked.csv", b"", "gives none of the 1 images"),
        ("asked.csv", b"file_name,prompt\nb.png,one\n", "gives none .* first: asked.csv: b.png: has a prompt, but"),
        ("asked.jsonl", b"\xff\n", "gives none .* asked.jsonl, line 1: is not UTF-8"),
    ],
)
def test_a_manifest_that_says_nothing_is_refused(
    name: str, text: bytes, message: str, large: np.ndarray, tmp_path: Path
) -> None:
    write_images(tmp_path / "drawn", large[:1], ["a.png"])
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UserError, match=message):
        Generated(path=tmp_path / "drawn", prompts=tmp_path / name).collect(tmp_path / "out", (16, 16, 1))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_of_a_hundred_thousand_lines_each_bad_one_is_listed_and_no_good_one_lost(ending: str, tmp_path: Path) -> None:
    def line(name: str, prompt: str) -> bytes:
        if ending == "jsonl":
            return json.dumps({"file_name": name, "text": prompt, "seed": 7}).encode() + b"\n"
        return b'%b,7,"%b"\r\n' % (name.encode(), prompt.replace('"', '""').encode())

    bad = {  # by line: what stands there, and what is said of it
        10: (line("a.png", "").replace(b"\r\n", b"\n"), "has no 'prompt'"),
        20: (b"\n", None),
        30: (line("b.png", "caf?").replace(b"?", b"\xe9"), "not UTF-8"),
        40: (line("c.png", "six").replace(b'six"', b"six"), "damaged"),  # a quote that is never closed
        50: (line("00007.png", "again"), "'00007.png' again; first in line 9"),
        60: (line("", "nameless"), "has no 'file_name'"),
        70: (b"[1, 2]\n" if ending == "jsonl" else b"d.png,one,field,too,many\n", None),
        80: (line("h.png", "x" * 200_000), "field larger than field limit" if ending == "csv" else None),
    }
    lines = [b"file_name,seed,text\n" if ending == "csv" else b"\n"]
    lines += [line(f"{i - 2:05d}.png", f'prompt "{i % 50}", of a sort') for i in range(2, 100_001)]
    for number, (text, _) in bad.items():
        lines[number - 1] = text
    file = tmp_path / f"asked.{ending}"
    file.write_bytes(b"\xef\xbb\xbf" + b"".join(lines))
    start = time.perf_counter()
    prompts, rejected = read_prompts(file)
    assert time.perf_counter() - start < 20
    reasons = {entry.source: entry.reason for entry in rejected}
    kept = ending == "jsonl"  # JSON has no limit of its own
    assert reasons.keys() == {f"asked.{ending}, line {n}" for n in bad if n != 20 and not (kept and n == 80)}
    for number, (_, reason) in bad.items():
        if reason is not None:
            assert reason in reasons[f"asked.{ending}, line {number}"]
    assert len(prompts) == 99_999 - len(bad) + kept
    assert prompts["00097.png"] == 'prompt "49", of a sort'
    assert prompts["00039.png"] == 'prompt "41", of a sort'  # the line behind the open quote


def test_a_prompt_may_have_several_lines(tmp_path: Path) -> None:
    (tmp_path / "asked.csv").write_text('file_name,prompt\na.png,"one\ntwo"\nb.png,three\n')
    assert read_prompts(tmp_path / "asked.csv") == ({"a.png": "one\ntwo", "b.png": "three"}, [])


def figures_of(images: np.ndarray, prompts: list[str | None], audit: Audit, **fields: Any) -> dict[str, Any]:
    target = Generator(images)
    target.prompts = tuple(prompts)
    result = PromptedExtraction(tiles=2, clique=4, **fields).run(target, audit, 0)
    report = analyse(result, audit, frozenset(), Compare(), 0)
    return {name: tuple(estimate["n"].values()) for name, estimate in report["estimates"].items()}


@pytest.fixture(scope="module")
def captioned(large: np.ndarray) -> Audit:
    """20 members and 20 held-out images, each with a caption of its own but two members that share one."""
    texts = tuple("the same" if i < 2 else caption(i) for i in range(40))
    data = replace(ImageSet.of(large[:40], [f"{i}" for i in range(40)]), captions=texts)
    return given(data, data.ids[:20], data.ids[20:], 0)


def copies(image: np.ndarray, count: int = 5) -> list[np.ndarray]:
    return [jittered(image, k) for k in range(count)]


def test_a_model_that_copies_held_out_images_shows_as_false_positives(captioned: Audit, large: np.ndarray) -> None:
    images = [image for i in (20, 21) for image in copies(large[i])]
    found = figures_of(np.stack(images), [caption(20)] * 5 + [caption(21)] * 5, captioned)
    assert found["flagged"] == (2, 2)
    assert found["extracted"] == (0, 0)
    assert found["false_positives"] == (2, 2)
    assert found["precision"] == (0, 0)


def test_a_held_out_image_with_a_members_caption_is_no_control(captioned: Audit, large: np.ndarray) -> None:
    """It may be a variant of the member, and near to what that gives."""
    for shared, control in ((caption(20), (1, 1)), ("the same", (0, 0))):
        texts = (shared if text == caption(20) else text for text in captioned.data.captions or ())
        audit = replace(captioned, data=replace(captioned.data, captions=tuple(texts)))
        found = figures_of(np.stack(copies(large[20])), [shared] * 5, audit)
        assert (found["flagged"], found["false_positives"]) == ((1, 1), control)


def test_planted_captions_are_known_to_be_memorized(captioned: Audit, large: np.ndarray) -> None:
    """One of two is flagged; the third flagged prompt is not planted."""
    images = [*copies(large[3]), *copies(large[50]), *large[60:64], *copies(large[5])]
    prompts = [caption(3)] * 5 + [caption(7)] * 5 + [caption(8)] * 4 + [caption(5)] * 5
    names = dict(zip(captioned.data.captions or (), captioned.data.ids, strict=True))
    planted = tuple(names[caption(i)] for i in (3, 8))
    found = figures_of(np.stack(images), prompts, replace(captioned, planted=planted))
    assert found["flagged"] == (3, 4)
    assert found["flagged_planted"] == (1, 2)


def test_samples_that_agree_on_another_image_are_flagged_but_extract_nothing(
    captioned: Audit, large: np.ndarray
) -> None:
    found = figures_of(np.stack(copies(large[99])), [caption(5)] * 5, captioned)
    assert found["flagged"] == (1, 1)
    assert found["extracted"] == (0, 1)
    assert found["precision"] == (0, 1)
    assert found["recall"] == (0, 0)


def test_of_members_with_one_caption_the_copied_one_is_extracted(captioned: Audit, large: np.ndarray) -> None:
    found = figures_of(np.stack(copies(large[1])), ["the same"] * 5, captioned)
    assert found["extracted"] == (1, 2)
    assert found["recall"] == (1, 1)


def test_recall_counts_memorized_prompts_that_the_clique_misses(captioned: Audit, large: np.ndarray) -> None:
    """Samples near to the image, but not to one another at so strict a threshold."""
    found = figures_of(np.stack(copies(large[3])), [caption(3)] * 5, captioned, threshold=0.001)
    assert found["flagged"] == (0, 1)
    assert found["recall"] == (0, 1)


def test_few_samples_and_images_without_a_prompt_are_not_judged(captioned: Audit, large: np.ndarray) -> None:
    images = [*copies(large[3], 3), *copies(large[4]), *copies(large[6])]
    found = figures_of(np.stack(images), [caption(3)] * 3 + [caption(4)] * 5 + [None] * 5, captioned)
    assert found["flagged"] == (1, 1)
    assert found["extracted"] == (1, 1)


def test_a_safety_checkers_black_images_agree_on_nothing(captioned: Audit, large: np.ndarray) -> None:
    black = np.zeros((9, *large.shape[1:]), dtype=np.uint8)
    found = figures_of(
        np.concatenate([black, np.stack(copies(large[4]))]), [caption(3)] * 8 + [caption(4)] * 6, captioned
    )
    assert found["flagged"] == (1, 1)
    assert found["extracted"] == (1, 1)


def test_more_tiles_than_pixels_are_refused(captioned: Audit, large: np.ndarray) -> None:
    target = Generator(large[:4])
    target.prompts = ("a",) * 4
    with pytest.raises(UserError, match="tiles: 20 a side are more than the pixels of 16 x 16"):
        PromptedExtraction(tiles=20).run(target, captioned, 0)
