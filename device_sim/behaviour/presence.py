"""A device that announces its presence: a retained message on connecting and on leaving; otherwise its will does so."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from broker.mqtt.codes import QoS
from broker.mqtt.connect import Will
from device_sim.behaviour.behaviour import Acting, Behaviour
from device_sim.link.link import Link, NotConnected, Terms
from device_sim.scenario.groups import Presence

ONLINE = b'{"online":true}'
OFFLINE = b'{"online":false}'


@dataclass(frozen=True, slots=True)
class Present(Behaviour):
    """See `device_sim.scenario.groups.Presence`."""

    presence: Presence

    def terms(self, device: Acting, terms: Terms) -> Terms:
        """Set a will."""
        return replace(terms, will=Will(_topic(device), OFFLINE, QoS(self.presence.qos), retain=True))

    def admitted(self, device: Acting, link: Link) -> None:
        """Announce that it is online."""
        self._say(device, link, ONLINE)

    def leaving(self, device: Acting, link: Link) -> None:
        """Announce that it leaves: a clean DISCONNECT discards the will."""
        self._say(device, link, OFFLINE)

    def _say(self, device: Acting, link: Link, payload: bytes) -> None:
        with contextlib.suppress(NotConnected):  # The connection is gone already, and the will announces that.
            link.publish(_topic(device), payload, self.presence.qos, retain=True)


def _topic(device: Acting) -> str:
    return f"{device.machine.topic_prefix}/state"
