"""YAML without its traps: duplicate keys are refused, ``1e-5`` is a number, ``no`` and ``12:30`` are text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from unmem.component import UserError


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema's scalars (YAML 1.2) and unique keys."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBER_STARTS = list("+-.0123456789")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), _NUMBER_STARTS)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    _NUMBER_STARTS,
)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Decimal, underscores allowed: YAML 1.1 would read 010 as eight."""
    return int(str(loader.construct_scalar(node)).replace("_", ""))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    """With or without a point."""
    return float(str(loader.construct_scalar(node)).replace("_", ""))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping whose keys are unique."""
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is not text; quote it", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate key {key!r}; it stands in line {seen[key]} already", key_node.start_mark
            )
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


class _Dumper(yaml.SafeDumper):
    """Quotes the text that our loader would read as something else."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def parse(text: str, source: str) -> Any:
    """Plain data from YAML.

    Args:
        text: the YAML.
        source: where it comes from, for messages.

    Raises:
        UserError: naming source, line and what is wrong.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{source}{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: {error}") from None


def read(path: Path) -> Any:
    """Plain data from a YAML file.

    Raises:
        UserError: when it is missing, not text, or not YAML.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None


def to_text(value: Any) -> str:
    """YAML from plain data, in the order of its keys."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
