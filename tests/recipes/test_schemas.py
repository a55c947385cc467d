"""Every JSON file that a run writes fits its published schema, which knows every field."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry, Resource

from tests.conftest import REPOSITORY
from unmem.evaluate.audit import Audit
from unmem.evaluate.statistics import Estimate
from unmem.mitigations.dp.plan import PrivacySpent
from unmem.mitigations.ledger import Dropped
from unmem.recipes import fleet, risk, runner
from unmem.recipes.recipe import load, shipped

FOLDER = REPOSITORY / "docs" / "schemas"
SCHEMAS = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))}
REGISTRY: Registry[Any] = Registry().with_resources(
    (f"{name}.json", Resource.from_contents(schema)) for name, schema in SCHEMAS.items()
)
ARM = r"arms/[^/]+/(?:shadows/\d+/)?"
FILES = {  # where a file lies in a run directory -> its schema
    r"(comparison|provenance|audit|quarantine|risk)\.json": None,
    r"data/index\.json": "index",
    r"(?:.*/)?key\.json": "key",
    rf"{ARM}data/(ledger|captions)\.json": None,
    rf"{ARM}train/metrics\.jsonl": "metrics",
    rf"{ARM}train/(privacy|budget|early_stopping|loss_mask|text_noise_mask|cost)\.json": None,
    rf"{ARM}train/generator/config\.json": "generator",
    rf"{ARM}samples/(refused|asked|chosen|prompts|quarantine|cost)\.json": None,
    rf"{ARM}drawn/[^/]+/(clusters|evaluations)\.json": None,
    rf"{ARM}matrix/manifest\.json": "manifest",
    rf"{ARM}attacks/[^/]+/report\.json": "attack",
    rf"{ARM}quality/[^/]+/report\.json": "quality",
    rf"{ARM}gallery/gallery\.json": "gallery",
}
OTHERS = r"arms/.+/train/(pipeline|state|trackers)/.*"  # diffusers' own, what goes when training ends, trackers'


def schema_of(name: str) -> str:
    """The schema of a file by its path in a run directory."""
    for pattern, schema in FILES.items():
        if found := re.fullmatch(pattern, name):
            return schema or str(found[1])
    raise AssertionError(f"{name}: no schema in docs/schemas is for it; write one, and name it in FILES")


def complaints(name: str, schema: str, value: Any) -> list[str]:
    """What is wrong with a value: file, place, and what is asked for."""
    validator = Draft202012Validator(SCHEMAS[schema], registry=REGISTRY)
    found = sorted(map(said_by, validator.iter_errors(value)), key=lambda error: error.json_path)
    return [f"{name}: {error.json_path}: {error.message[:300]} (docs/schemas/{schema}.json)" for error in found]


def said_by(error: ValidationError) -> ValidationError:
    """Where a value may be null as well, what is wrong with it as it is."""
    inner = [part for part in error.context or () if part.validator_value != "null"]
    return said_by(inner[0]) if inner else error


def values(file: Path) -> Iterator[Any]:
    """What a JSON file holds; of JSON lines each."""
    text = file.read_text(encoding="utf-8")
    yield from map(json.loads, text.splitlines()) if file.suffix == ".jsonl" else [json.loads(text)]


def check(root: Path) -> set[str]:
    """Hold every file of a run against its schema; returns the schemas that were used."""
    found, used = [], set()
    for file in sorted([*root.rglob("*.json"), *root.rglob("*.jsonl")]):
        name = file.relative_to(root).as_posix()
        if not re.fullmatch(OTHERS, name):
            schema = schema_of(name)
            used.add(schema)
            found += [text for value in values(file) for text in complaints(name, schema, value)]
    assert not found, "\n".join(found)
    return used


COMMON = """
schema: 1
data: {kind: digits, members: 48, nonmembers: 48, planted: {images: 2, copies: 4}%s}
model: {kind: unet, channels: [8, 16], layers: 1, conditioning: class}
train: {images: 128, batch: 32, lr: 3e-3, ema: 0.9, noise_schedule: cosine, threads: 1}
sampling: {steps: 2}
quality: [{kind: frechet, samples: 16, resamples: 5}]
compare: {against: plain, tpr_at_fpr: [0.25]}
"""
RECIPES = {
    "denoisers": COMMON % ", canaries: {images: 16, source: noise, copies: [1, 2]}"
    + """
arms:
  plain: [{kind: reject_copies, bits: 64, max_distance: 4}]
  private:
    - {kind: exact_duplicates}
    - {kind: dp_sgd, epsilon: 10, delta: 0.01, batch: 16, images: 64, known_seed: 7, engine: bookkeeping}
  stopped: [{kind: early_stopping, every: 32}]
  masked: {train: {images: 64}, mitigations: [{kind: loss_mask}]}
attacks:
  - {kind: generate_and_filter, samples: 16, threshold: 1.2}
  - {kind: loss, timesteps: [100], draws: 1}
  - {kind: dataset_inference, bases: [{kind: loss, timesteps: [100], draws: 1}]}
  - {kind: canary_audit, base: {kind: loss, timesteps: [100], draws: 1}}
  - {kind: nearest_distance, samples: 16}
  - {kind: blind}
""",
    "gan": COMMON % ""
    + """
arms:
  plain: []
  gan: {model: {kind: gan, channels: 8, conditioning: class}, mitigations: []}
attacks: [{kind: generate_and_filter, samples: 16}]
""",
}


def run_here(file: Path, root: Path, monkeypatch: pytest.MonkeyPatch, *, smoke: bool = False) -> Path:
    """A whole run in this process, which saves a start for each arm."""
    monkeypatch.setattr(fleet, "run", lambda jobs, *_: [runner.run_job(job) for job in jobs])
    return runner.run(load(str(file), smoke=smoke), root, (), ["run", file.name])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("schemas")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, text in RECIPES.items():
            (folder / f"{name}.yaml").write_text(text)
            run_here(folder / f"{name}.yaml", folder / name, monkeypatch)
    risk.write(folder / "denoisers")
    return {name: folder / name for name in RECIPES}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_schemas_and_refuse_unknown_fields(name):
    Draft202012Validator.check_schema(SCHEMAS[name])
    objects = [SCHEMAS[name], *SCHEMAS[name].get("$defs", {}).values()]
    closed = [part for part in objects if "properties" in part and "allOf" not in part and name != "key"]
    assert all(part["additionalProperties"] is False for part in closed)


@pytest.mark.parametrize("run", RECIPES)
def test_every_file_of_a_run_fits_its_schema(runs, run):
    used = check(runs[run])
    wanted = {"comparison", "provenance", "audit", "quarantine", "index", "key", "ledger", "metrics", "cost", "attack"}
    wanted |= {"quality", "gallery"}
    of_run = {
        "denoisers": {"risk", "privacy", "budget", "early_stopping", "loss_mask", "refused", "manifest"},
        "gan": {"generator"},
    }
    assert used == wanted | of_run[run]


def places(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping below, with where it stands."""
    if isinstance(value, dict):
        yield path, value
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, f"{path}.{key}")


OPEN = re.compile(  # a recipe's settings, and mappings whose keys are names
    r".*\.(mitigations\.\d+|own\.(model|train)(\..*)?|n|packages|copies|seconds|inputs(\..*)?|readings(\..*)?|arms"
    r"|attacks|quality|differences(\.[^.]+)?|dominated|estimates)$"
)


def test_a_new_or_a_missing_field_is_named(runs):
    """Negative control: in every mapping of every file of fixed fields."""
    root, tried = runs["denoisers"], 0
    files = {}
    for file in [*root.rglob("*.json"), *root.rglob("*.jsonl")]:
        name = file.relative_to(root).as_posix()
        if not re.fullmatch(OTHERS, name):
            value = next(values(file))
            shape = schema_of(name), value.get("type") if isinstance(value, dict) else None
            files.setdefault(shape, (name, value))  # one of each form
    for (schema, _), (name, value) in files.items():
        seen = set()
        for path, _ in places(value):
            form = re.sub(r"\d+", "0", path)
            if OPEN.match(path) or form in seen or len(seen) > 40:
                continue
            seen.add(form)
            spoilt = copy.deepcopy(value)
            dict(places(spoilt))[path]["surprise"] = 1
            found = complaints(name, schema, spoilt)
            assert any(text.startswith(name) and "surprise" in text for text in found), (name, path)
            tried += 1
    assert tried > 40
    comparison = json.loads((root / "comparison.json").read_text())
    del comparison["arms"]["plain"]["cost"]["train"]["seconds"]
    (text,) = complaints("comparison.json", "comparison", comparison)
    assert "$.arms.plain.cost.train: 'seconds' is a required property" in text


def test_a_file_without_a_schema_is_named(tmp_path):
    (tmp_path / "news.json").write_text("{}")
    with pytest.raises(AssertionError, match=r"news\.json: no schema"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("part", "of", "more"),
    [
        (SCHEMAS["estimate"], Estimate, set()),
        (SCHEMAS["privacy"], PrivacySpent, {"examples_without_finite_gradient", "self_check"}),
        (SCHEMAS["ledger"]["properties"]["dropped"]["items"], Dropped, set()),
        (SCHEMAS["audit"], Audit, {"data"}),
    ],
    ids=["estimate", "privacy", "ledger", "audit"],
)
def test_schemas_have_the_fields_of_the_code(part, of, more):
    assert set(part["properties"]) ^ {field.name for field in fields(of)} == more


def test_the_documentation_links_to_every_schema():
    text = (REPOSITORY / "docs" / "run-directory.md").read_text()
    assert [name for name in SCHEMAS if f"(schemas/{name}.json)" not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_fit_the_schemas(tmp_path, monkeypatch, name):
    assert "comparison" in check(run_here(Path(name), tmp_path / "run", monkeypatch, smoke=True))
