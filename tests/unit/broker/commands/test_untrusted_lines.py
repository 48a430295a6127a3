"""What a file is called, and what is in it, reaches the terminal as text, whichever command says it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.cli import app

ESCAPE = "\x1b[2J"


@pytest.mark.parametrize("words", [["crl", "try"], ["policy", "convert"], ["config", "convert"]], ids=" ".join)
def test_a_file_that_cannot_be_read_is_named_in_printable_form(words: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*words, str(tmp_path / f"a{ESCAPE}b")])
    assert done.exit_code in {1, 2}
    assert (done.stdout, ESCAPE in done.stderr, "a\\x1b[2Jb" in done.stderr) == ("", False, True), done.stderr
    assert "cannot be read: No such file or directory" in done.stderr


def test_what_a_converted_file_leaves_out_is_told_in_printable_form(tmp_path: Path) -> None:
    given = tmp_path / f"a{ESCAPE}b"
    given.write_text("topic read a\nuser m\ntopic read b\n")
    done = CliRunner().invoke(app, ["policy", "convert", str(given)])
    assert (done.exit_code, ESCAPE in done.output) == (0, False), done.output
    assert "a\\x1b[2Jb: line 1: left out: " in done.stderr
    assert "a\\x1b[2Jb by fleet-broker" in done.stdout
