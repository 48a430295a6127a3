"""A long list of expected devices is read in a time that its length determines, however its last line ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from provisioning.commands.listed_commands import _batches
from provisioning.errors import ConfigurationError


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
        ("zone,name", r"its first line is 'zone,name'$"),
        ("name,Name", r"its first line is 'name,Name'$"),
        ("", r"its first line is ''$"),
    ],
)
def test_another_header_is_told_as_it_is(header: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        list(_batches(Path("x.csv"), f"{header}\n".encode(), lambda _, why: pytest.fail(why)))
