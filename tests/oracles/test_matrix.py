"""The matrix of answers against one that is asked image by image: batches, shards, kills, processes, precision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests import pipelines
from tests.conftest import REPOSITORY
from unmem.component import UserError
from unmem.evaluate.attacks.gradient import Gradient
from unmem.evaluate.attacks.lira import LiRA
from unmem.evaluate.attacks.loss import Loss
from unmem.evaluate.attacks.pfami import PFAMI
from unmem.evaluate.attacks.secmi import SecMI
from unmem.evaluate.denoisers.pixels import Pixels
from unmem.evaluate.matrix import store
from unmem.evaluate.matrix.batch import Batch
from unmem.evaluate.matrix.compute import compute
from unmem.evaluate.matrix.config import Matrix
from unmem.evaluate.matrix.reading import Norm, Reading
from unmem.evaluate.matrix.store import read
from unmem.evaluate.rows import Rows
from unmem.train.imageset import ImageSet

SEED, MEMBERS, OTHERS = 5, 70, 6
IMAGES = MEMBERS + OTHERS
LOSS = Loss(timesteps=(20, 300), draws=2, flips=True)
ATTACKS = {
    "loss": LOSS,
    "secmi": SecMI(t_sec=300, stride=200),
    "pfami": PFAMI(timesteps=(100,), crops=2),
    "gradient": Gradient(timesteps=1),
}
READINGS = [attack.readings[0] for attack in ATTACKS.values()]
ASKED = [reading for reading in READINGS if reading.probe.access == "predictions"]


class Counted(Pixels):
    """A network that counts the images it is asked about, and may be killed after so many calls."""

    def __init__(self, network: Any, most: float = float("inf")) -> None:
        super().__init__(SimpleNamespace(unet=network, scheduler=pipelines.scheduler()), "cpu")
        self.images, self.calls, self._most = 0, 0, most

    def predict(self, z_t: torch.Tensor, t: torch.Tensor, condition: Any) -> torch.Tensor:
        if self.calls == self._most:
            raise KeyboardInterrupt
        self.calls, self.images = self.calls + 1, self.images + len(z_t)
        return super().predict(z_t, t, condition)


def denoiser(most: float = float("inf")) -> Counted:
    torch.manual_seed(0)
    network = pipelines.unet(8, 1, num_class_embeds=11)
    with torch.no_grad():
        network.conv_out.weight.mul_(8)  # predictions of a natural size
    return Counted(network, most)


def process(index: int = 0, of: int = 1) -> Any:
    """One of several processes that do not wait for each other."""
    return SimpleNamespace(
        process_index=index, num_processes=of, is_main_process=index == 0, device=torch.device("cpu"),
        wait_for_everyone=lambda: None,
    )  # fmt: skip


def asked(
    directory: Path, network: Counted, groups: dict[str, ImageSet], readings: list[Reading], **config: Any
) -> None:
    """The matrix, asked by one process."""
    compute(network, groups, readings, directory, config=Matrix(**config), seed=SEED, accelerator=process())


def groups_of(digits: ImageSet) -> dict[str, ImageSet]:
    """More members than noise has in a block, and some others."""
    return {"members": digits.take(np.arange(MEMBERS)), "nonmembers": digits.take(np.arange(100, 100 + OTHERS))}


@pytest.fixture(scope="module")
def groups(digits: ImageSet) -> dict[str, ImageSet]:
    return groups_of(digits)


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many images go into a file."""

    def to(most: int) -> None:
        monkeypatch.setattr(store, "SHARD", most)
        monkeypatch.setattr(store.shards_of, "__defaults__", (most,))

    return to


@pytest.fixture(scope="module")
def one_by_one(groups: dict[str, ImageSet]) -> dict[str, Rows]:
    """Each image by itself, and the mean squares (or sizes) of its residuals in float64."""
    network, found = denoiser(), {}
    for reading in READINGS:
        rows = {}
        for name, images in groups.items():
            assert images.labels is not None
            rows[name] = np.array([_alone(network, reading, name, images, i) for i in range(len(images))])
        found[reading.key] = Rows(**rows)
    return found


def _alone(network: Counted, reading: Reading, group: str, images: ImageSet, i: int) -> list[float]:
    """The columns of one image."""
    assert images.labels is not None
    batch = Batch(
        network, images.images(slice(i, i + 1)), images.labels[i : i + 1], None,
        start=i, place=("matrix", group), seed=SEED,
    )  # fmt: skip
    with torch.enable_grad() if reading.probe.access == "gradients" else torch.no_grad():
        residuals = [residual.detach().double().numpy() for residual in reading.probe.residuals(batch)]
    return [float(np.mean(np.abs(residual) ** reading.norm.order)) for residual in residuals]


def assert_close(found: Rows, known: Rows, rtol: float = 1e-5) -> None:
    """Equal but for the order of float sums."""
    for name in ("members", "nonmembers"):
        values = getattr(known, name)
        np.testing.assert_allclose(getattr(found, name), values, rtol=rtol, atol=rtol * np.abs(values).mean())


def assert_same(directory: Path, other: Path, readings: list[Reading]) -> None:
    """Bit for bit."""
    for reading in readings:
        for name, values in read(directory, reading).items():
            np.testing.assert_array_equal(values, getattr(read(other, reading), name))


@pytest.mark.parametrize(("batch", "shard"), [(1, 32), (7, 32), (64, 32), (1000, 32), (64, 1024)])
def test_batches_and_shards_change_nothing_but_the_order_of_sums(
    groups: dict[str, ImageSet], one_by_one: dict[str, Rows], shards: Any, tmp_path: Path, batch: int, shard: int
) -> None:
    shards(shard)
    readings = READINGS if batch > 1 else ASKED
    asked(tmp_path, denoiser(), groups, readings, batch=batch)
    assert len(list(tmp_path.glob("members-*.npz"))) == -(-MEMBERS // shard)
    for reading in readings:
        found = read(tmp_path, reading)
        assert found.members.dtype == np.float32
        assert_close(found, one_by_one[reading.key])


def test_the_oracle_would_notice_a_wrong_place_group_or_class(
    groups: dict[str, ImageSet], one_by_one: dict[str, Rows]
) -> None:
    reading, members, network = READINGS[0], groups["members"], denoiser()
    assert members.labels is not None
    right = one_by_one[reading.key].members[3]
    moved = members.take(np.array([0, 1, 2, 4, 3]))
    relabelled = ImageSet.of(members.images(), list(members.ids), (members.labels + 1) % 10, members.label_names)
    for group, images, i in (("members", moved, 4), ("nonmembers", members, 3), ("members", relabelled, 3)):
        assert not np.allclose(_alone(network, reading, group, images, i), right, rtol=1e-4)


def test_a_kill_in_the_middle_asks_no_finished_shard_again(
    groups: dict[str, ImageSet], shards: Any, tmp_path: Path
) -> None:
    shards(32)
    whole, broken = denoiser(), denoiser(most=100)
    asked(tmp_path / "whole", whole, groups, ASKED, batch=10)
    with pytest.raises(KeyboardInterrupt):
        asked(tmp_path / "broken", broken, groups, ASKED, batch=10)
    done = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "broken").glob("*.npz")}
    assert done.keys() == {"members-00000.npz"}
    assert not list((tmp_path / "broken").glob("*.partial"))
    again = denoiser()
    asked(tmp_path / "broken", again, groups, ASKED, batch=10)
    assert again.images == whole.images * (IMAGES - 32) // IMAGES
    assert all((tmp_path / "broken" / name).stat().st_mtime_ns == time for name, time in done.items())
    assert_same(tmp_path / "broken", tmp_path / "whole", ASKED)
    last = denoiser()
    asked(tmp_path / "broken", last, groups, ASKED, batch=10)
    assert last.calls == 0


def test_the_manifest_says_what_the_shards_hold(groups: dict[str, ImageSet], shards: Any, tmp_path: Path) -> None:
    shards(32)
    asked(tmp_path, denoiser(), groups, [*ASKED, ASKED[0]], batch=64)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["groups"] == {"members": MEMBERS, "nonmembers": OTHERS}
    assert manifest["shard"] == 32
    assert list(manifest["readings"]) == [reading.key for reading in ASKED]
    assert manifest["readings"][ASKED[0].key] == {
        "probe": "unmem.evaluate.attacks.loss._Losses",
        "timesteps": [20, 300], "draws": 2, "flips": True,
        "norm": {"order": 2.0, "keep": 1.0, "damp": 0.2},
    }  # fmt: skip
    for name, images in (("members-00001", 32), ("members-00002", 6), ("nonmembers-00000", OTHERS)):
        with np.load(tmp_path / f"{name}.npz") as arrays:
            assert {key: arrays[key].shape for key in arrays.files} == {
                reading.key: (images, columns) for reading, columns in zip(ASKED, (8, 1, 3), strict=True)
            }


def test_what_is_not_there_is_a_message(groups: dict[str, ImageSet], tmp_path: Path) -> None:
    asked(tmp_path, denoiser(), groups, ASKED, batch=64)
    other = Loss(timesteps=(20, 300), draws=3, flips=True).reading
    with pytest.raises(UserError, match=r"manifest\.json: holds no reading .*'draws': 3"):
        read(tmp_path, other)
    with pytest.raises(UserError, match=r"nowhere/manifest\.json: no such file"):
        read(tmp_path / "nowhere", ASKED[0])
    shard = tmp_path / "nonmembers-00000.npz"
    with np.load(shard) as arrays:
        np.savez(shard, **{key: arrays[key] for key in arrays.files if key != ASKED[0].key})
    with pytest.raises(UserError, match=f"holds no reading {ASKED[0].key}; remove the folder {tmp_path} to"):
        read(tmp_path, ASKED[0])
    assert len(read(tmp_path, ASKED[1]).nonmembers) == OTHERS
    shard.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"nonmembers-00000\.npz: is missing or damaged; remove the folder"):
        read(tmp_path, ASKED[1])
    shard.unlink()
    with pytest.raises(UserError, match=r"nonmembers-00000\.npz: is missing or damaged; remove the folder"):
        read(tmp_path, ASKED[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["loss", "gradient"])
def test_broken_weights_are_a_message(groups: dict[str, ImageSet], tmp_path: Path, name: str, value: float) -> None:
    network = denoiser()
    network.network.conv_out.bias.fill_(value)
    with pytest.raises(UserError, match=r"answers are not finite .* its weights hold NaN or infinity, or half prec"):
        asked(tmp_path, network, groups, list(ATTACKS[name].readings))
    assert not list(tmp_path.glob("*.npz"))


def test_an_answer_that_is_not_finite_is_placed(groups: dict[str, ImageSet], shards: Any, tmp_path: Path) -> None:
    shards(32)
    network, images = denoiser(), groups["members"]
    assert images.labels is not None
    labels = images.labels.copy()
    labels[45] = 10  # the null class, which nobody else has
    network.network.class_embedding.weight[10] = float("nan")
    broken = replace(images, labels=labels)
    with pytest.raises(UserError, match=r"\(_Losses, image 45 of the members, column 0\)"):
        asked(tmp_path, network, {"members": broken}, ASKED, batch=10)
    assert [file.name for file in tmp_path.glob("*.npz")] == ["members-00000.npz"]


def test_readings_of_one_probe_share_its_queries(groups: dict[str, ImageSet], tmp_path: Path) -> None:
    probe = LOSS.reading.probe
    norms = [Reading(probe, norm) for norm in (Norm(), Norm(order=1), Norm(keep=0.5), Norm(order=4, keep=0.5))]
    network, images = denoiser(), IMAGES
    asked(tmp_path, network, groups, [*norms, *LiRA(base=LOSS).readings])
    assert network.images == probe.queries * images
    found = [read(tmp_path, reading).members for reading in norms]
    assert all(not np.allclose(found[i], found[j]) for i in range(4) for j in range(i))
    assert (found[1] ** 2 <= found[0] * (1 + 1e-5)).all()  # Jensen: the mean of sizes, against that of squares
    assert (found[2] <= found[0] * (1 + 1e-5)).all()  # damping takes power away


@pytest.mark.parametrize("name", ["loss", "secmi", "pfami"])
def test_queries_are_what_the_network_is_asked(groups: dict[str, ImageSet], tmp_path: Path, name: str) -> None:
    network, reading = denoiser(), ATTACKS[name].readings[0]
    asked(tmp_path, network, groups, [reading], batch=50)
    assert network.images == reading.probe.queries * IMAGES


def test_half_precision_is_near_and_gradients_stay_whole(
    groups: dict[str, ImageSet], one_by_one: dict[str, Rows], tmp_path: Path
) -> None:
    asked(tmp_path, denoiser(), groups, READINGS, precision="bf16")
    for name, attack in ATTACKS.items():
        reading = attack.readings[0]
        found, known = read(tmp_path, reading), one_by_one[reading.key]
        if name == "gradient":
            assert_close(found, known)
        else:
            assert not np.allclose(found.members, known.members, rtol=1e-5)  # else nothing was halved
        if name == "loss":
            assert_close(found, known, rtol=0.02)
            assert np.corrcoef(found.members.mean(1), known.members.mean(1))[0, 1] > 0.999


def test_processes_share_the_shards(groups: dict[str, ImageSet], shards: Any, tmp_path: Path) -> None:
    shards(32)
    asked(tmp_path / "alone", denoiser(), groups, ASKED)
    parts = [denoiser() for _ in range(3)]
    for index in (2, 0, 1):
        compute(
            parts[index], groups, ASKED, tmp_path / "shared",
            config=Matrix(), seed=SEED, accelerator=process(index, of=3),
        )  # fmt: skip
    queries = sum(reading.probe.queries for reading in ASKED)
    assert [part.images for part in parts] == [queries * images for images in (32 + OTHERS, 32, 6)]
    assert_same(tmp_path / "shared", tmp_path / "alone", ASKED)


WORKER = """
import sys
from pathlib import Path
from accelerate import Accelerator
from tests.oracles.test_matrix import ASKED, SEED, denoiser, groups_of
from unmem.evaluate.matrix import store
from unmem.evaluate.matrix.compute import compute
from unmem.evaluate.matrix.config import Matrix
from unmem.train.datasets.digits import Digits

folder, accelerator = Path(sys.argv[1]), Accelerator(cpu=True)
store.SHARD, store.shards_of.__defaults__ = 32, (32,)
groups, network = groups_of(Digits().load(folder)[0]), denoiser()
compute(network, groups, ASKED, folder / "matrix", config=Matrix(batch=10), seed=SEED, accelerator=accelerator)
(folder / f"{accelerator.process_index}.txt").write_text(str(network.images))
"""


@pytest.mark.slow
def test_two_real_processes_share_the_shards(groups: dict[str, ImageSet], shards: Any, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        str(tmp_path / "worker.py"), str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shards(32)
    network = denoiser()
    asked(tmp_path / "alone", network, groups, ASKED, batch=10)
    assert_same(tmp_path / "matrix", tmp_path / "alone", ASKED)
    shares = [int((tmp_path / f"{index}.txt").read_text()) for index in range(2)]
    assert sum(shares) == network.images
    assert min(shares) > 0
