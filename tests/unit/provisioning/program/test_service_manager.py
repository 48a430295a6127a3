"""What systemd is told, over the socket that it would name."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.program.service_manager import ServiceManager
from tests.support.notified import Notified
from tests.support.programs import REPOSITORY


@pytest.fixture(params=["path", "abstract"])
def heard(request: pytest.FixtureRequest) -> Iterator[Notified]:
    with Notified(abstract=request.param == "abstract") as notified:
        yield notified


def test_it_is_told_that_the_service_is_ready_and_stops(heard: Notified) -> None:
    manager = ServiceManager.named_in(dict(heard.environment))
    manager.ready()
    manager.stopping()
    assert [heard.next(), heard.next()] == ["READY=1", "STOPPING=1"]


def test_its_variables_are_not_left_to_children(heard: Notified) -> None:
    environment = {**heard.environment, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    assert ServiceManager.named_in(environment).beat_seconds == 1.0
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize("watchdog", [{}, {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}])
async def test_who_is_not_watched_gives_no_sign_of_life(heard: Notified, watchdog: dict[str, str]) -> None:
    manager = ServiceManager.named_in({**heard.environment, **watchdog})
    manager.beat()
    await manager.keep_watch()
    manager.ready()
    assert heard.next() == "READY=1"


async def test_who_is_watched_gives_it_as_often_as_is_needed(heard: Notified) -> None:
    manager = ServiceManager.named_in({**heard.environment, "WATCHDOG_USEC": "30000"})
    enabled = faulthandler.is_enabled()
    watch = asyncio.create_task(manager.keep_watch())
    try:
        for _ in range(5):
            assert await asyncio.to_thread(heard.next) == "WATCHDOG=1"
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        if not enabled:
            faulthandler.disable()


@pytest.mark.parametrize("address", ["", "vsock:2:5", "/nowhere/notify", "@nobody-listens-there"])
def test_a_manager_that_does_not_listen_breaks_nothing(address: str) -> None:
    manager = ServiceManager.named_in({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    manager.ready()
    manager.beat()


def test_a_manager_that_does_not_read_breaks_nothing() -> None:
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        address = str(Path(place) / "notify")
        full.bind(address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker, contextlib.suppress(BlockingIOError):
            speaker.setblocking(False)
            while True:
                speaker.sendto(b"x", address)
        ServiceManager(address).ready()


def test_who_is_ended_for_hanging_says_where_it_hung(heard: Notified) -> None:
    script = """
import asyncio, os, signal
from provisioning.program.service_manager import ServiceManager
async def main():
    watch = asyncio.create_task(ServiceManager.named_in(os.environ).keep_watch())
    await asyncio.sleep(0)
    hang()
def hang():
    signal.raise_signal(signal.SIGABRT)
asyncio.run(main())
"""
    environment = {**os.environ, **heard.environment, "PYTHONPATH": str(REPOSITORY), "WATCHDOG_USEC": "60000000"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode < 0
    assert "in hang" in done.stderr
