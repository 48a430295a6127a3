"""A long list of expected devices is read in a time that its length determines, however its last line ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from provisioning.commands.listed_commands import _batches


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
