"""A service that receives what devices say, so that forbidden messages can be seen to arrive or not.

Rules
-----
1. What has arrived is remembered for the whole run, whichever watcher got it: a forged message may come late.
2. So are the topics, for a forged message may come altered; but not those of retained messages, which an earlier run
   may have left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from broker.mqtt.packets import Pingreq, Publish
from device_sim.attack.raw_client import RawClient
from device_sim.attack.verdict import Seen

_LOOK = 30.0
_KEPT = 64
"""How many bytes of a payload are remembered: flood payloads are long."""


class Watcher:
    """A service subscribed to everything the devices of the attack say.

    *heard* counts what it received, *heard_at* has the topics.
    """

    def __init__(self, client: RawClient, heard: Counter[bytes], heard_at: set[str]) -> None:
        self._client = client
        self._heard = heard
        self._heard_at = heard_at
        self._arrived = asyncio.Event()
        self._task = asyncio.create_task(self._watch(), name="watcher")

    @property
    def gone(self) -> bool:
        """Whether its connection has ended."""
        return self._task.done()

    async def got(self, payload: bytes, deadline: float) -> bool:
        """Whether *payload* has arrived, or arrives within *deadline* seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                while payload not in self._heard and not self.gone:
                    self._arrived.clear()
                    await self._arrived.wait()
        return payload in self._heard

    async def close(self) -> None:
        """Disconnect."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self._client.close()

    async def _watch(self) -> None:
        while True:
            packet = await self._client.receive(deadline=min(_LOOK, self._client.keep_alive / 2))
            if isinstance(packet, Publish):
                self._heard[packet.payload[:_KEPT]] += 1
                if not packet.retain:
                    self._heard_at.add(packet.topic)
            elif isinstance(packet, Seen) and not packet.got_in:
                self._arrived.set()
                return
            elif isinstance(packet, Seen):  # Not for a PINGRESP: each would have the next one sent, without a pause.
                await self._client.send(Pingreq().encode(self._client.version))
            self._arrived.set()
