"""A folder of images: what is taken, in which order, with which classes and captions, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unmem import progress
from unmem.component import UserError, dump, validate
from unmem.train.datasets import _stream
from unmem.train.datasets.image_folder import ImageFolder
from unmem.train.imageset import ImageSet, Rejected


def save(path: Path, value: int, size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def load(path: Path, **options: object) -> tuple[ImageSet, list[Rejected]]:
    scratch = path.parent / f"{path.name}_scratch"
    scratch.mkdir(exist_ok=True)
    return ImageFolder(path=path, **options).load(scratch)


def parquet(**columns: list[str | None]) -> bytes:
    """A parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def names(images: ImageSet) -> list[str]:
    return [name.split(":", 1)[1] for name in images.ids]


def values(images: ImageSet) -> list[int]:
    return images.images()[:, 0, 0, 0].tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images: b.png at the top, the others one and two levels down."""
    save(tmp_path / "set" / "b.png", 1)
    save(tmp_path / "set" / "deep" / "c.png", 2)
    save(tmp_path / "set" / "deep" / "er" / "a.png", 3)
    return tmp_path / "set"


def test_every_depth_in_the_order_of_paths(folder: Path) -> None:
    images, rejected = load(folder)
    assert names(images) == ["b.png", "deep/c.png", "deep/er/a.png"]
    assert values(images) == [1, 2, 3]
    assert images.shape == (4, 4, 3)
    assert not rejected
    assert images.labels is None
    assert images.captions is None


def test_pixels_are_memory_mapped_and_nothing_partial_stays(folder: Path) -> None:
    images, _ = load(folder)
    assert isinstance(images.store, np.memmap)
    assert not images.store.flags.writeable
    assert [path.name for path in (folder.parent / "set_scratch").iterdir()] == ["pixels.npy"]


def test_one_image_is_enough(tmp_path: Path) -> None:
    save(tmp_path / "set" / "only.png", 7)
    images, rejected = load(tmp_path / "set")
    assert len(images) == 1
    assert values(images) == [7]
    assert not rejected


def test_ids_do_not_depend_on_where_the_folder_is_or_how_it_is_listed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = load(folder)
    shutil.copytree(folder, folder.parent / "elsewhere" / "copy")
    listed = Path.iterdir

    def backwards(path: Path) -> Iterator[Path]:
        return iter(sorted(listed(path), reverse=True))

    monkeypatch.setattr(Path, "iterdir", backwards)
    again, _ = load(folder.parent / "elsewhere" / "copy")
    assert again.ids == images.ids
    assert np.array_equal(again.images(), images.images())


def test_many_images_keep_their_order_across_threads_and_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_stream, "CHUNK", 3)
    for value in range(20):
        save(tmp_path / "set" / f"{value:02d}.png", value, (900, 900) if value % 5 == 0 else (2, 2))
    (tmp_path / "set" / "04.png").write_bytes(b"broken")
    images, rejected = load(tmp_path / "set", size=2)
    assert values(images) == [value for value in range(20) if value != 4]
    assert names(images) == [f"{value:02d}.png" for value in range(20) if value != 4]
    assert rejected == [Rejected("04.png", "not an image of a known format")]


def test_progress_is_counted_in_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watch(progress.Quiet):
        def update(self, task: str, done: int, total: int, unit: str) -> None:
            seen.append((task, done, total, unit))

    monkeypatch.setattr(progress, "_reporter", Watch())
    load(folder)
    assert seen[0] == ("decode", 0, 3, "images")
    assert seen[-1] == ("decode", 3, 3, "images")


def test_sub_folders_are_classes_when_every_image_lies_in_one(tmp_path: Path) -> None:
    for name in ("dog/1.png", "dog/young/2.png", "cat/3.png", "10/4.png", "9/5.png"):
        save(tmp_path / "set" / name, 0)
    images, _ = load(tmp_path / "set")
    assert images.label_names == ("9", "10", "cat", "dog")
    assert [images.label_names[label] for label in images.labels] == [name.split("/")[0] for name in names(images)]
    (tmp_path / "set" / "cat" / "3.png").write_bytes(b"")
    images, _ = load(tmp_path / "set")
    assert images.label_names == ("9", "10", "dog")
    assert images.labels.max() == 2


def test_images_beside_the_sub_folders_mean_no_classes_and_one_line_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []

    class Watch(progress.Quiet):
        def say(self, text: str) -> None:
            said.append(text)

    monkeypatch.setattr(progress, "_reporter", Watch())
    assert load(folder)[0].labels is None
    assert said == ["image_folder: 1 of 3 images lie in no sub-folder, so there are no classes"]


def test_captions_from_text_files(folder: Path) -> None:
    (folder / "b.txt").write_text("\ufeffein Kätzchen\n", encoding="utf-8")
    (folder / "deep" / "c.json").write_text("{}")
    images, rejected = load(folder)
    assert images.captions == ("ein Kätzchen", "", "")
    assert not rejected


@pytest.mark.parametrize("column", ["text", "caption"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_captions_and_classes_from_metadata(folder: Path, kind: str, column: str) -> None:
    rows = [("deep/er/a.png", 'say "a",\nplease', "y"), ("b.png", "b", "x"), ("./deep/c.png", "", "y")]
    if kind == "csv":
        import csv

        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as out:  # as Excel saves it
            csv.writer(out).writerows([("file_name", column, "label", "other"), *((*row, "?") for row in rows)])
    else:
        records = [{"file_name": name, column: caption, "label": label} for name, caption, label in rows]
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(records), folder / "metadata.parquet")
        else:
            (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    images, rejected = load(folder)
    assert images.captions == ("b", "", 'say "a",\nplease')
    assert not rejected
    assert images.label_names == ("x", "y")
    assert images.labels.tolist() == [0, 1, 1]


def test_metadata_in_a_sub_folder_names_its_own_files_and_leaves_the_classes_to_folders(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        save(tmp_path / "set" / name, 0)
    (tmp_path / "set" / "dog" / "metadata.csv").write_text("file_name,text\n1.png,a dog\n")
    (tmp_path / "set" / "dog" / "1.txt").write_text("loses to the metadata")
    (tmp_path / "set" / "dog" / "2.txt").write_text("fills the gap")
    images, _ = load(tmp_path / "set")
    assert images.captions == ("", "a dog", "fills the gap")
    assert images.label_names == ("cat", "dog")
    assert images.labels.tolist() == [0, 1, 1]


def test_numeric_labels_are_ordered_as_numbers(folder: Path) -> None:
    rows = [{"file_name": name, "label": label} for name, label in (("b.png", 10), ("deep/c.png", 9))]
    rows.append({"file_name": "deep/er/a.png", "label": 10})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    images, _ = load(folder)
    assert images.label_names == ("9", "10")
    assert images.labels.tolist() == [1, 0, 1]


def test_a_metadata_row_without_a_file_is_rejected(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,text\nb.png,b\ngone.png,g\n../set/../out.png,o\n")
    images, rejected = load(folder)
    assert images.captions == ("b", "", "")
    assert rejected == [
        Rejected("gone.png", "metadata.csv, line 3 names it, but there is no such image"),
        Rejected("../out.png", "metadata.csv, line 4 names it, but there is no such image"),
    ]


def test_half_an_emoji_in_a_caption_can_still_be_saved(folder: Path, tmp_path: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "cut \\ud83d"}')
    images, _ = load(folder)
    images.save(tmp_path / "saved")
    assert ImageSet.open(tmp_path / "saved").captions == ("cut ?", "", "")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metadata.csv", b"name,text\nb.png,b\n", "needs a column 'file_name'; has name, text"),
        ("metadata.csv", b"", "needs a column 'file_name'; has none"),
        ("metadata.csv", b"file_name,text\n,b\n", "line 2: needs a 'file_name'"),
        ("metadata.csv", b"file_name,text\nb.png,b\n./b.png,c\n", "line 3: 'file_name' 'b.png' again; first in"),
        ("metadata.csv", "file_name,text\nb.png,ä\n".encode("latin-1"), "is not UTF-8 (byte 21)"),
        ("metadata.csv", b'file_name,text\nb.png,"' + b"x" * 200_000 + b'"\n', "line 1: damaged (field larger"),
        ("metadata.jsonl", b'{"file_name": "b.png"}\n{"file_name": \n', "line 2: damaged"),
        ("metadata.jsonl", b"[1]\n", "line 1: needs a JSON object"),
        ("metadata.jsonl", b'{"text": "b"}\n', "line 1: needs a 'file_name'; got None"),
        ("metadata.jsonl", b'{"file_name": "b.png", "text": ["b"]}\n', "the caption must be a text; got ['b']"),
        ("metadata.jsonl", b'{"file_name": "b.png", "label": 0.5}\n', "'label' must be a text or an integer; got 0.5"),
        ("metadata.csv", b"file_name,label\nb.png,x\n", "no 'label' for 'deep/c.png'"),
        ("metadata.csv", b"file_name,label\nb.png,\ndeep/c.png,x\ndeep/er/a.png,x\n", "no 'label' for 'b.png'"),
        ("metadata.parquet", b"PAR1", "metadata.parquet: damaged ("),
        ("metadata.parquet", parquet(name=["b.png"]), "needs a column 'file_name'; has name"),
        ("metadata.parquet", parquet(file_name=["b.png", None]), "row 2: needs a 'file_name'; got None"),
        ("metadata.parquet", parquet(file_name=["b.png", "./b.png"]), "row 2: 'file_name' 'b.png' again; first in"),
        ("b.txt", b"caf\xe9", "b.txt: is not UTF-8 (byte 3)"),
    ],
)
def test_metadata_that_cannot_be_understood(folder: Path, file: str, content: bytes, message: str) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(UserError) as error:
        load(folder)
    assert message in str(error.value)
    assert str(folder) in str(error.value)


def test_bad_files_are_rejected_each_with_its_reason(folder: Path) -> None:
    whole = (folder / "b.png").read_bytes()
    bad = {"cut.png": whole[:-30], "empty.jpg": b"", "notes.md": b"# Notes", "movie.png": b"\0\0\0\x18ftypmp42"}
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    Image.new("L", (4, 4)).save(folder / "many.gif", save_all=True, append_images=[Image.new("L", (4, 4), 255)])
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    images, rejected = load(folder)
    assert len(images) == 3
    assert {bad.source: bad.reason.split(" (")[0] for bad in rejected} == {
        "cut.png": "cannot be decoded: image file is truncated",
        "dangling.png": "cannot be decoded: No such file or directory",
        "empty.jpg": "empty file",
        "many.gif": "animated: 2 frames",
        "movie.png": "not an image of a known format",
        "notes.md": "not an image of a known format",
    }


def test_hidden_and_side_files_are_passed_over(folder: Path) -> None:
    for name in (".DS_Store", "._b.png", "README.txt", "b.json", ".git/x.png", "deep/.thumbs/y.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    images, rejected = load(folder)
    assert len(images) == 3
    assert not rejected


def test_links_to_folders_are_followed_but_not_in_circles(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "other" / "d.png", 4)
    (folder / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    (folder / "deep" / "circle").symlink_to(folder, target_is_directory=True)
    assert names(load(folder)[0]) == ["b.png", "deep/c.png", "deep/er/a.png", "linked/d.png"]


def test_a_name_that_is_not_utf8_is_rejected(folder: Path) -> None:
    try:
        (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "b.png").read_bytes())
    except OSError:
        pytest.skip("this file system only takes UTF-8 names")
    images, rejected = load(folder)
    assert len(images) == 3
    assert rejected == [Rejected("caf\\xe9.png", "its name is not UTF-8")]
    ImageFolder(path=folder).fingerprint()


def test_mixed_sizes_need_size(folder: Path) -> None:
    save(folder / "wide.png", 0, (8, 4))
    with pytest.raises(UserError, match=r"images of 2 sizes: 4 x 4 \(3\), 8 x 4 \(1\); set `size:`"):
        load(folder)
    assert load(folder, size=4)[0].shape == (4, 4, 3)
    assert load(folder, size=6, channels=1)[0].shape == (6, 6, 1)


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no image file"):
        load(empty)
    (empty / "a.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"none of 1 files is a usable image \(a.png: not an image of a known format\)"):
        load(empty)
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match="is a file, not a folder"):
        load(empty / "a.png")
    with pytest.raises(UserError, match="no such folder"):
        ImageFolder(path=tmp_path / "absent").fingerprint()


def test_a_full_disk_is_noticed_before_writing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stream, "free_bytes", lambda _: 100)
    with pytest.raises(UserError, match=r"the pixels need 0\.0 GB"):
        load(folder)
    assert not list((folder.parent / "set_scratch").iterdir())


def test_loading_again_leaves_an_open_set_as_it_is(folder: Path) -> None:
    first, _ = load(folder)
    before = first.images().copy()
    save(folder / "aa.png", 200)
    second, _ = load(folder)
    assert np.array_equal(first.images(), before)
    assert values(second) == [200, 1, 2, 3]


def test_fingerprint_follows_the_data_not_the_place(folder: Path) -> None:
    def fingerprint(path: Path) -> str:
        return ImageFolder(path=path).fingerprint()

    first = fingerprint(folder)
    assert fingerprint(folder) == first
    moved = folder.rename(folder.parent / "moved")
    assert fingerprint(moved) == first
    seen = {first}
    (moved / "b.txt").write_text("a caption")
    seen.add(fingerprint(moved))
    os.utime(moved / "b.png", ns=(1, 1))
    seen.add(fingerprint(moved))
    (moved / "b.png").rename(moved / "bb.png")
    seen.add(fingerprint(moved))
    (moved / "bb.png").unlink()
    seen.add(fingerprint(moved))
    assert len(seen) == 5


def test_pillows_warnings_stay_out_of_the_terminal(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 50
    Image.new("RGB", (4, 4)).save(folder / "exif.jpg", exif=exif)
    data = (folder / "exif.jpg").read_bytes()
    (folder / "exif.jpg").write_bytes(data.replace(b"x" * 50, b"").replace(b"\x01\x0e", b"\x01\x12"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images, rejected = load(folder)
    assert len(images) + len(rejected) == 4


def test_configuration() -> None:
    problems: list = []
    built = validate(ImageFolder, {"path": "~/images", "size": 8, "channels": 1}, "data", problems)
    assert not problems
    assert built.path == Path.home() / "images"
    assert dump(built)["size"] == 8
    for options, place in (({"path": "x", "channels": 2}, "data.channels"), ({"path": "x", "size": 0}, "data.size")):
        problems = []
        assert validate(ImageFolder, options, "data", problems) is None
        assert problems[0].path == place
