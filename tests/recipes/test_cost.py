"""What a stage cost is measured, of this stage alone, and never taken for more than it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from unmem.recipes.cost import COST, metered
from unmem.rundir import read_json

MIB = 2**20
ALONE = SimpleNamespace(device=SimpleNamespace(type="cpu"), is_main_process=True, num_processes=1)


def train(directory: Path) -> None:
    rows = [
        {"phase": "warm-up", "step": 1, "images": 32}, {"phase": "warm-up", "step": 2, "images": 64},
        {"step": 1, "images": 100}, {"step": 9, "images": 900},
    ]  # fmt: skip
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw(directory: Path) -> None:
    np.save(directory / "images.npy", np.zeros((7, 2, 2, 1), np.uint8))


def measured(work, name: str, directory: Path, accelerator=ALONE) -> dict | None:
    directory.mkdir(exist_ok=True)
    metered(work, name, accelerator)(directory)
    return read_json(directory / COST) if (directory / COST).exists() else None


def test_images_of_all_phases_and_images_drawn_are_counted(tmp_path):
    found = measured(train, "train", tmp_path / "train")
    assert found == found | {"images": 964, "peak_gpu_memory_mib": None, "processes": 1, "resumed": False}
    assert found["seconds"] >= 0
    assert measured(draw, "samples", tmp_path / "samples")["images"] == 7


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_peak_memory_is_of_this_stage_alone(tmp_path):
    def hungry(directory):
        np.ones(256 * MIB, np.uint8).sum()
        draw(directory)

    before = measured(draw, "samples", tmp_path / "a")["peak_memory_mib"]
    much = measured(hungry, "samples", tmp_path / "b")["peak_memory_mib"]
    after = measured(draw, "samples", tmp_path / "c")["peak_memory_mib"]
    assert 200 < much - before < 320
    assert after < before + 100  # what was freed does not count again


def test_a_stage_that_was_gone_on_with_says_so_and_never_replaces_the_whole(tmp_path):
    whole = measured(train, "train", tmp_path / "whole")
    assert measured(train, "train", tmp_path / "whole") == whole
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "state").mkdir()
    assert measured(train, "train", tmp_path / "part")["resumed"] is True
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "key.json").write_text("{}")
    assert measured(train, "train", tmp_path / "new")["resumed"] is False


def test_nothing_is_written_of_nothing_or_by_another_process(tmp_path):
    assert measured(lambda directory: None, "train", tmp_path / "a") is None
    assert measured(lambda directory: None, "samples", tmp_path / "b") is None
    other = SimpleNamespace(**{**vars(ALONE), "is_main_process": False})
    assert measured(train, "train", tmp_path / "c", other) is None


def test_what_fails_is_not_measured(tmp_path):
    def failing(directory):
        draw(directory)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        measured(failing, "samples", tmp_path / "a")
    assert not (tmp_path / "a" / COST).exists()
