"""Which broker a self-hosted run starts."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_sim.stage.stage import BrokerStarted


class Contestant(StrEnum):
    """Which broker a self-hosted run starts."""

    FLEETGATE = "fleetgate"
    MOSQUITTO = "mosquitto"

    @property
    def started(self) -> BrokerStarted:
        """How it is started."""
        if self is Contestant.MOSQUITTO:
            from device_sim.stage.mosquitto_stage import mosquitto  # Late: a run uses one of the two.

            return mosquitto
        from device_sim.stage.stage import fleetgate

        return fleetgate
