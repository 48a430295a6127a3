"""The words for a broker that runs already: the same ones in `run`, `attack`, `revocation` and `bench`."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from device_sim.broker_words import address_in, named
from device_sim.cli import app
from provisioning.program.host_and_port import with_port

COMMANDS = ("run", "attack", "revocation", "delivery", "bench conn", "bench pub", "bench sub")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost", ("localhost", 8883)),
        ("localhost:1", ("localhost", 1)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("mqtts://127.0.0.1:8884", ("127.0.0.1", 8884)),
        ("mqtts://broker.lab/", ("broker.lab", 8883)),
        ("::1", ("::1", 8883)),
        ("[::1]", ("::1", 8883)),
        ("[::1]:1883", ("::1", 1883)),
    ],
)
def test_a_broker_is_called_as_people_do_and_as_it_calls_itself(text: str, address: tuple[str, int]) -> None:
    assert address_in(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "", ":8883", "localhost:0", "localhost:65536", "localhost:-1", "localhost:mqtt", "mqtt://localhost:1883",
        "https://localhost:8443", "[::1", "localhost:8883/path", "me@localhost", "localhost:8883?x=1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_told_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="write HOST or HOST:PORT"):
        address_in(text)


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ((None, None, None), None),
        (("mqtts://127.0.0.1:8884", None, None), ("127.0.0.1", 8884)),
        (("broker.lab", None, None), ("broker.lab", 8883)),
        ((None, "broker.lab", None), ("broker.lab", 8883)),
        ((None, "::1", 1), ("::1", 1)),
        ((None, None, 8884), ("localhost", 8884)),
    ],
)
def test_one_word_says_what_two_say(words: tuple[str | None, str | None, int | None], place: object) -> None:
    assert named(*words) == place


@pytest.mark.parametrize("host", ["", "[::1]", "mqtts://localhost", "loc alhost"])
def test_a_host_is_a_host_alone(host: str) -> None:
    with pytest.raises(typer.BadParameter, match="--broker takes HOST or HOST:PORT"):
        named(None, host, None)


@pytest.mark.parametrize(("host", "port"), [("localhost", None), (None, 8883)])
def test_both_ways_at_once_are_refused(host: str | None, port: int | None) -> None:
    with pytest.raises(typer.BadParameter, match="--broker says what --host and --port say"):
        named("localhost:8883", host, port)


def test_what_is_no_address_is_told_with_what_to_write() -> None:
    with pytest.raises(typer.BadParameter, match=r"--broker mqtt://x: write HOST or HOST:PORT"):
        named("mqtt://x", None, None)


def test_a_broker_is_shown_as_it_can_be_given() -> None:
    for place in (("localhost", 8883), ("::1", 1)):
        assert named(with_port(*place), None, None) == place


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_dials_a_broker_knows_these_words(command: str) -> None:
    shown_help = CliRunner().invoke(app, [*command.split(), "--help"]).output
    assert all(
        word in shown_help for word in ("--broker <str>", "--host <str>", "--port <int range>", "--ws", "--path")
    )


@pytest.mark.parametrize("command", ["attack", "revocation", "delivery"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--port 8883", "--broker: give --cafile, and --ca-cert and --ca-key, or --provisioning"),
        ("--broker localhost --against mosquitto", "leave one of them out"),
        ("--server-name localhost", "for a broker given by --broker"),
        ("--path /mqtt", "add --websocket, or leave it out"),
    ],
)
def test_options_that_do_not_go_together_are_not_passed_over(command: str, options: str, words: str) -> None:
    done = CliRunner().invoke(app, [command, *options.split()], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert words in done.output
