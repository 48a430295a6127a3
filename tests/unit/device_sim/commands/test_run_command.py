"""What `fleet-sim run` says of options that name no place to run, or two."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from device_sim.cli import app


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "say where to run"),
        ("--self-hosted --fleet meters", "leave out --fleet"),
        ("--self-hosted --broker localhost:8883", "--broker and --server-name are for --fleet"),
        ("--self-hosted --server-name mqtt.example.org", "--broker and --server-name are for --fleet"),
        ("--fleet meters --against mosquitto", "a broker of yours is named by --broker"),
        ("--self-hosted --path /mqtt", "add --websocket, or leave it out"),
        ("--self-hosted --ws --path mqtt", "--path 'mqtt' is no path: write one as /mqtt"),
        ("--fleet meters --broker wss://localhost:8884/mqtt", "For MQTT over WebSocket, add --websocket"),
    ],
)
def test_one_place_is_named(options: str, words: str) -> None:
    done = CliRunner().invoke(app, ["run", "smoke", *options.split()], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert words in done.output
