"""A recipe: what a YAML file may say, checked all at once, with every default filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unmem.component import ConfigError, Problem, UserError, build, dump, field_names, kinds, suggest, validate
from unmem.evaluate.analysis import Compare
from unmem.evaluate.audit import Split
from unmem.evaluate.matrix.config import Matrix
from unmem.evaluate.prompting import Prompts
from unmem.evaluate.shadows import Shadows
from unmem.recipes import yaml_file
from unmem.recipes.asked import misplaced, taking_texts
from unmem.recipes.demands import demands
from unmem.recipes.given import Given
from unmem.recipes.own_model import as_own, check_own, own_models, read_by
from unmem.rundir import digest
from unmem.train.config import Sampling, Train

SCHEMA = 1
ROOMS = {
    "data": "unmem.train.datasets",
    "models": "unmem.train.models",
    "mitigations": "unmem.mitigations",
    "attacks": "unmem.evaluate.attacks",
    "quality": "unmem.evaluate.quality",
    "features": "unmem.evaluate.features",
    "targets": "unmem.evaluate.targets",
}
SECTIONS = (
    "schema", "seed", "data", "model", "train", "sampling", "prompts", "arms", "targets", "shadows", "matrix",
    "attacks", "quality", "compare", "smoke",
)  # fmt: skip
WAYS = ("apply", "update_rule", "sampling_rule", "prompt_rule")  # how a mitigation may step in
SIDES = ("members", "nonmembers")
DRAWN = ("kind", *field_names(Split))  # what a data section holds beside a data set's own fields
SHIPPED = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        name: the file's name without ending; ``-smoke`` is added where the smoke section was laid over.
        seed: of everything that is not secret.
        data: a data set component, or two: members and non-members that are given.
        split: the audit split; None where it is given.
        model: a model component; None where no arm is trained.
        train: settings; None likewise.
        sampling, matrix, compare: settings.
        arms: mitigations of each arm, in order of application.
        own: model and settings of the arms that have others than ``model`` and ``train``.
        targets: finished models by name; they stand beside the arms.
        shadows: the fleet of each arm; None without.
        prompts: what models that take texts are asked; None where they draw no samples.
        attacks, quality: components by name.
        resolved: all of it as plain data, defaults included; reading it again gives the same recipe.
    """

    name: str
    seed: int
    data: Any
    split: Split | None
    model: Any
    train: Train | None
    sampling: Sampling
    matrix: Matrix
    arms: dict[str, tuple[Any, ...]]
    own: dict[str, tuple[Any, Train]]
    targets: dict[str, Any]
    shadows: Shadows | None
    prompts: Prompts | None
    attacks: dict[str, Any]
    quality: dict[str, Any]
    compare: Compare
    resolved: dict[str, Any]

    @property
    def run_name(self) -> str:
        """``<name>-<first 8 of the hash of the resolved recipe>``."""
        return f"{self.name}-{digest(self.resolved)[:8]}"

    @property
    def samples(self) -> int:
        """Samples that the attacks and quality measures want at most, and the control with the model's own samples."""
        control = self.matrix.generated if any(attack.readings for attack in self.attacks.values()) else 0
        return max(self.wanted, control)

    @property
    def wanted(self) -> int:
        """Samples that the attacks and quality measures cannot do without."""
        parts = (*self.attacks.values(), *self.quality.values())
        return max([getattr(part, "samples", 0) for part in parts], default=0)

    @property
    def models(self) -> tuple[str, ...]:
        """The names of all that is attacked: arms, then finished models."""
        return (*self.arms, *self.targets)

    @property
    def threads(self) -> int | None:
        """CPU threads of one job; None leaves it to torch, one job after the other."""
        return None if self.train is None else self.train.threads

    def of_arm(self, name: str) -> Recipe:
        """The recipe with the model and the settings of training that an arm has, or with what a control can be asked.

        Doing so again changes nothing.
        """
        if getattr(self.targets.get(name), "is_control", False):
            return self._asked_of(self.targets[name])
        model, train = self.own.get(name, (self.model, self.train))
        if train is None or (model, train) == (self.model, self.train):
            return self
        resolved = {**self.resolved, "model": _resolved(model), "train": read_by(model, train)}
        return replace(self, model=model, train=train, resolved=resolved)

    def _asked_of(self, control: Any) -> Recipe:
        """The recipe with the attacks and measures alone that need no more than a control gives."""
        attacks = {name: part for name, part in self.attacks.items() if part.needs <= control.access}
        quality = {name: part for name, part in self.quality.items() if not part.needs_labels}
        resolved = {
            **self.resolved,
            "attacks": [_resolved(part, name) for name, part in attacks.items()],
            "quality": [_resolved(part, name) for name, part in quality.items()],
        }
        return replace(self, attacks=attacks, quality=quality, resolved=resolved)

    @property
    def conditional(self) -> bool:
        """Whether samples of the trained models carry classes."""
        return getattr(self.model, "conditioning", "none") == "class"


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}


def locate(recipe: str) -> Path:
    """The file of a recipe: a shipped one's name, or a path.

    Raises:
        UserError: when it is neither.
    """
    known = shipped()
    if recipe in known:
        return known[recipe]
    path = Path(recipe)
    if not path.is_file():
        raise UserError(
            f"{recipe}: neither a file nor a shipped recipe{suggest(recipe, known)}; shipped: {', '.join(known)}"
        )
    return path


def load(recipe: str, *, smoke: bool = False, settings: tuple[str, ...] = ()) -> Recipe:
    """Read, overlay and check a recipe.

    Args:
        recipe: a shipped recipe's name, or a path.
        smoke: lay the ``smoke`` section over the rest.
        settings: ``path=value`` changes, such as ``train.images=1000``, ``arms.dp.dp_sgd.epsilon=4`` or
            ``quality.classifier=null``, which leaves an entry of a list out.

    Raises:
        ConfigError: with every problem.
        UserError: when the file cannot be read.
    """
    path = locate(recipe)
    problems: list[Problem] = []
    plain = read_plain(path, smoke=smoke, problems=problems)
    return changed(plain, f"{path.stem}-smoke" if smoke else path.stem, settings, path.name, problems)


def read_plain(path: Path, *, smoke: bool, problems: list[Problem]) -> dict[str, Any]:
    """A recipe's file as plain data, its ``smoke`` section laid over the rest or left out.

    Raises:
        ConfigError: when it does not hold sections; what else is wrong with ``smoke`` is appended to ``problems``.
        UserError: when the file cannot be read.
    """
    plain = yaml_file.read(path)
    if not isinstance(plain, Mapping):
        raise ConfigError(path.name, [Problem("", f"needs the sections {', '.join(SECTIONS)}; got {plain!r}")])
    plain = dict(plain)
    overlay = plain.pop("smoke", None) or {}
    laid_over: dict[str, Any] = _overlay(plain, overlay, "smoke", problems)  # wrong even when it is not used
    return laid_over if smoke else plain


def changed(
    plain: Mapping[str, Any],
    name: str,
    settings: tuple[str, ...],
    source: str,
    problems: list[Problem] | None = None,
) -> Recipe:
    """Change a plain recipe, and check it.

    Args:
        plain: as a file holds it, without ``smoke``.
        name: the recipe's.
        settings: as :func:`load` takes them.
        source: what messages call it.
        problems: what is known to be wrong already.

    Raises:
        ConfigError: with every problem.
    """
    problems = [] if problems is None else problems
    for setting in settings:
        plain = _overlay(plain, _setting(setting), "--set", problems)
    found = check(plain, name, problems)
    if found is None:
        raise ConfigError(source, problems)
    return found


def check(plain: Mapping[str, Any], name: str, problems: list[Problem] | None = None) -> Recipe | None:
    """Build every component of a plain recipe; None when there are problems, which are appended."""
    problems = [] if problems is None else problems
    for section in plain:
        if section not in SECTIONS:
            problems.append(
                Problem(section, f"unknown section{suggest(section, SECTIONS)}; have {', '.join(SECTIONS)}")
            )
    if plain.get("schema") != SCHEMA:
        problems.append(Problem("schema", f"must be {SCHEMA}; got {plain.get('schema')!r}"))
    seed = plain.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        problems.append(Problem("seed", f"must be a whole number; got {seed!r}"))
    data, split = _data(plain.get("data"), problems)
    targets = _targets(plain.get("targets", {}), problems)
    trained = "arms" in plain or not targets
    model = build(ROOMS["models"], plain.get("model"), "model", problems) if trained else None
    train = validate(Train, plain.get("train"), "train", problems) if trained else None
    sampling = validate(Sampling, plain.get("sampling", {}), "sampling", problems)
    matrix = validate(Matrix, plain.get("matrix", {}), "matrix", problems)
    has_shadows = bool(plain.get("shadows"))
    shadows = validate(Shadows, plain["shadows"], "shadows", problems) if has_shadows else None
    prompts = validate(Prompts, plain["prompts"], "prompts", problems) if plain.get("prompts") is not None else None
    controls = tuple(name for name, part in targets.items() if getattr(part, "is_control", False))
    finished = tuple(name for name in targets if name not in controls)
    against = {} if trained else {"against": next(iter(finished or controls), "")}
    wanted = plain.get("compare", {})
    wanted = {**against, **wanted} if isinstance(wanted, Mapping) else wanted
    compare = validate(Compare, wanted, "compare", problems)
    arms = _arms(plain.get("arms"), problems) if trained else {}
    own: dict[str, tuple[Any, Train]] = {}
    access: dict[str, frozenset[str]] = {}
    if model is not None and train is not None:
        own = own_models(plain, ROOMS["models"], problems)
        access = check_own(arms, own, (model, train), problems)
    attacks = _named(plain.get("attacks", []), "attacks", problems)
    quality = _named(plain.get("quality", []), "quality", problems)
    names = [*arms, *targets]
    problems += [Problem(f"targets.{target}", "is the name of an arm, too") for target in targets if target in arms]
    if compare is not None and names and compare.against not in names:
        problems.append(
            Problem("compare.against", f"must be one of the arms {', '.join(names)}; got {compare.against!r}")
        )
    if compare is not None and len(names) > len(controls) and compare.against in controls:
        problems.append(Problem("compare.against", f"{compare.against} is a control, on which not every attack is run"))
    canaries = isinstance(plain.get("data"), Mapping) and plain["data"].get("canaries") is not None
    problems += demands(
        attacks, quality, model=model, access=access, canaries=canaries, shadows=has_shadows, finished=finished,
        asked=taking_texts(model, targets), prompts=plain.get("prompts") is not None,
    )  # fmt: skip
    if model is not None or not trained:  # of a model that could not be built nothing follows
        problems += misplaced(arms, targets, model=model, prompts=prompts, sampling=sampling)
    if problems:
        return None
    assert sampling is not None and matrix is not None and compare is not None
    resolved = {
        "schema": SCHEMA,
        "seed": seed,
        "data": _resolved_data(data, split),
        **({} if train is None else {"model": _resolved(model), "train": read_by(model, train)}),
        "sampling": dump(sampling),
        **({"prompts": dump(prompts)} if prompts is not None else {}),
        "matrix": dump(matrix),
        **({"shadows": dump(shadows)} if shadows is not None else {}),
        **({"targets": {name: _resolved(part) for name, part in targets.items()}} if targets else {}),
        **({"arms": {arm: _resolved_arm(parts, own.get(arm)) for arm, parts in arms.items()}} if trained else {}),
        "attacks": [_resolved(part, attack) for attack, part in attacks.items()],
        "quality": [_resolved(part, measure) for measure, part in quality.items()],
        "compare": dump(compare),
    }
    return Recipe(
        name=name, seed=seed, data=data, split=split, model=model, train=train, sampling=sampling, matrix=matrix,
        arms=arms, own=own, targets=targets, shadows=shadows, prompts=prompts, attacks=attacks, quality=quality,
        compare=compare, resolved=resolved,
    )  # fmt: skip


def kind_of(part: Any) -> str:
    """The kind that a component was built from."""
    module: str = type(part).__module__
    for package in ROOMS.values():
        if module.rpartition(".")[0] == package:
            return module.rpartition(".")[2]
    return module


def _resolved(part: Any, name: str | None = None) -> dict[str, Any]:
    """A component as plain data that builds it again."""
    kind = kind_of(part)
    return {"kind": kind, **({"name": name} if name not in (None, kind) else {}), **dump(part)}


def _resolved_arm(parts: tuple[Any, ...], own: tuple[Any, Train] | None) -> Any:
    """An arm as plain data that builds it again."""
    mitigations = [_resolved(part) for part in parts]
    return mitigations if own is None else as_own(_resolved(own[0]), read_by(*own), mitigations)


def _data(spec: Any, problems: list[Problem]) -> tuple[Any, Split | None]:
    """The data section: a data set's fields and the split's, side by side; or two data sets."""
    if not isinstance(spec, Mapping):
        problems.append(Problem("data", f"needs a mapping with a 'kind'; have {', '.join(kinds(ROOMS['data']))}"))
        return None, None
    if any(isinstance(spec.get(side), Mapping) for side in SIDES):
        return _given(spec, problems), None
    names = field_names(Split)
    split = validate(Split, {key: value for key, value in spec.items() if key in names}, "data", problems)
    source = {key: value for key, value in spec.items() if key not in names}
    return build(ROOMS["data"], source, "data", problems, beside=names), split


def _given(spec: Mapping[str, Any], problems: list[Problem]) -> Given | None:
    """The data section where members and non-members are data sets themselves."""
    for key in spec:
        if key not in SIDES:
            what = "goes with members that are drawn from one data set; here they are given"
            problems.append(Problem(f"data.{key}", what if key in DRAWN else f"unknown field; have {', '.join(SIDES)}"))
    members, nonmembers = (build(ROOMS["data"], spec.get(side), f"data.{side}", problems) for side in SIDES)
    if members is None or nonmembers is None:
        return None
    if members == nonmembers:
        problems.append(Problem("data.nonmembers", "is the same data set as data.members; take images not trained on"))
    return Given(members, nonmembers)


def _resolved_data(data: Any, split: Split | None) -> dict[str, Any]:
    """The data section as plain data that builds it again."""
    if isinstance(data, Given):
        return {side: _resolved(getattr(data, side)) for side in SIDES}
    assert split is not None
    return {**_resolved(data), **dump(split)}


def _arms(spec: Any, problems: list[Problem]) -> dict[str, tuple[Any, ...]]:
    """The arms, each a list of mitigations of which at most one trains."""
    if not isinstance(spec, Mapping) or not spec:
        problems.append(Problem("arms", f"needs a mapping from names to lists of mitigations; got {spec!r}"))
        return {}
    arms = {}
    for arm, parts in spec.items():
        path = f"arms.{arm}"
        _check_folder(arm, path, problems)
        if isinstance(parts, Mapping):
            path, parts = f"{path}.mitigations", parts.get("mitigations", [])
        if not isinstance(parts, list):
            problems.append(Problem(path, f"needs a list of mitigations (empty for none); got {parts!r}"))
            continue
        built = [build(ROOMS["mitigations"], part, f"{path}[{i}]", problems) for i, part in enumerate(parts)]
        for i, part in enumerate(built):
            if part is not None and not any(hasattr(part, way) for way in WAYS):
                message = f"has neither {' nor '.join(f'{way}()' for way in WAYS)}: it mitigates nothing"
                problems.append(Problem(f"{path}[{i}]", message))
        if sum(hasattr(part, "update_rule") for part in built) > 1:
            problems.append(Problem(path, "has more than one mitigation of training; give each an arm of its own"))
        arms[arm] = tuple(built)
    return arms


def _targets(spec: Any, problems: list[Problem]) -> dict[str, Any]:
    """Finished models by name."""
    if not isinstance(spec, Mapping):
        problems.append(Problem("targets", f"needs a mapping from names to finished models; got {spec!r}"))
        return {}
    for name in spec:
        _check_folder(name, f"targets.{name}", problems)
    return {name: build(ROOMS["targets"], part, f"targets.{name}", problems) for name, part in spec.items()}


def _named(spec: Any, section: str, problems: list[Problem]) -> dict[str, Any]:
    """A list of components by name; the name is the kind unless ``name`` says otherwise."""
    if not isinstance(spec, list):
        problems.append(Problem(section, f"needs a list of components; got {spec!r}"))
        return {}
    named: dict[str, Any] = {}
    for i, part in enumerate(spec):
        path = f"{section}[{i}]"
        name = _name(part)
        _check_folder(name.replace(".", "_"), path, problems)
        if name in named:
            problems.append(Problem(path, f"is a second {name!r}; tell them apart by 'name'"))
        if isinstance(part, Mapping):
            part = {key: value for key, value in part.items() if key != "name"}
        named[name] = build(ROOMS[section], part, path, problems)
    return named


def _check_folder(name: str, path: str, problems: list[Problem]) -> None:
    """A name that becomes a folder must be one on every system."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_+-]*", name):
        problems.append(Problem(path, f"the name {name!r} becomes a folder: letters, digits, '+', '-' and '_'"))


def _name(part: Any) -> str:
    """A listed component's name."""
    return str(part.get("name", part.get("kind"))) if isinstance(part, Mapping) else ""


def _setting(text: str) -> dict[str, Any]:
    """``a.b=value`` as nested mappings; the value is read as YAML.

    Raises:
        UserError: without a path and an equals sign.
    """
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise UserError(f"--set {text}: needs path=value, such as train.images=1000")
    nested: Any = yaml_file.parse(value, f"--set {text}")
    for key in reversed(path.split(".")):
        nested = {key: nested}
    assert isinstance(nested, dict)
    return nested


def _overlay(base: Any, over: Any, path: str, problems: list[Problem]) -> Any:
    """Lay ``over`` on ``base``: mappings merge; a mapping over a list changes its entries by name, null removes one.

    A mapping of another ``kind`` replaces the old one, whose fields mean nothing to it.
    """
    if not isinstance(over, Mapping):
        return over
    if isinstance(base, Mapping) and "kind" in over and over["kind"] != base.get("kind"):
        return dict(over)
    if isinstance(base, list):
        names = [_name(part) for part in base]
        for key in over:
            if key not in names:
                have = ", ".join(names) or "nothing"
                problems.append(
                    Problem(f"{path}.{key}", f"names nothing in the list{suggest(key, names)}; have {have}")
                )
        return [
            _overlay(part, over[name], f"{path}.{name}", problems) if name in over else part
            for name, part in zip(names, base, strict=True)
            if over.get(name, part) is not None
        ]
    merged = dict(base) if isinstance(base, Mapping) else {}
    for key, value in over.items():
        merged[key] = _overlay(merged.get(key), value, f"{path}.{key}", problems)
    return merged
