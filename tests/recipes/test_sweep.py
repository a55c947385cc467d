"""Sweeps: the grid, cells that are runs of their own, resuming, growing, failing, and the report of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.test_run import outcome, unmem
from unmem.component import ConfigError, UserError
from unmem.evaluate.statistics import rate
from unmem.recipes import fleet, runner
from unmem.recipes.fleet import Job
from unmem.recipes.recipe import load
from unmem.recipes.sweep import CellsFailed, run
from unmem.recipes.sweep_figures import sweep_figures
from unmem.recipes.sweep_grid import axes, plan
from unmem.recipes.sweep_report import render
from unmem.recipes.sweep_summary import means

RECIPE = """
schema: 1
seed: 3
data: {kind: digits, members: 24, nonmembers: 24, planted: {images: 2, copies: 4}}
model: {kind: unet, channels: [8], layers: 1}
train: {images: 32, batch: 16, lr: 3e-3, noise_schedule: cosine, threads: 1}
sampling: {steps: 1}
arms:
  plain: []
attacks:
  - {kind: generate_and_filter, samples: 16}
quality:
  - {kind: frechet, samples: 16, resamples: 5}
compare: {against: plain}
"""
GRID = ("data.planted.copies=1,4", "train.images=16,32")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(RECIPE)
    return str(file)


Spoil = dict[str, tuple[int, str]]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Spoil]:
    """Children do their work in this process; what was begun, and how some of them end instead."""
    return in_this_process(monkeypatch)


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Spoil]:
    begun: list[str] = []
    spoil: Spoil = {}

    def child(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
        root, arm, _, part, _, cell = command[4:]
        begun.append(cell)
        if cell in spoil:
            return spoil[cell]
        runner.run_job(Job(Path(root), arm, part, cell))
        return 0, ""

    monkeypatch.setattr(fleet, "_child", child)
    return begun, spoil


def swept(
    recipe: str, root: Path, *grids: str, seeds: str | None = None, settings: tuple[str, ...] = ()
) -> dict[str, Any]:
    run(plan(recipe, axes(grids, seeds), settings=settings), root, (), [], most=1)
    found: dict[str, Any] = json.loads((root / "sweep.json").read_text())
    return found


def written(root: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in root.rglob("*.json")}


# The grid.


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=1,2,4", [1, 2, 4]),
        ("a=[16, 32],[32, 64]", [[16, 32], [32, 64]]),
        ("a={kind: x, y: 1}, null", [{"kind": "x", "y": 1}, None]),
        ('a="x,y",z', ["x,y", "z"]),
        ("a=1e-3,1e-4,", [1e-3, 1e-4]),
        ("a=true,no", [True, "no"]),
        ("a=1,1.0,true", [1, 1.0, True]),
    ],
)
def test_an_axis_is_a_list_of_yaml_values(text: str, values: list[Any]) -> None:
    path = text.partition("=")[0]
    assert axes([text], None) == {path: values}
    assert [type(value) for value in axes([text], None)[path]] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("grids", "seeds", "message"),
    [
        ((), None, "nothing to sweep over"),
        (("train.images",), None, "--grid train.images: needs path=v1,v2"),
        (("train..images=1",), None, "--grid train..images=1: needs path=v1,v2"),
        (("=1",), None, "--grid =1: needs path=v1,v2"),
        (("a=",), None, "--grid a=: needs at least one value"),
        (("a=1,2,1",), None, "--grid a=1,2,1: 1 stands there 2 times"),
        (("a=1", "a=2"), None, "--grid a=2: a is an axis already"),
        (("seed=1",), "2", "--seeds 2: seed is an axis already"),
        (("a=[1,2",), None, "--grid a=[1,2"),
        (("a=1]",), None, "--grid a=1]"),
    ],
)
def test_a_bad_axis_is_one_error(grids: tuple[str, ...], seeds: str | None, message: str) -> None:
    with pytest.raises(UserError) as caught:
        axes(grids, seeds)
    assert str(caught.value).startswith(message)


def test_cells_are_all_combinations_named_by_as_little_as_tells_the_axes_apart(recipe: str) -> None:
    sweep = plan(recipe, axes(["data.planted.images=1,2", "train.images=16,32"], "7"))
    assert [cell.name for cell in sweep.cells] == [
        f"planted.images={a},train.images={b},seed=7" for a in (1, 2) for b in (16, 32)
    ]
    for cell in sweep.cells:
        settings = tuple(f"{path}={value}" for path, value in cell.values.items())
        assert cell.recipe == load(recipe, settings=settings)


def test_names_are_folders_of_their_own_on_every_system(recipe: str) -> None:
    long = ", ".join("8" for _ in range(60))
    sweep = plan(recipe, axes([f"model.channels=[8],[8, 8],[{long}]", "data.planted.copies=[1, 2],[1],[2, 1]"], None))
    names = [cell.name for cell in sweep.cells]
    assert len({name.lower() for name in names}) == 9
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz=,.-0123456789") and len(name) < 120 for name in names)
    assert names[0] == "channels=8,copies=1-2"


def test_all_problems_of_all_cells_are_said_at_once(recipe: str) -> None:
    done = unmem("sweep", recipe, "--grid", "train.images=16,-1", "--grid", "train.batsch=1", "--grid", "seed=0,x")
    assert done.returncode == 2
    first, second, third = done.stderr.splitlines()
    assert first.startswith("error: tiny.yaml: train.batsch: unknown field, did you mean 'batch'?")
    assert first.endswith("(in every cell)")
    where = "images=16,batsch=1,seed=x; images=-1,batsch=1,seed=x"
    assert second == f"tiny.yaml: seed: must be a whole number; got 'x' (cells {where})"
    where = "images=-1,batsch=1,seed=0; images=-1,batsch=1,seed=x"
    assert third == f"tiny.yaml: train.images: input should be greater than 0; got -1 (cells {where})"


def test_cells_that_are_one_recipe_and_cells_of_several_numbers_of_threads_are_refused(recipe: str) -> None:
    with pytest.raises(UserError, match=r"cells lr=1 and lr=1.0 are the same recipe"):
        plan(recipe, axes(["train.lr=1,1.0"], None))
    with pytest.raises(UserError, match=r"train.threads: differs between cells"):
        plan(recipe, axes(["train.threads=1,2"], None))
    with pytest.raises(ConfigError, match=r"unknown section"):
        plan(recipe, axes(["plantd=1"], None))


# Running.


@pytest.fixture(scope="module")
def whole(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of two by two."""
    root = tmp_path_factory.mktemp("sweeps") / "whole"
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_this_process(monkeypatch)
        swept(recipe, root, *GRID)
    return root


def test_through_the_command_line(recipe: str, tmp_path: Path) -> None:
    first = ("sweep", recipe, "--grid", "train.images=16", "--out", tmp_path / "sweep")
    done = unmem(*first)
    assert done.returncode == 0, done.stderr
    assert "images=16/plain/train" in done.stdout and "1 of 1 cells finished" in done.stdout
    again = unmem(*first, "--json")
    assert json.loads(again.stdout) == json.loads((tmp_path / "sweep" / "sweep.json").read_text())


def test_every_cell_is_a_run_directory_as_unmem_run_makes_it(recipe: str, whole: Path, tmp_path: Path) -> None:
    assert sorted(entry.name for entry in (whole / "cells").iterdir()) == [
        f"copies={a},images={b}" for a in (1, 4) for b in (16, 32)
    ]
    cell, root = whole / "cells" / "copies=4,images=16", tmp_path / "run"
    alone = load(recipe, settings=("data.planted.copies=4", "train.images=16"))
    with runner.opened(alone, root, ()) as opened:
        runner.run_job(Job(root, "plain", "all"))
        opened.conclude([])
    assert outcome(root) == outcome(cell)
    assert (root / "recipe.yaml").read_bytes() == (cell / "recipe.yaml").read_bytes()
    compared = unmem("compare", *sorted((whole / "cells").iterdir()))
    assert compared.returncode == 0 and compared.stdout.count("plain") == 4


def test_the_summary_says_what_the_cells_say(whole: Path) -> None:
    found = json.loads((whole / "sweep.json").read_text())
    assert found["grid"] == {"data.planted.copies": [1, 4], "train.images": [16, 32]}
    assert [cell["state"] for cell in found["cells"]] == ["finished"] * 4
    for cell in found["cells"]:
        arm = json.loads((whole / cell["directory"] / "comparison.json").read_text())["arms"]["plain"]
        for name, attack in cell["arms"]["plain"]["attacks"].items():
            assert attack["estimates"] == arm["attacks"][name]["estimates"]
        assert cell["arms"]["plain"]["quality"] == arm["quality"]
    page, text = (whole / "sweep.html").read_text(), (whole / "sweep.md").read_text()
    assert page.count("<svg") == 3 + 1  # extracted, planted, Fréchet along the axis; extracted against Fréchet
    assert "cells/copies%3D4%2Cimages%3D16/report.html" in page
    assert "| copies=4,images=16 | 30 |" in text
    assert not list(whole.rglob("*.partial"))


def test_a_finished_sweep_says_so(recipe: str, whole: Path) -> None:
    before = written(whole)
    again = unmem("sweep", recipe, "--grid", GRID[0], "--grid", GRID[1], "--out", whole)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    assert written(whole) == before


def test_pages_that_a_kill_left_behind_are_made_again(recipe: str, whole: Path, done: Any) -> None:
    import os

    begun, _ = done
    page = (whole / "sweep.html").read_bytes()
    (whole / "sweep.html").write_text("of a smaller grid")
    os.utime(whole / "sweep.html", ns=(0, 0))
    swept(recipe, whole, *GRID)
    assert (whole / "sweep.html").read_bytes() == page
    swept(recipe, whole, *reversed(GRID))  # the same cells along other axes
    assert (whole / "sweep.html").read_bytes() != page
    swept(recipe, whole, *GRID)
    assert begun == []


@pytest.mark.parametrize(
    ("grids", "settings", "message"),
    [
        (("data.planted.copies=1", GRID[1]), (), "data.planted.copies has no value 4 now"),
        (GRID[:1], (), "train.images was an axis"),
        (GRID, ("train.lr=1e-4",), 'set was [], now ["train.lr=1e-4"]'),
        ((*GRID, "seed=0,1"), (), "the new axis seed lacks the value that it has"),
    ],
)
def test_another_sweep_is_refused(
    recipe: str, whole: Path, grids: tuple[str, ...], settings: tuple[str, ...], message: str
) -> None:
    before = written(whole)
    with pytest.raises(UserError, match="holds a sweep with the cell copies=") as caught:
        swept(recipe, whole, *grids, settings=settings)
    assert message in str(caught.value)
    assert written(whole) == before


def test_a_directory_of_something_else_is_refused(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no sweep"):
        swept(recipe, tmp_path, "seed=0")
    (tmp_path / "sweep.json").write_text('{"schema": 0}')
    with pytest.raises(UserError, match="not a sweep of this version"):
        swept(recipe, tmp_path, "seed=0")


def test_a_grid_grows_by_values_and_by_axes_without_repeating_cells(recipe: str, tmp_path: Path, done: Any) -> None:
    begun, _ = done
    root = tmp_path / "sweep"
    swept(recipe, root, "train.images=16")
    assert begun == ["images=16"]
    first = written(root / "cells")
    swept(recipe, root, "train.images=32,16")
    assert begun == ["images=16", "images=32"]
    found = swept(recipe, root, "train.images=32,16", seeds="3,4")
    assert begun[2:] == ["images=32,seed=4", "images=16,seed=4"]
    assert [cell["directory"] for cell in found["cells"]] == [
        "cells/images=32", "cells/images=32,seed=4", "cells/images=16", "cells/images=16,seed=4",
    ]  # fmt: skip
    assert {file: at for file, at in written(root / "cells").items() if file in first} == first
    assert {mean["arms"]["plain"]["frechet"]["seeds"] for mean in found["means"]} == {2}


def test_a_cell_that_fails_leaves_the_others_to_go_on_and_is_tried_again(
    recipe: str, tmp_path: Path, done: Any
) -> None:
    begun, spoil = done
    root = tmp_path / "sweep"
    spoil["images=16"] = (2, "the disk is full\n")
    with pytest.raises(CellsFailed, match="arm images=16/plain: the disk is full") as caught:
        swept(recipe, root, "train.images=16,32")
    assert caught.value.mendable
    found = json.loads((root / "sweep.json").read_text())
    assert [cell["state"] for cell in found["cells"]] == ["failed", "finished"]
    assert "the disk is full" in (root / "sweep.html").read_text()
    spoil["images=16"] = (1, "")
    with pytest.raises(CellsFailed, match="arm images=16/plain: stopped") as caught:
        swept(recipe, root, "train.images=16,32")
    assert not caught.value.mendable
    spoil.clear()
    assert [cell["state"] for cell in swept(recipe, root, "train.images=16,32")["cells"]] == ["finished"] * 2
    assert begun == ["images=16", "images=32", "images=16", "images=16"]


def test_data_that_do_not_suffice_fail_their_cell_alone(recipe: str, tmp_path: Path, done: Any) -> None:
    with pytest.raises(CellsFailed, match=r"cell members=5000: data: 5000 members and 24 nonmembers"):
        swept(recipe, tmp_path / "sweep", "data.members=24,5000")
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [cell["state"] for cell in found["cells"]] == ["finished", "failed"]


def test_it_goes_without_a_launcher_and_knows_its_arms(recipe: str, tmp_path: Path) -> None:
    import os

    launched = unmem("sweep", recipe, "--seeds", "0,1", env={**os.environ, "WORLD_SIZE": "2"})
    assert launched.returncode == 2 and "goes without a launcher" in launched.stderr
    with pytest.raises(UserError, match="--arm plane: no such arm, did you mean 'plain'"):
        run(plan(recipe, axes(["seed=0"], None)), tmp_path / "sweep", ("plane",), [])


# The report.


def estimate(value: float | None, half: float = 0.02) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": {"members": 9}, "note": "withheld: too few"}
    return {"value": value, "low": value - half, "high": value + half, "n": {"members": 9, "nonmembers": 9}, "note": ""}


def an_arm(hits: int, auc: float | None, quality: float) -> dict[str, Any]:
    extraction = {
        "extracted": rate(hits, 100, 0.95).as_json(),
        "false_positives": rate(1, 100, 0.95).as_json(),
        "extracted_at_10x": rate(hits, 100, 0.95).as_json(),
    }
    return {
        "training_images": 123, "dropped": 0, "seconds": 4.25, "privacy": None,
        "attacks": {
            "filter": {"kind": "generate_and_filter", "type": "extraction", "estimates": extraction},
            "loss": {"kind": "loss", "type": "membership", "estimates": {"auc": estimate(auc)}},
            "blind": {"kind": "blind", "type": "membership", "estimates": {"auc": estimate(0.5)}},
        },
        "quality": {"frechet": {"kind": "frechet", "better": "lower", "reference": 0.1, "reference_name": "held out",
                                "estimate": estimate(quality)}},
    }  # fmt: skip


def a_sweep(
    grid: dict[str, list[Any]], arms: tuple[str, ...] = ("plain",), *, auc: float | None = 0.6
) -> dict[str, Any]:
    from itertools import product

    cells = []
    for number, values in enumerate(product(*grid.values())):
        name = f"cell-{number}"
        cells.append(
            {
                "name": name, "values": dict(zip(grid, values, strict=True)), "key": name, "data": "", "refuted": [],
                "directory": f"cells/{name}", "state": "finished", "message": "",
                "arms": {arm: an_arm(number * 7 + k, auc, 0.2 + number / 50) for k, arm in enumerate(arms)},
            }
        )  # fmt: skip
    return {
        "schema": 1, "recipe": "some", "base": {}, "grid": grid, "confidence": 0.95, "cells": cells,
        "means": means(cells),
    }  # fmt: skip


def titles(sweep: dict[str, Any]) -> list[str]:
    return [figure.title for figure in sweep_figures(sweep)]


AGAINST = ["extracted by filter, against frechet", "AUC by loss, against frechet"]


def test_one_axis_gives_a_line_an_arm_with_intervals() -> None:
    sweep = a_sweep({"data.planted.copies": [1, 8, 64]}, ("plain", "dedup"))
    assert titles(sweep) == ["extracted by filter", "AUC by loss", "frechet", *AGAINST]
    extracted = sweep_figures(sweep)[0]
    assert list(extracted.legend) == ["plain", "dedup"]
    assert extracted.svg.count("<circle") == 6
    assert extracted.svg.count(" dashed") == 2  # the control of each arm
    assert extracted.svg.count("V") >= 6  # an interval each


def test_two_axes_give_a_line_a_value_of_the_second_and_a_drawing_an_arm() -> None:
    sweep = a_sweep({"train.images": [10, 20], "model.channels": [[8], [8, 16]]}, ("plain", "dedup"))
    assert titles(sweep)[:2] == ["extracted by filter, plain", "AUC by loss, plain"]
    assert "extracted by filter, dedup" in titles(sweep)
    assert list(sweep_figures(sweep)[0].legend) == ["channels [8]", "channels [8, 16]"]


def test_of_more_axes_or_of_seeds_alone_there_is_a_table() -> None:
    assert titles(a_sweep({"a.x": [1, 2], "a.y": [1, 2], "a.z": [1, 2]})) == AGAINST
    assert titles(a_sweep({"seed": [0, 1, 2]})) == AGAINST


def test_seeds_are_points_around_their_mean_without_an_interval() -> None:
    sweep = a_sweep({"train.images": [10, 20], "seed": [0, 1, 2]})
    extracted = sweep_figures(sweep)[0]
    assert extracted.svg.count("<circle") == 6
    assert extracted.svg.count('d=""') == 6
    assert "their mean" in extracted.caption
    found = sweep["means"][1]
    hits = [0.21, 0.28, 0.35]
    assert found["values"] == {"train.images": 20}
    mean = found["arms"]["plain"]["filter.extracted"]
    assert mean == {"mean": pytest.approx(sum(hits) / 3), "least": min(hits), "most": max(hits), "seeds": 3}


@pytest.mark.parametrize("values", [["linear", "cosine"], [True, False], [0, 1, 64], [5], [None, 0.5], [[1], [1, 2]]])
def test_any_values_make_an_axis(values: list[Any]) -> None:
    for figure in sweep_figures(a_sweep({"train.x": values})):
        assert "nan" not in figure.svg and "inf" not in figure.svg


def test_what_is_withheld_is_not_drawn_and_the_table_says_so(tmp_path: Path) -> None:
    sweep = a_sweep({"train.images": [10, 20]}, auc=None)
    assert titles(sweep) == ["extracted by filter", "frechet", AGAINST[0]]
    assert "withheld" in pages(tmp_path, sweep)[1]


def pages(root: Path, sweep: dict[str, Any]) -> tuple[str, str]:
    (root / "sweep.json").write_text(json.dumps(sweep))
    page, text = (file.read_text() for file in render(root))
    return page, text


def test_the_pages_say_every_number_escape_names_and_let_nothing_in(tmp_path: Path) -> None:
    sweep = a_sweep({"train.images": [10, 20], "seed": [0, 1]})
    sweep["recipe"] = "<b>bad|name"
    sweep["cells"][0] |= {"state": "failed", "message": "<script>no</script>", "arms": {}}
    sweep["cells"][1]["refuted"] = ["plain: REFUTED. <i>"]
    page, text = pages(tmp_path, sweep)
    for document in (page, text):
        assert "<script>" not in document and "<b>bad" not in document and "<i>" not in document
        assert "3 of 4 cells finished" in document
        assert "14 of 100" in document and "7 of 100" in document and "REFUTED" in document
        assert "withheld" not in document
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("report.html") == 3


def test_unmem_report_renders_a_sweep_again(tmp_path: Path) -> None:
    pages(tmp_path, a_sweep({"train.images": [10, 20]}))
    before = (tmp_path / "sweep.html").read_bytes()
    (tmp_path / "sweep.html").unlink()
    done = unmem("report", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sweep.html").read_bytes() == before
    assert unmem("report", tmp_path, "--redact").returncode == 2


def test_a_sweep_without_a_finished_cell_has_a_report(tmp_path: Path) -> None:
    sweep = a_sweep({"train.images": [10]})
    sweep["cells"][0] |= {"state": "unfinished", "arms": {}}
    sweep |= {"confidence": None, "means": []}
    page, text = pages(tmp_path, sweep)
    assert "No cell is finished" in page and "No cell is finished" in text
