"""An operator at a running broker: curl on the socket, and the commands."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from broker.cli import app
from broker.mqtt.codes import ReasonCode
from tests.support.broker_process import PATIENCE, BrokerProcess, wait_until
from tests.support.importtime import ended
from tests.support.pki import Held, Pki
from tests.support.tls_client import TlsClient


@pytest.fixture(scope="module")
def state(broker: BrokerProcess) -> Path:
    return broker.dir / "state"


def fleet_broker(state: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command against the broker with this state directory; return exit code, standard output and error."""
    done = CliRunner().invoke(app, [*arguments, "--state-dir", str(state)], terminal_width=200)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def said(state: Path, *arguments: str) -> str:
    code, output, errors = fleet_broker(state, *arguments)
    assert code == 0, errors
    return output


def curl(socket: Path, path: str, *options: str) -> tuple[int, Any]:
    """Return the HTTP status and JSON document that curl gets."""
    # A socket's name has room for 107 bytes, and curl takes no other way.
    line = ["curl", "-sS", "--unix-socket", socket.name, f"http://broker{path}", "-w", "%{http_code}", *options]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=PATIENCE, cwd=socket.parent)
    return int(done.stdout[-3:]), json.loads(done.stdout[:-3])


@pytest.fixture
def client(broker: BrokerProcess, anchors: Path, meter: Held, name: str) -> Iterator[TlsClient]:
    with TlsClient(broker.port, anchors, meter.credential) as connected:
        connected.connect(client_id=name, session_expiry_interval=600)
        yield connected


def test_curl_asks_and_kicks(state: Path, client: TlsClient, name: str) -> None:
    socket = state / "admin.sock"
    assert socket.stat().st_mode & 0o777 == 0o600
    status, document = curl(socket, "/v1/status")
    assert status == 200
    assert document["connected"] >= 1
    assert document["newcomers_admitted"] is True
    status, document = curl(socket, f"/v1/sessions?device={name}&limit=5")
    assert (document["matched"], document["sessions"][0]["client_id"]) == (1, name)
    asked = json.dumps({"client": name, "reason": "go away"})
    status, document = curl(socket, "/v1/sessions/kick", "-d", asked)
    assert (status, document["kicked"][0]["address"].rpartition(":")[0]) == (200, "127.0.0.1")
    assert client.farewell().properties.reason_string == "KICKED: go away"


@pytest.mark.parametrize("command", ["kick", "why", "sessions", "subscriptions"])
def test_a_shell_completes_who_is_connected(state: Path, client: TlsClient, name: str, command: str) -> None:
    del client  # It need only be there.
    typed = f"fleet-broker {command} --state-dir {state} "
    asked = {"_FLEET_BROKER_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}

    def offered() -> list[str]:
        return ended("fleet-broker", [], **asked, _TYPER_COMPLETE_ARGS=typed + name[:-1])[0].splitlines()

    # Who has no answer after two seconds is offered nothing, and presses Tab again.
    assert name in wait_until(offered, "a name that is offered")


@pytest.mark.parametrize(
    ("path", "options", "status", "code"),
    [
        ("/v1/nothing", [], 404, "NOT_FOUND"),
        ("/v1/sessions/kick", [], 405, "METHOD_NOT_ALLOWED"),
        ("/v1/sessions?limit=0", [], 400, "INVALID_REQUEST"),
        ("/v1/sessions?color=red", [], 400, "INVALID_REQUEST"),
        ("/v1/sessions?limit=000000000001" + "9" * 5000, [], 400, "INVALID_REQUEST"),
        ("/v1/sessions?limit=1000000000", [], 400, "INVALID_REQUEST"),
        ("/v1/sessions?client=a&client=b", [], 400, "INVALID_REQUEST"),
        ("/v1/sessions?client=%ff", [], 400, "INVALID_REQUEST"),
        ("/v1/sessions?client=", [], 400, "INVALID_REQUEST"),
        ("/v1/status?verbose=1", [], 400, "INVALID_REQUEST"),
        ("/v1/trust?bundle=x", [], 400, "INVALID_REQUEST"),
        ("/v1/why?about=x&limit=3", [], 400, "INVALID_REQUEST"),
        ("/v1/sessions/kick?client=x", ["-d", '{"client": "x"}'], 400, "INVALID_REQUEST"),
        ("/v1/sessions/kick", ["-d", '{"client": "x", "client": "y"}'], 400, "INVALID_REQUEST"),
        ("/v1/sessions/kick", ["-d", '{"anything": ""}'], 400, "INVALID_REQUEST"),
        ("/v1/reload", ["-d", '{"dry_run": true, "anchors": "\\ud800"}'], 400, "INVALID_REQUEST"),
        ("/v1/reload", ["-d", '{"dry_run": true, "policy": "", "parts": ["limits"]}'], 400, "INVALID_REQUEST"),
        ("/v1/sessions/kick", ["-d", "{"], 400, "INVALID_REQUEST"),
        ("/v1/sessions/kick", ["-d", "[" * 50_000], 400, "INVALID_REQUEST"),
        ("/v1/sessions/kick", ["-d", "[]"], 400, "INVALID_REQUEST"),
        ("/v1/sessions/kick", ["-d", '{"group": "meters"}'], 400, "INVALID_REQUEST"),
        ("/v1/sessions/kick", ["-d", '{"client": "x", "reason": ""}'], 400, "INVALID_REQUEST"),
        ("/v1/sessions/kick", ["-d", '{"client": "x", "forget": 1}'], 400, "INVALID_REQUEST"),
        ("/v1/sessions/kick", ["-d", '{"client": 1}'], 400, "INVALID_REQUEST"),
        ("/v1/sessions/kick", ["-d", '{"client": "nobody"}'], 404, "NO_SUCH_SESSION"),
    ],
)
def test_a_bad_request_gets_a_problem_document(
    state: Path, path: str, options: list[str], status: int, code: str
) -> None:
    answered, document = curl(state / "admin.sock", path, *options)
    assert (answered, document["status"], document["code"]) == (status, status, code)


def test_the_commands_show_sessions_and_end_them(state: Path, client: TlsClient, meter: Held, name: str) -> None:
    serial = f"{meter.certificate.serial_number:x}"
    table = said(state, "sessions", serial).splitlines()
    assert table[0].split()[:3] == ["client", "id", "identity"]
    assert table[0].endswith("certificate ends in  session ends in")
    assert table[1].split()[-1] == "-", "a session that is connected does not end"
    assert len(table) == 2
    assert f"device/meters/{name}" in table[1]
    (shown,) = json.loads(said(state, "sessions", name, "--json"))["sessions"]
    assert shown["serial"] == serial
    assert f"{name} (" in said(state, "kick", serial)
    assert client.farewell().reason_code is ReasonCode.ADMINISTRATIVE_ACTION
    (row,) = said(state, "sessions", name, "--away", "--group", "meters").splitlines()[1:]
    assert "away" in row
    assert re.search(r"  -  +\d+[smhd]( \d+[smh])?$", row.rstrip()), "its certificate has no part in it"
    code, _, errors = fleet_broker(state, "kick", name)
    assert (code, "NO_SUCH_SESSION: the client is away, and its session is kept: " in errors) == (1, True)
    assert "forgotten" in said(state, "kick", name, "--forget")
    assert fleet_broker(state, "sessions", name) == (0, "", "no session of that description\n")
    code, _, errors = fleet_broker(state, "kick", name)
    before = "it was at this broker before: fleet-broker why says what happened"
    assert (code, errors) == (1, f"fleet-broker: NO_SUCH_SESSION: no client {name!r} is connected; {before}\n")


def test_a_command_shows_what_a_client_has_subscribed_to_and_who_gets_a_topic(
    state: Path, client: TlsClient, name: str
) -> None:
    client.subscribe(f"fleet/meters/{name}/cmd/#", qos=1)
    client.subscribe(f"$share/both/fleet/meters/{name}/cmd/+")
    of_all, shared = (line.split() for line in said(state, "subscriptions", name).splitlines()[1:])
    assert (of_all[0], of_all[2:]) == (name, ["connected", f"fleet/meters/{name}/cmd/#", "1", "-"])
    assert shared[3:] == [f"$share/both/fleet/meters/{name}/cmd/+", "0", "-"]
    topic = f"fleet/meters/{name}/cmd/reboot"
    client.leave()
    wait_until(lambda: said(state, "subscriptions", "--topic", topic).count("away") == 2, "it is seen to be away")
    assert "#  1    -\n" in said(state, "subscriptions", "--topic", f"{topic}/now")
    code, _, errors = fleet_broker(state, "subscriptions", "--topic", topic, "--limit", "1")
    assert (code, errors) == (0, "1 of 2 subscriptions; --limit shows more\n")
    few = json.loads(said(state, "subscriptions", name, "--limit", "1", "--json"))
    assert (len(few["subscriptions"]), few["matched"], few["shown"]) == (1, 2, 1)
    assert fleet_broker(state, "subscriptions", name, "--group", "no") == (
        0,
        "",
        "no subscription of that description\n",
    )
    for bad, words in (("a/+", "INVALID_REQUEST: topic: "), ("a" * 70_000, "the request is too long")):
        code, output, errors = fleet_broker(state, "subscriptions", "--topic", bad)
        assert (code, output, len(errors.splitlines())) == (1, "", 1)
        assert words in errors


def test_the_commands_show_the_broker_and_its_trust(state: Path, pki: Pki) -> None:
    assert "mqtts://127.0.0.1:" in said(state, "status")
    assert json.loads(said(state, "status", "--json"))["store"] == "ok"
    shown = said(state, "trust", "show")
    assert "CN=Test Root CA     root" in shown
    document = json.loads(said(state, "trust", "show", "--json"))
    assert (document["bundles"], document["generation"], document["lists"]) == (["cafile"], 1, [])
    assert {anchor["serial"] for anchor in document["anchors"]} == {
        f"{held.certificate.serial_number:x}" for held in (pki.root, pki.issuing)
    }


def test_where_no_broker_runs_the_command_says_what_to_do(tmp_path: Path) -> None:
    for arguments in (("status",), ("sessions",), ("kick", "x"), ("trust", "show")):
        code, output, errors = fleet_broker(tmp_path, *arguments)
        assert (code, output) == (1, "")
        assert "no broker answers at" in errors
        assert "--state-dir" in errors
        assert len(errors.splitlines()) == 1


def test_the_socket_goes_with_the_broker_is_taken_over_from_a_dead_one_and_can_be_off(tmp_path: Path, pki: Pki) -> None:
    broker = BrokerProcess.with_files(tmp_path / "b", pki)
    socket = tmp_path / "b" / "state" / "admin.sock"
    with broker:
        broker.stop(signal.SIGKILL)
    assert socket.is_socket()
    with broker:
        assert "connected" in said(socket.parent, "status")
    assert not socket.exists()
    off = BrokerProcess.with_files(tmp_path / "b", pki, "--admin-socket", "off")
    with off:
        assert not socket.exists()
    in_use = BrokerProcess.with_files(tmp_path / "c", pki, "--admin-socket", str(socket), "--no-persistence")
    with broker:
        code, errors = in_use.fail()
        assert code == 1
        assert "is in use by another broker" in errors
