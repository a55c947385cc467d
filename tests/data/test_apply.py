"""The deduplicated set: exactly the kept items come out, in the layout that went in, and the data stay untouched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.test_sources import everything, ids, png, sample, write, write_tar
from unmem.component import UserError
from unmem.mitigations.dedup import apply as module
from unmem.mitigations.dedup.apply import apply
from unmem.mitigations.dedup.sources import plan

Mode = Literal["copy", "link"]


def fingerprint(folder: Path, *but: Path) -> dict[str, tuple[int, int, str]]:
    """Every file's mode, time of change and digest; but for those folders."""
    state = {}
    for path in sorted(folder.rglob("*")):
        if any(path.is_relative_to(other) for other in but):
            continue
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        state[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return state


def applied(data: Path, kept: Sequence[str], mode: Mode = "copy", **options: Any) -> dict[str, Any]:
    """Apply to ``new`` beside the data, and check that all but it and its record is as it was."""
    out, record = data.parent / "new", data.parent / "new.unmem"
    before = fingerprint(data.parent, out, record)
    result = apply(data, plan(data)[0], kept, out, mode, **options)
    assert fingerprint(data.parent, out, record) == before
    assert not [*out.rglob("*.partial"), *record.rglob("*.partial")]
    assert json.loads((record / "files.json").read_text()) == tree(out)
    assert {"files": result["files"], "bytes": result["bytes"]} == {
        "files": len(tree(out)),
        "bytes": sum((out / name).stat().st_size for name in tree(out)),
    }
    return result


def tree(folder: Path) -> list[str]:
    """All files below a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(
        tmp_path / "set",
        {
            "cat/a.png": png(0),
            "cat/a.txt": "a",
            "cat/a.json": '{"caption": "a"}',
            "cat/b.png": png(0),
            "cat/b.txt": "b",
            "c.png": png(1),
            "d.png": png(2),
            "d.json": '{"caption": "d"}',
            "README.md": "no image",
            "LICENSE.txt": "words",
        },
    )


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two tars of two samples each, one with its parquet beside it."""
    data = tmp_path / "set"
    write_tar(data / "0.tar", [*sample("00", 0, "zero"), *sample("01", 0, "one")])
    write_tar(data / "sub" / "1.tar", [*sample("10", 1, "ten"), ("11.png", png(2)), ("11.cls", "5")])
    rows = [{"key": key, "caption": f"row {key}", "sha256": "a" * 64} for key in ("00", "01")]
    pq.write_table(pa.Table.from_pylist(rows), data / "0.parquet")
    write(data, {"0_stats.json": "{}"})
    return data


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_loose_images_with_all_that_goes_with_them(folder: Path, mode: Mode) -> None:
    os.utime(folder / "c.png", ns=(10**18, 10**18))
    result = applied(folder, ["cat/a.png", "c.png", "d.png"], mode)
    new = folder.parent / "new"
    assert tree(new) == ["c.png", "cat/a.json", "cat/a.png", "cat/a.txt", "d.json", "d.png"]
    assert all((new / name).read_bytes() == (folder / name).read_bytes() for name in tree(new))
    assert (new / "c.png").stat().st_mtime_ns == 10**18
    size = sum((folder / name).stat().st_size for name in tree(new))
    assert result == {"items": 3, "files": 6, "bytes": size, "missing": []}
    assert (new / "d.png").samefile(folder / "d.png") == (mode == "link")
    assert not (new / "d.json").samefile(folder / "d.json")
    expected = [item for item in everything(folder)[0] if item.id != "cat/b.png" and item.id != "README.md"]
    found = everything(new)[0]
    assert [(item.id, item.captions) for item in found] == [(item.id, item.captions) for item in expected]


def test_where_hard_links_are_refused_symbolic_ones_are_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    (folder / "linked.png").symlink_to(folder / "d.png")
    applied(folder, ["c.png", "linked.png"], "link")
    new = folder.parent / "new"
    assert (new / "c.png").readlink() == (folder / "c.png").resolve()
    assert (new / "linked.png").readlink() == (folder / "d.png").resolve()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_keep_the_rows_of_what_is_kept(folder: Path, kind: str) -> None:
    rows = [
        {"file_name": "cat/a.png", "text": "ä, row", "n": 1},
        {"file_name": "cat/b.png", "text": "b", "n": 2},
        {"file_name": "c.png", "text": "c", "n": 3},
        {"file_name": "gone.png", "text": "gone", "n": 4},
    ]
    path = folder / f"metadata.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(f'"{value}"' for value in row.values()) for row in rows]
        path.write_text("\n".join(["file_name,text,n", *lines]))
    merged = {"c.png": ["c", "see", "a longer\nsea"], "d.png": ["d", "dee"], "cat/b.png": ["dropped"]}
    result = applied(folder, ["cat/a.png", "c.png", "d.png"], captions=merged)
    new = folder.parent / "new"
    assert tree(new) == sorted(["c.png", "cat/a.json", "cat/a.png", "cat/a.txt", "d.json", "d.png", f"metadata.{kind}"])
    assert result["files"] == 7
    captions = {item.id: item.captions for item in everything(new)[0]}
    assert captions == {"cat/a.png": ("ä, row",), "c.png": ("c\nsee\na longer sea",), "d.png": ("d\ndee",)}
    if kind == "parquet":
        assert pq.read_table(new / "metadata.parquet").schema == pq.read_table(path).schema
        assert pq.read_table(new / "metadata.parquet")["n"].to_pylist() == [1, 3]


def test_merged_captions_replace_the_text_and_a_list_stays_a_list(folder: Path) -> None:
    write(folder, {"metadata.jsonl": json.dumps({"file_name": "c.png", "text": ["c"], "more": None})})
    merged = {"cat/a.png": ["a", "b"], "c.png": ["c", "see"]}
    applied(folder, ["cat/a.png", "c.png"], "link", captions=merged)
    new = folder.parent / "new"
    assert (new / "cat/a.txt").read_text() == "a\nb\n"
    assert json.loads((new / "cat/a.json").read_text()) == {"caption": "a\nb"}
    assert json.loads((new / "metadata.jsonl").read_text())["text"] == ["c", "see"]
    assert {item.id: item.captions for item in everything(new)[0]} == {
        "cat/a.png": ("a", "b"),
        "c.png": ("c", "see"),
    }


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_tars_of_the_kept_samples(tars: Path, mode: Mode) -> None:
    result = applied(tars, ["0.tar/01", "sub/1.tar/10", "sub/1.tar/11"], mode)
    new = tars.parent / "new"
    assert tree(new) == ["0.parquet", "0.tar", "sub/1.tar"]
    assert (result["items"], result["files"], result["missing"]) == (3, 3, [])
    assert (new / "sub" / "1.tar").samefile(tars / "sub" / "1.tar") == (mode == "link")
    assert not (new / "0.tar").samefile(tars / "0.tar")
    kept = {"0.tar/01", "sub/1.tar/10", "sub/1.tar/11"}
    assert everything(new) == ([item for item in everything(tars)[0] if item.id in kept], [])
    assert pq.read_table(new / "0.parquet")["key"].to_pylist() == ["01"]
    assert members(new / "sub" / "1.tar") == members(tars / "sub" / "1.tar")


def test_a_tar_of_which_nothing_is_kept_is_not_written(tars: Path) -> None:
    applied(tars, ["0.tar/00"])
    assert tree(tars.parent / "new") == ["0.parquet", "0.tar"]


def members(path: Path) -> dict[str, bytes]:
    """A tar's files, in order."""
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_merged_captions_in_tars(tars: Path) -> None:
    merged = {"0.tar/00": ["zero", "one"], "sub/1.tar/11": ["eleven\nonce"]}
    kept = ["0.tar/00", "0.tar/01", "sub/1.tar/10", "sub/1.tar/11"]
    applied(tars, kept, "link", captions=merged)
    new = tars.parent / "new"
    items, rejected = everything(new)
    assert not rejected
    assert [item.captions for item in items] == [("zero", "one"), ("one",), ("ten",), ("eleven once",)]
    assert not (new / "sub" / "1.tar").samefile(tars / "sub" / "1.tar")
    old = members(tars / "0.tar")
    texts = {
        "00.txt": b"zero\none",
        "00.json": json.dumps(json.loads(old["00.json"]) | {"caption": "zero\none"}).encode(),
    }
    assert list(members(new / "0.tar").items()) == list((old | texts).items())
    old = members(tars / "sub" / "1.tar")
    assert list(members(new / "sub" / "1.tar").items()) == [*old.items(), ("11.txt", b"eleven once")]
    rows = pq.read_table(tars / "0.parquet")
    column = pa.array(["zero\none", "row 01"])
    assert pq.read_table(new / "0.parquet").equals(rows.set_column(1, "caption", column))


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        (None, {"0.txt", "0.json"}),
        ("txt", {"0.txt", "0.json"}),
        ("blip", {"0.blip"}),
        ("alt", {"0.json"}),
        ("new", set()),
    ],
)
def test_merged_captions_go_where_the_field_is(tmp_path: Path, field: str | None, changed: set[str]) -> None:
    record = json.dumps({"caption": ["a"], "alt": "b", "n": [1, None]})
    samples = [
        ("0.blip", "x"),
        ("0.json", record),
        ("0.jpg", png(0)),
        ("0.txt", "a"),
        ("1.jpg", png(1)),
        ("1.json", "{"),
    ]
    tar = write_tar(tmp_path / "set" / "0.tar", samples)
    applied(tmp_path / "set", ["0.tar/0", "0.tar/1"], captions={"0.tar/0": ["ä", "b"]}, field=field)
    old, new = members(tar), members(tmp_path / "new" / "0.tar")
    assert {name for name in old if old[name] != new[name]} == changed
    assert set(new) - set(old) == ({"0.new"} if field == "new" else set())
    assert [name for name in new if name in old] == list(old)
    found = json.loads(new["0.json"])
    merged = {None: {"caption": ["ä", "b"]}, "txt": {"caption": ["ä", "b"]}, "alt": {"alt": "ä\nb"}}
    assert found == json.loads(record) | merged.get(field, {})


def test_hostile_and_broken_tars(tmp_path: Path) -> None:
    files = [*sample("a", 0, "x"), ("../up.jpg", png(1)), ("/root.jpg", png(1)), *sample("b", 1), *sample("c", 2)]
    path = write_tar(tmp_path / "set" / "0.tar", files)
    path.write_bytes(path.read_bytes()[: -20 * 512])
    write(tmp_path / "set", {"0.parquet": b"damaged"})
    items, rejected = everything(tmp_path / "set")
    assert rejected
    applied(tmp_path / "set", ids(items), "link")
    assert tree(tmp_path / "new") == ["0.tar"]
    assert everything(tmp_path / "new") == (items, [])


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_tables_of_the_kept_rows(tmp_path: Path, mode: Mode) -> None:
    data = tmp_path / "set"
    data.mkdir()
    rows = [{"jpg": png(i), "txt": f"caption {i}", "key": f"{i:03d}", "width": i} for i in range(7)]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": '{"info": {}}'})
    pq.write_table(table, data / "0.parquet", row_group_size=3)
    pq.write_table(table, data / "1.parquet")
    kept = [f"0.parquet/{i:03d}" for i in (1, 2, 6)] + [f"1.parquet/{i:03d}" for i in range(7)]
    result = applied(data, kept, mode)
    new = tmp_path / "new"
    assert tree(new) == ["0.parquet", "1.parquet"]
    assert (result["items"], result["missing"]) == (10, [])
    assert everything(new) == ([item for item in everything(data)[0] if item.id in kept], [])
    assert pq.read_table(new / "0.parquet").equals(table.take([1, 2, 6]))
    assert pq.read_schema(new / "0.parquet").metadata == table.schema.metadata
    assert pq.ParquetFile(new / "0.parquet").num_row_groups == 2
    assert (new / "1.parquet").samefile(data / "1.parquet") == (mode == "link")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.list_(pa.string())])
def test_merged_captions_in_tables(tmp_path: Path, kind: pa.DataType) -> None:
    is_list = pa.types.is_list(kind)
    texts = pa.array([["a"], ["b"], ["c"]] if is_list else ["a", "b", "c"], kind)
    table = pa.table({"image": [png(0), png(1), png(2)], "caption": texts, "key": ["x", "y", "z"]})
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "0.parquet")
    kept = ["0.parquet/x", "0.parquet/z"]
    applied(tmp_path / "set", kept, "link", captions={"0.parquet/z": ["c", "sea"], "0.parquet/x": []})
    new = tmp_path / "new" / "0.parquet"
    assert pq.read_schema(new) == table.schema
    assert pq.read_table(new)["caption"].to_pylist() == ([["a"], ["c", "sea"]] if is_list else ["a", "c\nsea"])


def test_row_groups_larger_than_memory_allows_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmem.mitigations.dedup.sources import rewrite

    monkeypatch.setattr(rewrite, "GROUP_BYTES", 1000)
    (tmp_path / "set").mkdir()
    table = pa.table({"image": [os.urandom(100) for _ in range(64)]})
    pq.write_table(table, tmp_path / "set" / "0.parquet")
    kept = [f"0.parquet/{i}" for i in range(1, 64)]
    applied(tmp_path / "set", kept)
    assert pq.read_table(tmp_path / "new" / "0.parquet").equals(table.slice(1))
    assert pq.ParquetFile(tmp_path / "new" / "0.parquet").num_row_groups == 4


def saved(tmp_path: Path) -> Any:
    """A dataset of five digits with captions, as ``datasets`` has it."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(5)], "text": [f"caption {i}" for i in range(5)]}
    return datasets.Dataset.from_dict(rows, split="train").cast_column("image", datasets.Image())


def test_a_hugging_face_folder_stays_one(tmp_path: Path) -> None:
    datasets, whole = pytest.importorskip("datasets"), saved(tmp_path)
    whole.save_to_disk(tmp_path / "set", num_shards=3)
    kept = ["data-00000-of-00003.arrow/1", "data-00001-of-00003.arrow/0", "data-00001-of-00003.arrow/1"]
    applied(tmp_path / "set", kept, "link", captions={kept[0]: ["caption 1", "one"]})
    new = tmp_path / "new"
    assert tree(new) == [*(f"data-0000{i}-of-00003.arrow" for i in (0, 1)), "dataset_info.json", "state.json"]
    assert (new / "data-00001-of-00003.arrow").samefile(tmp_path / "set" / "data-00001-of-00003.arrow")
    loaded = datasets.load_from_disk(new)
    assert (loaded.features, loaded.split, loaded.data.schema) == (whole.features, whole.split, whole.data.schema)
    assert loaded["text"][:] == ["caption 1\none", "caption 2", "caption 3"]
    assert loaded.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"] == png(1)
    assert loaded[0]["image"].size == (8, 8)
    assert loaded._fingerprint != datasets.load_from_disk(tmp_path / "set")._fingerprint
    assert [item.image for item in everything(new)[0]] == [png(1), png(2), png(3)]
    applied(tmp_path / "set", kept[:1], "link")
    assert datasets.load_from_disk(new)["text"][:] == ["caption 1"]


def test_the_splits_of_a_hugging_face_folder(tmp_path: Path) -> None:
    datasets, whole = pytest.importorskip("datasets"), saved(tmp_path)
    splits = {"train": whole, "test": whole.select([0, 1]), "none": whole.select([])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    info = tmp_path / "set" / "train" / "dataset_info.json"
    counted = {"train": {"name": "train", "num_bytes": 9, "num_examples": 5}}
    info.write_text(
        json.dumps({**json.loads(info.read_text()), "splits": counted, "dataset_size": 9, "license": "mit"})
    )
    kept = [f"train/data-00000-of-00001.arrow/{i}" for i in (0, 4)]
    assert applied(tmp_path / "set", kept)["missing"] == []
    loaded = datasets.load_from_disk(tmp_path / "new")
    assert {name: split["text"][:] for name, split in loaded.items()} == {
        "train": ["caption 0", "caption 4"],
        "test": [],
    }  # a split that was saved without rows has no Arrow file, and ``datasets`` cannot open it: it stays behind
    assert all(split.features == whole.features for split in loaded.values())
    assert (loaded["train"].info.splits, loaded["train"].info.license) == (None, "mit")


def test_a_damaged_split_stays_behind(tmp_path: Path) -> None:
    datasets, whole = pytest.importorskip("datasets"), saved(tmp_path)
    datasets.DatasetDict(train=whole, test=whole).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / "test" / "data-00000-of-00001.arrow").write_bytes(b"damaged")
    applied(tmp_path / "set", ["train/data-00000-of-00001.arrow/3"])
    loaded = datasets.load_from_disk(tmp_path / "new")
    assert {name: split["text"][:] for name, split in loaded.items()} == {"train": ["caption 3"]}


def test_an_arrow_file_by_itself_stays_one(tmp_path: Path) -> None:
    table = pa.table({"image": [png(i) for i in range(4)], "n": range(4)})
    (tmp_path / "set").mkdir()
    for name in ("a", "b"):
        with pa.ipc.new_stream(str(tmp_path / "set" / f"{name}.arrow"), table.schema) as stream:
            stream.write_table(table, max_chunksize=3)
    applied(tmp_path / "set", ["a.arrow/0", "a.arrow/3"])
    assert tree(tmp_path / "new") == ["a.arrow"]
    with pa.ipc.open_stream((tmp_path / "new" / "a.arrow").read_bytes()) as stream:
        assert stream.read_all().equals(table.take([0, 3]))


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_twice_is_once(folder: Path, tars: Path, mode: Mode) -> None:
    kept = ["c.png", "cat/a.png", "0.tar/00", "sub/1.tar/10", "sub/1.tar/11", "gone.png", "9.tar/0"]
    write(folder, {"metadata.csv": "file_name,text\nc.png,c\n"})
    result = applied(folder, kept, mode)
    assert result["missing"] == ["9.tar/0", "gone.png"]
    before = fingerprint(folder.parent / "new")
    assert applied(folder, kept, mode) == result
    assert fingerprint(folder.parent / "new") == before


def everywhere(folder: Path) -> Path:
    """The folder with metadata and a table beside the loose images and the tars."""
    write(folder, {"metadata.csv": "file_name,text\nc.png,c\nd.png,d\n"})
    table = pa.table({"image": [png(i) for i in range(4)], "caption": list("abcd")})
    pq.write_table(table, folder / "t.parquet")
    return folder


EVERYTHING = ["cat/a.png", "cat/b.png", "c.png", "d.png", "0.tar/00", "0.tar/01", "sub/1.tar/10", "sub/1.tar/11"]
STATES: list[tuple[list[str], Mode, dict[str, list[str]]]] = [
    ([*EVERYTHING, *(f"t.parquet/{i}" for i in range(4))], "link", {}),
    (["cat/a.png", "c.png", "0.tar/01", "t.parquet/1"], "copy", {"c.png": ["c", "sea"], "0.tar/01": ["one", "1"]}),
    (["cat/a.png", "d.png", "0.tar/01", "0.tar/00"], "copy", {"cat/a.png": ["a", "b"], "d.png": ["dee"]}),
    (["sub/1.tar/11"], "link", {}),
]


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("second", range(4))
def test_a_set_is_brought_up_to_date(folder: Path, tars: Path, first: int, second: int) -> None:
    everywhere(folder)
    new, fresh = folder.parent / "new", folder.parent / "fresh"
    results = []
    for state in (first, second):
        kept, mode, captions = STATES[state]
        results.append(applied(folder, kept, mode, captions=captions))
    kept, mode, captions = STATES[second]
    assert apply(folder, plan(folder)[0], kept, fresh, mode, captions) == results[-1]
    assert tree(new) == tree(fresh)
    assert sorted(path.name for path in new.rglob("*")) == sorted(path.name for path in fresh.rglob("*"))  # no folders
    for name in tree(new):
        assert (new / name).read_bytes() == (fresh / name).read_bytes()
        linked = (folder / name).exists() and (new / name).samefile(folder / name)
        assert linked == ((folder / name).exists() and (fresh / name).samefile(folder / name))


def test_what_is_right_already_stays(folder: Path, tars: Path) -> None:
    everywhere(folder)
    kept = ["cat/a.png", "c.png", "0.tar/01", "sub/1.tar/10", "t.parquet/1"]
    applied(folder, kept)
    before = fingerprint(folder.parent / "new")
    write(folder, {"e.png": png(3)})
    applied(folder, [*kept, "e.png"])
    (folder.parent / "new" / "e.png").unlink()
    after = fingerprint(folder.parent / "new")
    changed = {Path(path).name for path in before if before[path] != after[path]}
    assert changed == {"metadata.csv"} and set(before) == set(after)
    applied(folder, [*kept, "e.png"])
    assert (folder.parent / "new" / "e.png").exists()


@pytest.mark.parametrize("name", ["cat/mine.txt", ".hidden", "e.png", "0.tar.x.bak"])
def test_files_that_were_not_written_here_are_never_touched(folder: Path, name: str) -> None:
    new = folder.parent / "new"
    applied(folder, ["cat/a.png", "c.png"])
    write(new, {name: "mine"})
    write(folder, {"e.png": png(3)})
    before = fingerprint(folder.parent)
    with pytest.raises(UserError, match=rf"{name}: was not written with the set; move it away"):
        apply(folder, plan(folder)[0], ["d.png", "e.png"], new, "copy")
    assert fingerprint(folder.parent) == before


def test_a_folder_that_became_a_link_into_the_data_is_not_entered(folder: Path) -> None:
    new = folder.parent / "new"
    applied(folder, ["cat/a.png", "c.png"])
    shutil.rmtree(new / "cat")
    (new / "cat").symlink_to(folder / "cat")
    before = fingerprint(folder)
    with pytest.raises(UserError, match="new/cat: was not written"):
        apply(folder, plan(folder)[0], ["c.png"], new, "copy")
    assert fingerprint(folder) == before


def test_what_a_killed_write_left_is_removed(tars: Path) -> None:
    applied(tars, ["0.tar/00"])
    write(tars.parent / "new", {"0.tar.4711.partial": "half"})
    applied(tars, ["0.tar/00"])
    assert tree(tars.parent / "new") == ["0.parquet", "0.tar"]


def test_other_libraries_read_the_new_folder(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    data = write(tmp_path / "set", {"cat/a.png": png(0), "cat/b.png": png(0), "dog/c.png": png(1)})
    applied(data, ["cat/a.png", "dog/c.png"])
    assert ImageFolder(str(tmp_path / "new")).classes == ["cat", "dog"]


class Killed(Exception):
    """What stops the work in the middle."""


@pytest.mark.parametrize("mode", ["copy", "link"])
@pytest.mark.parametrize("steps", range(6))
def test_killed_anywhere_and_continued(
    folder: Path, tars: Path, mode: Mode, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ["c.png", "cat/a.png", "d.png", "0.tar/00", "sub/1.tar/10", "sub/1.tar/11"]
    shards = plan(folder)[0]
    whole = apply(folder, shards, kept, folder.parent / "whole", mode)
    made: list[str] = []
    with monkeypatch.context() as patch:
        for name in ("copy2", "_hard_or_symbolic", "rewrite_tar"):
            owner: Any = shutil if name == "copy2" else module
            patch.setattr(owner, name, interrupted(getattr(owner, name), made, steps))
        with pytest.raises(Killed):
            apply(folder, shards, kept, folder.parent / "new", mode)
    assert len(made) == steps
    with monkeypatch.context() as patch:
        for name in ("copy2", "_hard_or_symbolic", "rewrite_tar"):
            owner = shutil if name == "copy2" else module
            patch.setattr(owner, name, interrupted(getattr(owner, name), made, 100))
        assert apply(folder, shards, kept, folder.parent / "new", mode) == whole
    assert len(made) == len(set(made))
    assert tree(folder.parent / "new") == tree(folder.parent / "whole")
    for name in tree(folder.parent / "new"):
        assert (folder.parent / "new" / name).read_bytes() == (folder.parent / "whole" / name).read_bytes()


def interrupted(function: Any, made: list[str], steps: int) -> Any:
    """The function, until it was called so many times."""

    def counted(*arguments: Any, **options: Any) -> Any:
        if len(made) >= steps:
            raise Killed
        result = function(*arguments, **options)
        made.append(str(arguments[0]))
        return result

    return counted


@pytest.mark.parametrize("steps", range(12))
def test_killed_while_it_is_brought_up_to_date(
    folder: Path, tars: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere(folder)
    new, fresh = folder.parent / "new", folder.parent / "fresh"
    applied(folder, STATES[0][0], STATES[0][1])
    kept, mode, captions = STATES[1]
    made: list[str] = []
    with monkeypatch.context() as patch:
        for owner, name in (
            (module._Writer, "_place"),
            (module, "atomic"),
            (module, "rewrite_tar"),
            (Path, "unlink"),
            (Path, "rmdir"),
        ):
            patch.setattr(owner, name, interrupted(getattr(owner, name), made, steps))
        with pytest.raises(Killed):
            apply(folder, plan(folder)[0], kept, new, mode, captions)
    result = applied(folder, kept, mode, captions=captions)
    assert apply(folder, plan(folder)[0], kept, fresh, mode, captions) == result
    assert sorted(path.name for path in new.rglob("*")) == sorted(path.name for path in fresh.rglob("*"))
    assert all((new / name).read_bytes() == (fresh / name).read_bytes() for name in tree(new))


def test_a_copy_that_was_cut_short_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = folder.parent / "new"
    with monkeypatch.context() as patch:
        patch.setattr(module.Record, "settle", interrupted(module.Record.settle, [], 0))
        with pytest.raises(Killed):
            applied(folder, ["c.png", "d.png"])
    (new / "c.png").write_bytes(b"")
    applied(folder, ["c.png", "d.png"])
    assert (new / "c.png").read_bytes() == png(1)


@pytest.mark.parametrize("place", ["set", "set/new", "set/cat/deeper", "."])
def test_the_new_set_and_the_data_do_not_lie_in_each_other(folder: Path, place: str) -> None:
    before = fingerprint(folder.parent)
    with pytest.raises(UserError, match="must not lie in each other"):
        apply(folder, plan(folder)[0], ["c.png"], folder.parent / place, "copy")
    assert fingerprint(folder.parent) == before


def test_a_link_does_not_hide_that_the_new_set_lies_in_the_data(folder: Path) -> None:
    (folder.parent / "alias").symlink_to(folder)
    with pytest.raises(UserError, match="must not lie in each other"):
        apply(folder, plan(folder)[0], ["c.png"], folder.parent / "alias" / "new", "copy")


def test_nothing_is_written_among_other_things(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", {"mine.txt": "x"})
    for out, message in ((tmp_path / "other", "is not empty"), (tmp_path / "other" / "mine.txt", "is a file")):
        with pytest.raises(UserError, match=message):
            apply(folder, plan(folder)[0], ["c.png"], out, "copy")
    assert tree(tmp_path / "other") == ["mine.txt"]


@pytest.mark.parametrize("edit", ["remove", "write"])
def test_data_that_changed_meanwhile_are_refused(folder: Path, edit: str) -> None:
    shards = plan(folder)[0]
    (folder / "d.png").unlink() if edit == "remove" else (folder / "d.png").write_bytes(b"other")
    with pytest.raises(UserError, match=r"d\.png was changed or removed since it was read"):
        apply(folder, shards, ["c.png"], folder.parent / "new", "copy")
    assert not (folder.parent / "new").exists()


@pytest.mark.parametrize("kept", [["c.png"], ["0.tar/00"]])
def test_without_room_nothing_is_begun(
    folder: Path, tars: Path, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda path: 10)
    with pytest.raises(UserError, match=r"needs \d+ bytes, has 10 free"):
        applied(folder, kept)
    assert tree(folder.parent / "new") == []


def test_one_file_as_the_data(tars: Path, tmp_path: Path) -> None:
    shards = plan(tars / "0.tar")[0]
    apply(tars / "0.tar", shards, ["0.tar/01"], tmp_path / "new", "copy")
    assert tree(tmp_path / "new") == ["0.parquet", "0.tar"]
    with pytest.raises(UserError, match="is not empty"):
        apply(tars / "0.tar", shards, ["0.tar/01"], tars, "copy")
