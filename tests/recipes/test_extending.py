"""The examples of docs/extending.md, taken from the page and used as it says; nothing is trained."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import REPOSITORY, Generator
from unmem.component import UserError, build, find
from unmem.evaluate.analysis import Compare, analyse
from unmem.evaluate.audit import Audit, Split, draw
from unmem.evaluate.results import Scores
from unmem.recipes.recipe import ROOMS, kind_of, load
from unmem.rng import stream
from unmem.train.config import Train
from unmem.train.imageset import ImageSet

FENCED = re.compile(r"^```(python|yaml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def forget() -> None:
    """Drop what another test may have imported under the same name."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds the page's files, and is the current one."""
    found = FENCED.findall((REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8"))
    for _, name, code in found:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        assert not file.exists(), f"{name} is on the page twice"
        file.write_text(code, encoding="utf-8")
    assert {"my_lab/class_cap.py", "my_lab/nearest_generated.py", "my_lab.yaml"} <= {name for _, name, _ in found}
    forget()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()


def made(room: str, kind: str, **fields: Any) -> Any:
    problems: list[Any] = []
    built = build(ROOMS[room], {"kind": f"my_lab.{kind}", **fields}, "here", problems)
    assert not problems, problems
    return built


def wrong(room: str, kind: str, **fields: Any) -> str:
    problems: list[Any] = []
    assert build(ROOMS[room], {"kind": f"my_lab.{kind}", **fields}, "here", problems) is None
    return str(problems[0])


def test_every_python_block_of_the_page_is_a_component(lab: Path) -> None:
    page = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    files = sorted(lab.glob("my_lab/*.py"))
    assert len(files) == page.count("```python")
    for file in files:
        kind = find(ROOMS["data"], f"my_lab.{file.stem}")
        assert kind.summary
        assert kind.load().__module__ == f"my_lab.{file.stem}"


def test_the_data_mitigation_obeys_the_ledger_contract(lab: Path, audit: Audit) -> None:
    cap, data = made("mitigations", "class_cap", most=3), audit.training
    kept, ledger = cap.apply(data, stream(0, "contract"))
    assert set(kept.ids) | {entry.id for entry in ledger} == set(data.ids)
    assert len(kept) + len(ledger) == len(data)
    assert {entry.kept for entry in ledger} <= set(kept.ids)
    assert {entry.mitigation for entry in ledger} == {kind_of(cap)}
    assert all(entry.distance >= 0 for entry in ledger)
    again, same = cap.apply(data, stream(0, "contract"))
    assert (again.ids, same) == (kept.ids, ledger)
    other, _ = cap.apply(data, stream(1, "contract"))
    assert other.ids != kept.ids
    alone, nothing = cap.apply(data.take(np.array([0])), stream(0, "contract"))
    assert (len(alone), nothing) == (1, [])
    assert data.labels is not None
    assert kept.labels is not None
    np.testing.assert_array_equal(np.bincount(kept.labels), np.minimum(np.bincount(data.labels), 3))
    assert list(kept.positions(kept.ids)) == list(range(len(kept)))
    assert (np.diff(data.positions(kept.ids)) > 0).all()  # the set's order


def test_the_data_mitigation_says_what_is_wrong(lab: Path, audit: Audit) -> None:
    assert wrong("mitigations", "class_cap", most=0).startswith("here.most: input should be greater than 0")
    assert wrong("mitigations", "class_cap", most=3, mots=3).startswith(
        "here.mots: unknown field, did you mean 'most'?"
    )
    unlabelled = ImageSet.of(audit.training.images(), list(audit.training.ids))
    with pytest.raises(UserError, match="class_cap: needs a data set with labels"):
        made("mitigations", "class_cap", most=3).apply(unlabelled, stream(0, "x"))


def test_the_attack_scores_both_sides_and_passes_its_controls(lab: Path, audit: Audit, digits: ImageSet) -> None:
    attack = made("attacks", "nearest_generated", samples=40)
    assert attack.needs == {"samples"}
    known = {name.split("#")[0] for name in audit.data.ids}
    fresh = digits.take(np.array([i for i, name in enumerate(digits.ids) if name not in known])[:40])
    found = {}
    for name, images in (("members", audit.member_images), ("held out", audit.nonmember_images), ("neither", fresh)):
        scores = attack.run(Generator(images.images()), audit, 0)
        assert isinstance(scores, Scores)
        assert scores.members.shape == (len(audit.members),)
        assert scores.nonmembers.shape == (len(audit.nonmembers),)
        assert scores.members.dtype == scores.nonmembers.dtype == np.float64
        found[name] = analyse(scores, audit, frozenset(), Compare(confidence=0.99), 0)["estimates"]["auc"]
    assert found["members"]["value"] == 1
    assert found["held out"]["value"] == 0
    assert found["neither"]["low"] < 0.5 < found["neither"]["high"]


def test_the_recipe_is_valid_and_keeps_the_dotted_kinds(lab: Path) -> None:
    recipe = load("my_lab.yaml")
    assert [kind_of(part) for part in recipe.arms["capped"]] == ["my_lab.class_cap"]
    assert list(recipe.attacks) == ["nearest_generated", "loss", "blind"]
    assert recipe.samples == 2048
    assert recipe.resolved["arms"]["capped"] == [{"kind": "my_lab.class_cap", "most": 20}]
    smoke = load("my_lab.yaml", smoke=True, settings=("attacks.nearest_generated.samples=32",))
    assert smoke.resolved["arms"]["capped"] == [{"kind": "my_lab.class_cap", "most": 4}]
    assert smoke.samples == 32


def test_the_training_mitigation_masks_what_is_learned(lab: Path, audit: Audit, monkeypatch: Any) -> None:
    import torch

    from unmem.train.update import Plain

    train = Train(images=100, batch=10)
    rule = made("mitigations", "loss_floor", floor=0.5).update_rule(audit.training, train, "these", lab, 0)
    assert (rule.steps, rule.batch, rule.finish()) == (10, 10, None)
    assert rule.positions(3).max() < len(audit.training)
    monkeypatch.setattr(Plain, "update", lambda self, step, size, losses: float(losses(np.arange(size)).sum()))
    assert rule.update(0, 3, lambda slots: torch.tensor([0.1, 0.5, 2.0])[slots]) == 2.5


def test_the_quality_measure_and_the_features_behave(lab: Path, audit: Audit) -> None:
    measure = made("quality", "brightness", samples=40)
    real = measure.measure(audit.member_images.images(), None, audit, 0)
    dark = measure.measure(audit.member_images.images() // 4, None, audit, 0)
    assert measure.needs_labels is False
    assert real.estimate.value == real.reference < dark.estimate.value
    for estimate in (real.estimate, dark.estimate):
        assert estimate.low <= estimate.value <= estimate.high
    extract, images = made("features", "thumbnails"), audit.member_images.images()
    features = extract(images)
    assert (features.shape, features.dtype) == ((len(images), extract.dimension), np.float64)
    np.testing.assert_allclose(extract(images[2:3]), features[2:3])
    problems: list[Any] = []
    spec = {"kind": "frechet", "samples": 40, "features": {"kind": "my_lab.thumbnails"}}
    assert build(ROOMS["quality"], spec, "quality", problems) is not None, problems


def test_the_data_set_gives_a_split(lab: Path) -> None:
    source = made("data", "discs", images=60)
    data, rejected = source.load(lab)
    assert (data.shape, len(data), rejected) == ((16, 16, 1), 60, [])
    assert data.ids == source.load(lab)[0].ids
    assert source.fingerprint() == source.fingerprint()
    assert set(data.images().ravel().tolist()) == {0, 255}
    split = draw(data, Split(members=20, nonmembers=20), seed=0)
    assert not set(split.members) & set(split.nonmembers)
