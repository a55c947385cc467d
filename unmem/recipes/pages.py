"""The environments of the reports' templates: both escape every value, each in its own way."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from unmem.recipes.tables import number, plain, said, seconds

TEMPLATES = Path(__file__).parent / "templates"


def html() -> Environment:
    """HTML: Jinja's own escaping."""
    return _environment()


def markdown() -> Environment:
    """Markdown: what could end a table's cell or start markup is escaped; line breaks become spaces."""

    def escaped(value: Any) -> Markup:
        if isinstance(value, Markup):
            return value
        text = escape(" ".join(str(value).split()), quote=False)
        return Markup(re.sub(r"[\\`*|\[\]]", r"\\\g<0>", text))

    return _environment(finalize=escaped)


def _environment(**options: Any) -> Environment:
    """What both have in common."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, **options,
    )  # fmt: skip
    filters: list[Callable[..., str]] = [number, plain, said, seconds]
    made.filters |= {function.__name__: function for function in filters}
    return made
