"""A port for a server that cannot choose its own: given to one who asks, and free for the server."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_sim.stage.foreign_process import LOOPBACK, free_port, program, serving
from device_sim.stage.stage import HostedBroker

REPOSITORY = Path(__file__).parents[4]
ASKS = """
import random
from device_sim.stage.foreign_process import free_port
ports = iter([{first}, {second}])
random.choice = lambda _: next(ports)
print(free_port())
"""


def test_a_server_can_listen_at_it_and_again_after_it_has_ended() -> None:
    port = free_port()
    for _ in range(2):
        with socket.create_server((LOOPBACK, port)) as listening, socket.create_connection((LOOPBACK, port)):
            listening.accept()[0].close()


def test_nobody_listens_at_it_before_the_server() -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, free_port()))


def test_it_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = free_port(), free_port()
    chosen = iter([first, second, third := _another(first, second)])
    monkeypatch.setattr(random, "choice", lambda _: next(chosen))
    assert free_port() == third


def test_another_process_is_not_given_it() -> None:
    first = free_port()
    second = _another(first)
    asked = [sys.executable, "-c", ASKS.format(first=first, second=second)]
    said = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    assert int(said.stdout) == second


def test_nobody_who_asks_for_any_port_is_given_that_of_a_hosted_broker_while_it_restarts(tmp_path: Path) -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    broker = HostedBroker(tmp_path, "https://localhost:8443", tmp_path / "ca-bundle.crt")
    assert broker.port not in range(low, high + 1), "the kernel gives it"
    with socket.socket() as another, pytest.raises(OSError, match="Address already in use"):
        another.bind((LOOPBACK, broker.port))


def test_those_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    first = free_port()
    for _ in range(64):
        free_port()
    chosen: Iterator[int] = iter([first])
    monkeypatch.setattr(random, "choice", lambda _: next(chosen))
    assert free_port() == first, "the oldest is let go"


async def test_mosquitto_has_it(tmp_path: Path) -> None:
    port, file = free_port(), tmp_path / "conf"
    file.write_text(f"listener {port} {LOOPBACK}\nallow_anonymous true\n")
    arguments = [program("mosquitto", "mosquitto"), "-v", "-c", str(file)]
    async with serving("mosquitto", arguments, log=tmp_path / "log", ready="running"):
        _, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.close()
        await writer.wait_closed()


def _another(*others: int) -> int:
    """Return a port that is free and is not kept."""
    while True:
        with socket.socket() as asking:
            port = random.choice(range(20_000, 32_768))
            try:
                asking.bind((LOOPBACK, port))
            except OSError:
                continue
            if port not in others:
                return port


def test_a_port_is_one_of_the_address_where_the_server_listens() -> None:
    """Where there is no 127.0.0.1, every port of it looks taken: who went on trying would never end."""
    port = free_port("::1")
    with socket.socket(socket.AF_INET6) as server, pytest.raises(OSError, match="in use"):
        server.bind(("::1", port))
    with pytest.raises(OSError, match="assign"):
        free_port("192.0.2.1")
