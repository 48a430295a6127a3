"""A good device that stays connected and does nothing: a bad device must not harm it.

Theory
------
A broker that crashes on a bad packet closes that connection, as it should, but also all others. If it is restarted at
once, the next good device is admitted, and only a connection that existed before reveals the crash. So one exists from
the first case to the last, and is checked after each.

It also knows the link. What that loses the kernel learns from packets, and a bystander has few: before the first case,
another good device exchanges as many as tell, where the broker is far away.

Rules
-----
1. A bystander that was disconnected reconnects, so that each case answers for itself.
2. It sends nothing but a PINGREQ when it is checked or when its keep alive requires one, and has no subscription.
3. What is known of the link stays known when it reconnects.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from broker.mqtt.packets import Disconnect, Pingreq, Pingresp
from device_sim.attack.raw_client import RawClient
from device_sim.attack.target import Starved, TurnedAway
from device_sim.attack.verdict import PUT_OUT, SERVED, STARVED, TURNED_AWAY, ClosedBy, Layer, Seen
from device_sim.link.distance import NEARBY, Distance, distance_of

_PINGRESP = "PINGRESP"
_LONGEST_PAUSE = 300.0
_TELLING = 300
"""Packets that tell what a link loses: of one in a hundred, three."""
_BETWEEN = 0.02
"""Seconds between two of them, at most: what is lost is noticed by what comes behind it."""
_LONGEST_LOOK = 30.0


class Bystander:
    """One good device, connected by *admitted*. Not connected before `come`."""

    def __init__(self, admitted: Callable[[], Awaitable[RawClient]], patience: float) -> None:
        self._admitted = admitted
        self._patience = patience
        self._client: RawClient | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._asking = asyncio.Lock()
        self._troubles: list[str] = []
        self._known = NEARBY
        """The distance as earlier connections have told it."""

    async def come(self) -> None:
        """Connect; raise what `device_sim.attack.entry.Entry.admitted` raises."""
        client = self._client = await self._admitted()
        self._pinging = asyncio.create_task(self._stays_alive(client), name="bystander")

    async def look_at_the_link(self) -> None:
        """Find out what the link to a broker far away loses; raise what `come` raises.

        On a connection of its own: no answer to so many PINGREQs may be taken for one to a later check.
        """
        if not self.distance.is_far:
            return
        client = await self._admitted()
        try:
            until = time.monotonic() + _LONGEST_LOOK
            while distance_of(client.socket).packets < _TELLING and time.monotonic() < until and client.ended is None:
                await client.send(Pingreq().encode(client.version))
                await client.receive(_BETWEEN)
            self._known = self._known.or_worse(distance_of(client.socket))
            await client.send(Disconnect().encode(client.version))
        finally:
            client.close()

    def leave(self) -> None:
        """Disconnect, as before a broker is stopped on purpose; the next check reconnects."""
        self._known = self.distance
        if self._pinging is not None:
            self._pinging.cancel()
            self._pinging = None
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def distance(self) -> Distance:
        """How far away the broker is, as far as good devices tell: other connections may be under attack."""
        return self._known if self._client is None else self._known.or_worse(distance_of(self._client.socket))

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
            code = STARVED if isinstance(error, Starved) else TURNED_AWAY
            harm = harm or Seen(Layer.MQTT, code, str(error), ClosedBy.NOBODY)
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
