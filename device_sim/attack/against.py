"""What `fleet-sim attack` can start and attack."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

if TYPE_CHECKING:
    from device_sim.attack.target import Target

Opened = Callable[[Path], "AbstractAsyncContextManager[Target]"]
"""Starts a target, with a directory for its files, and stops it on leaving."""


class Start(Protocol):
    """Starts a target of one kind in a directory."""

    def __call__(self, directory: Path, *, tls12: bool) -> AbstractAsyncContextManager[Target]:
        """*tls12*: let it accept TLS 1.2 too."""


class Against(StrEnum):
    """What to start and attack, if it is not already running."""

    FLEETGATE = "fleetgate"
    MOSQUITTO = "mosquitto"
    NATS_SERVER = "nats-server"
    RABBITMQ = "rabbitmq"

    def opened(self, *, tls12: bool = False, websocket: bool = False) -> Opened:
        """Return the function that starts it; *websocket*: to be attacked there, or `typer.BadParameter`."""
        if websocket:
            if self is not Against.FLEETGATE:
                raise typer.BadParameter(f"--websocket --against {self}: only a Fleetgate is started with WebSocket")
            from device_sim.attack.fleetgate_target import fleetgate

            return lambda directory: fleetgate(directory, tls12=tls12, websocket=True)
        start = self._start
        return lambda directory: start(directory, tls12=tls12)

    @property
    def _start(self) -> Start:
        # Late: a process attacks only one of them.
        match self:
            case Against.FLEETGATE:
                from device_sim.attack.fleetgate_target import fleetgate

                return fleetgate
            case Against.MOSQUITTO:
                from device_sim.attack.mosquitto_target import mosquitto

                return mosquitto
            case Against.NATS_SERVER:
                from device_sim.attack.nats_target import nats_server

                return nats_server
            case Against.RABBITMQ:
                from device_sim.attack.rabbitmq_target import rabbitmq

                return rabbitmq
