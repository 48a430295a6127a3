"""A good device that stays connected and does nothing: a bad device must not harm it.

Theory
------
A broker that crashes on a bad packet closes that connection, as it should, but also all others. If it is restarted at
once, the next good device is admitted, and only a connection that existed before reveals the crash. So one exists from
the first case to the last, and is checked after each.

Rules
-----
1. A bystander that was disconnected reconnects, so that each case answers for itself.
2. It sends nothing but a PINGREQ when it is checked or when its keep alive requires one, and has no subscription.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from broker.mqtt.packets import Pingreq, Pingresp
from device_sim.attack.raw_client import RawClient
from device_sim.attack.target import Starved, TurnedAway
from device_sim.attack.verdict import PUT_OUT, SERVED, STARVED, ClosedBy, Layer, Seen
from device_sim.link.distance import NEARBY, Distance, distance_of

_PINGRESP = "PINGRESP"
_LONGEST_PAUSE = 300.0


class Bystander:
    """One good device, connected by *admitted*. Not connected before `come`."""

    def __init__(self, admitted: Callable[[], Awaitable[RawClient]], patience: float) -> None:
        self._admitted = admitted
        self._patience = patience
        self._client: RawClient | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._asking = asyncio.Lock()
        self._troubles: list[str] = []

    async def come(self) -> None:
        """Connect; raise what `device_sim.attack.scene.Scene.admitted` raises."""
        client = self._client = await self._admitted()
        self._pinging = asyncio.create_task(self._stays_alive(client), name="bystander")

    def leave(self) -> None:
        """Disconnect, as before a broker is stopped on purpose; the next check reconnects."""
        if self._pinging is not None:
            self._pinging.cancel()
            self._pinging = None
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def distance(self) -> Distance:
        """How far away the broker is, as far as this connection tells: others may be under attack."""
        return NEARBY if self._client is None else distance_of(self._client.socket)

    async def harmed(self, during: str) -> Seen | None:
        """Return what has happened to it since the last check, attributed to *during*; None: nothing."""
        harm = await self._since()
        if harm is not None:
            self._troubles.append(f"{during}: {harm.reason}")
        return harm

    async def _since(self) -> Seen | None:
        harm = None
        if self._client is not None:
            seen = await self._ping(self._client)
            if seen.code == _PINGRESP:
                return None
            code = STARVED if seen.got_in else PUT_OUT
            harm = Seen(Layer.MQTT, code, f"{seen.text} {seen.reason}".rstrip(), seen.closed_by)
            self.leave()
        try:
            await self.come()
        except (Starved, TurnedAway) as error:
            harm = harm or Seen(Layer.MQTT, STARVED, str(error), ClosedBy.NOBODY)
        return harm

    async def _ping(self, client: RawClient) -> Seen:
        async with self._asking:
            await client.send(Pingreq().encode(client.version))
            return await client.answer(Pingresp, deadline=self._patience)

    async def _stays_alive(self, client: RawClient) -> None:
        """Ping after half of the keep alive in force. How that ends is noticed by the next check."""
        while client.ended is None:
            await asyncio.sleep(min(client.keep_alive / 2, _LONGEST_PAUSE))
            await self._ping(client)

    @property
    def told(self) -> Seen:
        """How it was served in all that time, and what happened to it in which case."""
        if self._troubles:
            return Seen(Layer.MQTT, PUT_OUT, "; ".join(self._troubles))
        return Seen(Layer.MQTT, SERVED, "", ClosedBy.NOBODY)
