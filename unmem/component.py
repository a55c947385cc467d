"""Strict typed components: a file's name is its registry entry.

A component is one file with one class marked ``@component``: a frozen, keyword-only dataclass that pydantic
validates and that refuses unknown fields. ``kind: near_duplicates`` in a place that takes mitigations is
``unmem/mitigations/near_duplicates.py``; a dotted kind (``my_lab.class_cap``) is a module outside the project.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, get_args

import pydantic
from pydantic import Field

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:  # only type checkers read the mark

    def dataclass_transform(**_: object) -> Callable[[T], T]:
        """Mark nothing."""
        return lambda function: function


T = TypeVar("T")

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Confidence = Annotated[float, Field(gt=0, lt=1)]


class UserError(ValueError):
    """What the user can mend: printed as one message, without a traceback, with exit code 2."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: where (a dotted path), and what is allowed there."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(UserError):
    """Everything wrong with one configuration file, all at once."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


@dataclass_transform(frozen_default=True, kw_only_default=True)
def component(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only dataclass that validates its fields and refuses unknown ones."""
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return cast("type[T]", pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls))


@dataclass(frozen=True)
class Kind:
    """A registry entry, read from the source without importing it."""

    name: str
    module: str
    cls: str
    doc: str = field(repr=False)

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        return self.doc.strip().split("\n")[0]

    def load(self) -> type[Any]:
        """Import the component's class."""
        loaded: type[Any] = getattr(importlib.import_module(self.module), self.cls)
        return loaded


@cache
def kinds(package: str) -> Mapping[str, Kind]:
    """Every component of a package, by name; nothing is imported, so that listing stays fast."""
    spec = find_spec(package)
    assert spec is not None, f"{package} does not exist"
    assert spec.submodule_search_locations, f"{package} is not a package"
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.py"))
    found = ((file.stem, _component_in(file, f"{package}.{file.stem}", file.stem)) for file in files)
    return {name: kind for name, kind in found if kind is not None}


def find(package: str, name: str) -> Kind:
    """The component called ``name``; a dotted name is a module outside the project.

    Raises:
        UserError: when there is none; the message lists what exists.
    """
    if "." in name:
        return _outside(name)
    known = kinds(package)
    if name not in known:
        raise UserError(f"unknown kind {name!r}{suggest(name, known)}; have {', '.join(known)}")
    return known[name]


def suggest(name: str, known: Iterable[str]) -> str:
    """``, did you mean 'x'?`` where a known name is near, else nothing."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def build(package: str, spec: Any, path: str, problems: list[Problem], beside: Iterable[str] = ()) -> Any:
    """Turn ``{kind: near_duplicates, hash: phash}`` into a component.

    Args:
        package: the package whose files are the kinds.
        spec: a mapping with ``kind`` and the component's fields.
        path: the place in the configuration, for messages.
        problems: receives what is wrong; then the result is ``None``.
        beside: names that the same mapping may hold for somebody else; for messages.
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get("kind"), str):
        problems.append(Problem(path, f"needs a mapping with a 'kind'; got {spec!r}; have {', '.join(kinds(package))}"))
        return None
    try:
        cls = find(package, spec["kind"]).load()
    except UserError as error:
        problems.append(Problem(f"{path}.kind", str(error)))
        return None
    return validate(cls, {key: value for key, value in spec.items() if key != "kind"}, path, problems, beside)


def validate(cls: type[T], options: Any, path: str, problems: list[Problem], beside: Iterable[str] = ()) -> T | None:
    """Build ``cls`` from plain data; what is wrong is appended to ``problems``, field by field."""
    if not isinstance(options, Mapping):
        problems.append(Problem(path, f"needs a mapping of {', '.join(field_names(cls))}; got {options!r}"))
        return None
    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(options))
    except pydantic.ValidationError as error:
        for detail in error.errors():
            owner = _owner(cls, detail["loc"][:-1])
            known = [*field_names(owner), *(beside if owner is cls else ())]
            problems.append(_explain(known, detail, path))
        return None


def nested(package: str, base: type[Any]) -> Any:
    """The type of a field that is a component itself: a ``base`` of ``package``, written as a mapping with its kind."""

    def read(value: Any) -> Any:
        if isinstance(value, base):
            return value
        problems: list[Problem] = []
        built = build(package, value, "", problems)
        if problems:
            raise ValueError("; ".join(str(problem).lstrip(".") for problem in problems))
        if not isinstance(built, base):
            raise ValueError(f"{value['kind']} cannot stand here: it is no {base.__name__}")
        return built

    def write(value: Any) -> dict[str, Any]:
        room, _, kind = type(value).__module__.rpartition(".")
        return {"kind": kind if room == package else type(value).__module__, **dump(value)}

    return Annotated[base, pydantic.BeforeValidator(read), pydantic.PlainSerializer(write)]


def dump(value: Any) -> dict[str, Any]:
    """A component's fields, defaults included, as plain JSON data."""
    plain: dict[str, Any] = pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")
    return plain


def field_names(cls: type[Any]) -> list[str]:
    """The names that a component's configuration may use."""
    return list(getattr(cls, "__dataclass_fields__", {}))


def _owner(cls: type[Any], place: Iterable[Any]) -> type[Any]:
    """The component at a place within ``cls``: the last on the way there."""
    for name in place:
        found = getattr(cls, "__pydantic_fields__", {}).get(name)
        hint = None if found is None else found.annotation
        cls = next((part for part in (hint, *get_args(hint)) if hasattr(part, "__dataclass_fields__")), cls)
    return cls


def _explain(known: list[str], detail: Any, path: str) -> Problem:
    """One pydantic error in the words of this project."""
    place = ".".join([path, *(str(part) for part in detail["loc"])]).strip(".")
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        name = str(detail["loc"][-1])
        return Problem(place, f"unknown field{suggest(name, known)}; have {', '.join(known) or 'no fields'}")
    if detail["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return Problem(place, "is required")
    message = detail["msg"].removeprefix("Value error, ")
    value = detail["input"]
    shown = "" if detail["type"] == "value_error" and isinstance(value, dict) else f"; got {value!r}"
    return Problem(place, message[0].lower() + message[1:] + shown)


def _component_in(file: Path, module: str, name: str) -> Kind | None:
    """The one ``@component`` class of a source file, if it has one."""
    source = file.read_text(encoding="utf-8")
    if "@component" not in source:
        return None
    tree = ast.parse(source, filename=str(file))
    marked = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(mark, ast.Name) and mark.id == "component" for mark in node.decorator_list)
        and not node.name.startswith("_")
    ]
    if len(marked) != 1:
        return None
    return Kind(name=name, module=module, cls=marked[0].name, doc=ast.get_docstring(marked[0]) or "")


def _outside(name: str) -> Kind:
    """A component of somebody else's module, found on the path or in the current folder."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(f"unknown kind {name!r}: no such module on the path or in the current folder")
    kind = _component_in(Path(spec.origin), name, name)
    if kind is None:
        raise UserError(f"unknown kind {name!r}: the module must hold exactly one class marked @component")
    return kind
