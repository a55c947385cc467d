"""Components: strict, found by file name, explained in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from unmem.component import Problem, UserError, build, find, kinds


def problems_of(package: str, spec: object) -> list[str]:
    problems: list[Problem] = []
    assert build(package, spec, "here", problems) is None
    return [str(problem) for problem in problems]


def test_what_is_wrong_is_said_with_place_value_and_what_is_allowed() -> None:
    mitigations = "unmem.mitigations"
    (unknown,) = problems_of(mitigations, {"kind": "near_duplicate"})
    assert unknown.startswith(
        "here.kind: unknown kind 'near_duplicate', did you mean 'near_duplicates'?; have caption_"
    )
    (misspelt,) = problems_of(mitigations, {"kind": "near_duplicates", "hsah": "phash"})
    assert misspelt == "here.hsah: unknown field, did you mean 'hash'?; have hash, bits, max_distance, dihedral"
    (choice,) = problems_of(mitigations, {"kind": "near_duplicates", "hash": "sha"})
    assert choice.startswith("here.hash: input should be 'phash', 'dhash', 'whash' or 'ahash'; got 'sha'")
    (bound,) = problems_of(mitigations, {"kind": "near_duplicates", "max_distance": 65})
    assert bound == "here: max_distance must be at most bits (64), got 65"
    (neither,) = problems_of(mitigations, {"kind": "near_duplicates", "max_distance": "ten"})
    assert neither == "here.max_distance: must be a number of bits, or 'auto'; got 'ten'"
    (nested,) = problems_of(mitigations, {"kind": "dp_sgd", "epsilon": 1, "delta": 0.1, "warmup": {"centrl": 3}})
    assert nested.startswith("here.warmup.centrl: unknown field, did you mean 'central'?; have central, sample, noise")
    missing = problems_of(mitigations, {"kind": "dp_sgd"})
    assert missing == ["here.epsilon: is required", "here.delta: is required"]
    (shape,) = problems_of(mitigations, ["near_duplicates"])
    assert "needs a mapping with a 'kind'" in shape


def test_a_module_outside_the_project_is_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "class_cap.py").write_text(
        "from unmem.component import component\n\n"
        "@component\nclass ClassCap:\n    'At most so many a class.'\n    most: int = 5\n"
    )
    (tmp_path / "my_lab" / "empty.py").write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    built = build("unmem.mitigations", {"kind": "my_lab.class_cap", "most": 7}, "here", [])
    assert built.most == 7
    assert find("unmem.mitigations", "my_lab.class_cap").summary == "At most so many a class."
    for kind, message in (
        ("my_lab.nothing", "no such module"),
        ("my_lab.empty", "exactly one class"),
        ("no.way", "no such"),
    ):
        (problem,) = problems_of("unmem.mitigations", {"kind": kind})
        assert message in problem


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from unmem.component import kinds; from unmem.recipes.recipe import ROOMS, load; "
        "[kinds(p) for p in ROOMS.values()]; load('quickstart'); "
        "assert not {'torch', 'diffusers', 'opacus', 'sklearn', 'imagededup'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("room", ["train", "mitigations", "evaluate", "recipes"])
def test_a_room_has_one_import_name(room: str) -> None:
    code = f"import {room}"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"import unmem.{room}; this folder has no other name" in done.stderr


def test_find_lists_what_exists() -> None:
    with pytest.raises(UserError, match=r"unknown kind 'x'; have .*loss"):
        find("unmem.evaluate.attacks", "x")
    assert "loss" in kinds("unmem.evaluate.attacks")
