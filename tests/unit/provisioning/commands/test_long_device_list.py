"""A long list of expected devices is read in a time that its length determines, and whoever interrupts its import is
told how far it has come, with what was under way.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from provisioning.client.operator import RequestRefused, ServiceUnavailable
from provisioning.commands.in_steps import Telling
from provisioning.commands.listed_commands import _batches, _HowFar
from provisioning.errors import Code, ConfigurationError


class Searched(bytes):
    """Bytes that count how often all of them are searched."""

    searches = 0

    def count(self, *sought: Any) -> int:
        type(self).searches += 1
        return super().count(*sought)


@pytest.mark.parametrize("end", ["", "\n"], ids=["cut off", "whole"])
def test_its_lines_are_counted_once(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Searched, "searches", 0)
    lines = [f"meter-{number},{number:064x}" for number in range(300)]
    content = Searched("\n".join(["name,key_sha256", *lines]).encode() + end.encode())
    complaints: list[str] = []
    read = [each for batch in _batches(Path("x.csv"), content, lambda _, why: complaints.append(why)) for each in batch]
    assert ([name for _, name, _ in read], complaints) == ([each.split(",")[0] for each in lines], [])
    assert Searched.searches <= 1


@pytest.mark.parametrize("header", ["name,key_sha256", "Name, KEY_SHA256 ", "\ufeffNAME,key_sha256"])
def test_a_header_is_read_as_spreadsheets_write_it(header: str) -> None:
    (batch,) = _batches(Path("x.csv"), f"{header}\r\nmeter-1,ab\r\n".encode(), lambda _, why: pytest.fail(why))
    assert batch == [(2, "meter-1", "ab")]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("name;key_sha256", r"is 'name;key_sha256'; separate them by commas, not by ';'$"),
        ("name\tkey_sha256", r"not by '\\t'$"),
        ("zone,name", r"its first line is 'zone,name'; take out 'zone'$"),
        ("name,Name", r"its first line is 'name,Name'$"),
        ("", r"its first line is ''$"),
    ],
)
def test_another_header_is_told_as_it_is(header: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        list(_batches(Path("x.csv"), f"{header}\n".encode(), lambda _, why: pytest.fail(why)))


@pytest.mark.parametrize(
    ("reached", "under_way", "error", "said"),
    [
        (0, 1001, KeyboardInterrupt(), "perhaps imported as far as line 1001: to run it again does no harm"),
        (1001, 2001, KeyboardInterrupt(),
         "imported as far as line 1001, and perhaps as far as line 2001: to run it again does no harm"),
        (1001, 2001, ServiceUnavailable("gone"),
         "imported as far as line 1001, and perhaps as far as line 2001: to run it again does no harm"),
        (1001, 2001, RequestRefused(404, Code.GROUP_UNKNOWN, "gone"), "imported as far as line 1001"),
        (0, 1001, RequestRefused(404, Code.GROUP_UNKNOWN, "gone"), ""),
        (1001, 1001, ConfigurationError("a quotation mark has no end"), "imported as far as line 1001"),
        (1001, 1001, None, ""),
    ],
)  # fmt: skip
def test_an_import_that_ends_early_says_what_was_under_way(
    reached: int, under_way: int, error: BaseException | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(BaseException), _HowFar(Path("x.csv"), Telling()) as far:
        far.reached, far.under_way = reached, under_way
        if error is not None:
            raise error
    assert capsys.readouterr().err == (said and f"fleet-provisioning: x.csv is {said}\n")
