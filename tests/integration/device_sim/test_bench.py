"""`fleet-sim bench` and `export`, against a broker that nobody here wrote."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from device_sim.bench.bench import Bench
from device_sim.bench.keyring import FleetKeyring
from device_sim.bench.plan import Kind, Plan
from device_sim.credentials.fleet_directory import FleetDirectory, Origin
from device_sim.interruption import Interruption
from device_sim.link.driver import Driver
from device_sim.link.link import Terms
from provisioning.pki.role import Role
from provisioning.program.version import version_and_build
from tests.support.authority import Authority
from tests.support.last_words import last_words
from tests.support.programs import forking_python

if TYPE_CHECKING:
    from tests.integration.device_sim.conftest import RunningBroker

SOURCE = Path(__file__).parents[3]


async def ran(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        forking_python("device_sim"), "-m", "device_sim", *arguments,
        cwd=SOURCE, env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await last_words(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def fleet(authority: Authority, tmp_path: Path) -> FleetDirectory:
    made = FleetDirectory.create(tmp_path / "fleet", Origin(), authority.pem, "backend")
    with made.changing():
        made.keep(authority.issue("backend", role=Role.SERVICE, group=None))
        for number in range(4):
            made.keep(authority.issue(f"meter-{number}"))
        made.revoked("meter-3")
    return made


def where(mosquitto: RunningBroker, *, websocket: bool = False) -> tuple[str, ...]:
    port = (mosquitto.websocket if websocket else mosquitto.endpoint).port
    return ("-h", "127.0.0.1", "-p", str(port), "--server-name", "localhost", *(("--ws",) if websocket else ()))


async def test_what_one_terminal_publishes_another_receives(mosquitto: RunningBroker, fleet: FleetDirectory) -> None:
    plan = Plan(Kind.SUB, 1, 100.0, "fleet/#", 1, limit=60)
    subscriber = Bench(plan, FleetKeyring(fleet, service=True), mosquitto.endpoint, Terms(), Driver.LIGHT)
    subscribing = asyncio.create_task(subscriber.run(Interruption()))
    async with asyncio.timeout(60):
        while not subscriber.figures.subscribed:
            await asyncio.sleep(0.01)
    code, out, err = await ran(
        "bench", "pub", "-c", "3", "-R", "5", "-I", "50", "-q", "1", "-L", "60", "-s", "64:3,300:1",
        "-t", "fleet/%g/%c/telemetry", "--fleet", str(fleet.path), "--json", *where(mosquitto, websocket=True),
    )  # fmt: skip
    sent: dict[str, Any] = json.loads(out)
    assert code == sent["exit_code"] == (3 if sent["invalid"] else 0), (
        err
    )  # On a busy machine a generator is late, and says so.
    assert (sent["admitted"], sent["published"], sent["acknowledged"], sent["lost"]) == (3, 60, 60, {})
    assert sent["fleet_sim"] == version_and_build()
    assert sent["milliseconds"]["puback"]["count"] == 60
    assert sent["transport"] == "wss, /mqtt"
    assert sent["milliseconds"].keys() == {"tcp", "tls", "upgrade", "connack", "admitted", "puback"}
    assert sent["connecting_seconds"] >= 0.4, "three clients, five a second"
    assert all(0 < measured["p50"] < 20_000 for measured in sent["milliseconds"].values())
    figures = await asyncio.wait_for(subscribing, 60)
    assert (figures.received, figures.end_to_end.count, figures.lost) == (60, 60, {})
    assert 0 < figures.end_to_end.percentile(50) < 5000  # One clock for both processes.


async def test_one_pair_serves_all_and_a_refusal_is_counted(
    mosquitto: RunningBroker, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text(authority.pem)
    authority.issue("anybody").write(tmp_path, "one")
    pair = ("--cacertfile", str(tmp_path / "ca.pem"), "--certfile", str(tmp_path / "one.crt"))
    key = ("--keyfile", str(tmp_path / "one.key"))
    for version in ("4", "5"):
        code, out, err = await ran(
            "bench",
            "conn",
            "-c",
            "5",
            "-R",
            "100",
            "-d",
            "2",
            "-V",
            version,
            "--json",
            *where(mosquitto),
            *pair,
            *key,
        )
        found = json.loads(out)
        assert code == found["exit_code"] == (3 if found["invalid"] else 0), err
        assert (found["admitted"], found["transport"]) == (5, "mqtts")
    code, out, _ = await ran("bench", "conn", "-c", "2", "-d", "0.5", *where(mosquitto), *pair[:2])
    assert code == 1
    assert "refused 2 times: tls certificate_required" in out
    _, out, err = await ran("bench", "conn", "-c", "2", "-d", "0.5", *where(mosquitto), "--ws", *pair, *key)
    assert "refused 2 times: websocket not upgraded" in out
    assert "does MQTT over WebSocket listen there? --path says what it is asked for" in err


async def test_a_broker_that_dies_ends_a_benchmark_and_fails_it(
    mosquitto: RunningBroker, fleet: FleetDirectory
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "device_sim", "bench", "pub", "-c", "3", "-R", "100", "-I", "20", "-q", "1",
        "-L", "1000000", "-t", "fleet/%g/%c/telemetry", "--fleet", str(fleet.path), *where(mosquitto),
        cwd=SOURCE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            async for line in process.stderr:
                if b"connected 3/3" in line:
                    break
            assert (rate := re.search(rb"published \d+ \((\d+)/s\)", line)), line
            assert int(rate[1]) > 0, "the first line has a rate too"
            mosquitto.process.kill()
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, b"Traceback" in err) == (1, False)
    # Whether a kernel resets a connection or ends it depends on what was unread.
    assert sum(int(times) for times in re.findall(r"lost (\d+) times?: tcp", out.decode())) == 3


async def test_where_nobody_is_admitted_a_benchmark_does_not_wait_for_ctrl_c(
    mosquitto: RunningBroker, fleet: FleetDirectory
) -> None:
    mosquitto.process.kill()
    await mosquitto.process.wait()
    for arguments in (("conn",), ("pub", "-t", "a", "-L", "5"), ("sub", "-t", "a")):
        code, out, _ = await ran("bench", *arguments, "-c", "2", "--fleet", str(fleet.path), *where(mosquitto))
        assert (code, "refused 2 times: tcp refused" in out) == (1, True)


async def test_messages_that_the_broker_rejects_fail_a_benchmark(
    mosquitto: RunningBroker, fleet: FleetDirectory
) -> None:
    code, out, _ = await ran(
        "bench", "pub", "-c", "1", "-I", "10", "-q", "1", "-L", "1", "-t", "$SYS/mine", "--fleet", str(fleet.path),
        *where(mosquitto),
    )  # fmt: skip
    # One message: mosquitto answers it, and closes. A second, if the client is late, would have no answer.
    assert code == 1
    assert "1 messages published" in out, out
    assert "1 rejected by the broker" in out, out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("conn",), "name a credential"),
        (("conn", "--cafile", "x", "--cert", "y"), "go together"),
        (("pub", "-t", "%z", "--cacertfile", "x"), "%z is not known"),
        (("pub", "--cacertfile", "x"), "--topic"),
        (("conn", "--path", "/mqtt", "--cacertfile", "x"), "add --websocket, or leave it out"),
        (("conn", "-c", "100"), "has 3 usable devices"),
    ],
)
async def test_wrong_usage_is_told(fleet: FleetDirectory, arguments: tuple[str, ...], words: str) -> None:
    more = ("--fleet", str(fleet.path)) if arguments[-1] == "100" else ()
    code, _, err = await ran("bench", *arguments, *more)
    assert code == 2
    assert words in err


async def test_a_fleet_is_exported_without_what_is_revoked(fleet: FleetDirectory, tmp_path: Path) -> None:
    output = tmp_path / "out"
    code, out, err = await ran("export", str(fleet.path), str(output))
    assert code == 0, err
    assert "3 devices in" in out
    assert sorted(path.name for path in (output / "devices").iterdir()) == [
        f"meter-{number}.{kind}" for number in range(3) for kind in ("crt", "key")
    ]
    assert {path.stat().st_mode & 0o777 for path in output.rglob("*") if path.is_file()} == {0o600}
    with (output / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["client_id"] for row in rows] == ["meter-0", "meter-1", "meter-2"]
    assert rows[0]["telemetry_topic"] == "fleet/meters/meter-0/telemetry"
    assert rows[0]["key"] == str(output / "devices" / "meter-0.key")
    assert (output / "service.id").read_text() == "backend\n"
    code, _, err = await ran("export", str(fleet.path), str(output))
    assert code == 1
    assert "is not empty" in err
