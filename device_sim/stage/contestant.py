"""Which broker a self-hosted run starts."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_sim.stage.stage import BrokerStarted


class Contestant(StrEnum):
    """Which broker a self-hosted run starts."""

    FLEETGATE = "fleetgate"
    MOSQUITTO = "mosquitto"

    def started(self, topics: Sequence[str] = (), *, websocket: bool = False) -> BrokerStarted:
        """Return how it is started, with a policy that lets devices publish to *topics* (`telemetry.own_topic`).

        *websocket*: the listener at which they connect is one of MQTT over WebSocket.
        """
        if self is Contestant.MOSQUITTO:
            from device_sim.stage.mosquitto_stage import mosquitto  # Late: a run uses one of the two.

            return partial(mosquitto, topics=topics, websocket=websocket)
        from device_sim.stage.stage import fleetgate

        return partial(fleetgate, topics=topics, websocket=websocket)
