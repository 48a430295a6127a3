"""What a file is called, and what is in it, reaches the terminal as text, whichever command says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.cli import app
from tests.support.answering import answering

ESCAPE = "\x1b[2J"


@pytest.mark.parametrize("words", [["crl", "try"], ["policy", "convert"], ["config", "convert"]], ids=" ".join)
def test_a_file_that_cannot_be_read_is_named_in_printable_form(words: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*words, str(tmp_path / f"a{ESCAPE}b")])
    assert done.exit_code in {1, 2}
    assert (done.stdout, ESCAPE in done.stderr, "a\\x1b[2Jb" in done.stderr) == ("", False, True), done.stderr
    assert "cannot be read: No such file or directory; " in done.stderr


def test_what_a_converted_file_leaves_out_is_told_in_printable_form(tmp_path: Path) -> None:
    given = tmp_path / f"a{ESCAPE}b"
    given.write_text("topic read a\nuser m\ntopic read b\n")
    done = CliRunner().invoke(app, ["policy", "convert", str(given)])
    assert (done.exit_code, ESCAPE in done.output) == (0, False), done.output
    assert "a\\x1b[2Jb: line 1: left out: " in done.stderr
    assert "a\\x1b[2Jb by fleet-broker" in done.stdout


@pytest.mark.parametrize("words", [["crl", "try"], ["reload", "--dry-run"]], ids=" ".join)
def test_a_ca_of_a_partner_is_named_in_printable_form(words: list[str], tmp_path: Path) -> None:
    """A subject may contain anything, and the partner whose CA it is chooses it."""
    (tmp_path / "list.crl").write_bytes(b"x")
    said = f"would disconnect 1 of 1 clients: m (the CA CN=a{ESCAPE}b revoked)"
    part = {"text": said, "used": True, "code": ""}
    answer = json.dumps({"lists": [part], "parts": [part], "refused": False})
    files = [str(tmp_path / "list.crl")] if words[0] == "crl" else []
    with answering(tmp_path / "broker.sock", answer) as path:
        done = CliRunner().invoke(app, [*words, *files, "--admin-socket", str(path)])
    assert (done.exit_code, done.stdout) == (0, said.replace(ESCAPE, "\\x1b[2J") + "\n")
