"""Which MQTT client the devices of a run use."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_sim.link.link import Open


class Driver(StrEnum):
    """A client that implements `device_sim.link.link`."""

    PAHO = "paho"
    LIGHT = "light"

    def load(self) -> None:
        """Import it now rather than when the first device connects."""
        _ = self.open

    @property
    def open(self) -> Open:
        """The function that opens a connection."""
        if self is Driver.LIGHT:
            from device_sim.link.light_client import LightConnection  # Late: a process uses only one of the two.

            return LightConnection.open
        from device_sim.link.client import Connection

        return Connection.open
