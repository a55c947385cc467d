"""The command line as a user meets it: help, listings, typing mistakes, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from unmem import cli
from unmem.recipes.recipe import ROOMS, load, shipped


def unmem(*arguments: object) -> tuple[int, str, str]:
    """Run in this process, with main's own error handling."""
    runner = CliRunner()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["unmem", *map(str, arguments)])
        result: Result = runner.invoke(_main, [])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.stdout, result.stderr


@click.command()
def _main() -> None:
    cli.main()


def test_help_teaches_and_every_command_has_a_line() -> None:
    code, out, _ = unmem("--help")
    assert code == 0
    for command in ("ls", "show", "cp", "validate", "run", "report", "compare"):
        assert f"\n  {command} " in out
        assert unmem(command, "--help")[0] == 0
    assert "unmem run quickstart" in out


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from unmem import cli; assert not {'torch', 'numpy', 'scipy', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_ls_and_show_cover_every_component() -> None:
    code, out, _ = unmem("ls", "--json")
    assert code == 0
    listing = json.loads(out)
    assert set(listing) == {*ROOMS, "recipes"}
    assert {"quickstart", "mnist", "cifar10"} <= set(listing["recipes"])
    assert all(summary for entries in listing.values() for summary in entries.values())
    for room in ROOMS:
        for name in listing[room]:
            code, out, _ = unmem("show", name)
            assert code == 0
            assert name in out
            assert "fields" in json.loads(unmem("show", name, "--json")[1])
    code, out, _ = unmem("ls", "attacks")
    assert "generate_and_filter" in out
    assert "phash" not in out
    code, _, err = unmem("show", "los")
    assert code == 2
    assert "did you mean 'loss'?" in err


def test_cp_copies_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    assert unmem("cp", "quickstart", file)[0] == 0
    assert file.read_text() == shipped()["quickstart"].read_text()
    file.write_text("mine")
    code, _, err = unmem("cp", "mnist", file)
    assert code == 2
    assert "exists already" in err
    assert file.read_text() == "mine"
    code, _, err = unmem("cp", "quikstart", tmp_path / "x.yaml")
    assert code == 2
    assert "did you mean 'quickstart'?" in err


def changed(tmp_path: Path, old: str, new: str) -> Path:
    """The quickstart with one change."""
    text = shipped()["quickstart"].read_text()
    assert old in text
    file = tmp_path / "changed.yaml"
    file.write_text(text.replace(old, new, 1))
    return file


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "members: 800",
            "membres: 800",
            "changed.yaml: data.membres: unknown field, did you mean 'members'?; have captions",
        ),
        ("members: 800", "members: many", "changed.yaml: data.members: input should be a valid integer"),
        ("members: 800", "members: -1", "changed.yaml: data.members: input should be greater than 0; got -1"),
        ("seed: 0", "seed: 0\nseed: 1", "line 9: duplicate key 'seed'"),
        ("kind: digits", "kind: digit", "data.kind: unknown kind 'digit', did you mean 'digits'?"),
        ("lr: 3.0e-3", "lr: fast", "train.lr: input should be a valid number"),
        ("train:", "trian:", "trian: unknown section, did you mean 'train'?"),
        ("schema: 1", "schema: 2", "schema: must be 1; got 2"),
        ("against: baseline", "against: nobody", "compare.against: must be one of the arms baseline"),
        ("baseline: []", "baseline: 3", "arms.baseline: needs a list of mitigations"),
        ("baseline: []", "base/line: []", "arms.base/line: the name 'base/line' becomes a folder"),
        ("{kind: blind}", "{kind: loss}", "attacks[3]: is a second 'loss'; tell them apart by 'name'"),
        ("conditioning: class", "conditioning: none", "quality.classifier: needs a class-conditional model"),
        ("hash: phash", "hash: md5", "arms.dedup[0].hash: input should be 'phash', 'dhash', 'whash' or 'ahash'"),
        ("attacks: {generate_and_filter", "attacks: {generate", "smoke.attacks.generate: names nothing in the list"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = changed(tmp_path, old, new)
    for command in ("validate", "run"):
        code, out, err = unmem(command, file)
        assert code == 2
        assert message in err
        assert "Traceback" not in out + err


def test_validate_says_everything_at_once(tmp_path: Path) -> None:
    file = changed(tmp_path, "lr: 3.0e-3", "lr: fast\n  bacth: 64")
    other = tmp_path / "other.yaml"
    other.write_text("- a list\n")
    code, out, _ = unmem("validate", file, other, "quickstart", tmp_path / "missing.yaml", "--json")
    assert code == 2
    places = [(problem["file"], problem["path"]) for problem in json.loads(out)["problems"]]
    assert ("changed.yaml", "train.lr") in places
    assert ("changed.yaml", "train.bacth") in places
    assert len(set(places)) == len(places)
    assert any(file == "other.yaml" for file, _ in places)
    assert any("missing.yaml" in file for file, _ in places)
    assert unmem("validate", "quickstart", "mnist", "cifar10")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "quickstart", "--set", "train.lr"), "--set train.lr: needs path=value"),
        (("run", "quickstart", "--set", "train.lrr=1"), "train.lrr: unknown field, did you mean 'lr'?"),
        (("run", "quickstart", "--set", "attacks.los.draws=1"), "names nothing in the list, did you mean 'loss'?"),
        (("run", "quickstart", "--set", "train.lr=[1"), "--set train.lr=[1, line 1"),
        (("run", "quickstart", "--arm", "basline"), "--arm basline: no such arm, did you mean 'baseline'?"),
        (("run", "no_such_recipe"), "neither a file nor a shipped recipe"),
        (("report", "nowhere"), "nowhere"),
        (("compare", "nowhere"), "nowhere"),
        (("ls", "attack"), "attack"),
        (("rum",), "No such command"),
    ],
)
def test_typing_mistakes(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = unmem(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err


def one_image(folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16)).save(folder / "one.png")


def two_sizes(folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16)).save(folder / "a.png")
    Image.new("RGB", (24, 16)).save(folder / "b.png")


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (None, "no such folder"),
        (lambda folder: None, "image"),
        (one_image, "64 members and 64 nonmembers are 128 images, but the source has 1"),
        (two_sizes, "size"),
        (lambda folder: (folder / "x.png").write_bytes(b""), "image"),
    ],
    ids=["missing", "empty", "one", "sizes", "unreadable"],
)
def test_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    if fill is not None:
        (tmp_path / "pictures").mkdir()
        fill(tmp_path / "pictures")
    setting = "data={kind: image_folder, path: pictures, members: 64, nonmembers: 64}"
    code, out, err = unmem("run", "quickstart", "--smoke", "--set", setting, "--out", "run")
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err


def test_settings_reach_into_lists_and_resolve_the_same_twice() -> None:
    recipe = load("quickstart", settings=("arms.dp.dp_sgd.epsilon=4", "train.lr=1e-5", "attacks.loss.timesteps=[7]"))
    assert recipe.arms["dp"][0].epsilon == 4
    assert recipe.arms["dedup+dp"][1].epsilon != 4
    assert recipe.train.lr == 1e-5
    assert recipe.attacks["loss"].timesteps == (7,)
    assert list(load("quickstart", settings=("quality.classifier=null",)).quality) == ["frechet"]
    again = load(
        "quickstart", settings=("train.lr=0.00001", "attacks.loss.timesteps=[7]", "arms.dp.dp_sgd.epsilon=4.0")
    )
    assert again.run_name == recipe.run_name != load("quickstart").run_name
