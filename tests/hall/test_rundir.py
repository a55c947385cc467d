"""Stages and atomic writes: whole or absent, skipped when done, refused for other inputs."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from unmem.component import UserError
from unmem.rundir import Stage, atomic, provenance, read_arrays, read_json, write_arrays, write_json


def half_written(file: Path) -> None:
    with atomic(file) as partial:
        partial.write_text("half")
        raise RuntimeError


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a" / "x.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"a": float("nan")})
    with pytest.raises(RuntimeError):
        half_written(file)
    assert read_json(file) == {"a": 1}
    assert [entry.name for entry in file.parent.iterdir()] == ["x.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.json"
    write_json(file, [1])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.json")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(file, [2])
    assert read_json(file) == [1]
    assert len(list(tmp_path.iterdir())) == 1


def test_any_text_survives_json(tmp_path: Path) -> None:
    texts = ["plain", "ünï", "\ud800 lone surrogate", "</script>", "\x00"]
    write_json(tmp_path / "x.json", texts)
    assert read_json(tmp_path / "x.json") == texts


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"nonsense"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x"
    file.write_bytes(content)
    for read in (read_json, read_arrays):
        with pytest.raises(UserError, match=r"x: damaged .*remove it"):
            read(file)
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "y")


def test_arrays_round_trip_and_pickles_are_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x.npz", a=np.arange(3))
    assert read_arrays(tmp_path / "x.npz")["a"].tolist() == [0, 1, 2]
    np.savez(tmp_path / "y.npz", a=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="damaged"):
        read_arrays(tmp_path / "y.npz")


def test_a_stage_is_done_once_and_for_its_inputs_alone(tmp_path: Path) -> None:
    inputs = {"stage": "train", "config": {"lr": 0.1, "images": 5}}
    stage = Stage(tmp_path, inputs)
    assert not stage.finished
    stage.begin()
    assert not stage.finished
    stage.finish()
    assert stage.finished
    assert stage.seconds >= 0
    assert Stage(tmp_path, {"config": {"images": 5, "lr": 0.1}, "stage": "train"}).finished
    other = Stage(tmp_path, {"stage": "train", "config": {"lr": 0.2, "images": 5}})
    with pytest.raises(UserError, match=r"made from other inputs \(config\.lr was 0\.1, now 0\.2\)"):
        _ = other.finished


def test_even_half_a_stage_belongs_to_its_inputs(tmp_path: Path) -> None:
    Stage(tmp_path, {"lr": 1}).begin()
    with pytest.raises(UserError, match="lr was 1, now 2"):
        Stage(tmp_path, {"lr": 2}).begin()


def test_provenance_names_no_place(tmp_path: Path) -> None:
    found = json.dumps(provenance(["run", "quickstart"], "a machine"))
    assert str(Path.home()) not in found
    assert os.uname().nodename not in found or len(os.uname().nodename) < 4
    assert '"torch"' in found
