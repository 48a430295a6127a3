"""What a command says of a file that somebody else has written does not act on the reader's terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.cli import app

EVIL = r"a\u001b]52;c;aGk=\u0007\u202e"
SHOWN = r"a\x1b]52;c;aGk=\x07\u202e"


@pytest.mark.parametrize(
    ("content", "arguments"),
    [
        (f'"{EVIL}" = 1', ["run", "--test-config", "--config"]),
        (f'"{EVIL}" = 1', ["run", "--config"]),
        (f'[role."{EVIL}"]', ["policy", "test", "--identity", "spiffe://a/device/b/c", "--publish", "x", "--policy"]),
    ],
)
def test_a_key_with_an_escape_sequence_is_shown_escaped(tmp_path: Path, content: str, arguments: list[str]) -> None:
    file = tmp_path / "given.toml"
    file.write_text(f"{content}\n")
    done = CliRunner().invoke(app, [*arguments, str(file)])
    assert done.exit_code != 0
    assert SHOWN in done.stderr
    assert "\x1b" not in done.output


@pytest.mark.parametrize("arguments", [["check"], ["status", "--state-dir"]])
def test_so_is_the_name_of_a_file(tmp_path: Path, arguments: list[str]) -> None:
    done = CliRunner().invoke(app, [*arguments, f"{tmp_path}/a\x1b]52;c;aGk=\x07\u202e"])
    assert done.exit_code != 0
    assert SHOWN in done.stderr
    assert "\x1b" not in done.output
