"""Training on other images first: two phases that resume anywhere and end in the same bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.oracles.test_training import MODEL, Interrupted, weights
from tests.processes import Killed
from unmem.train.config import Train
from unmem.train.imageset import ImageSet
from unmem.train.models.unet import UNet
from unmem.train.trainer import make_accelerator, train
from unmem.train.update import Plain, UpdateRule


class Recording(Interrupted):
    """A plain rule that remembers what was asked of it."""

    def __init__(self, n: int, config: Train, seed: int, calls: list[str], name: str, die_at: int) -> None:
        super().__init__(n, config, seed)
        self.calls, self.name, self.die_at = calls, name, die_at

    def prepare(self, model: Any, optimizer: Any, accelerator: Any) -> Any:
        self.calls.append(f"prepare {self.name}")
        self.fresh = not optimizer.state
        return super().prepare(model, optimizer, accelerator)

    def rehearse(self, size: int, losses: Any) -> None:
        self.calls.append(f"rehearse {self.name}")

    def update(self, step: int, size: int, losses: Any) -> float:
        found = super().update(step, size, losses)
        self.calls.append(f"{self.name} {step}")
        return found

    def finish(self) -> Any:
        self.calls.append(f"finish {self.name}")
        super().finish()
        return {"said by": self.name}


def rules(data: ImageSet, first: ImageSet, config: Train, die_in: str = "", die_at: int = -1) -> Recording:
    """A main rule of 8 steps with a warm-up of 4."""
    calls: list[str] = []
    short = replace(config, images=128)
    rule = Recording(len(data), config, 0, calls, "main", die_at if die_in == "main" else -1)
    rule.warmup = first, Recording(len(first), short, 7, calls, "first", die_at if die_in == "first" else -1)
    return rule


def run(rule: UpdateRule, data: ImageSet, config: Train, directory: Path, model: UNet = MODEL) -> None:
    train(data, model, config, rule, directory, key="k", seed=0, accelerator=make_accelerator(config))


@pytest.fixture(scope="module")
def sets(digits: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Fifty digits to train on; thirty others, zeros to fours alone, to warm up with."""
    assert digits.labels is not None
    low = np.flatnonzero(digits.labels < 5)
    return digits.take(np.arange(50)), digits.take(low[low >= 50][:30])


@pytest.fixture
def often(small_train: Train) -> Train:
    return replace(small_train, checkpoint_seconds=0.0, flip=True)


@pytest.mark.parametrize(
    ("die_in", "die_at"), [("first", 0), ("first", 1), ("first", 3), ("main", 0), ("main", 1), ("main", 7)]
)
@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_a_run_that_died_in_either_phase_ends_in_the_same_bits(
    sets: tuple[ImageSet, ImageSet], often: Train, tmp_path: Path, die_in: str, die_at: int, seconds: float
) -> None:
    """With a checkpoint after each step, and without any."""
    data, first = sets
    model, config = replace(MODEL, dropout=0.2), replace(often, checkpoint_seconds=seconds)
    run(rules(data, first, often), data, often, tmp_path / "whole", model)
    for _ in range(2):
        with pytest.raises(Killed):
            run(rules(data, first, config, die_in, die_at), data, config, tmp_path / "broken", model)
    last = rules(data, first, config)
    run(last, data, config, tmp_path / "broken", model)
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
    for name in ("metrics.jsonl", "privacy.json"):
        assert (tmp_path / "broken" / name).read_text() == (tmp_path / "whole" / name).read_text()
    done = [call for call in last.calls if call[-1].isdigit()]
    if seconds == 0.0:  # nothing that a checkpoint holds is done again
        assert done[0] == f"{die_in} {die_at}" if (die_in, die_at) != ("main", 0) else "main 0"
    else:
        assert done[0] == "first 0"


def test_phases_follow_each_other(sets: tuple[ImageSet, ImageSet], small_train: Train, tmp_path: Path) -> None:
    """Each is rehearsed before its first step and finished after its last, and has its own optimizer and rates."""
    data, first = sets
    rule = rules(data, first, small_train)
    run(rule, data, small_train, tmp_path)
    assert rule.calls == [
        "prepare first", "rehearse first", *(f"first {i}" for i in range(4)), "finish first",
        "prepare main", "rehearse main", *(f"main {i}" for i in range(8)), "finish main",
    ]  # fmt: skip
    assert rule.fresh
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("phase") for row in rows] == ["warm-up"] * 4 + [None] * 8
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["images"] for row in rows[:5]] == [32, 64, 96, 128, 32]
    assert (rows[0]["lr"], rows[4]["lr"]) == (0, 0)
    assert json.loads((tmp_path / "privacy.json").read_text()) == {"said by": "main"}


def test_training_starts_from_what_the_warm_up_learned(
    sets: tuple[ImageSet, ImageSet], small_train: Train, tmp_path: Path
) -> None:
    """The network is handed on: the first loss of the second phase is lower than without a first."""
    data, first = sets
    config = replace(small_train, images=640)
    warm, cold = Plain(50, config, 0), Plain(50, config, 0)
    warm.warmup = first, Plain(30, config, 7)
    losses = {}
    for name, rule in (("warm", warm), ("cold", cold)):
        run(rule, data, config, tmp_path / name)
        rows = [json.loads(row) for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = next(row["loss"] for row in rows if "phase" not in row)
    assert losses["warm"] < 0.8 * losses["cold"]


def test_the_average_forgets_the_warm_up(sets: tuple[ImageSet, ImageSet], small_train: Train, tmp_path: Path) -> None:
    """After a long warm-up and a short training the average lies by the last weights, not by the warm-up's."""
    data, first = sets
    config = replace(small_train, images=20, batch=4, ema=0.9999, checkpoint_seconds=0.0)
    found = []
    for die_at in (0, -1):
        rule = Interrupted(50, config, 0)
        rule.warmup, rule.die_at = (first, Plain(30, replace(config, images=160), 7)), die_at
        with pytest.raises(Killed) if die_at == 0 else nullcontext():
            run(rule, data, config, tmp_path / str(die_at))
        saved = load_file(tmp_path / str(die_at) / "state" / "checkpoint.safetensors")
        found.append({kind: _flat(saved, kind) for kind in ("model", "ema")})
    before, after = found
    assert float((after["ema"] - after["model"]).norm()) < 0.5 * float((after["ema"] - before["ema"]).norm())


def _flat(saved: dict[str, Tensor], kind: str) -> Tensor:
    return torch.cat([value.flatten() for name, value in saved.items() if name.startswith(f"{kind}|")])


@pytest.fixture
def other_precision() -> Iterator[None]:
    """accelerate keeps the first precision of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("other_precision")
def test_precision_is_taken_off_between_the_phases(
    sets: tuple[ImageSet, ImageSet], small_train: Train, tmp_path: Path
) -> None:
    """A rule takes hold of a plain network, whatever the one before it had wrapped around it."""
    data, first = sets
    seen: list[bool] = []

    class Looking(Plain):
        def prepare(self, model: Any, optimizer: Any, accelerator: Any) -> Any:
            seen.append(hasattr(model, "_original_forward"))
            return super().prepare(model, optimizer, accelerator)

    config = replace(small_train, images=64, precision="bf16")
    rule = Looking(50, config, 0)
    rule.warmup = first, Plain(30, config, 7)
    run(rule, data, config, tmp_path)
    assert seen == [False]
