"""What the shell offers for a client identifier: what the broker answers, if that is all of them, and words alone."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import typer
from typer._click.shell_completion import _resolve_context

from broker.cli import app
from broker.commands import known_clients
from broker.commands.known_clients import client_ids
from tests.support.answering import answering

JSON = "application/json"
SOME = ["meter-1", "meter-2", "gate:7@x", "white space", "$(reboot)", "two\nlines", "zähler"]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with much else to do may need more than two seconds; those are not tested here."""
    monkeypatch.setattr(known_clients, "_SECONDS", 60.0)


def completing(command: str) -> typer.Context:
    return cast("typer.Context", _resolve_context(typer.main.get_command(app), {}, "fleet-broker", command.split()))


def answered(place: Path, names: list[str], matched: int, option: str = "") -> list[str]:
    sessions = [{"client_id": each} for each in names]
    body = json.dumps({"sessions": sessions, "matched": matched, "shown": len(names)})
    with answering(place / "broker.sock", body, JSON) as path:
        return client_ids(completing(f"kick --admin-socket {path} {option}"), "")


def test_what_would_be_no_word_in_a_shell_is_left_out(tmp_path: Path) -> None:
    assert answered(tmp_path, SOME, len(SOME)) == ["gate:7@x", "meter-1", "meter-2"]


def test_of_more_than_are_shown_none_is_offered(tmp_path: Path) -> None:
    assert answered(tmp_path, SOME, len(SOME) + 1) == []


def test_at_an_address_that_is_empty_the_broker_here_is_not_asked(tmp_path: Path) -> None:
    assert answered(tmp_path, SOME, len(SOME), "--url=") == []


def test_a_broker_that_is_asked_and_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_clients, "_SECONDS", 0.1)
    before = set(threading.enumerate())
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(tmp_path / "broker.sock"))
        hanging.listen()
        hanging.settimeout(60)
        assert client_ids(completing(f"kick --admin-socket {tmp_path / 'broker.sock'}"), "meter") == []
        (asking,) = set(threading.enumerate()) - before
        assert asking.daemon, "the program need not wait for it either"
        assert asking.is_alive()
        hanging.accept()[0].close()  # It looks first whether anybody is there.
        with hanging.accept()[0] as connected:
            assert b"&beginning=meter " in connected.recv(65536).partition(b"\r\n")[0], "all are not needed"
    asking.join()


@pytest.fixture(params=["no JSON", "[]", "{}"])
def something_else(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with answering(tmp_path / "stranger.sock", request.param, JSON) as path:
        yield f"kick --admin-socket {path}"


def test_what_is_no_broker_offers_nothing(something_else: str) -> None:
    assert client_ids(completing(something_else), "") == []


@pytest.mark.parametrize(
    "command",
    [
        "kick --admin-socket /nowhere",
        "kick --config /nowhere",
        "--cafile x kick",
        "--url http://broker:9443 --cafile x --cert x --key x kick",
        "--url https://broker:9443 --cafile /nowhere --cert /nowhere --key /nowhere kick",
        "--url https://127.0.0.1:1 --cafile {open} --cert {open} --key {open} kick",
        "kick --url https://127.0.0.1:1 --cafile {open} --cert {open} --key {open}",
    ],
)
def test_who_cannot_ask_is_offered_nothing_and_told_nothing(
    tmp_path: Path, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even of a key that everybody may read: the line that is being typed would be torn at each Tab."""
    (tmp_path / "open.pem").touch(0o644)
    (tmp_path / "open.pem").chmod(0o644)
    assert client_ids(completing(command.format(open=tmp_path / "open.pem")), "meter") == []
    assert capfd.readouterr() == ("", "")
