"""What a stage of a scenario acts on, without a network: devices whose links end when the test says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from device_sim.device import Device, Event, State
from device_sim.fleet.backend import Backend
from device_sim.fleet.fleet import Fleet
from device_sim.fleet.surroundings import Counters, Surroundings
from device_sim.link.closure import Closure, Layer
from device_sim.link.tls_dial import NotAdmitted
from device_sim.run.manner import WHOLE, Share
from device_sim.run.recorder import Recorder
from device_sim.run.scene import Scene
from device_sim.scenario.catalogue import find
from provisioning.client.operator import ServiceUnavailable

NOBODY_LISTENS = Closure(Layer.TCP, "refused", "nobody listens there", 0.0)
SILENCE = Closure(Layer.MQTT, "timeout", "no answer to CONNECT in time", 0.0)
CUT_OFF = Closure(Layer.TLS, "closed", "", 0.0)
GONE = Closure(Layer.TCP, "closed", "the peer closed the connection", 0.0)
PUT_OUT = Closure(Layer.MQTT, "0x98", "suspended", time.monotonic(), 0x98)
TURNED_AWAY = Closure(Layer.MQTT, "0x87", "not authorized", 0.0, 0x87)


def scene(backend: Backend | None = None, share: Share = WHOLE) -> Scene:
    unused = cast("Any", None)
    fleet = Fleet([], Surroundings(unused, unused, unused, Counters(), 1))
    target = cast("Any", SimpleNamespace(operator=Operator(), fleet=Directory()))
    return Scene(find("smoke"), target, fleet, backend, Recorder(), 0.0, share)


class Directory:
    """The fleet's directory, which keeps who is revoked."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def revoked(self, name: str) -> None:
        self.told.append(name)


def told(around: Scene) -> list[str]:
    """Return of whose revocation the fleet's directory has been told."""
    return cast("Directory", around.target.fleet).told


class Operator:
    """An operator whose service does what *revokes* says."""

    revokes: Callable[[], object] = staticmethod(lambda: None)
    resumes: Callable[[], object] = staticmethod(lambda: None)

    async def revoke(self, *, device: str, reason: object) -> None:
        del device, reason
        self.revokes()

    async def suspend(self, *, device: str) -> None:
        del device
        self.revokes()

    async def resume(self, *, device: str) -> None:
        del device
        self.resumes()


class Meter:
    """A device on a link that ends when the test says so."""

    credential = None
    behaviours = ()
    out_since: float | None = None
    good = False
    """Whether it is admitted."""

    def __init__(self, name: str = "meter-1") -> None:
        self.name = name
        self.machine = Device(name, "meters", State.CONNECTED)
        self.group = find("smoke").groups[0]
        self.is_connected = True
        self.is_undecided = self.is_moving = False
        self.cuts = 0
        self.closed = False
        self.keeps_tls_session = False
        self.linked()

    def linked(self) -> asyncio.Future[Closure]:
        """Open another link."""
        closed = asyncio.get_running_loop().create_future()
        self.connection = SimpleNamespace(closed=closed, tls_session=None, tls_resumed=False)
        return closed

    def keep_tls_session(self) -> None:
        self.keeps_tls_session = True

    def cut(self) -> None:
        self.cuts += 1

    async def close(self) -> None:
        self.closed = True

    async def connect(self, _session: object = None) -> object:
        self.machine.happened(Event.DIALLED)
        if not self.good:
            self.machine.ended(TURNED_AWAY)
            raise NotAdmitted(TURNED_AWAY)
        self.machine.happened(Event.ADMITTED)
        self.is_connected = True
        return self.connection

    def put_out(self) -> None:
        """End its connection, as the broker does."""
        self.is_connected = False
        self.machine.ended(PUT_OUT)
        self.connection.closed.set_result(PUT_OUT)


def unavailable() -> None:
    raise ServiceUnavailable("https://localhost cannot be reached: Connection refused")
