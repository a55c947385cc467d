"""Whole deduplication jobs: every layout and engine gives the same answer, whatever interrupts it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from unmem.cli import app
from unmem.component import UserError
from unmem.mitigations.dedup import buckets, find, perceptual, search, work
from unmem.mitigations.dedup.engine import Local, Ray
from unmem.mitigations.dedup.outcome import Choice
from unmem.mitigations.dedup.publish import publish
from unmem.mitigations.dedup.signatures import Signing
from unmem.rng import stream

RESULTS = ("keep.txt", "ledger.csv", "copies.csv", "groups.parquet", "report.json", "quarantine.csv")


@cache
def photographs() -> list[np.ndarray]:
    """40 distinct crops of real photographs, 96 x 96, with something to see in each."""
    from sklearn.datasets import load_sample_images

    crops = [
        image[y : y + 96, x : x + 96] for image in load_sample_images().images
        for y in range(0, 330, 55) for x in range(0, 540, 90)
    ]  # fmt: skip
    return sorted(crops, key=lambda crop: -perceptual.detail(Image.fromarray(crop)))[:40]


def jpeg(pixels: np.ndarray, quality: int = 92, size: int | None = None) -> bytes:
    image = Image.fromarray(pixels)
    if size is not None:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return data.getvalue()


@cache
def items() -> dict[str, tuple[bytes, str]]:
    """Names, files and captions: 40 originals, 6 re-encoded, 5 reduced, 4 byte-equal, 3 equal in pixels alone."""
    crops = photographs()
    found = {f"o{i:02}": (jpeg(crop), f"a photograph of place number {i}") for i, crop in enumerate(crops)}
    found |= {f"r{i:02}": (jpeg(crops[i], 60), f"a photograph of place number {i}") for i in range(6)}
    found |= {f"s{i:02}": (jpeg(crops[i], 92, 64), "something else entirely, " * 3) for i in range(4, 9)}
    found |= {f"b{i:02}": found[f"o{i:02}"] for i in range(10, 14)}
    for i in range(20, 23):
        png = io.BytesIO()
        Image.open(io.BytesIO(found[f"o{i:02}"][0])).save(png, "PNG")
        found[f"p{i:02}"] = (png.getvalue(), "")
    return found


def write_folder(folder: Path, names: list[str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    everything = items()
    for name in names if names is not None else everything:
        data, caption = everything[name]
        (folder / f"{name}.jpg").write_bytes(data)
        (folder / f"{name}.txt").write_text(caption)
    return folder


def write_tars(folder: Path, per_tar: int = 20) -> Path:
    """As img2dataset writes them: tars, with a parquet file of the metadata beside each."""
    folder.mkdir(parents=True)
    everything = list(items().items())
    for start in range(0, len(everything), per_tar):
        shard, rows = f"{start // per_tar:05}", []
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for position, (name, (data, caption)) in enumerate(everything[start : start + per_tar]):
                key = f"{shard}{position:04}"
                row = {"key": key, "caption": caption, "sha256": hashlib.sha256(data).hexdigest(), "url": name}
                rows.append(row)
                for ending, content in (("jpg", data), ("txt", caption.encode()), ("json", json.dumps(row).encode())):
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard}.parquet")
        (folder / f"{shard}_stats.json").write_text("{}")
    return folder


def write_parquet(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows = [{"key": name, "jpg": data, "txt": caption} for name, (data, caption) in items().items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-0.parquet", row_group_size=16)
    return folder


def write_saved(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    everything = items()
    columns = {
        "image": [{"bytes": data, "path": f"{name}.jpg"} for name, (data, _) in everything.items()],
        "text": [caption for _, caption in everything.values()],
    }
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).save_to_disk(folder)
    return folder


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tasks even on small data."""
    monkeypatch.setattr(work, "FILES", 10)
    monkeypatch.setattr(search, "BLOCK", 16)
    monkeypatch.setattr(buckets, "FILED", 2_000)
    monkeypatch.setattr(buckets, "ENTRIES", 400)


def settings(**changes) -> work.Settings:
    return work.Settings(**{"max_distance": 6, **changes})


def run(data: Path, out: Path, engine=None, against: Path | None = None, **changes) -> dict:
    outcome = find.find(data, out, settings(**changes), engine or Local(1), against)
    publish(outcome, out)
    return outcome.report


def results(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in RESULTS}


def ledger(out: Path) -> dict[str, tuple[str, str, float]]:
    with (out / "ledger.csv").open() as file:
        return {row["id"]: (row["kept_id"], row["stage"], float(row["distance"])) for row in csv.DictReader(file)}


def bare(name: str) -> str:
    """An item's own name in any layout."""
    return Path(name).stem


def test_a_folder_from_end_to_end(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    before = {path: path.read_bytes() for path in data.iterdir()}
    report = run(data, tmp_path / "out")
    found = {bare(gone): (bare(kept), stage) for gone, (kept, stage, _) in ledger(tmp_path / "out").items()}
    largest = {name: len(file) for name, (file, _) in items().items()}
    assert {gone for gone in found if gone[0] in "rs"} == {f"r{i:02}" for i in range(6)} | {
        f"s{i:02}" for i in range(4, 9)
    }
    assert all(
        stage == "perceptual" and kept[1:] == gone[1:] for gone, (kept, stage) in found.items() if gone[0] in "rs"
    )
    assert {(gone, kept, stage) for gone, (kept, stage) in found.items() if stage == "bytes"} == {
        (f"o{i:02}", f"b{i:02}", "bytes") for i in range(10, 14)
    }  # equal in size: the first by id stays
    for i in range(20, 23):
        pair = {f"o{i:02}", f"p{i:02}"}
        (gone,) = pair & set(found)
        assert found[gone] == ((pair - {gone}).pop(), "pixels")
        assert largest[gone] < largest[found[gone][0]]
    assert report["images"] == 58
    assert report["dropped"] == len(found) == 18
    assert report["kept"] == len((tmp_path / "out" / "keep.txt").read_text().split()) == 40
    assert report["stages"] == {"bytes": 4, "perceptual": 11, "pixels": 3}
    assert report["classes"]["same image, same caption"] == 2 * 6 + 2 * 4
    assert report["classes"]["same image, other captions"] == 2 * 5 + 1 + 1  # r04 and r05 stand beside s04 and s05
    assert report["classes"]["other images, same caption"] == 5
    assert {path: path.read_bytes() for path in data.iterdir()} == before
    with (tmp_path / "out" / "copies.csv").open() as file:
        copies = {bare(row["id"]): int(row["copies"]) for row in csv.DictReader(file)}
    assert copies["o04"] == copies["o05"] == 3
    assert copies["b10"] == 2
    page = (tmp_path / "out" / "duplicates.html").read_text()
    assert all(f"{name}.jpg" in page for name in found)
    assert page.count("data:image/") >= 18


@pytest.mark.parametrize("write", [write_tars, write_parquet, write_saved])
def test_every_layout_finds_the_same(tmp_path: Path, write) -> None:
    run(write_folder(tmp_path / "folder"), tmp_path / "expected")
    report = run(write(tmp_path / "data"), tmp_path / "out")
    expected = json.loads((tmp_path / "expected" / "report.json").read_text())
    assert report["stages"] == expected["stages"]
    assert report["classes"] == expected["classes"]
    assert report["kept"] == expected["kept"]


def test_workers_bands_and_order_of_arrival_do_not_matter(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    signing = Signing(bits=256)
    run(data, tmp_path / "one", signing=signing, max_distance=31)
    run(data, tmp_path / "pool", Local(2), signing=signing, max_distance=31)
    run(data, tmp_path / "bands", signing=signing, max_distance=31, method="bands")
    assert results(tmp_path / "one") == results(tmp_path / "pool") == results(tmp_path / "bands")


@pytest.mark.parametrize("method", ["tiles", "bands"])
def test_what_is_added_gives_what_all_at_once_gives(tmp_path: Path, method: str, monkeypatch) -> None:
    names = list(items())
    changes = {"signing": Signing(bits=256), "max_distance": 31, "method": method}
    run(write_folder(tmp_path / "all"), tmp_path / "expected", **changes)
    data = write_folder(tmp_path / "data", names[20:])
    run(data, tmp_path / "out", **changes)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "work").rglob("*.parquet")}
    write_folder(data, names[:20])
    run(data, tmp_path / "out", **changes)
    assert results(tmp_path / "out") == results(tmp_path / "expected")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "work").rglob("*.parquet")}
    assert before.items() <= after.items()  # nothing was done again
    assert len(after) > len(before)

    (data / "o00.jpg").unlink()
    (data / "o00.txt").unlink()
    (tmp_path / "all" / "o00.jpg").unlink()
    (tmp_path / "all" / "o00.txt").unlink()
    run(data, tmp_path / "out", **changes)
    run(tmp_path / "all", tmp_path / "again", **changes)
    assert results(tmp_path / "out") == results(tmp_path / "again")


def test_a_damaged_table_is_signed_again_and_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    run(data, tmp_path / "out")
    before = results(tmp_path / "out")
    table = next((tmp_path / "out" / "work" / "signatures").iterdir())
    table.write_bytes(table.read_bytes()[:-40])
    run(data, tmp_path / "out")
    assert results(tmp_path / "out") == before
    (tmp_path / "out" / "work" / "data.json").write_text("{}")
    with pytest.raises(UserError, match=r"data.json: damaged \(KeyError"):
        run(data, tmp_path / "out")


def test_the_page_is_rendered_again_only_where_it_changes(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    run(data, tmp_path / "out")
    before = (tmp_path / "out" / "duplicates.html").stat().st_mtime_ns
    run(data, tmp_path / "out")
    assert (tmp_path / "out" / "duplicates.html").stat().st_mtime_ns == before
    run(data, tmp_path / "out", drop="both")
    assert (tmp_path / "out" / "duplicates.html").stat().st_mtime_ns > before


def test_several_captions_of_one_image_are_no_duplication(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", [f"o{i:02}" for i in range(6)])
    for i, path in enumerate(sorted(data.glob("*.txt"))):
        path.write_text(f"the first text about number {i}\nquite another one, {i * 7}")
    assert not any(run(data, tmp_path / "out")["classes"].values())


def test_stale_files_are_told_from_ones_that_concern_the_data(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", ["o00", "r00", "o01"])
    stale = frozenset({("gone.jpg", "o00.jpg"), ("o01.jpg", "o00.jpg")})
    report = run(data, tmp_path / "out", choice=Choice(rejected=stale))
    assert report["given"] == {"--decisions": {"given": 2, "used": 1}}


INTERRUPTED = """
import os, signal, sys, threading, time
from unmem.mitigations.dedup.engine import Local

def work(seconds):
    time.sleep(seconds)

def interrupt():
    time.sleep(3)
    for _ in range(2):
        os.killpg(os.getpgid(0), signal.SIGINT)
        time.sleep(0.02)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Thread(target=interrupt, daemon=True).start()
    list(Local(2).run(work, [60] * 6))
"""


def test_interrupted_twice_it_ends(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, "job.py"], cwd=tmp_path, timeout=40, start_new_session=True, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "KeyboardInterrupt" in done.stderr


class Flaky(Local):
    """An engine that dies after some tasks."""

    def __init__(self, tasks: int) -> None:
        super().__init__(1)
        object.__setattr__(self, "left", tasks)

    def run(self, work, tasks):
        for task in tasks:
            if self.left == 0:
                raise KeyboardInterrupt
            object.__setattr__(self, "left", self.left - 1)
            yield work(task)


def test_a_killed_job_resumes_at_the_task(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    run(data, tmp_path / "expected")
    for tasks in (0, 3, 7, 2, 2):
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "out", Flaky(tasks))
    done = len(list((tmp_path / "out" / "work").rglob("*.parquet")))
    assert done >= 10
    run(data, tmp_path / "out")
    assert results(tmp_path / "out") == results(tmp_path / "expected")
    assert not list((tmp_path / "out").rglob("*.partial"))


def die_once(mark: Path) -> None:
    """A task whose first worker is killed."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def die(mark: Path) -> None:
    """A task that kills every worker."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_of_the_pool_is_replaced(tmp_path: Path) -> None:
    marks = [tmp_path / str(i) for i in range(2)]
    assert len(list(Local(2).run(die_once, marks))) == 2
    assert all(mark.exists() for mark in marks)
    with pytest.raises(UserError, match="workers were killed 4 times over with 2 tasks left"):
        list(Local(2).run(die, marks))


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    yield ray
    ray.shutdown()


def test_ray_gives_the_same_though_a_worker_is_killed(tmp_path: Path, ray) -> None:
    data = write_folder(tmp_path / "data")
    run(data, tmp_path / "expected")
    engine = Ray(2)
    assert len(list(engine.run(die_once, [tmp_path / "mark"]))) == 1
    assert (tmp_path / "mark").exists()
    run(data, tmp_path / "out", engine)
    assert results(tmp_path / "out") == results(tmp_path / "expected")


def test_against_another_set(tmp_path: Path) -> None:
    names = list(items())
    data = write_folder(tmp_path / "data", [name for name in names if name[0] in "ob"])
    other = write_folder(tmp_path / "other", [name for name in names if name[0] in "rsp"])
    report = run(data, tmp_path / "out", against=other)
    found = ledger(tmp_path / "out")
    assert {bare(name) for name in found} == {f"o{i:02}" for i in (*range(9), *range(20, 23))}
    assert all(kept.startswith("against:") for kept, _, _ in found.values())
    assert found["o20.jpg"] == ("against:p20.jpg", "pixels", 0.0)
    assert report["images"] == 44  # b10 and o10 are equal, and both stay: only what the other set holds is dropped
    assert report["kept"] == 32
    assert report["against"] == {"images": 14, "quarantined": 0}


def test_two_sets_whose_files_look_alike_from_outside_are_told_apart(tmp_path: Path) -> None:
    crops = photographs()
    for folder, some in (("data", crops[:3]), ("other", crops[3:6])):
        (tmp_path / folder).mkdir()
        for i, crop in enumerate(some):
            path = tmp_path / folder / f"{i}.bmp"  # of one size, and as old as the others
            Image.fromarray(crop).save(path)
            os.utime(path, ns=(0, 0))
    assert run(tmp_path / "data", tmp_path / "out", against=tmp_path / "other")["dropped"] == 0


def test_both_keeps_images_under_another_caption(tmp_path: Path) -> None:
    run(write_folder(tmp_path / "data"), tmp_path / "out", drop="both")
    gone = {bare(name) for name in ledger(tmp_path / "out")}
    assert not {name for name in gone if name[0] in "sp"}
    assert {f"r{i:02}" for i in range(6)} <= gone


def test_flips_and_turns(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    crops = photographs()[:8]
    for i, crop in enumerate(crops):
        Image.fromarray(crop).save(data / f"{i}.png")
        Image.fromarray(crop).transpose(Image.Transpose(i % 7)).save(data / f"{i}-turned.png")
    run(data, tmp_path / "plain")
    assert not ledger(tmp_path / "plain")
    report = run(data, tmp_path / "out", Local(2), signing=Signing(dihedral=True))
    assert report["dropped"] == 8
    assert all(gone[0] == kept[0] for gone, (kept, _, _) in ledger(tmp_path / "out").items())


def test_flat_images_merge_nothing(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", ["o00", "o01"])
    for i in range(5):
        Image.new("RGB", (64, 64), (200 + i, 255, 255)).save(data / f"flat{i}.png")
    Image.new("RGB", (64, 64), (200, 255, 255)).save(data / "flat0.bmp")
    report = run(data, tmp_path / "out", max_distance=10)
    assert set(ledger(tmp_path / "out")) <= {"flat0.png", "flat0.bmp"}
    assert report["stages"] == {"pixels": 1}
    assert report["seen"]["flat"] == 6


def test_rejected_pairs_stay(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    run(data, tmp_path / "out")
    gone, (kept, _, _) = next(iter(ledger(tmp_path / "out").items()))
    run(data, tmp_path / "out", choice=Choice(rejected=frozenset({(gone, kept)})))
    assert gone not in ledger(tmp_path / "out")
    assert gone in (tmp_path / "out" / "keep.txt").read_text().split()


def unmem(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], standalone_mode=False)


def test_metadata_alone_find_exact_duplicates_without_opening_an_image(tmp_path: Path, monkeypatch) -> None:
    data = write_tars(tmp_path / "data")
    monkeypatch.setattr(
        "unmem.mitigations.dedup.signatures.open_rgb", lambda *a, **k: pytest.fail("an image was opened")
    )
    report = run(data, tmp_path / "out", signing=Signing(hash=None))
    assert report["stages"] == {"bytes": 4}


def test_command_line(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    out = tmp_path / "out"
    done = unmem("dedup", data, "--out", out, "--workers", 1, "--merge-captions", "--apply", "link")
    assert done.exception is None, done.output
    assert "58 images: 40 stay, 18 are duplicates, in 16 groups" in done.output
    assert len(list((out / "set").glob("*.jpg"))) == 40
    assert not list((tmp_path / "data").glob("set"))
    looked = unmem("lookup", out, data / "r00.jpg")
    assert "r00.jpg  bytes" in looked.output
    assert "o00.jpg  perceptual" in looked.output
    (tmp_path / "new.jpg").write_bytes(jpeg(stream(0, "new").integers(0, 256, (90, 90, 3), dtype=np.uint8)))
    assert "not found" in unmem("lookup", out, tmp_path / "new.jpg").output
    both = unmem("lookup", out, data / "r00.jpg", tmp_path / "gone.jpg")
    assert "r00.jpg  bytes" in both.output
    assert "gone.jpg: cannot be read" in str(both.exception)
    assert "must be at most 64" in str(unmem("lookup", out, data / "r00.jpg", "--max-distance", 65).exception)
    found = json.loads(unmem("lookup", out, data / "o10.jpg", "--json").stdout)
    assert {match["id"]: match["stage"] for match in found[str(data / "o10.jpg")]} == {
        "b10.jpg": "bytes", "o10.jpg": "bytes",
    }  # fmt: skip


def test_encoding_maps_go_out_and_come_in(tmp_path: Path, monkeypatch) -> None:
    import imagededup.methods

    data = write_folder(tmp_path / "data")
    for path in data.glob("*.txt"):
        path.unlink()
    done = unmem("dedup", data, "--out", tmp_path / "a", "--workers", 1, "--write-encoding-map", tmp_path / "map.json")
    assert done.exception is None
    theirs = imagededup.methods.PHash(verbose=False).encode_images(str(data), num_enc_workers=0)
    assert json.loads((tmp_path / "map.json").read_text()) == theirs
    monkeypatch.setattr(
        "unmem.mitigations.dedup.signatures.open_rgb", lambda *a, **k: pytest.fail("an image was opened")
    )
    options = ("--workers", 1, "--max-distance", 6, "--read-encoding-map", tmp_path / "map.json")
    assert unmem("dedup", data, "--out", tmp_path / "b", *options).exception is None
    stages = json.loads((tmp_path / "b" / "report.json").read_text())["stages"]
    assert stages == {"bytes": 4, "perceptual": 14}  # pixels were not looked at


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "256", "--hash", "dhash"], "--bits 256: there is only a phash of 256 bits, not dhash"),
        (["--dihedral", "--hash", "ahash"], "--dihedral: works with phash, not ahash"),
        (["--max-distance", "65"], "--max-distance 65: must be at most 64"),
        (["--max-distance", "few"], "'few' is neither a number of bits nor 'auto'"),
        (["--search", "bands"], "--search bands: goes with --bits 256"),
        (["--address", "here"], "--address here: goes with --engine ray"),
        (["--jaccard", "nan"], "must be numbers, got nan"),
        (["--hash", "none", "--max-distance", "3"], "--hash none: opens no image"),
        (["--write-encoding-map", "no/such/place.json"], "no/such/place.json: there is no such folder"),
        (["--write-encoding-map", __file__], "not JSON"),
        (["--embed", "os:getcwd"], "embed 'os:getcwd': TypeError"),
        (["--captions", "subtitel"], "subtitel"),
        (["--decisions", "none.csv"], "none.csv"),
        (["--embed", "nowhere.models:embed"], "nowhere.models:embed"),
        (["--read-encoding-map", "none.json"], "none.json"),
        (["--read-encoding-map", "none.json", "--bits", "256"], "plain hashes of 64 bits"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    data = write_folder(tmp_path / "data", ["o00", "o01"])
    done = unmem("dedup", data, "--out", tmp_path / "out", "--workers", 1, *arguments)
    assert done.exception is not None
    assert message in str(getattr(done.exception, "message", done.exception))
    assert not isinstance(done.exception, (KeyError, TypeError, AssertionError))


def test_places_that_are_refused(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", ["o00", "o01"])
    for out, message in ((data / "out", "lies inside the data"), (tmp_path / "out", "no-such")):
        done = unmem("dedup", data if out.parent == data else tmp_path / "no-such", "--out", out)
        assert isinstance(done.exception, UserError)
        assert message in str(done.exception)
    within = unmem("dedup", data, "--out", tmp_path, "--workers", 1)
    assert "lie inside it" in str(within.exception)
    hashes = unmem("dedup", data, "--out", tmp_path / "out", "--write-encoding-map", data / "map.json")
    assert "lies inside the data" in str(hashes.exception)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jpg").write_text("no image")
    empty = unmem("dedup", tmp_path / "texts", "--out", tmp_path / "none", "--workers", 1)
    assert "holds no usable image (a.jpg: not an image of a known format)" in str(empty.exception)
    assert unmem("dedup", data, "--out", tmp_path / "out", "--workers", 1).exception is None
    again = unmem("dedup", data, "--out", tmp_path / "out", "--workers", 1, "--hash", "dhash")
    assert isinstance(again.exception, UserError)
    assert '--hash was "phash", now "dhash"' in str(again.exception)
    again = unmem("dedup", data, "--out", tmp_path / "out", "--workers", 1, "--as-imagededup")
    assert "--as-imagededup was false, now true" in str(again.exception)
    with work.lock(tmp_path / "out"):
        busy = unmem("dedup", data, "--out", tmp_path / "out", "--workers", 1)
    assert "another unmem dedup works there" in str(busy.exception)


def test_ten_thousand_files_of_which_many_are_broken(tmp_path: Path) -> None:
    """Scaled down to 1,000 for the default suite; the whole of it is marked slow."""
    _broken(tmp_path, 1_000)


@pytest.mark.slow
def test_ten_thousand_files_in_full(tmp_path: Path) -> None:
    _broken(tmp_path, 10_000)


def _broken(tmp_path: Path, count: int) -> None:
    data = tmp_path / "data"
    data.mkdir()
    good = list(items().values())
    for i in range(count):
        path, file = data / f"{i:05}.jpg", good[i % 40][0]
        kind = i % 25
        if kind == 1:
            path.write_bytes(file[: len(file) // 2])
        elif kind == 2:
            path.write_bytes(b"")
        elif kind == 3:
            path.write_text("not an image, whatever its name says")
        elif kind == 4:
            path.symlink_to(data / "nowhere.jpg")
        else:
            path.write_bytes(file)
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    (data / "bomb.png").write_bytes(bomb.getvalue())
    Path(os.fsdecode(os.fsencode(data) + b"/caf\xe9.jpg")).write_bytes(good[0][0])
    with tarfile.open(data / "broken.tar", "w") as tar:
        for name in ("../escape.jpg", "/abs.jpg", "good.jpg", "good.jpg", "half.jpg"):
            member = tarfile.TarInfo(name)
            content = good[1][0] if name != "half.jpg" else good[1][0][:300]
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    started = time.monotonic()
    report = run(data, tmp_path / "out", Local(2))
    assert time.monotonic() - started < 600
    with (tmp_path / "out" / "quarantine.csv").open() as file:
        quarantined = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    broken = {f"{i:05}.jpg" for i in range(count) if i % 25 in (1, 2, 3, 4)}
    assert broken <= set(quarantined)
    assert "decompression bomb" in quarantined["bomb.png"]
    assert any("UTF-8" in reason for reason in quarantined.values())
    assert all(quarantined.values())
    assert any(".." in name or ".." in reason for name, reason in quarantined.items())
    assert report["images"] == count - len(broken) + 1  # good.jpg of the tar
    assert not (tmp_path / "escape.jpg").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out"}
