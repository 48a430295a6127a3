"""The index of decisions names each of them once, by its own title."""

from __future__ import annotations

import re

from tests.support.provisioning import REPOSITORY

FOLDER = REPOSITORY / "docs" / "decisions"
ROW = re.compile(r"^\| \[(\d{4})\]\(([^)]+)\) \| (.+) \|$", re.MULTILINE)


def test_the_index_names_each_decision_once_by_its_title() -> None:
    listed = [(number, name, title) for number, name, title in ROW.findall((FOLDER / "README.md").read_text())]
    written = [
        (path.name[:4], path.name, path.read_text().splitlines()[0].removeprefix(f"# {path.name[:4]} "))
        for path in sorted(FOLDER.glob("[0-9]*.md"))
    ]
    assert written
    assert sorted(listed) == written
