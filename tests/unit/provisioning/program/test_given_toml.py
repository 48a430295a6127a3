"""TOML of somebody else: read as `tomllib` reads it, unless it would take more than its length is worth."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.program.given_toml import MOST_NESTED, NotToml, toml_of
from provisioning.program.toml_twice import said_twice

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
ends = [\"\"\"a\"\"\"\",
  \"\"\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"\"\"\"\",
  '''[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[''''']
[x.y.z]
a.b.c = 1
"""


def test_what_strings_and_comments_say_counts_for_nothing() -> None:
    assert toml_of(SAID_IN_STRINGS) == tomllib.loads(SAID_IN_STRINGS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 1\nhost = 'a'\nport = 2\n", "port is there twice, at lines 1 and 3: leave one of them"),
        ('"port" = 1\nport = 2', "port is there twice, at lines 1 and 2: leave one of them"),
        ("[x]\na = [1,\n2]\n\n# a = 3\na = [1,\n3]\n", "x.a is there twice, at lines 2 and 6: leave one of them"),
        ("[[t]]\na = 1\n[[t]]\na = 1\na = 2", "t.a is there twice, at lines 4 and 5: leave one of them"),
        (
            "[[t]]\n[t.b]\nc = 1\n[[t]]\n[t.b]\nc = 1\nc = 2",
            "t.b.c is there twice, at lines 6 and 7: leave one of them",
        ),
        (
            's = """\na = 1\na = 2\n"""\nb = 1 # b = 2\nb = "c = 3"',
            "b is there twice, at lines 5 and 6: leave one of them",
        ),
        (
            "[x]\na = 1\n[y] # [x]\nb = 1\n[ x ]\nc = 1",
            "[x] is there twice, at lines 1 and 5: put what is below both below one",
        ),
        ("a = [\n {b = 1},\n {b = 1},\n]\nc = 1\nc = 2", "c is there twice, at lines 5 and 6: leave one of them"),
        ("a = [\n[1],\n[1],\n]\nb = 1\nb = 2", "b is there twice, at lines 5 and 6: leave one of them"),
        (
            "[t]\na = [[1], [\n2]] # [t]\n[u]\na = {x = {y = 1}}\n[t.v]\na = 1\na = 2",
            "t.v.a is there twice, at lines 7 and 8: leave one of them",
        ),
        ("a = 1\n[a]\nb = 1", "a is there as a key and as a table, at lines 1 and 2: leave one of them"),
        ("a.b = 1\na = 2", "Cannot overwrite a value (at end of document)"),
    ],
)
def test_what_is_there_twice_is_named_with_both_lines_and_the_remedy(text: str, said: str) -> None:
    with pytest.raises(NotToml) as caught:
        toml_of(text)
    assert str(caught.value) == said


_LINES = st.sampled_from(
    ("a = 1", "b = [1,\n 2]", "[t]", "[[u]]", "[t.v]", "a.b = 2", "", "# a = 1", "c = {a = 1}", "'a' = 3")
)


@given(st.lists(_LINES, max_size=12).map("\n".join))
def test_what_says_nothing_twice_is_not_said_to(text: str) -> None:
    try:
        tomllib.loads(text)
    except ValueError:
        said_twice(text)
    else:
        assert said_twice(text) is None


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
        'x = ["""a"""", ' + "[" * 50_000 + '"z"',
        "x = ['''a''''', " + "[" * 50_000 + "'z'",
    ],
    ids=["arrays", "tables", "key", "header", "quoted", "inline", "lines", "behind quotes", "behind literal quotes"],
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


@pytest.mark.timeout(25)
@pytest.mark.parametrize(
    "text",
    [
        'a = "' + r"\"" * 100_000,
        'a = """' + r"\"" * 100_000,
        "".join(f"[[a{number}]]\nb = 1\n" for number in range(20_000)) + "c = 1\nc = 2",
        "a = [" + "\n" * 400_000 + "]\na = 1",
        "a = 1\na.b = 2\n" + r"\"" * 200_000,
    ],
    ids=["a string", "a long string", "tables", "lines", "behind what is wrong"],
)
def test_what_is_wrong_is_found_in_a_time_that_grows_as_the_text(text: str) -> None:
    """Each of these took minutes."""
    with pytest.raises(NotToml, match=r"^Unterminated string|is there twice, at lines|^Cannot overwrite"):
        toml_of(text)
