"""docs/verify-it-yourself.md and README.md tell the truth: each command on them is run, its output compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.page import Terminal, free_ports, read_page, unlike
from tests.support.provisioning import REPOSITORY

PAGE = REPOSITORY / "docs" / "verify-it-yourself.md"
README = REPOSITORY / "README.md"
BY_HAND = "## By hand"


@pytest.mark.parametrize(("page", "heading"), [(PAGE, None), (README, BY_HAND)], ids=["verify-it-yourself", "readme"])
def test_every_command_on_the_page_does_what_the_page_shows(page: Path, heading: str | None, tmp_path: Path) -> None:
    steps = read_page(page, heading)
    assert steps
    with Terminal(tmp_path, free_ports()) as terminal:
        for step in steps:
            terminal.follow(step)


@pytest.mark.parametrize(("page", "heading"), [(PAGE, None), (README, BY_HAND)], ids=["verify-it-yourself", "readme"])
def test_what_is_pasted_into_an_interactive_zsh_has_no_comments(page: Path, heading: str | None) -> None:
    """There `#` begins none, so the first command of the README got its words as arguments, and failed."""
    for step in read_page(page, heading):
        for line in step.commands.splitlines():
            assert "#" not in re.sub(r"'[^']*'", "", line), line


def test_a_page_that_shows_something_else_is_noticed() -> None:
    output = ["one", "two 2", "three"]
    assert unlike(("one", "two …", "three"), output) is None
    assert unlike(("…", "three"), output) is None
    assert unlike(("one", "…"), output) is None
    assert unlike(("one", "three"), output) is not None
    assert unlike(("one", "two 3", "…"), output) is not None
    assert unlike(("one", "two 2"), output) is not None
    assert unlike((*output, "four"), output) is not None
