"""A command that is too wide for the terminal is shown on several lines, and is the same command to a shell."""

from __future__ import annotations

import shlex

import pytest

from provisioning.program.fitted_help import fitted

LONG = "  fleet-sim bench pub -c 100 --name 'a b  c' --message \"one two three four\" | sort > out"


@pytest.mark.parametrize("width", range(1, len(LONG) + 2))
def test_it_is_the_same_to_a_shell_whatever_the_width(width: int) -> None:
    told = fitted(f"Example:\n{LONG}", width).removeprefix("Example:\n")
    assert shlex.split(told.replace("\\\n", " ")) == shlex.split(LONG)
    lines = told.split("\n")
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert all(len(line) <= width for line in lines) or width < 35, "the longest word and its indentation"


def test_an_option_stays_with_its_value_and_what_fits_is_left_alone() -> None:
    assert fitted(LONG, len(LONG)) == LONG
    assert fitted(LONG, 50).split("\n") == [
        "  fleet-sim bench pub -c 100 --name 'a b  c' \\",
        '    --message "one two three four" | sort > out',
    ]
    assert fitted("a sentence that the formatter itself wraps", 10) == "a sentence that the formatter itself wraps"


def test_a_line_that_goes_on_already_goes_on() -> None:
    assert fitted("  fleet-broker run --cafile ca.crt --port 1 \\\n    --host ::1", 38).split("\n") == [
        "  fleet-broker run --cafile ca.crt \\",
        "    --port 1 \\",
        "    --host ::1",
    ]
