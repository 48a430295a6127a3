"""What others have chosen, as it is shown: one meaning for all three programs."""

from __future__ import annotations

import pytest

from provisioning.program.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("meter-1", "meter-1"),
        ("Zähler 1", "Zähler 1"),
        ("a\\b", "a\\b"),
        ("Zähler\x1b[2J\n", r"Zähler\x1b[2J\n"),
        ("a\\n\n", r"a\\n\n"),
        ("\x9b\u202e\ud800\U000e0001", r"\x9b\u202e\ud800\U000e0001"),
        ("", ""),
    ],
)
def test_what_is_not_to_be_seen_is_escaped_and_all_else_stays(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_what_the_caller_allows_stays() -> None:
    assert printable("one\\two\nthree", also="\n") == "one\\two\nthree"
    assert printable("one\n\x1bthree", also="\n") == "one\n\\x1bthree"
