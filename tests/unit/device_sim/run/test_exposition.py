"""`fleet-sim run --metrics`: the page that Prometheus reads while a run lasts."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from device_sim.cli import app
from device_sim.fleet.backend import Backend
from device_sim.run import exposition as module
from device_sim.run.exposition import exposed, exposition
from device_sim.run.health import HealthSample
from device_sim.run.recorder import Recorder
from device_sim.run.runner import Process, Run
from device_sim.scenario.metrics import Duration
from device_sim.scenario.model import build
from tests.support.programs import REPOSITORY

HEALTHY = HealthSample(7.0, 9.0, 0.25, 50, 20_000, 40, 28_232, 80.0, 0.125)


def a_run(*, begun: bool = True) -> Run:
    run = Run.__new__(Run)
    run.scenario = build({"name": "x", "devices": 5, "stages": [{"ramp": {"rate": 1}}]}, "x")
    run.target, run.recorder = cast("Any", SimpleNamespace(broker_name="localhost:8883")), Recorder()
    run.backends = [Backend(name, ["a"]) for name in ("one", "two")]
    run.backends[0].altered, run.backends[1].unexpected = 2, 3
    run.processes = []
    if begun:
        state = SimpleNamespace(revoked=1, lost_connections=2, refused={'mqtt 0x87 "no"': 4, "tls unknown_ca": 1})
        run.processes = [Process("worker 1", None, cast("Any", state)), Process("worker 2", None, cast("Any", state))]
        run.recorder.record(Duration.END_TO_END, 0.25, 0.25)
        run.recorder.sample(3.0, 4, 5, 60, 59, Counter(), HEALTHY)
    return run


def figures(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def asked(port: int, request: bytes) -> tuple[str, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head, _, content = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head, content


async def test_prometheus_reads_what_the_run_knows() -> None:
    async with exposed(0) as page:
        assert (await asked(page.port, b"GET /metrics HTTP/1.1\r\n\r\n"))[0].startswith("HTTP/1.1 503 ")
        run = a_run()
        page.show(lambda: exposition(run))
        head, content = await asked(page.port, b"GET /metrics HTTP/1.1\r\nHost: localhost:9464\r\n\r\n")
        assert f"\r\nContent-Length: {len(content)}\r\n" in head
        found = figures(content)
        for name, value in {
            "devices": 5, "connected": 4, "told": 5, "published_total": 60, "received_total": 59, "altered_total": 2,
            "unexpected_total": 3, "revoked_total": 2, "lost_connections_total": 4, "run_seconds": 3,
            "generator_lag_seconds": 0.007, "generator_processor_ratio": 0.25, "generator_waiting_ratio": 0.125,
            "generator_memory_bytes": 8e7,
        }.items():  # fmt: skip
            assert found["fleet_sim_" + name,] == value, name
        assert found["fleet_sim_refusals_total", 'mqtt 0x87 "no"'] == 8
        assert found["fleet_sim_latency_seconds", "end_to_end", "99"] == pytest.approx(0.5)
        assert found["fleet_sim_run_info", "localhost:8883", "x"] == 1
        assert (await asked(page.port, b"HEAD /metrics?x HTTP/1.1\r\n\r\n"))[1] == ""
        of_a_page = b"GET /metrics HTTP/1.1\r\n%b: his.example:9464"  # Whose name points to this machine.
        for request, answer in (
            (b"GET / HTTP/1.1", 404),
            (b"POST /metrics HTTP/1.1", 405),
            (b"nonsense", 400),
            (of_a_page % b"Host", 421),
            (of_a_page % b"Host: localhost\r\nhOST ", 421),
        ):
            assert (await asked(page.port, request + b"\r\n\r\n"))[0].startswith(f"HTTP/1.1 {answer} ")
    with pytest.raises(ConnectionRefusedError):
        await asked(page.port, b"")


async def test_who_asks_for_too_much_or_too_slowly_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also who goes on sending: a connection that is closed with unread bytes is reset, and the answer is lost."""
    async with exposed(0) as page:
        page.show(lambda: b"figures")
        for much in (20_000, 1_000_000):
            assert (await asked(page.port, b"GET " + b"x" * much))[0].startswith("HTTP/1.1 431 ")
        request = b"GET /metrics HTTP/1.1\r\n\r\n"
        assert (await asked(page.port, request + b"x" * 1_000_000))[1] == "figures"
        assert (await asked(page.port, request * 3))[1] == "figures"  # One request a connection.
        monkeypatch.setattr(module, "_PATIENCE", 0.01)
        assert (await asked(page.port, b"GET "))[0].startswith("HTTP/1.1 408 ")


async def test_whoever_keeps_connections_open_keeps_nobody_out() -> None:
    async with exposed(0) as page:
        page.show(lambda: b"figures")
        silent = [await asyncio.open_connection("127.0.0.1", page.port) for _ in range(module._AT_ONCE)]
        assert (await asked(page.port, b"GET /metrics HTTP/1.1\r\n\r\n"))[1] == "figures"
        with contextlib.suppress(ConnectionResetError):
            assert await silent[0][0].read() == b""  # It has waited longest.
    for reader, writer in silent:
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


def test_a_run_that_has_not_begun_shows_what_it_will_be() -> None:
    found = figures(exposition(a_run(begun=False)).decode())
    assert found["fleet_sim_devices",] == 5
    assert ("fleet_sim_connected",) not in found


def test_reasons_are_bounded() -> None:
    run = a_run()
    state = replace(run.processes[0], state=cast("Any", SimpleNamespace(
        revoked=0, lost_connections=0, refused={f"reason {number}": number for number in range(1, 99)}
    )))  # fmt: skip
    run.processes = [state]
    found = [name for name in figures(exposition(run).decode()) if name[0] == "fleet_sim_refusals_total"]
    assert len(found) == 20
    assert ("fleet_sim_refusals_total", "reason 98") in found


def test_each_metric_is_on_the_page() -> None:
    written = (REPOSITORY / "docs/simulator.md").read_text().partition("## Metrics of a run")[2].partition("\n## ")[0]
    named = {name for (name, *_) in figures(exposition(a_run()).decode())}
    assert set(re.findall(r"`(fleet_sim_\w+)`", written)) == named


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_it() -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=exposition(a_run()), capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_a_port_that_is_not_free_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(
            app, ["run", "smoke", "--self-hosted", "--metrics", str(port), "--output", str(tmp_path / "out")]
        )
    said = " ".join(done.stderr.split())
    assert done.exit_code == 1, done.output
    assert f"--metrics {port}: 127.0.0.1:{port} is not free; name another port" in said
    assert "Provisioning and broker start" not in said
