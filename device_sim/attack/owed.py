"""What the cases of `fleet-sim delivery` have in common: how what a good party is owed, and got, is written down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from device_sim.attack.capabilities import Feature
from device_sim.attack.case import NOWHERE, Chapter, patience
from device_sim.attack.good_client import GoodClient, Parties
from device_sim.attack.scene import Scene
from device_sim.attack.target import BrokenPromise
from device_sim.attack.verdict import KEPT, NOT_DELIVERED, ClosedBy, Layer, Seen

_KEPT = f"mqtt {KEPT}"

Owed = Callable[[Parties], Awaitable[Seen | None]]


def owed(
    chapter: Chapter, name: str, description: str, *, needs: tuple[Feature, ...] = (), withheld: bool = False
) -> Callable[[Owed], Owed]:
    """Add the decorated case to *chapter*: it raises `BrokenPromise`, or returns what it has seen; None: all is well.

    *withheld*: right is that something is not delivered. All cases wait most of the time, and are tried at once.
    """

    def add(tried: Owed) -> Owed:
        async def attempt(scene: Scene) -> Seen:
            async with Parties(scene) as parties:
                return await tried(parties) or kept()

        expected = (NOWHERE if withheld else _KEPT,)
        chapter.add(name, description, expected, attempt, needs=needs, limit=patience, idle=True)
        return tried

    return add


def kept() -> Seen:
    """Return that a party was given what it is owed."""
    return Seen(Layer.MQTT, KEPT, "", ClosedBy.NOBODY)


async def not_delivered(listener: GoodClient, payload: bytes, broken: str) -> Seen:
    """Return that *payload* does not come to *listener*; raise `BrokenPromise` *broken* if it does.

    It is looked for once more behind the last case (`device_sim.attack.run`, rule 6).
    """
    await listener.settled()
    if payload in listener.payloads:
        raise BrokenPromise(broken)
    return Seen(Layer.MQTT, NOT_DELIVERED, "", ClosedBy.NOBODY, withheld=payload)


async def exactly(listener: GoodClient, payloads: list[bytes], what: str) -> None:
    """Return when *payloads*, called *what*, have come to *listener*, each once and in order, and nothing else has.

    Raises `BrokenPromise`.
    """
    await listener.until(lambda: set(payloads) <= set(listener.payloads), f"{what}: not all came")
    await listener.settled()
    came = listener.payloads
    if sorted(came) != sorted(payloads):
        more = next((each for each in came if came.count(each) > payloads.count(each)), b"")
        raise BrokenPromise(f"{what}: {'came more than once' if more in payloads else f'{more[:40]!r} came too'}")
    if came != payloads:
        raise BrokenPromise(f"{what}: came in another order")
