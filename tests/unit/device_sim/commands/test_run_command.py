"""What `fleet-sim run` says of options that name no place to run, or two."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from device_sim.cli import app
from device_sim.commands.run_command import _line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "say where to run"),
        ("--self-hosted --fleet meters", "leave out --fleet"),
        ("--self-hosted --broker localhost:8883", "--broker and --server-name are for --fleet"),
        ("--self-hosted --server-name mqtt.example.org", "--broker and --server-name are for --fleet"),
        ("--fleet meters --against mosquitto", "a broker of yours is named by --broker"),
    ],
)
def test_one_place_is_named(options: str, words: str) -> None:
    done = CliRunner().invoke(app, ["run", "smoke", *options.split()], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert words in done.output


def test_a_summary_keeps_its_column_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    head, text = "chaos  100 devices  ", "Everything that can go wrong, under devices"
    assert _line(head, text) == head + text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "44")
    assert _line(head, text).splitlines() == [
        "chaos  100 devices  Everything that can go",
        "                    wrong, under devices",
    ]
