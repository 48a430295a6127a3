"""What every case has available: those who come in, a watcher that receives everything, and who is kept out.

Theory
------
"Never delivered" is a claim about the future. The watcher turns it into one about order: after the forbidden message
the attacker sends an allowed one on the same connection; when that has arrived and the other has not, the other should
never arrive. Whether it did after all is checked once more when the run is over (`heard`).

How anybody comes in, and with what, is `device_sim.attack.entry`, which this builds on.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace

from broker.mqtt.packets import Pingreq, Pingresp, Publish
from device_sim.attack.entry import Entry
from device_sim.attack.far_broker import TIMED
from device_sim.attack.issuer import Paper
from device_sim.attack.list_reading import until_read
from device_sim.attack.raw_client import RawClient
from device_sim.attack.target import BrokenPromise, Impossible, Starved, Target
from device_sim.attack.verdict import (
    CLOSED,
    DELIVERED,
    NOT_DELIVERED,
    OPEN,
    ClosedBy,
    Layer,
    Said,
    Seen,
    came_to_the_broker,
)
from device_sim.attack.watcher import Watcher
from device_sim.core_wait import MOST_WAITING, CoreWatch
from device_sim.link.tls_dial import Endpoint

PATIENCE = 60.0
"""Seconds that an innocent device waits to be served while another misbehaves, and for what must arrive.

Not a bound on speed: on a shared machine a broker has what it gets. What must arrive is waited for, and a broker that
serves nobody for as long as the trouble lasts is detected.
"""
GRACE = 12.0
"""Extra seconds to wait, beyond the broker's limit, for what must arrive, if the machine is to blame for the delay
(`device_sim.attack.verdict`, rule 4)."""
_PAUSE = 0.1
_PAUSES = (0.02, 0.04, 0.08, 0.16, 0.2)
"""Seconds between attempts of a revoked device, the last one repeated."""
SOON = 1.0
"""Seconds for data to arrive behind a PINGRESP, where different processes write data and PINGRESP."""
OTHER = "-other"
"""Suffix of the group that no good party is in."""
_MARKERS = 3
"""How many allowed messages in a row a broker may lose: delivery at QoS 0 is not guaranteed."""


def cores_of(target: Target) -> CoreWatch:
    """Return a watch on how long the attacker, and the broker if it is our process, wait for a core."""
    return CoreWatch("the attacker", {} if target.broker_pid is None else {"the broker": target.broker_pid})


class Scene(Entry):
    """One run against one target."""

    def __init__(self, target: Target, named: Counter[str] | None = None, patience: float = PATIENCE) -> None:
        super().__init__(target, Counter() if named is None else named, patience)
        self.heard: Counter[bytes] = Counter()
        """What devices have said in this whole run that an authorised party has received, and how often."""
        self.heard_at: set[str] = set()
        """Where they have said it."""
        self.kept_out: dict[str, Paper] = {}
        """The revoked certificates, by name, whose devices have been refused for it."""
        self.listens_until = 0.0
        """Until when what is forbidden may still arrive: what of an offender's is late may only be held up."""
        self._watcher: Watcher | None = None
        self._heard_nothing = False
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """Release what the cases shared, as before the broker is stopped."""
        self.bystander.leave()
        await self.stop_watching()

    async def stop_watching(self) -> None:
        """Release the watcher; the next case that needs one gets a new one."""
        if self._watcher is not None:
            await self._watcher.close()
            self._watcher = None

    def at(self, endpoint: Endpoint) -> Scene:
        """Return the same at another broker of the fleet; names continue, and the caller must `close` it."""
        return Scene(replace(self.target, endpoint=endpoint), self._named, self.patience)

    # What is heard

    async def watcher(self) -> Watcher:
        """Return the watcher; the first call connects it, and checks that it receives an allowed message.

        Raises `Impossible` if none is received: the broker's policy may then differ from the catalogue's.
        """
        async with self._opening:
            if self._watcher is None or self._watcher.gone:
                await self.stop_watching()
                name, topics = self.fresh("watcher"), f"fleet/{self.target.group}/#"
                others = f"fleet/{self.target.group}{OTHER}/#"  # What a device must not write, and might.
                client = await self.admitted(await self.target.registrar.certify(self.target.service(name)))
                await self.subscribe(client, others)
                seen = await self.subscribe(client, topics)
                if not seen.got_in:
                    raise Impossible(f"a service may not subscribe to {topics} here ({seen.text}): nobody can watch")
                watcher = Watcher(client, self.heard, self.heard_at)
                if not self.heard:
                    await self._proven(watcher)
                self._watcher = watcher
            return self._watcher

    async def _proven(self, watcher: Watcher) -> None:
        control = await self.device()
        client = await self.admitted(control)
        try:
            deadline = SOON if self._heard_nothing else None  # Its policy lets nobody watch: a minute is waited once.
            if isinstance(await self._marked(client, control.name, watcher, deadline), bytes):
                return
        finally:
            client.close()
        await watcher.close()
        self._heard_nothing = True
        raise Impossible(
            f"what a good device publishes to {self.topic(control.name)} reaches no service that has subscribed to "
            f"fleet/{self.target.group}/#: does the broker's policy allow both?"
        )

    async def _shunned(self, client: RawClient, name: str, watcher: Watcher) -> bool:
        """Whether the broker takes what others say, and no longer what *client* does, the device *name*.

        Several times something of its own is missing when another's arrives that was sent later.
        """
        control = await self.device()
        other = await self.admitted(control)
        try:
            for _ in range(_MARKERS):
                marker = await self._say_marker(client, name)
                heard = await self._marked(other, control.name, watcher)
                if not isinstance(heard, bytes) or await watcher.got(marker, SOON):
                    return False
            return True
        finally:
            other.close()

    async def _say_marker(self, client: RawClient, name: str) -> bytes:
        marker = f"marker {self.fresh()}".encode()
        await client.send(Publish(self.topic(name), marker).encode(client.version))
        return marker

    async def _marked(
        self, client: RawClient, name: str, watcher: Watcher, deadline: float | None = None, times: int = _MARKERS
    ) -> bytes | Seen:
        """Let *client*, the device *name*, publish an allowed message; return it when *watcher* has it, or the end.

        Several are sent, each with its *deadline*, before the broker is blamed for losing them: then it is *open*.
        """
        deadline = self.patience / _MARKERS if deadline is None else deadline
        for _ in range(times):
            marker = await self._say_marker(client, name)
            heard = asyncio.create_task(watcher.got(marker, deadline))
            ending = asyncio.create_task(client.end(deadline))
            await asyncio.wait([heard, ending], return_when=asyncio.FIRST_COMPLETED)
            ended = ending.result() if ending.done() else None
            heard.cancel()
            ending.cancel()
            await asyncio.wait([heard, ending])
            # What was sent before the end may still be in transit.
            if await watcher.got(marker, _PAUSE):
                return marker
            if watcher.gone:
                raise Starved("a good service, which watched, was put out")
            if ended is not None and not ended.got_in:
                return ended
        return Seen(Layer.MQTT, OPEN, "an allowed message did not arrive", ClosedBy.NOBODY, got_in=True)

    def has_come(self, said: Said) -> bool:
        """Whether an authorised party has received *said*, altered or not."""
        return said.payload in self.heard or said.topic in self.heard_at

    async def fate(self, client: RawClient, name: str, said: Said, *, offender: bool = False) -> Seen:
        """Return whether *said*, which *client* of the device *name* has just sent, reaches the watcher.

        *offender*: it was forbidden. Who is not listened to any more because of that is punished, and not harmed.
        Raises `Starved` if not even an allowed message arrives.
        """
        watcher = await self.watcher()
        if offender:
            marked = await self._marked(client, name, watcher, SOON, 1)
            until = time.monotonic() + self.patience / _MARKERS
            shunned = isinstance(marked, Seen) and marked.code == OPEN and await self._shunned(client, name, watcher)
            if shunned and not self.has_come(said):
                self.listens_until = until
                why = "nor is what it may say: the broker no longer listens to it, and leaves it connected"
                return Seen(Layer.MQTT, NOT_DELIVERED, why, ClosedBy.NOBODY, withheld=said)
            if isinstance(marked, Seen) and marked.code == OPEN and not shunned:
                marked = await self._marked(client, name, watcher)
        else:
            marked = await self._marked(client, name, watcher)
        if self.has_come(said):
            how = "" if said.payload in self.heard else "altered"
            return Seen(Layer.MQTT, DELIVERED, how, ClosedBy.NOBODY, got_in=True)
        if isinstance(marked, bytes):
            return Seen(Layer.MQTT, NOT_DELIVERED, "", ClosedBy.NOBODY, withheld=said)
        if marked.code == OPEN:
            raise Starved(f"even {_MARKERS} allowed messages of a good device, one after the other, did not arrive")
        return replace(marked, withheld=said)

    async def retained(self, topic: str) -> bytes:
        """Return what the broker sends to a good service that subscribes to *topic* only now; nothing if it is b""."""
        name = self.fresh("watcher")
        client = await self.admitted(await self.target.registrar.certify(self.target.service(name)))
        try:
            if not (await self.subscribe(client, topic)).got_in:
                return b""
            await client.send(Pingreq().encode(client.version))
            answered = False
            while True:
                packet = await client.receive(SOON if answered else self.patience)
                if isinstance(packet, Publish):
                    return packet.payload
                if isinstance(packet, Seen):
                    return b""
                answered = answered or isinstance(packet, Pingresp)
        finally:
            client.close()

    # Those who are revoked

    async def until_refused(self, paper: Paper, *, clean: bool = True) -> Seen:
        """Connect with *paper*, already revoked, until it is refused; return that, timed from now.

        The target has its time limit, and more on a machine that others hold (`with_grace`). It connects no more than
        some 50 times in ten seconds: a broker may refuse who connects more often, whatever its certificate. *clean* is
        that of `present`.
        """
        started, pauses = time.monotonic(), itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1]))

        async def refused(within: float) -> Seen:
            until = time.monotonic() + within
            while True:
                seen = (await self.show(paper, clean=clean)).since(started)
                if seen.matches(CLOSED):
                    # It may have been connecting when the broker disconnected existing sessions: what is the answer
                    # now?
                    seen = (await self.show(paper, clean=clean)).since(started)
                if not seen.got_in or time.monotonic() > until:
                    return seen
                await asyncio.sleep(next(pauses))

        seen = await self.with_grace(refused, self.target.capabilities.limits.revocation)
        return seen if seen.got_in else self.is_out(paper, seen)

    async def refused_as_revoked(self, paper: Paper) -> None:
        """Return when *paper*, already revoked, is refused; raise `Impossible` if it is not.

        For cases about others: where nobody is refused, that they are not harmed says nothing.
        """
        seen = await self.until_refused(paper)
        if seen.got_in or not came_to_the_broker(seen):
            raise Impossible(f"who is revoked is not refused here, so nobody can be harmed by it: {seen.text}")

    def is_out(self, paper: Paper, seen: Seen) -> Seen:
        """Record that the revoked *paper* was kept out, as in *seen*; return that, to be checked again."""
        self.kept_out[paper.name] = paper
        return replace(seen, revoked=paper.name)

    async def with_grace(self, wait: Callable[[float], Awaitable[Seen]], limit: float) -> Seen:
        """Return what *wait* sees within *limit* seconds that ends a peer's connection.

        On a machine that others hold, across a long link, or where a list is still to be read, it waits longer: to be
        judged late, it must be known to have come.
        """
        cores, started = cores_of(self.target), time.monotonic()
        seen = await wait(limit)
        starved = max(cores.shares().values()) > MOST_WAITING
        grace = max(GRACE if starved else 0.0, self.bystander.distance.longest(TIMED))
        if seen.got_in and grace:
            seen = await wait(grace)
        return await until_read(self, wait, seen, started)

    async def until_released(self, paper: Paper) -> Seen:
        """Connect with *paper*, no longer suspended, until it is admitted; return that, timed from now.

        Raises `BrokenPromise` if it is still refused when a revocation would have had to take effect.
        """
        started, limit = time.monotonic(), self.target.capabilities.limits.revocation
        while not (seen := (await self.show(paper)).since(started)).got_in:
            if time.monotonic() > started + limit:
                what = f"{limit:g} s after it was resumed, the device is still not let in: {seen.text} {seen.reason}"
                raise BrokenPromise(what.rstrip(), never=True)
            await asyncio.sleep(_PAUSES[-1])
        return seen

    async def until_admitted(self, paper: Paper, deadline: float) -> None:
        """Connect with *paper* until it is admitted, at most *deadline* seconds."""
        until = time.monotonic() + deadline
        while True:
            if (await self.show(paper)).got_in or time.monotonic() > until:
                return
            await asyncio.sleep(_PAUSE)
