"""Which MQTT client the devices of a run use."""

from __future__ import annotations

from enum import StrEnum

from device_sim.client import Connection
from device_sim.light_client import LightConnection
from device_sim.link import Open


class Driver(StrEnum):
    """A client that keeps the promise of `device_sim.link`."""

    PAHO = "paho"
    LIGHT = "light"

    @property
    def open(self) -> Open:
        """How it opens a connection."""
        return LightConnection.open if self is Driver.LIGHT else Connection.open
