"""Hugging Face data sets in every form that a folder can have them."""

from __future__ import annotations

import os
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unmem.component import UserError
from unmem.train.datasets.huggingface import HuggingFace
from unmem.train.imageset import ImageSet, Rejected

datasets = pytest.importorskip("datasets", reason="needs unmem[huggingface]")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and nothing outside the test's own folder."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def picture(value: int, size: tuple[int, int] = (4, 4)) -> bytes:
    out = BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


def rows(**columns: list[Any]) -> Any:
    """Three images with a class and a caption, unless ``columns`` say otherwise."""
    plain = {"image": [picture(1), picture(2), picture(3)], "label": [1, 0, 1], "text": ["one", None, "three"]}
    plain |= columns
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "text": datasets.Value("string"),
    }
    data = datasets.Dataset.from_dict({name: values for name, values in plain.items() if values})
    for name in set(data.column_names) & set(features):
        data = data.cast_column(name, features[name])
    return data


def load(path: Path | str, tmp_path: Path, **options: Any) -> tuple[ImageSet, list[Rejected]]:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return HuggingFace(path=str(path), **options).load(scratch)


def parquet(data: Any, folder: Path, name: str = "train-00000-of-00001.parquet") -> Path:
    folder.mkdir(exist_ok=True)
    data.to_parquet(folder / name)
    return folder


def saved(data: Any, folder: Path) -> Path:
    data.save_to_disk(folder)
    return folder


def refused(path: Path | str, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        load(path, tmp_path, **options)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "write",
    [
        parquet,
        saved,
        lambda data, folder: saved(datasets.DatasetDict(train=data, test=rows(image=[picture(9)] * 3)), folder),
    ],
    ids=["parquet", "saved", "saved splits"],
)
def test_every_form_of_folder(write: Any, tmp_path: Path) -> None:
    images, rejected = load(write(rows(), tmp_path / "set"), tmp_path)
    assert images.images()[:, 0, 0].tolist() == [[1, 0, 0], [2, 0, 0], [3, 0, 0]]
    assert images.shape == (4, 4, 3)
    assert images.label_names == ("cat", "dog")
    assert images.labels.tolist() == [1, 0, 1]
    assert images.captions == ("one", "", "three")
    assert not rejected
    assert [name.split(":")[1] for name in images.ids] == ["train/00000000", "train/00000001", "train/00000002"]
    assert isinstance(images.store, np.memmap)


def test_arrow_files(tmp_path: Path) -> None:
    data = saved(rows(), tmp_path / "saved")
    (tmp_path / "set").mkdir()
    (data / "data-00000-of-00001.arrow").rename(tmp_path / "set" / "train.arrow")
    assert len(load(tmp_path / "set", tmp_path)[0]) == 3


def test_splits(tmp_path: Path) -> None:
    folder = parquet(rows(), tmp_path / "set")
    parquet(rows(image=[picture(7)] * 3), folder, "test-00000-of-00001.parquet")
    assert load(folder, tmp_path, split="test")[0].images()[0, 0, 0, 0] == 7
    assert len(load(folder, tmp_path, split="train[:2]")[0]) == 2
    assert "'validation'" in refused(folder, tmp_path, split="validation").replace('"', "'")
    both = saved(datasets.DatasetDict(train=rows(), test=rows()), tmp_path / "both")
    assert "has no split 'dev'; has train, test" in refused(both, tmp_path, split="dev")


def test_bad_rows_are_rejected_and_the_rest_keeps_its_labels(tmp_path: Path) -> None:
    folder = saved(rows(image=[None, picture(2), picture(3)[:-30]], label=[0, 1, 0]), tmp_path / "set")
    images, rejected = load(folder, tmp_path)
    assert images.labels.tolist() == [1]
    assert images.captions == ("",)
    assert images.ids[0].endswith(":train/00000001")
    assert [bad.source for bad in rejected] == ["train/00000000", "train/00000002"]
    assert rejected[0].reason == "empty file"
    assert "truncated" in rejected[1].reason


def test_images_that_are_only_referred_to_are_read_from_their_files(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()  # what the hub calls an imagefolder: rows that hold paths
    (tmp_path / "set" / "a.png").write_bytes(picture(5))
    (tmp_path / "set" / "b.png").write_bytes(picture(5)[:-30])
    images, rejected = load(tmp_path / "set", tmp_path)
    assert images.images()[:, 0, 0, 0].tolist() == [5]
    assert [bad.source for bad in rejected] == ["train/00000001"]
    assert "truncated" in rejected[0].reason


def test_columns_by_name(tmp_path: Path) -> None:
    data = rows(photo=[picture(8)] * 3, kind=["b", "a", "b"], said=["x", "y", "z"], year=[10, 9, 10], label=[])
    data = data.cast_column("photo", datasets.Image())
    folder = saved(data, tmp_path / "set")
    images, _ = load(folder, tmp_path, image="photo", label="kind", caption="said")
    assert images.images()[0, 0, 0, 0] == 8
    assert images.captions == ("x", "y", "z")
    assert images.label_names == ("a", "b")
    assert images.labels.tolist() == [1, 0, 1]
    images, _ = load(folder, tmp_path, image="image", label="year")
    assert images.label_names == ("9", "10")
    assert images.labels.tolist() == [1, 0, 1]
    assert load(folder, tmp_path, image="image")[0].labels is None


def test_plain_bytes_in_a_parquet_of_another_tool(tmp_path: Path) -> None:
    import pandas

    (tmp_path / "set").mkdir()
    pandas.DataFrame({"jpg": [picture(1), picture(2)], "n": [1, 2]}).to_parquet(tmp_path / "set" / "train.parquet")
    assert load(tmp_path / "set", tmp_path, image="jpg")[0].images()[:, 0, 0, 0].tolist() == [1, 2]
    assert "set `image:` to the images' column; has jpg, n" in refused(tmp_path / "set", tmp_path)
    assert "column 'n' does not hold images" in refused(tmp_path / "set", tmp_path, image="n")


def test_columns_that_do_not_fit(tmp_path: Path) -> None:
    folder = saved(rows(weight=[0.5, 0.1, 0.2], gap=["a", None, "b"]), tmp_path / "set")
    assert "has no column 'imgae', did you mean 'image'?; has image, label, text" in refused(
        folder, tmp_path, image="imgae"
    )
    assert "has no column 'x'" in refused(folder, tmp_path, label="x")
    assert "captions must be texts" in refused(folder, tmp_path, caption="label")
    assert "classes must be integers or texts" in refused(folder, tmp_path, label="weight")
    assert "column 'gap' leaves rows without a class" in refused(folder, tmp_path, label="gap")


def test_a_hidden_test_set_has_no_classes(tmp_path: Path) -> None:
    folder = saved(rows(label=[-1, -1, -1]), tmp_path / "set")
    assert load(folder, tmp_path)[0].labels is None
    assert "leaves rows without a class" in refused(folder, tmp_path, label="label")


def test_sizes_and_channels(tmp_path: Path) -> None:
    folder = saved(rows(image=[picture(1), picture(2, (6, 4)), picture(3)]), tmp_path / "set")
    assert "2 sizes: 4 x 4 (2), 6 x 4 (1); set `size:`" in refused(folder, tmp_path)
    assert load(folder, tmp_path, size=4, channels=1)[0].shape == (4, 4, 1)


def test_one_row(tmp_path: Path) -> None:
    assert len(load(saved(rows(image=[picture(1)], label=[0], text=["a"]), tmp_path / "set"), tmp_path)[0]) == 1


def test_a_name_on_the_hub_without_a_network(tmp_path: Path) -> None:
    assert "is no folder here and cannot be loaded from the hub" in refused("some/name", tmp_path)
    with pytest.raises(UserError, match="some/name: is no folder here and cannot be loaded from the hub"):
        HuggingFace(path="some/name").fingerprint()


def test_folders_that_hold_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert "cannot be loaded" in refused(tmp_path / "set", tmp_path)
    (tmp_path / "set" / "train.parquet").write_bytes(b"damaged")
    assert "cannot be loaded" in refused(tmp_path / "set", tmp_path)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for use in (lambda: load(tmp_path, tmp_path), HuggingFace(path="some/name").fingerprint):
        with pytest.raises(UserError, match=r"pip install 'unmem\[huggingface\]'"):
            use()


def test_changed_files_are_read_anew(tmp_path: Path) -> None:
    folder = parquet(rows(), tmp_path / "set")
    first = HuggingFace(path=str(folder)).fingerprint()
    assert load(folder, tmp_path)[0].images()[0, 0, 0, 0] == 1
    parquet(rows(image=[picture(4)] * 3), folder)
    os.utime(folder / "train-00000-of-00001.parquet", ns=(1, 1))
    assert HuggingFace(path=str(folder)).fingerprint() != first
    assert load(folder, tmp_path)[0].images()[0, 0, 0, 0] == 4
    assert not (tmp_path / "cache").exists()
