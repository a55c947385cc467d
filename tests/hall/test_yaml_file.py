"""YAML without its traps."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unmem.component import UserError
from unmem.recipes.yaml_file import parse, read, to_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("2.5e-3", 2.5e-3), (".5", 0.5), ("-1.", -1.0), ("1.5", 1.5),
        ("25_000", 25_000), ("010", 10), ("-3", -3), ("true", True), ("False", False), ("null", None), ("~", None),
        ("no", "no"), ("on", "on"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), ("1e", "1e"), ("e5", "e5"),
        ("0x1F", "0x1F"), ("[1, 2.0, a]", [1, 2.0, "a"]), ("'1'", "1"), ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)  # fmt: skip
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    found = parse(text, "t")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "t, line 3: duplicate key 'a'; it stands in line 1 already"),
        ("a: {b: 1, b: 2}", "t, line 1: duplicate key 'b'"),
        ("a: [1", "t, line 1"),
        ("a: !!python/object/apply:os.system [echo]", "t, line 1: could not determine a constructor"),
        ("1: a", "key 1 is not text"),
        ("a: b: c", "t, line 1"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(text, "t")
    assert message in str(error.value)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"x\.yaml: cannot be read as text"):
        read(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "y.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("abc1e-.:~ "),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
@example("1e-5")
@example(["no", "010", "25_000", "12:30", "true", "~", 1e-5, 1e22, 0.1])
def test_what_is_written_is_read_again(value: object) -> None:
    assert parse(to_text(value), "t") == value
