"""The grid of a sweep: axes from the command line, and a checked recipe for every cell."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unmem.component import ConfigError, Problem, UserError
from unmem.recipes import yaml_file
from unmem.recipes.recipe import Recipe, changed, locate, read_plain
from unmem.rundir import digest

SEED = "seed"  # the axis that repeats a cell
LONGEST = 100  # letters of a cell's name, which is a folder's, too

Grid = dict[str, list[Any]]
"""Path in the recipe -> its values."""


@dataclass(frozen=True)
class Cell:
    """One recipe of a sweep.

    Attributes:
        name: its values in short, such as ``copies=8,seed=0``; no other cell's.
        values: path -> its value here, in the order of the axes.
        recipe: the checked recipe.
    """

    name: str
    values: dict[str, Any]
    recipe: Recipe

    @cached_property
    def key(self) -> str:
        """What the cell is, however it is called: the hash of the resolved recipe."""
        return digest(self.recipe.resolved)


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
        name: the recipe's.
        base: the recipe as plain data, and what was set in all cells.
        grid: the axes.
        cells: all combinations; the last axis changes fastest.
    """

    name: str
    base: dict[str, Any]
    grid: Grid
    cells: tuple[Cell, ...]

    @property
    def default_name(self) -> str:
        """``<name>-<first 8 of a hash>``; the same when an axis gets more values."""
        return f"{self.name}-{digest([self.base, sorted(self.grid)])[:8]}"


def axes(grids: Iterable[str], seeds: str | None) -> Grid:
    """The grid from the command line, in the order given, seeds last.

    Args:
        grids: ``path=v1,v2,...`` each; the values are YAML, so that commas in brackets do not part them.
        seeds: values of ``seed``; None for no such axis.

    Raises:
        UserError: without a path, a value or any axis, or with one twice.
    """
    found: Grid = {}
    given = [(f"--grid {text}", text) for text in grids]
    given += [] if seeds is None else [(f"--seeds {seeds}", f"{SEED}={seeds}")]
    for option, text in given:
        path, equals, values = text.partition("=")
        if not equals or not all(path.split(".")):
            raise UserError(f"{option}: needs path=v1,v2,..., such as train.images=100000,200000")
        if path in found:
            raise UserError(f"{option}: {path} is an axis already; give all of its values at once")
        found[path] = yaml_file.parse(f"[{values}\n]", option)
        if not found[path]:
            raise UserError(f"{option}: needs at least one value")
        value, times = Counter(json.dumps(value) for value in found[path]).most_common(1)[0]
        if times > 1:
            raise UserError(f"{option}: {value} stands there {times} times")
    if not found:
        raise UserError("nothing to sweep over: give --grid path=v1,v2,... or --seeds 0,1,2")
    return found


def plan(recipe: str, grid: Grid, *, smoke: bool = False, settings: tuple[str, ...] = ()) -> Sweep:
    """Read a recipe and check every cell of the grid.

    Args:
        recipe: a shipped recipe's name, or a path.
        grid: the axes.
        smoke: lay the ``smoke`` section over the rest.
        settings: ``path=value`` changes of all cells.

    Raises:
        ConfigError: with every problem of every cell.
        UserError: when the file cannot be read, two cells are the same, or they want different numbers of threads.
    """
    path = locate(recipe)
    name = f"{path.stem}-smoke" if smoke else path.stem
    known: list[Problem] = []
    plain = read_plain(path, smoke=smoke, problems=known)
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    cells: list[Cell] = []
    wrong: dict[Problem, list[str]] = {}
    for cell, point in zip(_names(points), points, strict=True):
        own = (f"{axis}={json.dumps(value)}" for axis, value in point.items())
        try:
            cells.append(Cell(cell, point, changed(plain, name, (*settings, *own), path.name, [*known])))
        except ConfigError as error:
            for problem in error.problems:
                wrong.setdefault(problem, []).append(cell)
    if wrong:
        where = {problem: _where(names, len(points)) for problem, names in wrong.items()}
        raise ConfigError(path.name, [Problem(p.path, f"{p.message} ({where[p]})") for p in wrong])
    _check_side_by_side(cells)
    return Sweep(name, {"recipe": plain, "set": list(settings)}, grid, tuple(cells))


def short(path: str, paths: Iterable[str]) -> str:
    """The end of a path, from a dot on, that no other of the paths has."""
    parts = path.split(".")
    others = [f".{other}" for other in paths if other != path]
    ends = (".".join(parts[-k:]) for k in range(1, len(parts) + 1))
    return next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), path)


def text(value: Any) -> str:
    """A value in letters that may stand in a folder's name on every system."""
    plain = value if isinstance(value, str) else json.dumps(value).strip("[]{}")
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", plain).rstrip("-.") or "empty"


def _names(points: list[dict[str, Any]]) -> list[str]:
    """A name for each cell; those that would share one, on some system, are numbered by what they hold."""
    plain = [",".join(f"{short(path, point)}={text(value)}" for path, value in point.items()) for point in points]
    times = Counter(name.lower() for name in plain)
    return [
        name if times[name.lower()] == 1 and len(name) <= LONGEST else f"{name[:LONGEST]}-{digest(point)[:8]}"
        for name, point in zip(plain, points, strict=True)
    ]


def _where(names: list[str], cells: int) -> str:
    """Which cells a problem is in."""
    if len(names) == cells:
        return "in every cell"
    return f"{'cell' if len(names) == 1 else 'cells'} {'; '.join(names)}"


def _check_side_by_side(cells: list[Cell]) -> None:
    """Refuse cells that would be one, and such as cannot share a machine's cores by one rule."""
    first: dict[str, Cell] = {}
    for cell in cells:
        same = first.setdefault(cell.key, cell)
        if same is not cell:
            raise UserError(f"cells {same.name} and {cell.name} are the same recipe; leave one of the values out")
    if len({cell.recipe.threads for cell in cells}) > 1:
        raise UserError("train.threads: differs between cells; it says how jobs share the cores, and so must be one")
