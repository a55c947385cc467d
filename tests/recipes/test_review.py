"""The page on which duplicates are judged is whole, offline, and safe from what it shows; its CSV comes back."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unmem.component import UserError
from unmem.mitigations.dedup.review import read_decisions, render, thumbnail_bytes

SCHEMA = pa.schema(
    {
        "group": pa.int64(),
        "id": pa.string(),
        "kept": pa.bool_(),
        "kept_id": pa.string(),
        "stage": pa.string(),
        "distance": pa.float32(),
        "why": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "file_bytes": pa.int64(),
        "sharpness": pa.float32(),
        "captions": pa.list_(pa.string()),
        "merged_captions": pa.list_(pa.string()),
        "copies": pa.int64(),
    }
)
HOSTILE = (
    "<script>alert(1)</script>", "</script><!--<script>", '"quoted", \'twice\' & &amp; {{ 7 * 7 }}', " spaced ",
    "two\nlines\r\nand\rmore", "ünï — 猫 \N{PILE OF POO}", "\u202eright to left שלום", "comma, semicolon; tab\t",
    "=1+1", "]]>--></style>",
)  # fmt: skip
REPORT: dict[str, Any] = {
    "images": 1234, "kept": 1200, "dropped": 34, "groups": 17, "quarantined": 3,
    "threshold": {"bits": 64, "hash": "phash", "max_distance": 7, "reason": "fewer than one chance pair <b>"},
    "classes": {"same image, same caption": {"images": 5, "groups": 2}, "near image, near caption": 4},
    "stages": {"bytes": 20, "perceptual": 14}, "seconds": {"sign": 1.25},
    "notes": ["lone \ud800 surrogate", None, True],
}  # fmt: skip


def row(group: int, name: str, kept_id: str | None = None, stage: str = "perceptual", distance: float = 3, **more: Any):
    kept = kept_id is None
    return {
        "group": group, "id": name, "kept": kept, "kept_id": name if kept else kept_id,
        "stage": None if kept else stage, "distance": None if kept else distance,
        "why": "largest: 640 x 480" if kept else None, "width": 640, "height": 480, "file_bytes": 34_100,
        "sharpness": 12.5, "captions": [], "merged_captions": [] if kept else None,
        "copies": 2 if kept else None, **more,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


def pairs(number: int) -> pa.Table:
    """Group g holds g + 1 dropped images at distance g."""
    rows = []
    for g in range(number):
        rows += [row(g, f"kept-{g}."), *(row(g, f"drop-{g}-{i}.", f"kept-{g}.", distance=g) for i in range(g + 1))]
    return table(rows)


class Page(HTMLParser):
    """What a page holds: tags with their attributes, the text of figures, scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.ids: list[str] = []
        self.captions: list[str] = []
        self._open: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in ("meta", "img", "input"):
            self._open.append((tag, found.get("class")))
        for place, starts in (
            (self.scripts, tag == "script"),
            (self.ids, tag == "bdi"),
            (self.captions, tag == "li" and found.get("dir") == "auto"),
        ):
            if starts:
                place.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        inner = self._open[-1][0] if self._open else ""
        place = {"script": self.scripts, "bdi": self.ids}.get(inner)
        if inner == "li" and self.captions:
            place = self.captions
        if place is not None:
            place[-1] += data

    @property
    def images(self) -> list[list[Any]]:
        return list(json.loads(self.scripts[0])["images"])


def page(groups: pa.Table, tmp_path: Path, report: dict[str, Any] = REPORT, **options: Any) -> tuple[str, Page]:
    picture = thumbnail_bytes(Image.new("RGB", (8, 8), "red"))
    thumbnails = options.pop("thumbnails", lambda names: dict.fromkeys(names, picture))
    out = render(groups, report, thumbnails, tmp_path / "duplicates.html", **options)
    assert [path.name for path in tmp_path.glob("*.html*")] == ["duplicates.html"]
    text = out.read_text(encoding="utf-8")
    return text, Page(text)


def words(text: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", text.split("</style>")[1].split("<script")[0]).split())


def hostile() -> pa.Table:
    rows = []
    for g, name in enumerate(HOSTILE):
        kept = row(
            g, f"kept {name}", captions=[name, "plain"], merged_captions=[name, "plain", f"more {name}"], why=name
        )
        rows += [kept, row(g, name, f"kept {name}", captions=[name, f"other {name}"])]
    return table(rows)


def test_hostile_text_neither_breaks_the_page_nor_leaves_it(tmp_path: Path) -> None:
    text, found = page(hostile(), tmp_path)
    assert [(image[0], image[1]) for image in found.images] == [
        pair for name in HOSTILE for pair in ((f"kept {name}", f"kept {name}"), (name, f"kept {name}"))
    ]
    as_parsed = [name.replace("\r\n", "\n").replace("\r", "\n") for name in HOSTILE]
    assert found.ids == [shown for name in as_parsed for shown in (f"kept {name}", name)]
    for name in as_parsed:
        assert {name, "plain", f"more {name}", f"other {name}"} <= set(found.captions)
    assert len(found.scripts) == 2
    assert "alert(1)" not in found.scripts[1] and "{{ 7 * 7 }}" in words(text).replace("&#39;", "'")
    assert r"lone \ud800 surrogate" in text


def test_nothing_comes_from_the_network_and_only_our_script_may_run(tmp_path: Path) -> None:
    text, found = page(hostile(), tmp_path)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text.split("<script>")[0])
    for tag, attributes in found.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "a")
        assert not any(name.startswith("on") or name in ("srcset", "href", "style") for name in attributes)
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
    policy = next(a["content"] for _, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    hashed = base64.b64encode(hashlib.sha256(found.scripts[1].encode()).digest()).decode()
    assert policy == (f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{hashed}'")
    fetching = r"fetch\(|XMLHttpRequest|WebSocket|eval\(|Function\(|innerHTML|insertAdjacentHTML|document\.write"
    assert not re.search(fetching, found.scripts[1])


def test_each_image_says_what_became_of_it_and_why(tmp_path: Path) -> None:
    groups = table(
        [
            row(5, "stays.", captions=["a cat"], merged_captions=["a cat", "gained"], copies=1204),
            row(5, "near.", "stays.", distance=1, captions=["a cat"]),
            row(5, "same.", "stays.", "pixels", 0),
            row(5, "alike.", "stays.", "embedding", 0.0434, file_bytes=12),
            row(5, "told.", "stays.", "captions", 0.25, sharpness=None),
            row(5, "strange.", "stays.", "perceptual", float("nan"), width=32, height=32),
        ]
    )
    text, found = page(groups, tmp_path, thumbnails=lambda names: {})
    said = words(text)
    for part in (
        "stays, for 1,204 images", "largest: 640 x 480", "gained from the dropped: gained", "1 bit apart",
        "same pixels", "cosine distance 0.043", "1 − Jaccard 0.250", "distance unknown",
        "640 × 480 · 34.1 kB · sharpness 12.5",
        "12 bytes", "32 × 32", "no picture",
        "6 images, 1 stays; dropped: 1 pixels, 2 perceptual, 1 embedding, 1 captions",
    ):  # fmt: skip
        assert part in said, part
    assert '<li dir="auto" class="soft">a cat</li>' in text and "cut" not in said
    # The least certain first: captions before embedding before perceptual before pixels.
    assert [image[0] for image in found.images] == ["stays.", "told.", "alike.", "near.", "strange.", "same."]
    assert found.images[4][3] is None


def test_the_report_is_rendered_whatever_it_holds(tmp_path: Path) -> None:
    said = words(page(pairs(2), tmp_path)[0])
    for part in (
        "34 of 1,234 images are duplicates",
        "1,200 images stay; 34 are dropped, in 17 groups; 3 files could not be used",
        "bits 64, hash phash, max distance 7: fewer than one chance pair &lt;b&gt;", "perceptual 14",
        "same image, same caption 5 2", "near image, near caption 4", "sign 1.25", "surrogate none yes",
    ):  # fmt: skip
        assert part in said, part
    assert "not on this page" not in said and "not shown" not in said
    said = words(page(pairs(2), tmp_path, report={})[0])
    assert "3 images are duplicates" in said and "All else" not in said


def test_no_group_at_all_is_a_page_too(tmp_path: Path) -> None:
    for empty in (SCHEMA.empty_table(), pa.Table.from_batches([], SCHEMA)):
        text, found = page(empty, tmp_path, report={"images": 3, "dropped": 0})
        assert "0 of 3 images are duplicates" in words(text) and "No duplicates were found." in text
        assert not found.scripts


def test_what_the_limits_leave_out_is_said(tmp_path: Path) -> None:
    text, found = page(pairs(10), tmp_path, limit_groups=4, limit_images=5)
    said = words(text)
    assert "6 of 10 groups are not on this page" in said and "4 groups are shown in part" in said
    dropped = [image for image in found.images if image[0] != image[1]]
    assert len(dropped) == 16 and "39 of 55 dropped images are thus not shown" in said
    assert "groups.parquet and ledger.csv" in said
    for g in (9, 8, 7, 6):
        assert f"{g + 2 - 5} more images of this group are not shown" in said


def test_half_of_the_places_are_for_the_doubtful(tmp_path: Path) -> None:
    rows = []
    for g in range(6):  # six large groups of equal pixels, and three pairs at some distance
        rows += [row(g, f"kept-{g}"), *(row(g, f"{g}-{i}", f"kept-{g}", "pixels", 0) for i in range(9 - g))]
    for g, distance in ((10, 2), (11, 6), (12, 4)):
        rows += [row(g, f"kept-{g}"), row(g, f"{g}-0", f"kept-{g}", distance=distance)]
    _, found = page(table(rows), tmp_path, limit_groups=4)
    assert [image[0] for image in found.images if image[0] == image[1]] == ["kept-0", "kept-1", "kept-11", "kept-12"]
    _, found = page(table(rows), tmp_path, limit_groups=1)
    assert found.images[0][0] == "kept-0"


def test_a_cut_chain_is_shown_family_by_family(tmp_path: Path) -> None:
    rows = [row(0, "a"), row(0, "c"), row(0, "lone")]
    rows += [row(0, f"a{i}", "a", distance=i) for i in range(9)] + [row(0, f"c{i}", "c", distance=i) for i in range(4)]
    text, found = page(table(rows[::-1]), tmp_path, limit_images=8)
    assert "A chain that was cut" in text and "3 images stay" in words(text)
    names = [image[0] for image in found.images]
    assert names == ["a", "a8", "a7", "a6", "c", "c3", "c2", "lone"]
    assert text.count('class="family"') == 3


def test_one_key_for_one_set_of_decisions(tmp_path: Path) -> None:
    def key(groups: pa.Table, **options: Any) -> str:
        return str(json.loads(page(groups, tmp_path, **options)[1].scripts[0])["key"])

    groups = pairs(4)
    chunked = pa.concat_tables([groups.slice(0, 3), groups.slice(3)])
    assert key(groups) == key(chunked) == key(groups, limit_groups=2) == key(groups, report={})
    assert key(groups) != key(pairs(5))


# Decisions.

ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.tuples(ids, ids), st.booleans(), max_size=8), st.booleans(), st.sampled_from(["\r\n", "\n"]))
def test_decisions_come_back(
    tmp_path_factory: pytest.TempPathFactory, decisions: dict[tuple[str, str], bool], mark: bool, end: str
) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator=end)
    writer.writerow(["id", "kept_id", "decision"])
    writer.writerows([*pair, "accept" if accepted else "reject"] for pair, accepted in decisions.items())
    file = tmp_path_factory.getbasetemp() / "decisions.csv"
    file.write_bytes(buffer.getvalue().encode("utf-8-sig" if mark else "utf-8"))
    assert read_decisions(file) == decisions


def test_columns_may_stand_in_any_order_and_agreement_is_no_contradiction(tmp_path: Path) -> None:
    file = tmp_path / "decisions.csv"
    file.write_text("note,decision,id,kept_id\nx,accept,a,b\n\n,accept,a,b\ny,reject,c,b\n")
    assert read_decisions(file) == {("a", "b"): True, ("c", "b"): False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: column 'id' must stand once"),
        ("id,decision\na,accept\n", r"line 1: column 'kept_id' must stand once among .* \['id', 'decision'\]"),
        ("id,kept_id,decision,id\n", "line 1: column 'id' must stand once"),
        ("id;kept_id;decision\n", "line 1: column 'id' must stand once"),
        ('id,kept_id,decision\n"a\nb",k,accept\nc,k,yes\n', "line 4: column 'decision': 'yes' is not 'accept' or"),
        ("id,kept_id,decision\na,b,Accept\n", "line 2: column 'decision': 'Accept'"),
        ("id,kept_id,decision\na,b\n", r"line 2: 2 values \['a', 'b'\] for the 3 columns"),
        ("id,kept_id,decision\na,,accept\n", "line 2: column 'kept_id': ''"),
        ("id,kept_id,decision\na,b,accept\nc,b,accept\na,b,reject\n", "line 4: .*'reject' contradicts line 2 on 'a'"),
        ('id,kept_id,decision\n"a"x,b,accept\n', "line 2: not a CSV"),
        ('id,kept_id,decision\n"a,b,accept\n', "line 2: not a CSV"),
    ],
)  # fmt: skip
def test_what_is_no_decision_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "decisions.csv"
    file.write_text(text, newline="")
    with pytest.raises(UserError, match=message) as caught:
        read_decisions(file)
    assert str(caught.value).startswith(str(file))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_decisions(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"id,kept_id,decision\n\xff\xfe,b,accept\n")
    with pytest.raises(UserError, match=r"binary\.csv: not UTF-8"):
        read_decisions(tmp_path / "binary.csv")


# Pictures.


def test_tiny_pictures_keep_their_pixels_and_others_shrink() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    picture = Image.open(io.BytesIO(thumbnail_bytes(Image.fromarray(pixels))))
    assert picture.format == "PNG" and np.array_equal(np.asarray(picture), pixels)
    for size, shown in (((640, 480), (160, 120)), ((1, 5000), (1, 160)), ((100, 90), (100, 90))):
        picture = Image.open(io.BytesIO(thumbnail_bytes(Image.new("L", size, 7))))
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", shown)
    assert Image.open(io.BytesIO(thumbnail_bytes(Image.new("L", (64, 8)), side=16))).size == (16, 2)


def test_transparency_is_white_and_metadata_stays_behind() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.info |= {"comment": b"secret", "icc_profile": b"secret" * 30}
    data = thumbnail_bytes(clear)
    assert b"secret" not in data
    assert np.asarray(Image.open(io.BytesIO(data))).min() == 255
    assert b"secret" not in thumbnail_bytes(clear.resize((200, 200)))


# In a browser, where there is one.

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = """
const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const set = (id, value) => {
  byId(id).value = value;
  byId("filters").dispatchEvent(new Event("input", { bubbles: true }));
};
const shown = () => Number(byId("shown").textContent);
const result = { errors: [], shown: [shown()] };
window.onerror = (message) => result.errors.push(message);
const files = [];
URL.createObjectURL = (blob) => { files.push(blob); return "#"; };
(async () => {
  press("j"); press("a"); press("j"); press("r"); press("j"); press("a"); press("u"); press("k"); press("j");
  document.querySelectorAll("[data-decide=reject]")[4].click();
  document.querySelectorAll("[data-decide=accept]")[5].click();
  document.querySelectorAll("[data-decide=accept]")[5].click();
  byId("export").click();
  result.stored = Object.keys(JSON.parse(localStorage.getItem(page.key))).length;
  result.first = await files[0].text();
  decisions.clear();
  load();
  result.loaded = exported();
  set("text", "PILE".toLowerCase()); result.shown.push(shown());
  set("text", "猫"); result.shown.push(shown());
  set("text", ""); set("near", "4"); result.shown.push(shown());
  set("near", ""); set("stage", "perceptual"); result.shown.push(shown());
  set("stage", ""); set("least", "3"); result.shown.push(shown());
  set("least", ""); byId("undecided").checked = true; set("most", ""); result.shown.push(shown());
  byId("everything").click(); result.shown.push(shown());
  await upload(new File(["\\ufeffid,kept_id,decision\\nx,y,maybe\\n"], "bad.csv"));
  result.refused = byId("message").textContent;
  decisions.clear();
  await upload(new File([result.first], "decisions.csv"));
  byId("export").click();
  result.second = await files[1].text();
  await upload(new File(["id,kept_id,decision\\nelsewhere,far,accept\\n"], "more.csv"));
  result.said = byId("message").textContent;
  result.counter = byId("bar").querySelector("span").textContent;
  result.third = exported();
})().catch((error) => result.errors.push(String(error)))
    .finally(() => fetch("ADDRESS", { method: "POST", mode: "no-cors", body: JSON.stringify(result) }));
"""


class Server(HTTPServer):
    """Takes what the driver reports when it is done: no clock, virtual or real, says when a browser has finished."""

    report: bytes | None = None


class Listener(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        self.server.report = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def drive(text: str, folder: Path) -> dict[str, Any]:
    """What the driver reports of the page, opened as a file in headless Chromium."""
    assert BROWSER is not None
    with Server(("127.0.0.1", 0), Listener) as server:
        server.timeout = 0.2
        address = f"http://127.0.0.1:{server.server_port}"
        script = DRIVER.replace("ADDRESS", f"{address}/result")
        hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        driven = text.replace("script-src '", f"connect-src {address}; script-src 'sha256-{hashed}' '")
        driven = driven.replace("</body>", f"<script>{script}</script></body>")
        (folder / "driven.html").write_text(driven, encoding="utf-8", newline="")
        command = [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            f"--user-data-dir={folder / 'profile'}", (folder / "driven.html").as_uri(),
        ]  # fmt: skip
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 120
            while server.report is None and browser.poll() is None and time.monotonic() < deadline:
                server.handle_request()
        finally:
            browser.terminate()
            status = browser.wait()
        if server.report is None and status > 0:
            pytest.skip("Chromium does not start here")
        assert server.report, "the page has not reported within two minutes"
        return json.loads(server.report)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    text, _ = page(hostile(), tmp_path)
    result = drive(text, tmp_path)
    assert result["errors"] == []
    names = [*HOSTILE[:2], HOSTILE[4]]
    expected = {(name, f"kept {name}"): accepted for name, accepted in zip(names, (True, False, False), strict=True)}
    for exported in ("first", "loaded", "second"):
        (tmp_path / "decisions.csv").write_bytes(result[exported].encode())
        assert read_decisions(tmp_path / "decisions.csv") == expected
    (tmp_path / "decisions.csv").write_bytes(result["third"].encode())
    assert read_decisions(tmp_path / "decisions.csv") == {**expected, ("elsewhere", "far"): True}
    assert result["stored"] == 3
    everything = len(HOSTILE)
    assert result["shown"] == [everything, 0, 1, 0, everything, 0, everything - 3, everything]
    assert result["refused"] == 'bad.csv: nothing was imported: record 2: "maybe" is neither "accept" nor "reject".'
    assert "1 concern images not on this page" in result["said"]
    assert result["counter"] == f"3 of {everything} decided: 1 accepted, 2 rejected"
