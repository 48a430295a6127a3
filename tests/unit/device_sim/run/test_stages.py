"""What the stages measure, and of what they take no measure."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from device_sim.device import Device, Event
from device_sim.fleet.backend import Backend
from device_sim.fleet.fleet import Fleet
from device_sim.fleet.surroundings import Counters, Surroundings
from device_sim.link.closure import Closure, Layer
from device_sim.link.distance import NEARBY
from device_sim.link.tls_dial import NotAdmitted
from device_sim.run import stages
from device_sim.run.recorder import Recorder
from device_sim.run.scene import Scene
from device_sim.scenario.catalogue import find
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.stages import Command

NOBODY_LISTENS = Closure(Layer.TCP, "refused", "nobody listens there", 0.0)
SILENCE = Closure(Layer.MQTT, "timeout", "no answer to CONNECT in time", 0.0)
CUT_OFF = Closure(Layer.TLS, "closed", "", 0.0)
TURNED_AWAY = Closure(Layer.MQTT, "0x87", "not authorized", 0.0, 0x87)


def scene(backend: Backend | None = None) -> Scene:
    unused = cast("Any", None)
    fleet = Fleet([], Surroundings(unused, unused, unused, Counters(), 1))
    return Scene(find("smoke"), unused, fleet, backend, Recorder(), 0.0)


class Refused:
    """A device whose every attempt comes to the same end."""

    name = "meter-1"
    connection = None
    out_since = None

    def __init__(self, closure: Closure) -> None:
        self.machine = Device(self.name, "meters")
        self.machine.happened(Event.ISSUED)
        self._closure = closure

    @property
    def is_connected(self) -> bool:
        return False

    async def connect(self, _session: object = None) -> None:
        self.machine.happened(Event.DIALLED)
        self.machine.ended(self._closure)
        raise NotAdmitted(self._closure)


@pytest.mark.parametrize(("closure", "measured"), [(NOBODY_LISTENS, 0), (SILENCE, 0), (CUT_OFF, 1), (TURNED_AWAY, 1)])
async def test_a_broker_that_is_not_there_refuses_no_revoked_device_and_quickly_at_that(
    closure: Closure, measured: int
) -> None:
    """Its figures would be the best of all."""
    around = scene()
    await stages._tries_again(around, cast("Any", Refused(closure)), Duration.REVOKED_REFUSED)
    refusals = around.recorder.value(Duration.REVOKED_REFUSED, "count", 0.0)
    assert (refusals, around.recorder.counts[Count.READMITTED]) == (measured, 0)
    assert around.fleet.refused_by_reason.total() == 1


@pytest.mark.parametrize(("closure", "false"), [(NOBODY_LISTENS, 0), (SILENCE, 0), (CUT_OFF, 1), (TURNED_AWAY, 1)])
async def test_a_broker_that_is_not_there_refuses_nobody_whose_suspension_is_over(closure: Closure, false: int) -> None:
    fleet = scene().fleet
    fleet.pardon("meter-1")
    assert await fleet.readmit(cast("Any", Refused(closure)), time.monotonic(), 0.01) is None
    assert len(fleet.falsely_refused) == false
    assert fleet.condemned == {}


async def test_a_command_is_late_from_when_it_was_due_also_while_earlier_ones_fill_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A broker that acknowledges slowly holds back the backend's commands: that is no pause of which nobody is told."""
    published, stalled = asyncio.Event(), 0.1
    backend = Backend("backend", ["meter-1"])
    backend.connection = cast("Any", SimpleNamespace(publish=lambda *_: published.set(), distance=lambda: NEARBY))
    backend._window = asyncio.Semaphore(0)

    async def is_back() -> None:
        pass

    monkeypatch.setattr(backend, "come_back", is_back)
    around = scene(backend)
    meter = SimpleNamespace(name="meter-1", machine=Device("meter-1", "meters"), is_connected=True)
    around.told_devices = [cast("Any", meter)]
    playing = asyncio.create_task(stages._command(around, Command(rate=100.0, deadline=60.0)))
    while not backend._commands:  # noqa: ASYNC110 - it is asked for in one of the loop's next turns
        await asyncio.sleep(0)
    (identifier,) = backend._commands
    await asyncio.sleep(stalled)
    assert not published.is_set()
    backend._acknowledged(1, 0, "")
    await published.wait()
    backend._received("fleet/meters/meter-1/ack", b'{"id":"%s","done":true}' % identifier.encode())
    await playing
    recorder = around.recorder
    late = recorder.response[Duration.COMMAND].highest - recorder.service[Duration.COMMAND].highest
    assert late >= stalled * 1000 * 0.99
    assert (recorder.counts[Count.COMMANDS], recorder.counts[Count.UNANSWERED_COMMANDS]) == (1, 0)
