"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import unmem

MODULES = [
    info.name
    for info in pkgutil.walk_packages(unmem.__path__, "unmem.")
    if not info.ispkg and info.name != "unmem.__main__"
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
