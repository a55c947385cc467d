"""Whole runs through the command line: resume after kill -9, a finished run, wrong directories, several processes."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY

RECIPE = """
schema: 1
seed: 3
data: {kind: digits, members: 48, nonmembers: 48, planted: {images: 2, copies: 4}}
model: {kind: unet, channels: [8, 16], layers: 1, conditioning: class}
train: {images: 1_280, batch: 32, lr: 3e-3, ema: 0.9, noise_schedule: cosine, threads: 1, checkpoint_seconds: 0.2}
sampling: {steps: 4}
arms:
  plain: []
  private:
    - {kind: exact_duplicates}
    - {kind: dp_sgd, epsilon: 10, delta: 0.01, batch: 16, images: 320, known_seed: 7, engine: bookkeeping}
attacks:
  - {kind: generate_and_filter, samples: 32}
  - {kind: loss, timesteps: [100], draws: 1}
quality:
  - {kind: frechet, samples: 32, resamples: 5}
compare: {against: plain, tpr_at_fpr: [0.25]}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(RECIPE)
    return file


def unmem(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unmem", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def outcome(root: Path) -> dict[str, object]:
    """All that a run came to, without times."""
    found: dict[str, object] = {}
    for file in sorted(root.rglob("*")):
        name = str(file.relative_to(root))
        if file.suffix in (".safetensors", ".npy", ".jsonl"):
            found[name] = file.read_bytes()
        elif file.suffix == ".npz":
            with np.load(file) as arrays:
                found[name] = {key: arrays[key].tobytes() for key in arrays.files}
        elif file.name in ("report.json", "privacy.json", "ledger.json", "audit.json", "gallery.json"):
            found[name] = json.loads(file.read_text())
    return found


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "whole"
    done = unmem("run", recipe, "--out", root)
    assert done.returncode == 0, done.stderr
    assert "private: no guarantee (privacy_void: seed known)" in done.stdout
    return root


def test_a_run_leaves_what_the_docs_promise(whole: Path) -> None:
    comparison = json.loads((whole / "comparison.json").read_text())
    assert list(comparison["arms"]) == ["plain", "private"]
    assert comparison["arms"]["private"]["dropped"] == 6
    assert comparison["unfinished"] == []
    assert {"generate_and_filter.extracted", "loss.auc"} <= set(comparison["differences"]["private"])
    for file in ("report.html", "report.md", "recipe.yaml", "audit.json", "provenance.json", "quarantine.json"):
        assert (whole / file).stat().st_size > 0
    assert not list(whole.rglob("*.partial"))
    assert not list(whole.rglob("secret.json"))


def test_a_finished_run_started_again_does_nothing(recipe: Path, whole: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*.json")}
    started = time.monotonic()
    again = unmem("run", recipe, "--out", whole)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert before == {file: file.stat().st_mtime_ns for file in whole.rglob("*.json")}
    assert time.monotonic() - started < 30  # generous here; benchmarks/start_up.py measures it


def test_a_run_that_died_before_its_report_is_concluded(recipe: Path, whole: Path, tmp_path: Path) -> None:
    import shutil

    for missing in (["report.md"], ["comparison.json", "report.md"]):
        root = tmp_path / "-".join(missing)
        shutil.copytree(whole, root)
        for name in missing:
            (root / name).unlink()
        done = unmem("run", recipe, "--out", root)
        assert done.returncode == 0, done.stderr
        assert "nothing to do" not in done.stdout
        assert "no guarantee (privacy" in (root / "report.md").read_text()


def test_a_private_model_is_never_trained_twice(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """Killed between the last file of training and the record of it: the model stays, and the secret goes."""
    import shutil

    root = tmp_path / "run"
    shutil.copytree(whole, root)
    stage = root / "arms" / "private" / "train"
    record = json.loads((stage / "key.json").read_text())
    (stage / "key.json").write_text(json.dumps(record | {"finished": False}))
    (stage / "state").mkdir()
    (stage / "state" / "secret.json").write_text("{}")
    done = unmem("run", recipe, "--out", root)
    assert done.returncode == 0, done.stderr
    assert outcome(root) == outcome(whole)
    written = stage / "pipeline" / "model_index.json"
    assert written.stat().st_mtime_ns == (whole / written.relative_to(root)).stat().st_mtime_ns
    assert not (stage / "state").exists()


def test_a_recipe_without_attacks_still_trains(recipe: Path, tmp_path: Path) -> None:
    changes = ("--set", "attacks=[]", "--set", "quality=[]", "--set", "train.images=64")
    done = unmem("run", recipe, "--out", tmp_path / "run", "--arm", "plain", *changes)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "arms" / "plain" / "train" / "pipeline" / "model_index.json").exists()
    assert (tmp_path / "run" / "report.html").stat().st_size > 0


def killed_at_random(recipe: Path, root: Path, moments: list[float]) -> None:
    """Start the run and kill -9 the parent after each of these times; its children must notice by themselves."""
    for moment in moments:
        command = [sys.executable, "-m", "unmem", "run", str(recipe), "--out", str(root)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)


def test_kill_9_and_the_same_command_again(recipe: Path, whole: Path, tmp_path: Path) -> None:
    killed_at_random(recipe, tmp_path / "run", [6.0, 9.0])
    done = unmem("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == outcome(whole)


@pytest.mark.slow
def test_kill_9_at_many_random_moments(recipe: Path, whole: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    for trial in range(8):
        root = tmp_path / str(trial)
        killed_at_random(recipe, root, [rng.uniform(0.1, 20) for _ in range(5)])
        assert unmem("run", recipe, "--out", root).returncode == 0
        assert outcome(root) == outcome(whole)


def test_one_arm_first_then_the_rest(recipe: Path, whole: Path, tmp_path: Path) -> None:
    first = unmem("run", recipe, "--out", tmp_path / "run", "--arm", "plain")
    assert first.returncode == 0, first.stderr
    assert "Not finished, and so not in this report: private." in first.stdout
    assert not (tmp_path / "run" / "arms" / "private").exists()
    unknown = unmem("run", recipe, "--out", tmp_path / "run", "--arm", "plane")
    assert unknown.returncode == 2
    assert "no such arm, did you mean 'plain'?" in unknown.stderr
    plain = {name: value for name, value in outcome(whole).items() if name.startswith("arms/plain")}
    assert {name: value for name, value in outcome(tmp_path / "run").items() if name.startswith("arms/")} == plain


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: (root / "notes.txt").write_text("mine"), "is not empty and holds no run"),
        (lambda root: (root / "recipe.yaml").write_text("schema: 1\nseed: 4\n"), "holds a run of another recipe"),
        (lambda root: (root / "recipe.yaml").write_text("a: 1\na: 2\n"), "duplicate key"),
    ],
)
def test_a_directory_of_something_else_is_left_alone(recipe: Path, tmp_path: Path, prepare, message: str) -> None:
    root = tmp_path / "run"
    root.mkdir()
    prepare(root)
    done = unmem("run", recipe, "--out", root)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_stage_is_named(recipe: Path, whole: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "run"
    shutil.copytree(whole, root)
    (root / "comparison.json").unlink()
    (root / "arms" / "plain" / "attacks" / "loss" / "scores.npz").write_bytes(b"PK")
    done = unmem("run", recipe, "--out", root)
    assert done.returncode == 2
    assert "scores.npz: damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_processes_in_one_directory(recipe: Path, whole: Path) -> None:
    from filelock import FileLock

    with FileLock(whole / ".lock"):
        done = unmem("run", recipe, "--out", whole)
    assert done.returncode == 2
    assert "another process is working in it" in done.stderr


def test_a_full_disk_is_one_message(recipe: Path, tmp_path: Path) -> None:
    """Simulated in the program itself: the first fsync of a checkpoint fails as a full disk does."""
    code = (
        "import errno, os, sys\n"
        "real = os.fsync\n"
        "def full(fd):\n"
        "    name = os.readlink(f'/proc/self/fd/{fd}')\n"
        "    if 'images.npy' in name:\n"
        f"        raise OSError({errno.ENOSPC}, 'No space left on device', name)\n"
        "    real(fd)\n"
        "os.fsync = full\n"
        "from unmem.cli import main\n"
        "main()\n"
    )
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name the file behind a descriptor")
    command = [sys.executable, "-c", code, "run", str(recipe), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert unmem("run", recipe, "--out", tmp_path / "run", "--arm", "plain").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_train_what_one_trains(recipe: Path, whole: Path, tmp_path: Path, processes: int) -> None:
    """Over gloo: the same batches and noise, so the same curve up to float order."""
    environment = dict(os.environ, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
        "-m", "unmem", "run", str(recipe), "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, check=False, env=environment, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["processes"] == processes
    for arm in ("plain", "private"):
        curves = []
        for root in (whole, tmp_path / "run"):
            rows = (root / "arms" / arm / "train" / "metrics.jsonl").read_text().splitlines()
            curves.append([json.loads(row)["loss"] for row in rows])
        np.testing.assert_allclose(curves[1], curves[0], rtol=0.02)
    assert np.load(tmp_path / "run" / "arms" / "plain" / "samples" / "images.npy").shape == (32, 8, 8, 1)
