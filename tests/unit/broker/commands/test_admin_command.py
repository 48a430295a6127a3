"""What commands print: a table, and on a terminal that is too narrow for it, rows of several lines."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from broker.cli import app
from broker.commands.admin_command import print_facts, print_table
from broker.commands.crl_commands import _print_status, needs_attention
from tests.support.answering import answering
from tests.support.pki import shared_pki

COLUMNS = ("client id", "group", "serial")
ROWS = [
    ("meter-1", "north", "5e7de11f0ba7119a3b584cb5685734fb"),
    ("meter-2", "north", "4830faef90a81da9cfb6010eb110de05"),
]
TABLE = """\
client id  group  serial
meter-1    north  5e7de11f0ba7119a3b584cb5685734fb
meter-2    north  4830faef90a81da9cfb6010eb110de05
"""
RECORDS = """\
client id  meter-1
group      north
serial     5e7de11f0ba7119a3b584cb5685734fb

client id  meter-2
group      north
serial     4830faef90a81da9cfb6010eb110de05
"""
FACTS = {
    "listeners": ["mqtts://127.0.0.1:8883", "wss://127.0.0.1:8884"],
    "closed": {"CLIENT_CLOSED": 7, "BAD_PACKET": 1},
}
PROGRAM = f"from broker.commands.admin_command import print_table; print_table({COLUMNS!r}, {ROWS!r})"


def on_a_terminal(width: int, program: str = PROGRAM) -> str:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    try:
        subprocess.run([sys.executable, "-c", program], stdout=theirs, check=True, env=environment, timeout=60)
        return os.read(ours, 65536).decode().replace("\r\n", "\n")
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(("width", "shown"), [(50, TABLE), (49, RECORDS)])
def test_a_table_that_does_not_fit_is_shown_row_by_row(width: int, shown: str) -> None:
    assert on_a_terminal(width) == shown


def test_a_fact_that_does_not_fit_goes_on_where_it_began() -> None:
    program = f"from broker.commands.admin_command import print_facts; print_facts({FACTS!r})"
    assert on_a_terminal(40, program).splitlines() == [
        "listeners  mqtts://127.0.0.1:8883",
        "           wss://127.0.0.1:8884",
        "closed     CLIENT_CLOSED 7, BAD_PACKET 1",
    ]
    assert on_a_terminal(120, program).count("\n") == 2


def test_into_a_pipe_goes_a_table_however_wide(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, ROWS)
    assert capsys.readouterr().out == TABLE


def test_a_broker_that_was_not_started_anew_since_an_upgrade_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    answer: dict[str, Any] = {"lists": [], "feed_age_seconds": 0.5, "newcomers_admitted": True, "alarms": {}}
    assert not needs_attention(answer)
    _print_status(answer)
    assert capsys.readouterr().out.splitlines() == [
        "feed age                    0.5s",
        "newcomers admitted          yes",
        "CRL and OCSP alarms so far  none",
    ]


def test_a_broker_without_a_feed_is_told_as_such_and_not_that_none_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    answer: dict[str, Any] = {
        "lists": [],
        "feed_policy": None,
        "feed_lost": False,
        "feed_age_seconds": None,
        "entries": {},
    }
    _print_status(answer)
    assert capsys.readouterr().out == "no revocation feed is configured\n\nentries  none\n"
    _print_status(answer | {"feed_policy": "grace 5m", "feed_lost": True, "feed_age_seconds": 1.0})
    assert capsys.readouterr().out.splitlines() == ["feed lost  yes", "feed age   1s", "entries    none"]


def prospect(source: str, admitted: bool | None, bundle: str = "cafile") -> dict[str, Any]:
    return {"bundle": bundle, "source": source, "admitted": admitted}


@pytest.mark.parametrize(
    ("answer", "attention"),
    [
        ({"feed_lost": False}, False),
        ({"feed_lost": True}, True),
        ({"lists": [{"state": "current"}]}, False),
        ({"lists": [{"state": "late"}]}, True),
        ({"staple": {"state": "no responder"}}, False),
        ({"staple": {"state": "revoked"}}, True),
        ({"newcomers": [prospect("OCSP", None), prospect("CRL", True), prospect("CRL", False)]}, False),
        ({"newcomers": [prospect("OCSP", None), prospect("CRL", False), prospect("CRL", False)]}, True),
        ({"newcomers": [prospect("feed", False), prospect("CRL", True)]}, True),
        ({"newcomers": [prospect("feed", True), prospect("CRL", False, "plant-7")]}, True),
    ],
)
def test_the_exit_code_of_crl_status_is_about_every_source(answer: dict[str, Any], attention: bool) -> None:
    assert needs_attention({"lists": []} | answer) is attention


def said(result: Result, code: int = 1) -> str:
    """Return the one line on standard error of a command that has failed, with *code*, as it should."""
    assert result.exit_code == code, result.exception
    assert isinstance(result.exception, SystemExit), result.exception
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(("key", "command"), [("state_dir", ["status"]), ("admin_socket", ["kick", "meter-1"])])
def test_a_file_that_says_no_place_is_named(tmp_path: Path, key: str, command: list[str]) -> None:
    path = tmp_path / "broker.toml"
    path.write_text(f"{key} = 5\n")
    result = CliRunner().invoke(app, [*command, "--config", str(path)])
    assert said(result, 2) == f"fleet-broker: {path}: {key}: give a text, in quotes"


def test_an_audit_log_that_is_no_path_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text("audit_log = 5\n")
    result = CliRunner().invoke(app, ["audit", "verify", "--config", str(path)])
    assert said(result, 2) == f"fleet-broker: {path}: audit_log: give a text, in quotes"


@pytest.mark.parametrize(
    "command",
    ["status", "check meter.crt", "check --offline meter.crt", "run --test-config", "policy show", "audit verify"],
)
def test_settings_that_cannot_be_used_are_exit_code_2_of_each_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shared_pki().write_anchors(tmp_path).rename("meter.crt")
    path = tmp_path / "broker.toml"
    path.write_text("this is no TOML\n")
    result = CliRunner().invoke(app, [*command.split(), "--config", str(path)])
    assert said(result, 2).startswith(f"fleet-broker: {path} is not TOML: ")


@pytest.fixture(params=["hello", "[]", '{"status": "ok"}', '{"sessions"', "\N{EURO SIGN}"])
def stranger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A socket at which something answers 200 that is no broker."""
    with answering(tmp_path / "stranger.sock", request.param, "application/json") as path:
        yield path


@pytest.mark.parametrize(
    "command",
    [["status"], ["sessions"], ["sessions", "--json"], ["why", "meter-1"], ["kick", "meter-1"], ["trust", "show"]],
    ids=" ".join,
)
def test_what_answers_and_is_no_broker_is_called_so(stranger: Path, command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--admin-socket", str(stranger)])
    assert said(result).startswith(f"fleet-broker: no broker answers at {stranger} (what answers there is something")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("store", "told"),
    [
        ("written", ""),
        ("slow", "the broker's store is slow and has not written this yet: until it has, "),
        ("failed", "the broker's store cannot be written now: until it has, "),
    ],
)
def test_who_ends_a_session_is_told_what_is_known_of_the_disk(tmp_path: Path, store: str, told: str) -> None:
    who = {"client_id": "m", "identity": "spiffe://d/device/g/m", "address": None}
    ended = {"kicked": [{**who, "was_connected": False, "session_kept": False}], "stored": store == "written"}
    with answering(tmp_path / "broker.sock", json.dumps(ended | {"store": store})) as path:
        result = CliRunner().invoke(app, ["kick", "m", "--forget", "--admin-socket", str(path)])
    assert (result.exit_code, result.stdout) == (0, "m (spiffe://d/device/g/m): forgotten\n")
    assert result.stderr == (f"{told}a crash would bring the session back\n" if told else "")


@pytest.mark.parametrize(
    ("url", "text", "code"),
    [
        ("http://127.0.0.1:9443", "--url: 'http://127.0.0.1:9443' is no https:// address; give that of the", 2),
        ("127.0.0.1", "--url: '127.0.0.1' is no https:// address", 2),
        ("", "--url: '' is no https:// address", 2),
        ("https://a\0", "no broker answers at https://a", 1),
        ("https://xn--", "no broker answers at https://xn--", 1),
    ],
)
def test_an_address_that_is_none_is_said(tmp_path: Path, url: str, text: str, code: int) -> None:
    pki = shared_pki()
    files = pki.service("boss").write(tmp_path)
    credential = [
        "--cafile",
        str(pki.write_anchors(tmp_path)),
        "--cert",
        str(files.certificate),
        "--key",
        str(files.key),
    ]
    for words in (["status", "--url", url, *credential], ["--url", url, *credential, "status"]):
        assert said(CliRunner().invoke(app, words), code).startswith(f"fleet-broker: {text}")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("status --url https://b:1 --cert x", "--url needs --cafile, --cert and --key"),
        ("kick m --url=", "--url needs --cafile, --cert and --key"),  # Of a variable that is not set.
        ("status --cafile x", "--cafile, --cert and --key go with --url"),
    ],
)
def test_what_an_address_needs_is_said(words: str, text: str) -> None:
    assert said(CliRunner().invoke(app, words.split()), 2) == f"fleet-broker: {text}"


def test_a_moment_is_shown_as_fleet_provisioning_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    lasts = {"uptime_seconds": 97, "age_seconds": None}
    print_facts({"started_at": "2026-11-29T09:51:58Z", "name": "2026-11-29T09:51:58Zx", "at": None} | lasts)
    print_table(("ends", "of"), [("2027-11-29T09:50:49.123Z", "2027-11-29")])
    assert capsys.readouterr().out.splitlines() == [
        "started at  2026-11-29 09:51:58 UTC",
        "name        2026-11-29T09:51:58Zx",
        "at          -",
        "uptime      1m 37s",
        "age         -",
        "ends                     of",
        "2027-11-29 09:50:49 UTC  2027-11-29",
    ]
