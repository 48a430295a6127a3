"""What the cases of `fleet-sim delivery` share: how what a good party is owed, and got, is recorded.

Rules
-----
1. Each case names the MQTT 5 statement that it is judged by, and where 3.1.1 promises the same, that one too: then
   there is a second case, by the older protocol, whose name ends in ``-311``.
2. Failing to do what a standard says a broker *should* do is a warning (`BrokenPromise`, *advised*).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.packets import Publish
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import NOWHERE, Chapter, patience
from device_sim.attack.good_client import GoodClient, Parties
from device_sim.attack.scene import Scene
from device_sim.attack.target import BrokenPromise, Impossible
from device_sim.attack.verdict import KEPT, NOT_DELIVERED, ClosedBy, Layer, Said, Seen

_KEPT = f"mqtt {KEPT}"
OLDER = "-311"
"""Suffix of the names of cases that use MQTT 3.1.1."""

_SHOWN: Final = 40
"""Bytes of a payload that are shown."""
_At = TypeVar("_At")
Owed = Callable[[Parties], Awaitable[Seen | None]]


def owed(
    chapter: Chapter,
    name: str,
    description: str,
    clause: str,
    *,
    older: str = "",
    needs: tuple[Feature, ...] = (),
    withheld: bool = False,
    last: bool = False,
) -> Callable[[Owed], Owed]:
    """Add the decorated case to *chapter*: it raises `BrokenPromise`, or returns what it has seen; None: all is well.

    *clause* of MQTT 5 and *older* of 3.1.1 promise it (rule 1). *withheld*: something must not be delivered. Most cases
    wait, so many run at once; *last* ones are a burden on the broker, or restart it: they run alone, after the others.
    """
    expected = (NOWHERE if withheld else _KEPT,)

    def add(tried: Owed) -> Owed:
        async def attempt(scene: Scene) -> Seen:
            async with Parties(scene) as parties:
                return await tried(parties) or kept()

        async def attempt_older(scene: Scene) -> Seen:
            if Feature.MQTT5 not in scene.target.capabilities.supports:
                raise Impossible(f"this broker speaks MQTT 3.1.1 alone: {name} was tried by that")
            async with Parties(scene, ProtocolVersion.V311) as parties:
                return await tried(parties) or kept()

        both = f"{clause}; 3.1.1: {older}" if older else clause
        chapter.add(
            name, description, expected, attempt, needs=needs, limit=patience, idle=not last, last=last, clause=both
        )
        if older and Feature.MQTT5 not in needs:
            words, clause_311 = f"{description} (MQTT 3.1.1)", f"3.1.1: {older}"
            twin = name + OLDER
            chapter.add(
                twin, words, expected, attempt_older,
                needs=needs, limit=patience, idle=not last, last=last, clause=clause_311,
            )  # fmt: skip
        return tried

    return add


def kept() -> Seen:
    """Return that a party was given what it is owed."""
    return Seen(Layer.MQTT, KEPT, "", ClosedBy.NOBODY)


async def not_delivered(listener: GoodClient, payload: bytes, broken: str) -> Seen:
    """Return that *payload* does not reach *listener*; raise `BrokenPromise` *broken* if it does.

    It is checked once more after the last case (`device_sim.attack.run`, rule 6).
    """
    await listener.settled()
    if payload in listener.payloads:
        raise BrokenPromise(broken)
    return Seen(Layer.MQTT, NOT_DELIVERED, "", ClosedBy.NOBODY, withheld=Said(payload))


async def exactly(listener: GoodClient, payloads: list[bytes], what: str) -> None:
    """Return when *payloads*, called *what*, have reached *listener*, each once and in order, and nothing else has.

    Raises `BrokenPromise`.
    """
    await listener.until_payloads(payloads, f"{what}: not all came")
    await listener.settled()
    once_each(listener.payloads, payloads, what)
    if listener.payloads != payloads:
        raise BrokenPromise(f"{what}: came in another order")


def once_each(came: list[bytes], payloads: list[bytes], what: str) -> None:
    """Raise `BrokenPromise` if *came* is not each of *payloads*, called *what*, once, in any order."""
    if sorted(came) != sorted(payloads):
        more = next((each for each in came if came.count(each) > payloads.count(each)), None)
        if more is None:
            raise BrokenPromise(f"{what}: not all came", never=True)
        raise BrokenPromise(f"{what}: {'came more than once' if more in payloads else f'{more[:40]!r} came too'}")


def said_at(came: Publish, said: Mapping[bytes, _At]) -> _At:
    """Return at what, according to *said*, the payload of *came* was said; raise `BrokenPromise` if nobody has."""
    at = said.get(came.payload)
    if at is None:
        raise BrokenPromise(f"{came.payload[:_SHOWN]!r} came, which nobody has said")
    return at


def as_told(came: Publish, told: Publish) -> None:
    """Raise `BrokenPromise` if *came* differs from *told*; its expiry interval may be slightly lower."""
    for what in ("topic", "payload", "qos", "retain"):
        if getattr(came, what) != getattr(told, what):
            raise BrokenPromise(f"{what} {getattr(came, what)!r} came, {getattr(told, what)!r} was told")
    left, life = came.properties.message_expiry_interval, told.properties.message_expiry_interval
    if (left is None) != (life is None) or (left is not None and life is not None and not 0 <= left <= life):
        raise BrokenPromise(f"an expiry interval of {left} came, {life} was told")
    for what in ("payload_format_indicator", "content_type", "response_topic", "correlation_data", "user_properties"):
        if getattr(came.properties, what) != getattr(told.properties, what):
            raise BrokenPromise(
                f"{what} {getattr(came.properties, what)!r} came, {getattr(told.properties, what)!r} was told"
            )
