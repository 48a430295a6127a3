"""A good device that is connected all the time, and does nothing: whom a bad one may not harm.

Theory
------
A broker that dies of a bad packet closes that connection, as it should, and all others with it. Where something starts
it again at once, the next good device is let in, and nothing but a connection that was there before tells. So one is
there from the first case to the last, and is looked at after each.

Rules
-----
1. Who is put out comes back, so that each case answers for itself.
2. It sends nothing but a PINGREQ when it is looked at, and has no subscription.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from broker.mqtt.packets import Pingreq, Pingresp
from device_sim.attack.raw_client import RawClient
from device_sim.attack.target import Starved, TurnedAway
from device_sim.attack.verdict import PUT_OUT, SERVED, STARVED, ClosedBy, Layer, Seen

_PINGRESP = "PINGRESP"


class Bystander:
    """One good device, which *admitted* connects. Nobody is connected before `come`."""

    def __init__(self, admitted: Callable[[], Awaitable[RawClient]], patience: float) -> None:
        self._admitted = admitted
        self._patience = patience
        self._client: RawClient | None = None
        self._troubles: list[str] = []

    async def come(self) -> None:
        """Connect; raise what `device_sim.attack.scene.Scene.admitted` raises."""
        self._client = await self._admitted()

    def leave(self) -> None:
        """Be gone, as before a broker is stopped on purpose; the next look connects again."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def harmed(self, during: str) -> Seen | None:
        """Return what has befallen it since the last look, in what is called *during*; None: nothing."""
        harm = await self._since()
        if harm is not None:
            self._troubles.append(f"{during}: {harm.reason}")
        return harm

    async def _since(self) -> Seen | None:
        harm = None
        if self._client is not None:
            await self._client.send(Pingreq().encode(self._client.version))
            seen = await self._client.answer(Pingresp, deadline=self._patience)
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

    @property
    def told(self) -> Seen:
        """How it was served in all that time, and what befell it in which case."""
        if self._troubles:
            return Seen(Layer.MQTT, PUT_OUT, "; ".join(self._troubles))
        return Seen(Layer.MQTT, SERVED, "", ClosedBy.NOBODY)
