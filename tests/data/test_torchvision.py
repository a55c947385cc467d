"""CIFAR-10, MNIST and Fashion-MNIST: from torchvision's own files, and the same from an archive."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unmem.component import UserError
from unmem.train.datasets.cifar10 import Cifar10
from unmem.train.datasets.fashion_mnist import FashionMnist
from unmem.train.datasets.mnist import Mnist
from unmem.train.datasets.npz import Npz
from unmem.train.imageset import ImageSet

RNG = np.random.default_rng(0)
IMAGES = {split: RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8) for split, count in (("train", 5), ("test", 3))}
LABELS = {"train": np.array([5, 0, 4, 1, 9], np.uint8), "test": np.array([7, 2, 1], np.uint8)}


def shared(name: str) -> Path:
    """A file of the real data, which are not part of the project."""
    folder = Path(os.environ.get("UNMEM_SHARED", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / name).exists():
        pytest.skip(f"the real data are not here: no {name} in UNMEM_SHARED or ../shared/data")
    return folder / name


def load(source: Any, tmp_path: Path) -> ImageSet:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    images, rejected = source.load(scratch)
    assert not rejected
    return images


def idx(root: Path, folder: str) -> Path:
    """Small files in MNIST's own format."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        header = struct.pack(">IIII", 0x803, *IMAGES[split].shape)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + IMAGES[split].tobytes())
        header = struct.pack(">II", 0x801, len(LABELS[split]))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + LABELS[split].tobytes())
    return root


def archive(path: Path) -> Path:
    arrays = {f"x_{split}": IMAGES[split] for split in IMAGES} | {f"y_{split}": LABELS[split] for split in LABELS}
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize(("kind", "folder"), [(Mnist, "MNIST"), (FashionMnist, "FashionMNIST")])
@pytest.mark.parametrize("split", ["train", "test"])
def test_own_format_and_archive_give_one_set(kind: Any, folder: str, split: str, tmp_path: Path) -> None:
    own = load(kind(path=idx(tmp_path, folder), split=split), tmp_path)
    packed = load(kind(path=archive(tmp_path / "a.npz"), split=split), tmp_path)
    for images in (own, packed):
        assert images.shape == (28, 28, 1)
        assert np.array_equal(images.images()[..., 0], IMAGES[split])
        assert images.labels.dtype == np.int64
        assert images.labels.tolist() == LABELS[split].tolist()
        assert len(images.label_names) == 10
    assert own.ids == packed.ids
    assert own.ids[2].endswith(f"mnist/{split}/00002")
    assert isinstance(packed.store, np.memmap)


def test_reduced_pixels_are_means_of_their_areas(tmp_path: Path) -> None:
    half = load(Mnist(path=archive(tmp_path / "a.npz"), size=14), tmp_path).images()[..., 0]
    means = IMAGES["train"].reshape(5, 14, 2, 14, 2).mean((2, 4))
    assert np.abs(half - means).max() <= 0.5
    assert load(Mnist(path=tmp_path / "a.npz", size=9), tmp_path).shape == (9, 9, 1)
    with pytest.raises(UserError, match=r"mnist\.size: 32 is more than the 28 pixels that there are"):
        load(Mnist(path=tmp_path / "a.npz", size=32), tmp_path)


def test_class_names(tmp_path: Path) -> None:
    assert load(Mnist(path=idx(tmp_path, "MNIST")), tmp_path).label_names[5] == "5"
    assert load(FashionMnist(path=idx(tmp_path, "FashionMNIST")), tmp_path).label_names[9] == "Ankle boot"


@pytest.mark.parametrize("kind", [Cifar10, Mnist, FashionMnist])
def test_missing_files_say_what_to_do(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for source in (kind(path=tmp_path / "nowhere"), kind()):
        for use in (source.fingerprint, lambda source=source: source.load(tmp_path)):
            with pytest.raises(
                UserError, match=r"set `download: true`, or `path:` to a folder that holds .* or to an .npz"
            ):
                use()
    for use in (kind(path=tmp_path / "no.npz").fingerprint, lambda: kind(path=tmp_path / "no.npz").load(tmp_path)):
        with pytest.raises(UserError, match=r"no\.npz: no such file"):
            use()
    assert not any(path.is_dir() for path in tmp_path.iterdir())


@pytest.mark.parametrize("kind", [Cifar10, Mnist, FashionMnist])
def test_a_failed_download_says_what_to_do(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    import torchvision.datasets.utils as fetching

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(fetching, "_urlretrieve", unreachable)
    source = kind(path=tmp_path, download=True)
    for use in (source.fingerprint, lambda: source.load(tmp_path)):
        with pytest.raises(UserError, match=r"cannot read .*; set `download: true`, or `path:` to a folder"):
            use()


def test_damaged_files(tmp_path: Path) -> None:
    root = idx(tmp_path, "MNIST")
    images = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot read MNIST"):
        load(Mnist(path=root), tmp_path)


def test_another_data_set_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not CIFAR10: images of \[28, 28, 1\], .*; needs \[32, 32, 3\] and 0 to 9"):
        load(Cifar10(path=archive(tmp_path / "a.npz")), tmp_path)
    np.savez(tmp_path / "b.npz", x_train=IMAGES["train"], y_train=np.arange(5) + 6)
    with pytest.raises(UserError, match="labels 6 to 10; needs"):
        load(Mnist(path=tmp_path / "b.npz"), tmp_path)


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    root = idx(tmp_path, "MNIST")
    first = Mnist(path=root).fingerprint()
    (root / "unrelated").touch()
    assert Mnist(path=root, split="test").fingerprint() == first
    os.utime(root / "MNIST" / "raw" / "t10k-images-idx3-ubyte", ns=(1, 1))
    assert Mnist(path=root).fingerprint() != first


@pytest.mark.parametrize(
    ("kind", "name", "first"),
    [(Mnist, "mnist.npz", "7210414959"), (FashionMnist, "fashion_mnist.npz", "9211614657")],
)
def test_the_real_sets(kind: Any, name: str, first: str, tmp_path: Path) -> None:
    images = load(kind(path=shared(name), split="test"), tmp_path)
    assert len(images) == 10_000
    assert np.bincount(images.labels).sum() == 10_000
    assert images.labels[:10].tolist() == [int(each) for each in first]


def test_the_real_emoji(tmp_path: Path) -> None:
    images = load(Npz(path=shared("noto_emoji64.npz")), tmp_path)
    assert len(images) == 3786
    assert images.shape == (64, 64, 3)
    assert images.captions[0] == "HASH KEY"
    assert images.label_names[images.labels[0]] == "Symbols"


def test_real_cifar10_in_its_own_format(tmp_path: Path) -> None:
    unpack = shared("unpack_cifar10.py")
    subprocess.run([sys.executable, unpack, "--batches", tmp_path], check=True)
    images = load(Cifar10(path=tmp_path, split="test"), tmp_path)
    assert len(images) == 10_000
    assert images.shape == (32, 32, 3)
    assert [images.label_names[label] for label in images.labels[:3]] == ["cat", "ship", "ship"]
    assert images.images(slice(0, 1))[0, 0, 0].tolist() == [158, 112, 49]
    assert np.bincount(images.labels).tolist() == [1000] * 10
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(UserError, match="cannot read CIFAR10"):
        load(Cifar10(path=tmp_path), tmp_path)
