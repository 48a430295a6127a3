"""`fleet-sim delivery` on a broker that is killed and loses its store: each case about that says so."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from device_sim.attack import run, scene
from device_sim.attack.catalogue import pick
from device_sim.attack.delivery_list import OWED
from device_sim.attack.fleetgate_target import fleetgate
from tests.support.judged_delivery import assert_found, is_against
from tests.support.programs import AFRESH, REPOSITORY, forking_python

FORGOTTEN = {
    "22-killed-queued": "its session was gone (CONNACK without session present)",
    "22-killed-at-puback": "its session was gone (CONNACK without session present)",
    "22-killed-retained": "what was retained when the broker was killed: not all came",
    "22-killed-qos2": "its session was gone (CONNACK without session present)",
    "22-killed-will": "its session was gone (CONNACK without session present)",
}


@pytest.fixture(autouse=True)
def _short_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does, it is the broker that is judged."""
    monkeypatch.setattr(run, "MOST_WAITING", 10.0)
    monkeypatch.setattr(scene, "PATIENCE", 20.0)


def losing(start: Callable[[], Awaitable[None]] | None, directory: Path) -> Callable[[], Awaitable[None]]:
    """Return what removes the store below *directory* before it starts the broker."""
    assert start is not None

    def lose() -> None:
        for path in directory.glob("broker-1/broker.db*"):
            path.unlink()

    async def starting() -> None:
        await asyncio.to_thread(lose)
        await start()

    return starting


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the service forked; the broker is killed, and has an interpreter of its own."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv(AFRESH, "broker")
    monkeypatch.setattr(sys, "executable", forking_python("provisioning", environment=os.environ))


@pytest.mark.timeout(600)
async def test_what_a_killed_broker_has_forgotten_is_missed(tmp_path: Path) -> None:
    cases = pick(OWED, ["22"])
    async with fleetgate(tmp_path) as target:
        target.start_broker = losing(target.start_broker, tmp_path)
        found = await run.run(target, cases, lambda _: None)
    assert_found({each.name: each.judgement.why for each in found if is_against(each)}, FORGOTTEN)
