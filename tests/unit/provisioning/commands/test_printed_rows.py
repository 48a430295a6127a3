"""Answers that are printed as they come: nothing is lost by the portions, nor by an end before its time."""

from __future__ import annotations

import itertools
import json
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence

import pytest
from pydantic import BaseModel
from rich.cells import cell_len

from provisioning.commands.printed_rows import JsonArray, print_each, print_list
from provisioning.commands.service_command import say
from provisioning.program.printed_table import Table, print_pairs
from tests.support.programs import REPOSITORY

COLUMNS = ("number", "device")
WRITES_BESIDE_A_BAR = """
import sys
from provisioning.commands.service_command import progress
with progress("rows", 2) as advance:
    for word in ("one", "two"):
        sys.stdout.write(f"{word}\\n")
        advance(1)
"""


class Fact(BaseModel):
    number: int
    words: list[str]


FACTS = [Fact(number=1, words=["a", "b"]), Fact(number=2, words=[]), Fact(number=3, words=["\n"])]


def test_a_table_in_portions_is_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(COLUMNS)
    for portion in ([("1", "a")], [], [("2", "meter-17"), ("3", "b")], [("4", "c")]):
        table.print(portion)
    expected = ["number  device", "1       a", "2       meter-17", "3       b", "4       c"]
    assert capsys.readouterr().out.splitlines() == expected


def test_nothing_in_a_table_a_list_of_facts_or_a_line_acts_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "CN=a\x1b]52;c;aGk=\x07\u202e\nb"
    shown = r"CN=a\x1b]52;c;aGk=\x07\u202e\nb"
    Table(COLUMNS).print([("1", evil)])
    print_pairs([("subject", evil)])
    assert capsys.readouterr().out == f"number  device\n1       {shown}\nsubject  {shown}\n"
    say(evil)
    assert capsys.readouterr().err == shown.replace(r"\n", "\n") + "\n"


def test_blocks_of_a_narrow_terminal_are_apart_in_portions_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    table = Table(COLUMNS)
    table.print([("1", "a"), ("2", "b")])
    table.print([("3", "c")])
    blocks = capsys.readouterr().out.split("\n\n")
    assert [block.split() for block in blocks] == [["number", n, "device", d] for n, d in ("1a", "2b", "3c")]


def test_columns_are_below_each_other_whatever_the_names_are_written_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(("device", "place"))
    table.print([("計器", "a"), ("Za\u0308hler", "b"), ("🚀1", "c"), ("meter-17", "d")])
    print_pairs([("計器", "a"), ("name", "b")])
    lines = capsys.readouterr().out.splitlines()
    assert [cell_len(line) for line in lines] == [15, 11, 11, 11, 11, 7, 7]
    monkeypatch.setenv("COLUMNS", "14")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    Table(("device", "place")).print([("計計計計計", "abcd")])
    assert capsys.readouterr().out == "device  計計計計計\nplace   abcd\n", "as a table it would be wider than that"


@pytest.mark.parametrize("cuts", [[0, 3], [0, 1, 3], [0, 1, 1, 2, 3]])
def test_an_array_in_portions_is_what_json_makes_of_it(capsys: pytest.CaptureFixture[str], cuts: Sequence[int]) -> None:
    with JsonArray() as array:
        for begin, end in itertools.pairwise(cuts):
            array.print(FACTS[begin:end])
    assert capsys.readouterr().out == json.dumps([each.model_dump() for each in FACTS], indent=2) + "\n"


@pytest.mark.parametrize("number", [0, 1, 1000, 1001, 2500])
@pytest.mark.parametrize("as_json", [True, False])
async def test_a_list_is_printed_as_it_comes_and_is_the_same_as_if_it_had_been_held(
    capsys: pytest.CaptureFixture[str], number: int, as_json: bool
) -> None:
    facts = [Fact(number=each, words=["a"]) for each in range(1000, 1000 + number)]
    printed_before_the_end: list[str] = []

    async def come() -> AsyncIterator[Fact]:
        for each in facts:
            yield each
        printed_before_the_end.append(capsys.readouterr().out)

    def row(fact: Fact) -> Sequence[str]:
        return str(fact.number), *fact.words

    await print_each(come(), COLUMNS, row, as_json=as_json)
    rest = capsys.readouterr().out
    print_list(facts, COLUMNS, row, as_json=as_json)
    assert printed_before_the_end[0] + rest == capsys.readouterr().out
    assert bool(printed_before_the_end[0]) == (number >= 1000)


def _print_and_fail(members: Sequence[Fact]) -> None:
    with JsonArray() as array:
        array.print(members)
        raise OSError("gone")


def test_an_array_that_ends_early_is_whole_and_an_empty_one_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for begun in (FACTS[:1], []):
        with pytest.raises(OSError, match="gone"):
            _print_and_fail(begun)
        said = capsys.readouterr().out
        assert (json.loads(said) if said else []) == [each.model_dump() for each in begun]
    with JsonArray():
        pass
    assert capsys.readouterr().out == "[]\n"


def test_a_file_gets_its_rows_although_a_bar_is_on_the_terminal() -> None:
    ours, theirs = pty.openpty()
    try:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}
        program = [sys.executable, "-c", WRITES_BESIDE_A_BAR]
        done = subprocess.run(program, stdout=subprocess.PIPE, stderr=theirs, env=environment, check=True, timeout=60)
        assert os.read(ours, 65536), "the bar"
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.stdout == b"one\ntwo\n"
