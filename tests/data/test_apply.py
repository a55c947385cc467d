"""The deduplicated set: exactly the kept items come out, in the layout that went in, and the data stay untouched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
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

Mode = Literal["copy", "link", "list"]


def fingerprint(folder: Path, out: Path | None = None) -> dict[str, tuple[int, int, str]]:
    """Every file's mode, time of change and digest; but for the folder ``out``."""
    state = {}
    for path in sorted(folder.rglob("*")):
        if out is not None and path.is_relative_to(out):
            continue
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        state[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return state


def applied(data: Path, kept: Sequence[str], mode: Mode = "copy", **options: Any) -> dict[str, Any]:
    """Apply to ``new`` beside the data, and check that all else is as it was."""
    out = data.parent / "new"
    before = fingerprint(data.parent, out)
    result = apply(data, plan(data)[0], kept, out, mode, **options)
    assert fingerprint(data.parent, out) == before
    assert not list(out.rglob("*.partial"))
    return result


def tree(folder: Path) -> list[str]:
    """The files that a reader of the new set sees."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in names if not name.startswith(".unmem/"))


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
    assert tree(new) == sorted(
        ["c.png", "cat/a.json", "cat/a.png", "cat/a.txt", "d.json", "d.png", "d.txt", f"metadata.{kind}"]
    )
    assert result["files"] == 8
    captions = {item.id: item.captions for item in everything(new)[0]}
    assert captions == {"cat/a.png": ("ä, row",), "c.png": ("c\nsee\na longer sea",), "d.png": ("d", "dee")}
    if kind == "parquet":
        assert pq.read_table(new / "metadata.parquet").schema == pq.read_table(path).schema
        assert pq.read_table(new / "metadata.parquet")["n"].to_pylist() == [1, 3]


def test_merged_captions_replace_the_text_and_a_list_stays_a_list(folder: Path) -> None:
    write(folder, {"metadata.jsonl": json.dumps({"file_name": "c.png", "text": ["c"], "more": None})})
    merged = {"cat/a.png": ["a", "b"], "c.png": ["c", "see"]}
    applied(folder, ["cat/a.png", "c.png"], "link", captions=merged)
    new = folder.parent / "new"
    assert (new / "cat/a.txt").read_text() == "a\nb\n"
    assert (new / "cat/a.json").read_text() == '{"caption": "a"}'
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
    import tarfile

    with tarfile.open(new / "sub" / "1.tar") as tar:
        assert tar.extractfile("11.cls").read() == b"5"  # type: ignore[union-attr]


def test_a_tar_of_which_nothing_is_kept_is_not_written(tars: Path) -> None:
    applied(tars, ["0.tar/00"])
    assert tree(tars.parent / "new") == ["0.parquet", "0.tar"]


def test_merged_captions_in_tars(tars: Path) -> None:
    merged = {"0.tar/00": ["zero", "one"], "sub/1.tar/11": ["eleven\nonce"]}
    kept = ["0.tar/00", "sub/1.tar/10", "sub/1.tar/11"]
    applied(tars, kept, "link", captions=merged)
    new = tars.parent / "new"
    items, rejected = everything(new)
    assert not rejected
    assert [item.captions for item in items] == [("zero", "one"), ("ten",), ("eleven once",)]
    assert [item.image for item in items] == [item.image for item in everything(tars)[0] if item.id in kept]
    assert not (new / "sub" / "1.tar").samefile(tars / "sub" / "1.tar")


def test_hostile_and_broken_tars(tmp_path: Path) -> None:
    members = [*sample("a", 0, "x"), ("../up.jpg", png(1)), ("/root.jpg", png(1)), *sample("b", 1), *sample("c", 2)]
    path = write_tar(tmp_path / "set" / "0.tar", members)
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


def test_a_hugging_face_folder_becomes_parquet_that_the_library_reads(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(5)], "text": [f"caption {i}" for i in range(5)]}
    saved = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    saved.save_to_disk(tmp_path / "set", num_shards=2)
    kept = ["data-00000-of-00002.arrow/1", "data-00001-of-00002.arrow/0"]
    applied(tmp_path / "set", kept, "link")
    new = tmp_path / "new"
    assert tree(new) == ["data-00000-of-00002.parquet", "data-00001-of-00002.parquet"]
    found = everything(new)[0]
    assert [(item.image, item.captions) for item in found] == [(png(1), ("caption 1",)), (png(3), ("caption 3",))]
    files = sorted(str(path) for path in new.glob("*.parquet"))
    loaded = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache"))
    assert loaded.features == saved.features


def test_an_arrow_file_never_overwrites_a_parquet_file(tmp_path: Path) -> None:
    table = pa.table({"image": [png(0)]})
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "a.parquet")
    with pa.OSFile(str(tmp_path / "set" / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(UserError, match=r"a\.arrow and a\.parquet would both become"):
        applied(tmp_path / "set", ["a.parquet/0", "a.arrow/0"])


def test_a_list_holds_the_ids_and_nothing_else_is_written(folder: Path) -> None:
    result = applied(folder, ["d.png", "cat/a.png"], "list")
    assert [path.name for path in (folder.parent / "new").rglob("*")] == ["keep.txt"]
    assert (folder.parent / "new" / "keep.txt").read_text() == "cat/a.png\nd.png\n"
    assert result == {"items": 2, "files": 1, "bytes": 16, "missing": []}


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_twice_is_once(folder: Path, tars: Path, mode: Mode) -> None:
    kept = ["c.png", "cat/a.png", "0.tar/00", "sub/1.tar/10", "sub/1.tar/11", "gone.png", "9.tar/0"]
    write(folder, {"metadata.csv": "file_name,text\nc.png,c\n"})
    result = applied(folder, kept, mode)
    assert result["missing"] == ["9.tar/0", "gone.png"]
    before = fingerprint(folder.parent / "new")
    assert applied(folder, kept, mode) == result
    assert fingerprint(folder.parent / "new") == before
    with pytest.raises(UserError, match="made from other inputs"):
        applied(folder, kept[1:], mode)


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
    assert len(made) == len(set(made)) + (mode == "copy")  # a tar's first argument is the folder, twice
    assert tree(folder.parent / "new") == tree(folder.parent / "whole")
    for name in tree(folder.parent / "new"):
        assert (folder.parent / "new" / name).read_bytes() == (folder.parent / "whole" / name).read_bytes()


def interrupted(function: Any, made: list[str], steps: int) -> Any:
    """The function, until it was called so many times."""

    def counted(*arguments: Any) -> Any:
        if len(made) >= steps:
            raise Killed
        result = function(*arguments)
        made.append(str(arguments[0]))
        return result

    return counted


def test_a_copy_that_was_cut_short_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = folder.parent / "new"
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", interrupted(module.write_json, [], 0))
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
