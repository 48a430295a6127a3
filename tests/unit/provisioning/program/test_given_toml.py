"""TOML of somebody else: read as `tomllib` reads it, unless it would take more than its length is worth."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.program.given_toml import MOST_NESTED, NotToml, toml_of

SAID_IN_STRINGS = """
# [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[ a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a
dots = "........................................................................................"
brackets = '[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[['
escaped = "\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\\"
long = \"\"\"
"" [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[ \\\"\"\" .................................................
\"\"\"
raw = '''
'' [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[ ..................................................
'''
numbers = [1.5, 2.5, 3.5, 1.5, 2.5, 3.5, 1.5, 2.5, 3.5, 1.5, 2.5, 3.5, 1.5, 2.5, 3.5, 1.5, 2.5, 3.5, 1.5, 2.5, 3.5,
  1.5, 2.5, 3.5, 1.5, 2.5, 3.5, 1.5, 2.5, 3.5, 1.5, 2.5, 3.5, 1.5, 2.5, 3.5, 1.5, 2.5, 3.5, 1.5, 2.5, 3.5]
tables = [{a.b = 1}, {a.b = 2}]
[x.y.z]
a.b.c = 1
"""


def test_what_strings_and_comments_say_counts_for_nothing() -> None:
    assert toml_of(SAID_IN_STRINGS) == tomllib.loads(SAID_IN_STRINGS)


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert toml_of("\ufeffa = 1") == {"a": 1}


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 50_000,
        "x = " + "{a = " * 50_000,
        ".".join("a" * 60_000) + " = 1",
        "[" + ".".join("a" * 60_000) + "]",
        "[[" + " . ".join('"a"' for _ in range(60_000)) + "]]",
        "x = {" + ".".join("a" * 60_000) + " = 1}",
        "a = [\n" + "[\n" * MOST_NESTED,
    ],
    ids=["arrays", "tables", "key", "header", "quoted", "inline", "lines"],
)
def test_what_is_nested_without_end_is_refused_before_it_is_worked_through(text: str) -> None:
    with pytest.raises(NotToml, match=r"^more than 32 levels, one within the other \(at line \d+\)$"):
        toml_of(text)


def test_what_is_nested_as_deep_as_allowed_is_read() -> None:
    text = f"x = {'[' * MOST_NESTED}{']' * MOST_NESTED}\n{'.'.join('a' * MOST_NESTED)} = 1\n"
    assert toml_of(text) == tomllib.loads(text)


@pytest.mark.parametrize("text", ["x = ", "x = 1" + "0" * 5000, "x = 1\nx = 2"])
def test_what_is_not_toml_is_one_error(text: str) -> None:
    with pytest.raises(NotToml):
        toml_of(text)


@given(st.text(alphabet="ab=.,[]{}\"'\\#\n 1", max_size=40))
def test_it_reads_what_tomllib_reads(text: str) -> None:
    try:
        expected = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        expected = None
    try:
        found = toml_of(text)
    except NotToml:
        found = None
    assert found == expected
