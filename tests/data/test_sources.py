"""A team's data in every layout: which items there are, which are refused and why, and what an edit makes new."""

from __future__ import annotations

import builtins
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from unmem.component import UserError
from unmem.mitigations.dedup.sources import Item, Shard, plan, read
from unmem.train.imageset import Rejected

DIGITS = (load_digits().images[:12] * 15.9).astype(np.uint8)
SHA = "0123456789abcdefABCDEF" + "0" * 42


def png(number: int) -> bytes:
    """A digit as a PNG file; numbers from 0."""
    file = io.BytesIO()
    Image.fromarray(DIGITS[number % len(DIGITS)]).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes | str] | tarfile.TarInfo]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            raw = member[1].encode() if isinstance(member[1], str) else member[1]
            info = tarfile.TarInfo(member[0])
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path


def sample(key: str, number: int, caption: str = "", **more: object) -> list[tuple[str, bytes | str]]:
    """A sample as img2dataset writes it."""
    record = json.dumps({"key": key, "caption": caption, "status": "success", **more})
    return [(f"{key}.jpg", png(number)), (f"{key}.txt", caption), (f"{key}.json", record)]


def everything(
    data: Path, *, images: bool = True, captions: str | None = None, size: int = 1000
) -> tuple[list[Item], list[Rejected]]:
    shards, rejected = plan(data, files_per_shard=size)
    assert len({shard.name for shard in shards}) == len(shards)
    items = []
    for shard in shards:
        assert Shard.from_json(json.loads(json.dumps(shard.to_json()))) == shard
        for item in read(data, shard, images=images, captions=captions):
            (items if isinstance(item, Item) else rejected).append(item)
    assert len({item.id for item in items}) == len(items)
    return items, rejected


def ids(items: list[Item]) -> list[str]:
    return [item.id for item in items]


def bytes_of(item: Item) -> bytes:
    assert item.image is not None
    return item.image.read_bytes() if isinstance(item.image, Path) else item.image


# ---------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Loose images with every kind of side file."""
    return write(
        tmp_path / "set",
        {
            "cat/a.png": png(0),
            "cat/a.txt": "a cat\n\n a black cat \n",
            "cat/a.json": json.dumps({"caption": "loses to the text", "sha256": SHA}),
            "cat/b.png": png(1),
            "cat/b.json": json.dumps({"caption": "only JSON", "sha256": "not a hash"}),
            "dog/ü c.PNG": png(2),
            "plain.png": png(3),
            "notes.txt": "beside no image",
            ".hidden.png": png(4),
            ".cache/x.png": png(4),
            "x.jpg/inside.png": png(5),
        },
    )


def test_loose_images_with_text_and_json_beside_them(folder: Path) -> None:
    items, rejected = everything(folder)
    assert not rejected
    assert ids(items) == ["cat/a.png", "cat/b.png", "dog/ü c.PNG", "plain.png", "x.jpg/inside.png"]
    assert [item.captions for item in items] == [("a cat", "a black cat"), ("only JSON",), (), (), ()]
    assert [item.sha256 for item in items] == [SHA.lower(), None, None, None, None]
    assert [bytes_of(item) for item in items] == [png(0), png(1), png(2), png(3), png(5)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_come_first_and_a_row_without_an_image_is_rejected(folder: Path, kind: str) -> None:
    rows = [{"file_name": "a.png", "text": "from the row"}, {"file_name": "../plain.png", "text": "plain"}]
    rows += [{"file_name": "gone.png", "text": "nothing"}, {"file_name": "../plain.png", "text": "again"}]
    if kind == "csv":
        lines = [",".join(row.values()) for row in rows]
        write(folder, {"cat/metadata.csv": "\n".join(["file_name,text", *lines])})
    elif kind == "jsonl":
        write(folder, {"cat/metadata.jsonl": "\n".join(json.dumps(row) for row in rows)})
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / "cat" / "metadata.parquet")
    items, rejected = everything(folder)
    captions = {item.id: item.captions for item in items}
    assert captions["cat/a.png"] == ("from the row",)
    assert captions["plain.png"] == ("plain", "again")
    assert captions["cat/b.png"] == ("only JSON",)
    place = {"csv": "line 4", "jsonl": "line 3", "parquet": "row 3"}[kind]
    expected = Rejected("cat/gone.png", f"cat/metadata.{kind}, {place} names it, but there is no such image")
    assert rejected == [expected]


def test_captions_in_a_named_column_of_the_metadata(folder: Path) -> None:
    row = {"file_name": "plain.png", "text": "usual", "title": ["one", "two"], "n": 3}
    write(folder, {"metadata.jsonl": json.dumps(row)})
    items, _ = everything(folder, captions="title")
    assert {item.id: item.captions for item in items if item.captions} == {"plain.png": ("one", "two")}
    assert plan(folder, captions="title") == plan(folder)
    with pytest.raises(UserError, match="no image has a caption in 'tite'; without a name, text, caption"):
        plan(folder, captions="tite")


def test_one_image_file_is_a_data_set(folder: Path) -> None:
    items, _ = everything(folder / "cat" / "a.png")
    assert ids(items) == ["a.png"]
    assert items[0].captions == ("a cat", "a black cat")
    assert bytes_of(items[0]) == png(0)


def test_links_are_followed_but_not_in_circles_and_what_is_no_file_is_rejected(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", {"e.png": png(6)})
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "dangling.png").symlink_to(tmp_path / "nothing")
    (folder / "self.png").symlink_to(folder / "self.png")
    os.mkfifo(folder / "pipe.png")
    items, rejected = everything(folder)
    assert "linked/e.png" in ids(items)
    assert not any("up/" in name for name in ids(items))
    assert {entry.source: entry.reason for entry in rejected} == {
        "dangling.png": "a link to nothing",
        "self.png": "cannot be read (Too many levels of symbolic links)",
        "pipe.png": "is no regular file",
    }


def test_names_that_no_list_of_ids_can_hold_are_rejected(folder: Path) -> None:
    try:
        with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as file:  # noqa: PTH123
            file.write(png(0))
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    write(folder, {"two\nlines.png": png(0)})
    items, rejected = everything(folder)
    assert len(items) == 5
    assert rejected == [
        Rejected("caf\\xe9.png", "its name is not UTF-8"),
        Rejected("two\nlines.png", "its name holds a line break"),
    ]


def test_a_folder_that_cannot_be_listed_is_rejected_and_the_rest_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "cat":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    items, rejected = everything(folder)
    assert ids(items) == ["dog/ü c.PNG", "plain.png", "x.jpg/inside.png"]
    assert rejected == [Rejected("cat", "cannot be read (Permission denied)")]
    with pytest.raises(UserError, match="cannot be read"):
        plan(folder / "cat")


def test_damaged_side_files_are_rejected_and_their_images_kept(folder: Path) -> None:
    write(folder, {"cat/a.txt": b"caf\xe9", "cat/b.json": "{", "plain.json": "[" * 100_000, "x.jpg/inside.json": "[1]"})
    (folder / "dog" / "ü c.txt").mkdir()
    items, rejected = everything(folder)
    assert len(items) == 5
    assert items[0].captions == ("loses to the text",)
    reasons = {entry.source: entry.reason for entry in rejected}
    assert reasons["cat/a.txt"] == "is not UTF-8 (byte 3)"
    assert reasons["cat/b.json"].startswith("damaged JSON")
    assert reasons["plain.json"].startswith("damaged JSON")
    assert reasons["x.jpg/inside.json"] == "is no JSON object"
    assert len(reasons) == 4


def test_a_side_file_that_cannot_be_opened_is_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, _ = plan(folder)
    (folder / "cat" / "a.txt").unlink()
    found = list(read(folder, shards[0]))
    assert found[0] == Rejected("cat/a.txt", "cannot be read (No such file or directory)")
    assert isinstance(found[1], Item)


def test_a_huge_text_is_no_caption(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmem.mitigations.dedup.sources import folder as module

    monkeypatch.setattr(module, "MAX_TEXT", 10)
    items, rejected = everything(folder)
    assert len(items) == 5
    assert Rejected("cat/a.txt", "holds more than 10 bytes: no caption") in rejected


# ------------------------------------------------------------------------------------------------ known shards


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Ten loose images of which the even ones have captions."""
    texts = {f"{i:02d}.txt": f"caption {i}" for i in range(0, 10, 2)}
    return write(tmp_path / "many", {**{f"{i:02d}.png": png(i) for i in range(10)}, **texts})


def replanned(data: Path, edit: Callable[[], object], size: int = 3) -> tuple[list[Shard], list[Shard]]:
    """Shards before and after an edit, checked to cover every image once."""
    before, _ = plan(data, files_per_shard=size)
    edit()
    after, _ = plan(data, before, files_per_shard=size)
    found = [item.id for shard in after for item in read(data, shard) if isinstance(item, Item)]
    assert sorted(found) == sorted(ids(everything(data)[0]))
    assert len({shard.name for shard in after}) == len(after)
    return before, after


def test_nothing_changed_gives_the_same_shards(many: Path) -> None:
    before, after = replanned(many, lambda: None)
    assert [shard.name for shard in before] == ["files-000000", "files-000001", "files-000002", "files-000003"]
    assert after == before
    assert plan(many, list(reversed(before)))[0] == list(reversed(before))
    assert plan(many, before, files_per_shard=7)[0] == before


def test_added_images_make_new_shards_only(many: Path) -> None:
    before, after = replanned(many, lambda: write(many, {"000.png": png(1), "05b.png": png(2)}))
    assert after[:-1] == before
    assert after[-1].name == "files-000004"
    assert ids(list(read(many, after[-1]))) == ["000.png", "05b.png"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda many: (many / "04.png").unlink(),
        lambda many: (many / "04.png").write_bytes(png(11)),
        lambda many: os.utime(many / "04.png", ns=(0, 0)),
        lambda many: (many / "04.txt").write_text("another caption"),
        lambda many: (many / "04.txt").unlink(),
        lambda many: (many / "05.txt").write_text("a first caption"),
        lambda many: (many / "05.json").write_text("{}"),
        lambda many: (many / "metadata.csv").write_text("file_name,text\n04.png,row\n"),
    ],
)
def test_an_edit_makes_its_own_shard_new(many: Path, edit: Callable[[Path], object]) -> None:
    before, after = replanned(many, lambda: edit(many))
    assert after[:3] == [before[0], before[2], before[3]]
    assert after[3].name == "files-000004"
    assert len(after) == 4


def test_an_edited_row_is_noticed_and_an_added_one_elsewhere_is_not(many: Path) -> None:
    write(many, {"metadata.csv": "file_name,text\n04.png,row\n"})
    _, after = replanned(many, lambda: write(many, {"metadata.csv": "file_name,text\n04.png,other\n"}))
    assert [shard.name for shard in after] == ["files-000000", "files-000002", "files-000003", "files-000004"]
    _, after = replanned(many, lambda: write(many, {"metadata.csv": "file_name,text\n04.png,other\n09.png,new\n"}))
    assert [shard.name for shard in after] == ["files-000000", "files-000001", "files-000002", "files-000004"]


def test_known_tars_and_tables(tmp_path: Path) -> None:
    data = tmp_path / "set"
    for number in range(3):
        write_tar(data / f"{number}.tar", sample("0", number))
    pq.write_table(pa.table({"jpg": [png(0), png(1)]}), data / "t.parquet", row_group_size=1)
    before, after = replanned(data, lambda: write_tar(data / "1.tar", sample("1", 1)), size=1)
    assert [shard.name for shard in before] == ["0.tar", "1.tar", "2.tar", "t.parquet#0", "t.parquet#1"]
    assert [shard.name for shard in after] == ["0.tar", "2.tar", "t.parquet#0", "t.parquet#1", "1.tar"]
    beside = pa.table({"key": ["0"], "sha256": [SHA]})
    before, after = replanned(data, lambda: pq.write_table(beside, data / "2.parquet"), size=1)
    assert after[-1].name == "2.tar"
    assert [file[0] for file in after[-1].files] == ["2.tar", "2.parquet"]
    before, after = replanned(data, (data / "t.parquet").unlink, size=1)
    assert [shard.name for shard in after] == ["0.tar", "1.tar", "2.tar"]


# --------------------------------------------------------------------------------------------------------- tars


def test_tars_as_img2dataset_writes_them(tmp_path: Path) -> None:
    data = tmp_path / "set"
    members = [*sample("000000000", 0, "first", sha256=SHA), *sample("000000001", 1, "second\nline")]
    write_tar(data / "00000.tar", members)
    write_tar(data / "sub" / "00001.tar", sample("000010000", 2, "third"))
    row = {"key": "000010000", "sha256": "f" * 64, "caption": "loses to the text"}
    pq.write_table(pa.Table.from_pylist([row]), data / "sub" / "00001.parquet")
    write(data, {"00000_stats.json": "{}", "README.md": "no image"})
    items, rejected = everything(data)
    assert not rejected
    assert ids(items) == ["00000.tar/000000000", "00000.tar/000000001", "sub/00001.tar/000010000"]
    assert [item.captions for item in items] == [("first",), ("second", "line"), ("third",)]
    assert [item.sha256 for item in items] == [SHA.lower(), None, "f" * 64]
    assert [item.image for item in items] == [png(0), png(1), png(2)]
    alone, _ = everything(data / "sub" / "00001.tar")
    assert ids(alone) == ["00001.tar/000010000"]
    assert alone[0].sha256 == "f" * 64


def test_keys_end_at_the_first_dot_as_in_webdataset(tmp_path: Path) -> None:
    members = [("a/x.png", png(0)), ("a/x.seg.png", b"a mask"), ("a/x.txt", "x"), ("a.b/y.seg.PNG", b"a mask")]
    write_tar(tmp_path / "0.tar", [*members, ("a.b/y.png", png(1))])
    items, rejected = everything(tmp_path / "0.tar")
    assert not rejected
    assert items == [Item("0.tar/a/x", png(0), ("x",), None), Item("0.tar/a.b/y", png(1), (), None)]


def test_members_in_any_order_and_captions_anywhere(tmp_path: Path) -> None:
    members = [("b.JPG", png(1)), ("./a.png", png(0)), ("a.json", '{"alt": ["x", "y"]}'), ("b.en", "one\ntwo")]
    write_tar(tmp_path / "0.tar", members)
    items, rejected = everything(tmp_path / "0.tar", captions="alt")
    assert not rejected
    assert [(item.id, item.captions) for item in items] == [("0.tar/b", ()), ("0.tar/a", ("x", "y"))]
    items, _ = everything(tmp_path / "0.tar", captions="en")
    assert [item.captions for item in items] == [("one", "two"), ()]


def test_members_that_are_not_touched(tmp_path: Path) -> None:
    link, hard, device, pipe = (tarfile.TarInfo(f"{name}.jpg") for name in ("link", "hard", "device", "pipe"))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "good.jpg"
    device.type, pipe.type = tarfile.CHRTYPE, tarfile.FIFOTYPE
    down = tarfile.TarInfo("folder")
    down.type = tarfile.DIRTYPE
    bad_name = tarfile.TarInfo("caf\udce9.jpg")
    members = [
        down,
        *sample("good", 0, "one"),
        ("../up.jpg", png(1)),
        ("in/../../up.jpg", png(1)),
        ("/root.jpg", png(1)),
        link,
        hard,
        device,
        pipe,
        bad_name,
        ("two\nlines.jpg", png(1)),
        ("._good.jpg", b"what macOS adds"),
        ("README", "no ending"),
        ("lonely.txt", "no image"),
        *sample("good", 1, "again"),
        ("broken.jpg", png(2)),
        ("broken.json", "{"),
        ("broken.txt", b"\xff"),
        ("empty.jpg", b""),
    ]
    write_tar(tmp_path / "set" / "0.tar", members)
    before = sorted(tmp_path.rglob("*"))
    items, rejected = everything(tmp_path / "set")
    assert [(item.id, item.image) for item in items] == [
        ("0.tar/good", png(0)),
        ("0.tar/broken", png(2)),
        ("0.tar/empty", b""),
    ]
    reasons = {(entry.source, entry.reason.split(" (")[0]) for entry in rejected}
    again = "again: the key 'good' has a .{} already; the first is used"
    assert reasons == {
        ("0.tar/../up.jpg", "its path leaves the archive"),
        ("0.tar/in/../../up.jpg", "its path leaves the archive"),
        ("0.tar//root.jpg", "its path leaves the archive"),
        ("0.tar/link.jpg", "is a symbolic link"),
        ("0.tar/hard.jpg", "is a hard link"),
        ("0.tar/device.jpg", "is a device"),
        ("0.tar/pipe.jpg", "is a named pipe"),
        ("0.tar/caf\\xe9.jpg", "its name is not UTF-8"),
        ("0.tar/two\nlines.jpg", "its name holds a line break"),
        ("0.tar/README", "has no image"),
        ("0.tar/lonely", "has no image"),
        *((f"0.tar/good.{ending}", again.format(ending)) for ending in ("jpg", "txt", "json")),
        ("0.tar/broken.json", "damaged JSON"),
        ("0.tar/broken.txt", "is not UTF-8"),
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_images_and_texts_too_large_to_be_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmem.mitigations.dedup.sources import tar

    write_tar(tmp_path / "0.tar", [("a.jpg", b"x" * 300), ("b.jpg", b"y"), ("b.txt", "long" * 20)])
    monkeypatch.setattr(tar, "MAX_IMAGE", 200)
    monkeypatch.setattr(tar, "MAX_TEXT", 50)
    items, rejected = everything(tmp_path / "0.tar")
    assert ids(items) == ["0.tar/b"]
    assert rejected == [
        Rejected("0.tar/a", "its image of 300 bytes is too large; at most 200"),
        Rejected("0.tar/b.txt", "holds more than 50 bytes: no caption"),
    ]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A tar of three samples of one block of header and one of payload each."""
    return write_tar(tmp_path / "0.tar", [(f"{key}.jpg", png(0)) for key in "abc"])


@pytest.mark.parametrize(
    ("length", "kept", "source", "reason"),
    [
        (2048, "ab", "0.tar", "broken at byte 2048 (no further file and no mark of the end)"),
        (2048 + 300, "ab", "0.tar", "broken at byte 2048 (no further file and no mark of the end)"),
        (2048 + 512, "ab", "0.tar/c.jpg", "broken at byte 2560 (cut off in the middle)"),
        (2048 + 520, "ab", "0.tar/c.jpg", "broken at byte 2568 (cut off in the middle)"),
        (3072, "abc", "0.tar", "broken at byte 3072 (no further file and no mark of the end)"),
        (1030 + 512, "a", "0.tar/b.jpg", "broken at byte 1542 (cut off in the middle)"),
    ],
)
def test_a_tar_that_was_cut_off(three: Path, length: int, kept: str, source: str, reason: str) -> None:
    three.write_bytes(three.read_bytes()[:length])
    items, rejected = everything(three)
    assert ids(items) == [f"0.tar/{key}" for key in kept]
    assert all(item.image == png(0) for item in items)
    assert rejected == [Rejected(source, f"{reason}; what lies before it is used")]


def test_garbage_in_the_middle_of_a_tar_does_not_end_it_silently(three: Path) -> None:
    raw = bytearray(three.read_bytes())
    raw[2048:2560] = b"\xaa" * 512
    three.write_bytes(raw)
    items, rejected = everything(three)
    assert ids(items) == ["0.tar/a", "0.tar/b"]
    assert [entry.source for entry in rejected] == ["0.tar"]
    assert "broken at byte 2048" in rejected[0].reason


@pytest.mark.parametrize("content", [b"", b"no tar at all", b"\x1f\x8b" + b"x" * 2000, b"\xaa" * 5000])
def test_a_tar_that_is_none(three: Path, content: bytes) -> None:
    (three.parent / "bad.tar").write_bytes(content)
    items, rejected = everything(three.parent)
    assert len(items) == 3
    assert [entry.source for entry in rejected] == ["bad.tar"]
    assert rejected[0].reason.startswith("cannot be read as an uncompressed tar")


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 3583), value=st.integers(0, 255), length=st.integers(0, 3584), more=st.binary(max_size=700))
def test_no_damage_to_a_tar_raises_and_what_is_whole_is_right(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, length: int, more: bytes
) -> None:
    data = tmp_path_factory.mktemp("tar")
    path = write_tar(data / "0.tar", [(f"{key}.jpg", png(0)) for key in "abc"])
    raw = bytearray(path.read_bytes())
    raw[place] = value
    path.write_bytes(bytes(raw[:length]) + more)
    try:
        items, _ = everything(path)
    except UserError:
        return
    whole = [item for item in items if item.id[-1] in "abc" and item.image == png(0)]
    assert len(whole) >= min(place, length) // 1024 if place < 3072 else True


def test_a_damaged_parquet_beside_a_tar_is_rejected_and_the_tar_read(three: Path) -> None:
    three.with_suffix(".parquet").write_bytes(b"PAR1 nothing PAR1")
    items, rejected = everything(three)
    assert len(items) == 3
    assert [entry.source for entry in rejected] == ["0.parquet"]


def test_a_tar_that_vanished_is_rejected(three: Path) -> None:
    shards, _ = plan(three)
    three.unlink()
    three.mkdir()
    (entry,) = read(three, shards[0])
    assert isinstance(entry, Rejected)


# ------------------------------------------------------------------------------------------------------- tables


def test_parquet_with_bytes_as_img2dataset_writes_it(tmp_path: Path) -> None:
    rows = [{"jpg": png(i), "txt": f"caption {i}", "key": f"{i:09d}", "sha256": f"{i:064x}"} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet", row_group_size=2)
    items, rejected = everything(tmp_path, size=1)
    assert not rejected
    assert ids(items) == [f"00000.parquet/{i:09d}" for i in range(5)]
    assert [(item.image, item.captions, item.sha256) for item in items] == [
        (png(i), (f"caption {i}",), f"{i:064x}") for i in range(5)
    ]
    shards, _ = plan(tmp_path, files_per_shard=3)
    assert [shard.name for shard in shards] == ["00000.parquet#0-1", "00000.parquet#2"]
    assert everything(tmp_path / "00000.parquet", size=3)[0] == items


def test_rows_are_numbered_where_keys_do_not_tell_them_apart(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": [png(0)] * 4, "key": ["a", "b", "a", "c"]}), tmp_path / "twice.parquet", row_group_size=2
    )
    pq.write_table(pa.table({"image": [png(0)] * 2, "key": ["a", None]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"image": [png(0)] * 2, "__key__": [7, 8]}), tmp_path / "numbers.parquet")
    items, _ = everything(tmp_path, size=1)
    expected = ["null.parquet/0", "null.parquet/1", "numbers.parquet/7", "numbers.parquet/8"]
    assert ids(items) == [*expected, *(f"twice.parquet/{i}" for i in range(4))]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_images_of_any_binary_type_and_captions_of_any_text_type(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table(
        {
            "picture": pa.array([png(0), None], kind),
            "captions": pa.array([["one", "", "two"], None], pa.list_(pa.large_string())),
            "alt": pa.array(["x", "y"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "0.parquet")
    items, rejected = everything(tmp_path)
    assert items == [Item("0.parquet/0", png(0), ("one", "two"), None)]
    assert rejected == [Rejected("0.parquet/1", "holds no image bytes")]
    assert everything(tmp_path, captions="alt")[0][0].captions == ("x",)


def test_a_path_instead_of_bytes_is_read_only_inside_the_data(tmp_path: Path) -> None:
    write(tmp_path, {"secret.png": png(9)})
    data = write(tmp_path / "set", {"pictures/a": png(1)})
    (data / "out").symlink_to(tmp_path / "secret.png")
    paths = ["pictures/a", "../secret.png", str(tmp_path / "secret.png"), "out", "nul\0", None]
    cells = [{"bytes": None, "path": path} for path in paths]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), data / "0.parquet")
    items, rejected = everything(data)
    assert [(item.id, bytes_of(item)) for item in items] == [("0.parquet/0", png(1))]
    assert len(rejected) == 5
    assert all("leads out of the data" in entry.reason for entry in rejected[:4])


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    write(tmp_path, {"0.parquet": b"", "1.parquet": b"PAR1" + b"\0" * 100 + b"PAR1", "2.arrow": b"\0" * 50})
    pq.write_table(pa.table({"url": ["x"], "caption": ["y"]}), tmp_path / "3.parquet")
    pq.write_table(pa.table({"a": [b"x"], "b": [b"y"]}), tmp_path / "4.parquet")
    pq.write_table(pa.table({"image": [png(0)]}), tmp_path / "5.parquet")
    items, rejected = everything(tmp_path)
    assert ids(items) == ["5.parquet/0"]
    assert [entry.source for entry in rejected] == ["0.parquet", "1.parquet", "2.arrow", "3.parquet", "4.parquet"]
    assert rejected[3].reason == "has no column of image bytes; has url, caption"
    assert rejected[4].reason.startswith("has several columns of bytes, a, b")


def test_a_damaged_row_group_is_rejected_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    table = pa.table({"image": [os.urandom(3000) for _ in range(6)]})
    pq.write_table(table, path, row_group_size=2, compression="zstd", use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    raw = bytearray(path.read_bytes())
    raw[chunk.data_page_offset : chunk.data_page_offset + 200] = b"\xff" * 200
    path.write_bytes(raw)
    items, rejected = everything(path)
    assert ids(items) == [f"0.parquet/{row}" for row in (0, 1, 4, 5)]
    assert [entry.source for entry in rejected] == ["0.parquet#1"]


def test_a_text_that_is_not_utf_8_is_rejected(tmp_path: Path) -> None:
    texts = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 4, 8], np.int32)), pa.py_buffer(b"goodcaf\xe9"))
    pq.write_table(pa.table({"image": [png(0), png(1)], "text": texts}), tmp_path / "0.parquet")
    items, rejected = everything(tmp_path)
    assert ids(items) == ["0.parquet/0"]
    assert rejected == [Rejected("0.parquet/1", "row 1 holds a text that is not UTF-8")]


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(7)], "text": [f"caption {i}" for i in range(7)]}
    saved = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    saved.save_to_disk(tmp_path / "one", num_shards=2)
    write(tmp_path / "one", {"cache-123.arrow": b"what map() leaves"})
    items, rejected = everything(tmp_path / "one")
    assert not rejected
    assert ids(items) == [
        *(f"data-00000-of-00002.arrow/{i}" for i in range(4)),
        *(f"data-00001-of-00002.arrow/{i}" for i in range(3)),
    ]
    assert [(item.image, item.captions) for item in items] == [(png(i), (f"caption {i}",)) for i in range(7)]
    datasets.DatasetDict({"train": saved, "test": saved.select([1, 2])}).save_to_disk(tmp_path / "two")
    items, _ = everything(tmp_path / "two")
    assert ids(items)[0] == "test/data-00000-of-00001.arrow/0"
    assert len(items) == 9
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    _, rejected = everything(tmp_path / "one")
    assert [entry.reason for entry in rejected] == ["state.json names it, but there is no such file"]


@pytest.fixture
def arrow(tmp_path: Path) -> Path:
    """An Arrow stream of four batches of two rows."""
    path = tmp_path / "0.arrow"
    table = pa.table({"image": [png(i) for i in range(8)], "text": [f"caption {i}" for i in range(8)]})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    return path


def test_batches_make_shards(arrow: Path) -> None:
    shards, _ = plan(arrow, files_per_shard=3)
    assert [(shard.name, shard.first_row) for shard in shards] == [("0.arrow#0-1", 0), ("0.arrow#2-3", 4)]
    assert ids(list(read(arrow, shards[1]))) == [f"0.arrow/{i}" for i in range(4, 8)]


def test_an_arrow_stream_that_was_cut_off(arrow: Path) -> None:
    raw = arrow.read_bytes()
    arrow.write_bytes(raw[: len(raw) // 2])
    for size in (1, 1000):
        items, rejected = everything(arrow, size=size)
        assert 0 < len(items) < 8
        assert [item.image for item in items] == [png(i) for i in range(len(items))]
        assert len(rejected) == 1
        assert "damaged from row" in rejected[0].reason


# ------------------------------------------------------------------------------------------- without the images


def test_without_images_tars_give_captions_and_hashes_and_no_payload_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [*sample("a", 0, "one", sha256="a" * 64), *sample("b", 1, "two")]
    write_tar(tmp_path / "0.tar", members)
    read_names = []
    extract = tarfile.TarFile.extractfile

    def watched(tar: tarfile.TarFile, member: tarfile.TarInfo) -> object:
        read_names.append(member.name)
        return extract(tar, member)

    monkeypatch.setattr(tarfile.TarFile, "extractfile", watched)
    items, _ = everything(tmp_path, images=False)
    assert [(item.id, item.image, item.captions, item.sha256) for item in items] == [
        ("0.tar/a", None, ("one",), "a" * 64),
        ("0.tar/b", None, ("two",), None),
    ]
    assert read_names == ["a.txt", "a.json", "b.txt", "b.json"]
    rows = [{"key": "a", "sha256": "b" * 64}, {"key": "b", "sha256": "c" * 64}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    read_names.clear()
    items, _ = everything(tmp_path, images=False)
    assert [item.sha256 for item in items] == ["b" * 64, "c" * 64]
    assert read_names == ["a.txt", "b.txt"]


def test_without_images_no_loose_image_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    really = io.open

    def watched(file: object, *arguments: object, **options: object) -> object:
        opened.append(str(file))
        return really(file, *arguments, **options)

    monkeypatch.setattr(io, "open", watched)
    monkeypatch.setattr(builtins, "open", watched)
    items, _ = everything(folder, images=False)
    assert [item.image for item in items] == [None] * 5
    assert items[0].sha256 == SHA.lower()
    assert {Path(name).suffix for name in opened} == {".txt", ".json"}


def test_without_images_the_column_of_images_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    rows = [{"key": f"{i}", "sha256": f"{i:064x}", "jpg": os.urandom(3000), "txt": f"caption {i}"} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), path, use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(2)
    raw = bytearray(path.read_bytes())
    size = chunk.total_compressed_size
    raw[chunk.data_page_offset : chunk.data_page_offset + size] = b"\xff" * size
    path.write_bytes(raw)
    assert not everything(path)[0]
    items, rejected = everything(path, images=False)
    assert not rejected
    assert items == [Item(f"0.parquet/{i}", None, (f"caption {i}",), f"{i:064x}") for i in range(4)]


def test_without_images_and_any_other_column_rows_still_count(tmp_path: Path, arrow: Path) -> None:
    pq.write_table(pa.table({"image": [png(i) for i in range(5)]}), tmp_path / "0.parquet", row_group_size=2)
    assert ids(everything(tmp_path / "0.parquet", images=False, size=1)[0]) == [f"0.parquet/{i}" for i in range(5)]
    assert len(everything(arrow, images=False, captions="none")[0]) == 8


# ---------------------------------------------------------------------------------------------------- all of it


def test_layouts_side_by_side(tmp_path: Path, arrow: Path) -> None:
    write_tar(tmp_path / "tars" / "0.tar", sample("a", 0))
    pq.write_table(pa.table({"image": [png(1)]}), tmp_path / "table.parquet")
    write(tmp_path, {"loose/a.png": png(2), "loose/LICENSE": "words", "dataset_info.json": "{}"})
    items, rejected = everything(tmp_path)
    assert not rejected
    names = [f"0.arrow/{i}" for i in range(8)]
    assert ids(items) == ["tars/0.tar/a", *names, "table.parquet/0", "loose/a.png"]


@pytest.mark.parametrize("files", [{}, {"notes.txt": "x", ".hidden.png": b"x"}, {"0.tar": b"none"}])
def test_data_that_hold_nothing(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="set: holds no images"):
        plan(write(tmp_path / "set", files))


def test_data_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        plan(tmp_path / "nothing")
