"""NumPy archives: which arrays are taken, that they stay on disk, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from unmem.component import UserError
from unmem.train.datasets import _archive
from unmem.train.datasets.npz import Npz
from unmem.train.imageset import ImageSet

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (7, 5, 4), dtype=np.uint8)
TEST = RNG.integers(0, 256, (3, 5, 4), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


def load(path: Path, **options: object) -> ImageSet:
    scratch = path.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    images, rejected = Npz(path=path, **options).load(scratch)
    assert not rejected
    return images


def written(folder: Path) -> list[str]:
    return [path.name for path in (folder / "scratch").iterdir()]


def refused(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as error:
        load(path, **options)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "compressed"])
def digits(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The layout of mnist.npz."""
    path = tmp_path / "digits.npz"
    request.param(path, x_train=TRAIN, y_train=np.arange(7, dtype=np.uint8), x_test=TEST, y_test=np.array([9, 9, 0]))
    return path


def test_splits(digits: Path) -> None:
    assert np.array_equal(load(digits).images()[..., 0], TRAIN)
    assert np.array_equal(load(digits, split="train").images()[..., 0], TRAIN)
    test = load(digits, split="test")
    assert test.shape == (5, 4, 1)
    assert np.array_equal(test.images()[..., 0], TEST)
    assert test.label_names == ("0", "9")
    assert test.labels.tolist() == [1, 1, 0]
    both = load(digits, split="all")
    assert np.array_equal(both.images()[..., 0], np.concatenate([TRAIN, TEST]))
    assert both.label_names[-1] == "9"
    assert both.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7, 0]
    assert both.ids == load(digits, split="train").ids + test.ids
    assert test.ids[2].split(":")[1] == "digits/x_test/000002"


def test_pixels_are_memory_mapped(digits: Path) -> None:
    for split in ("train", "all"):
        store = load(digits, split=split).store
        assert isinstance(store, np.memmap)
        assert not store.flags.writeable


def test_a_stored_array_is_used_in_place(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", first=np.arange(1000), x=COLOUR, last=np.arange(10))
    images = load(tmp_path / "a.npz")
    assert np.array_equal(images.images(), COLOUR)
    assert Path(images.store.filename) == tmp_path / "a.npz"
    assert written(tmp_path) == []
    np.savez_compressed(tmp_path / "b.npz", x=COLOUR)
    assert np.array_equal(load(tmp_path / "b.npz").images(), COLOUR)
    assert written(tmp_path) == ["pixels.npy"]


@pytest.mark.parametrize("step", [1, 60, 150, 10_000])
def test_unpacking_in_any_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    monkeypatch.setattr(_archive, "ROWS", step)
    np.savez_compressed(tmp_path / "a.npz", x=COLOUR)
    assert np.array_equal(load(tmp_path / "a.npz").images(), COLOUR)


def test_captions_and_classes_of_the_emoji_layout(tmp_path: Path) -> None:
    names = [f"emoji {i}" for i in range(6)]
    np.savez(tmp_path / "a.npz", x=COLOUR, name=names, category=list("bababb"), skin=[""] * 6)
    images = load(tmp_path / "a.npz")
    assert images.captions == tuple(names)
    assert images.label_names == ("a", "b")
    assert images.labels.tolist() == [1, 0, 1, 0, 1, 1]
    assert load(tmp_path / "a.npz", labels="skin", captions="category").captions == tuple("bababb")


def test_keys_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", pictures=COLOUR, kind=np.arange(6)[:, None] * 10, said=["x"] * 6, y=np.zeros(6))
    images = load(tmp_path / "a.npz", images="pictures", labels="kind", captions="said")
    assert images.label_names == ("0", "10", "20", "30", "40", "50")
    assert images.labels.tolist() == [0, 1, 2, 3, 4, 5]
    bare = load(tmp_path / "a.npz", images="pictures")
    assert bare.labels is None
    assert bare.captions is None


def test_one_image(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=COLOUR[:1])
    assert len(load(tmp_path / "a.npz")) == 1


@pytest.mark.parametrize(
    "images",
    [
        COLOUR.astype(np.float32) / 255,
        COLOUR.astype(np.int64),
        COLOUR.transpose(0, 3, 1, 2)[..., :2],
        np.zeros((2, 4, 4, 4), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.array([COLOUR[0], None], dtype=object),
        np.asfortranarray(COLOUR),
    ],
    ids=["float", "int64", "channels first", "four channels", "none", "two axes", "objects", "fortran"],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_that_are_no_images(tmp_path: Path, images: np.ndarray, save: object) -> None:
    save(tmp_path / "a.npz", x=images)
    message = refused(tmp_path / "a.npz")
    assert f"'x' is {images.dtype} {list(images.shape)}" in message
    assert "needs uint8 images" in message


def test_labels_and_captions_that_do_not_fit(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=COLOUR, y=np.arange(5), z=np.ones(6), o=np.array([None] * 6), s=["a"] * 6, h=np.eye(6, dtype=int))
    assert "'y' is int64 [5]; needs 6 integers or texts, one an image" in refused(path)
    assert "'z' is float64 [6]; needs 6 integers or texts" in refused(path, labels="z")
    assert "'h' is int64 [6, 6]; needs 6" in refused(path, labels="h")
    assert "'o' cannot be read (Object arrays cannot be loaded" in refused(path, labels="o")
    assert "'z' is float64 [6]; needs 6 texts" in refused(path, labels="s", captions="z")
    assert "'y_test' cannot hold the values for both" in refused(digits, split="all", labels="y_test")


def test_keys_that_are_not_there(digits: Path, tmp_path: Path) -> None:
    assert "has no 'x_trian', did you mean 'x_train'?; has x_train, y_train, x_test" in refused(
        digits, images="x_trian"
    )
    assert "has no 'label'" in refused(digits, labels="label")
    assert "give `images` or `split`, not both" in refused(digits, images="x_train", split="train")
    np.savez(tmp_path / "a.npz", x=COLOUR)
    assert "has no 'x_test'; has x" in refused(tmp_path / "a.npz", split="test")
    np.savez(tmp_path / "b.npz", x_train=COLOUR, x_test=TEST)
    assert "images of different sizes in x_train, x_test" in refused(tmp_path / "b.npz", split="all")


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "absent.npz")
    with pytest.raises(UserError, match="no such file"):
        Npz(path=tmp_path / "absent.npz").fingerprint()
    np.save(tmp_path / "a.npy", COLOUR)
    assert "is not an .npz file" in refused(tmp_path / "a.npy")
    (tmp_path / "empty.npz").touch()
    assert "is not an .npz file" in refused(tmp_path / "empty.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_anywhere_is_an_error_or_harmless(tmp_path: Path, save: object) -> None:
    path = tmp_path / "a.npz"
    save(path, x=COLOUR, y=np.arange(6), name=["a"] * 6)
    data = path.read_bytes()
    for cut in range(0, len(data), 37):
        path.write_bytes(data[:cut])
        refused(path)
    for place in range(0, len(data), 11):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            images = load(path)
        except UserError:
            continue
        # an array that is used in place is not read, so its checksum is not checked
        assert save is np.savez or np.array_equal(images.images(), COLOUR)
    assert set(written(tmp_path)) <= {"pixels.npy"}


def test_fingerprint_follows_the_file(digits: Path) -> None:
    first = Npz(path=digits).fingerprint()
    moved = digits.rename(digits.with_name("moved.npz"))
    assert Npz(path=moved, split="test").fingerprint() == first
    os.utime(moved, ns=(1, 1))
    assert Npz(path=moved).fingerprint() != first


def test_size(tmp_path: Path) -> None:
    """Each pixel is the mean over its area, captions stay; more pixels than there are are refused."""
    images = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "icons.npz", x=images, name=np.array(list("abcdef")))
    found = load(tmp_path / "icons.npz", size=4)
    mean = images.reshape(6, 4, 2, 4, 2, 3).mean((2, 4))
    assert np.abs(found.images() - mean).max() <= 0.5
    assert found.captions == tuple("abcdef")
    assert "size: 9" in refused(tmp_path / "icons.npz", size=9)
    np.savez(tmp_path / "wide.npz", x=COLOUR)
    assert "these are 5x4" in refused(tmp_path / "wide.npz", size=4)
