"""Runs in which something happens to the broker, to the network, or to the devices by their own doing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from device_sim.credentials.enrolling import names_of
from device_sim.results.document import read
from device_sim.scenario.model import parse
from device_sim.stage.foreign_process import free_port
from device_sim.stage.stage import Stage
from device_sim.trouble.proxy import Proxy
from device_sim.trouble.trouble import NONE, Trouble
from tests.support.fleet_sim import TINY, enrol, fleet_sim, ran, until_said
from tests.support.last_words import last_words
from tests.support.needed import needed
from tests.support.scenarios import ON_ANY_MACHINE

BEHAVING = (
    ON_ANY_MACHINE
    + """
name = "behaving"
devices = 40
certificate_life = "25s"
[[groups]]
name = "meters"
weight = 2
telemetry = { every = "300ms", jitter = "20%" }
presence = {}
renewal = { after = "10%", jitter = "5%" }
[[groups]]
name = "trackers"
telemetry = { model = "tracker", format = "cbor", every = "300ms" }
sleep = { awake = "1s", asleep = "500ms" }
presence = {}
[[groups]]
name = "machines"
telemetry = { model = "machine", format = "raw", every = "300ms" }
flap = { up = "2s", down = "300ms" }
backoff = { base = "100ms", cap = "500ms" }
presence = {}
[[groups]]
name = "copied"
clone = { every = "1s" }
backoff = { base = "100ms", cap = "500ms" }
slow_reader = { every = "1s", stall = "200ms" }
[[stages]]
ramp = { rate = 100 }
[[stages]]
hold = "6s"
[thresholds]
lost = ["== 0"]
unexpected = ["== 0"]
stale_presence = ["== 0"]
sessions_lost = ["== 0"]
failed_renewals = ["== 0"]
renewed = ["> 10", "< 200"]
sleeps = ["> 5"]
takeovers = ["> 2"]
"""
)


async def test_devices_live_as_their_groups_say(tmp_path: Path) -> None:
    (tmp_path / "behaving.toml").write_text(BEHAVING)
    code, out, err = await ran(
        tmp_path,
        "run",
        str(tmp_path / "behaving.toml"),
        "--self-hosted",
        "--driver",
        "light",
        "--workers",
        "2",
        "--json",
    )
    assert code == 0, out + err
    counts = json.loads(out)["counts"]
    scenario = parse(BEHAVING, "test")
    trackers = sum(scenario.group_of(name).sleep is not None for name in names_of("meter", scenario.devices))
    # Who wakes finds its session (`sessions_lost`); who is asleep when the run ends has not woken.
    assert 0 <= counts["sleeps"] - counts["sessions_resumed"] <= trackers < counts["sleeps"]
    assert counts["copies_admitted"] > 0


TROUBLED = (
    TINY.partition("[[stages]]\ncommand")[0]
    + """
[[stages]]
suspend = { select = "20%", rate = 20, seconds = "300ms", deadline = "60s" }
[[stages]]
trouble = { seconds = "1s", latency = "100ms" }
[[stages]]
trouble = { seconds = "500ms", reset = true }
[[stages]]
hold = "500ms"
[thresholds]
lost = ["== 0"]
unreached = ["== 0"]
suspended_closed = ["max < 60000"]
resumed_admitted = ["max < 60000"]
end_to_end = ["max > 100"]
"""
)


async def test_suspension_ends_and_a_network_in_trouble_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "troubled.toml").write_text(TROUBLED)
    code, out, err = await ran(tmp_path, "run", str(tmp_path / "troubled.toml"), "--self-hosted", "--json")
    assert code == 0, out + err
    counts = json.loads(out)["counts"]
    assert (counts["suspended"], counts["resumed"], counts["revoked"]) == (2, 2, 0)
    assert counts["lost_connections"] >= 12


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_broker_that_is_restarted_gets_its_fleet_back_and_loses_nothing(tmp_path: Path, workers: str) -> None:
    """The devices are back before the backend is: what the broker acknowledges to them meanwhile is kept for it."""
    text = TINY.partition("[[stages]]")[0].replace("100ms", "10ms").replace("500ms", "50ms")
    text += "[[stages]]\nramp = { rate = 50 }\n[[stages]]\nrestart = {}\n"
    text += '[[stages]]\ncommand = { rate = 50, deadline = "60s" }\n'
    text += "[thresholds]\n" + "".join(
        f'{count} = ["== 0"]\n' for count in ("unreached", "lost", "duplicated", "unanswered_commands")
    )
    (tmp_path / "restart.toml").write_text(text)
    arguments = ("run", str(tmp_path / "restart.toml"), "--self-hosted", "--workers", workers, "--json")
    code, out, err = await ran(tmp_path, *arguments)
    assert code == 0, err
    document = json.loads(out)
    assert document["counts"]["lost_connections"] == document["counts"]["reconnections"] == 12
    assert document["durations"]["command"]["response"]["count"] == 12
    # Twelve came and came back: that took a restart of the broker, of which no single attempt knows.
    outage, admitted = (document["durations"][name]["response"] for name in ("outage", "admitted"))
    assert outage["count"] == admitted["count"] == 24
    assert outage["max"] > admitted["max"]
    assert [mark["kind"] for mark in document["markers"]] == ["restart"]  # Nothing else ended a backend's connection.


async def test_a_receiver_that_is_cut_off_comes_back_and_is_told_of(tmp_path: Path, stage: Stage) -> None:
    fleet, scenario = tmp_path / "fleet", tmp_path / "cut.toml"
    head, _, tail = TINY.partition("[[stages]]\ncommand")
    limits = tail.partition("[thresholds]")[2].replace('revoked_closed = ["max < 60000"]', "")
    scenario.write_text(f'{head}[[stages]]\nhold = "7s"\n[thresholds]{limits}')
    assert (await ran(tmp_path, *enrol(stage, fleet, "--devices", "12")))[0] == 0
    async with Proxy("127.0.0.1", stage.broker.port) as way:
        where = ("--fleet", str(fleet), "--broker", f"localhost:{way.port}", "--output", str(tmp_path / "out"))
        async with fleet_sim(tmp_path, "run", str(scenario), *where) as process:
            await until_said(process, "hold 7 s")
            way.set(Trouble(reset=True))
            await asyncio.sleep(0.5)
            way.set(NONE)
            out, _ = await last_words(process)
    document = read(tmp_path / "out" / "report.json")
    counts = document["counts"]
    assert counts["lost_receivers"] == 1
    assert "lost receiver: backend-" in out.decode()
    assert "what comes until it is back counts as lost" in out.decode()
    # Half a second of seven, and the way back.
    assert 0 < counts["lost"] < counts["published"] / 2, counts


async def test_a_broker_that_knows_no_revocation_is_a_security_failure(tmp_path: Path, stage: Stage) -> None:
    fleet, deadline = tmp_path / "fleet", ', deadline = "500ms"'
    text = TINY.partition("[[stages]]\ncommand")[0]
    (tmp_path / "revoke.toml").write_text(f'{text}[[stages]]\nrevoke = {{ select = "10%"{deadline} }}\n')
    code, _, err = await ran(tmp_path, *enrol(stage, fleet, "--devices", "12"))
    assert code == 0, err
    async with mosquitto(tmp_path, stage) as port:
        where = ("--broker", f"127.0.0.1:{port}", "--server-name", "localhost")
        code, out, err = await ran(
            tmp_path, "run", str(tmp_path / "revoke.toml"), "--fleet", str(fleet), *where, "--json"
        )
    assert code == 4, err
    document = json.loads(out)
    assert document["verdict"] == "SECURITY FAILURE"
    assert document["counts"]["false_admissions"] == 1


@asynccontextmanager
async def mosquitto(tmp_path: Path, stage: Stage) -> AsyncIterator[int]:
    """Run a broker that trusts the service's CA, and has never heard of its CRL."""
    program = needed("mosquitto")
    port = free_port()
    own = stage.directory / "broker"
    config = tmp_path / "mosquitto.conf"
    config.write_text(
        f"user root\nlistener {port} 127.0.0.1\ncafile {stage.anchors}\ncertfile {own}/broker.pem\n"
        f"keyfile {own}/broker.pem\nrequire_certificate true\nuse_identity_as_username true\nallow_anonymous false\n"
    )
    process = await asyncio.create_subprocess_exec(
        program, "-c", config, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        await until_said(process, "running")
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()
