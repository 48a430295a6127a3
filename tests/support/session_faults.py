"""Faults of a broker in aliases, connections and sessions: takeovers, how long a session is kept, and order.

Each is a `tests.support.delivery_faults.Changing` in front of a real broker. Handles: one fault at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from broker.mqtt.codes import PacketType, QoS
from broker.mqtt.packets import Connack, Connect, Disconnect, Packet, Puback, Publish, Suback, Unsuback
from broker.mqtt.properties import NO_PROPERTIES, Properties
from tests.support.delivery_faults import Changing, connecting
from tests.support.one_fault import Passage

_KEEP_ALIVE_OF_THE_CASE = 3


def alias_of(packet: Packet) -> int | None:
    return packet.properties.topic_alias if isinstance(packet, Publish) else None


def by_topic(packet: Publish, topic: str) -> Publish:
    """Return *packet* at *topic*, without an alias."""
    return replace(packet, topic=topic, properties=replace(packet.properties, topic_alias=None))


# Aliases that a device uses


class ForgetsAliases(Changing):
    """It acknowledges what is published by an alias alone, but does not deliver it."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Publish) and not packet.topic and passage.memory.get("told"):
            if packet.packet_id is not None:
                passage.tell_device(Puback(packet.packet_id))
            return []
        passage.memory["told"] = passage.memory.get("told") or alias_of(packet) is not None
        return [packet]


class KeepsAliases(Changing):
    """It identifies aliases by *key*, and never changes an alias's topic."""

    def __init__(self, key: Callable[[Passage, int], Any]) -> None:
        super().__init__()
        self.key = key
        self.topics: dict[Any, str] = {}

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        alias = alias_of(packet)
        if not isinstance(packet, Publish) or alias is None:
            return [packet]
        topic = self.topics.setdefault(self.key(passage, alias), packet.topic)
        return [by_topic(packet, topic)] if topic else [packet]


def _on_this_connection(passage: Passage, alias: int) -> Any:
    return id(passage), alias


def never_remade() -> KeepsAliases:
    return KeepsAliases(_on_this_connection)


def one_for_all() -> KeepsAliases:
    """Return a broker that treats all aliases of a connection as the same one."""
    return KeepsAliases(lambda passage, _: id(passage))


def carried_forward() -> KeepsAliases:
    """Return a broker that keeps aliases from one connection to the next."""
    return KeepsAliases(lambda passage, alias: (passage.identity.name, alias))


class TakesAnyAlias(Changing):
    """It delivers a message with a wrong alias, and continues, or lets its sender be disconnected."""

    def __init__(self, *, goes_on: bool) -> None:
        super().__init__()
        self.goes_on = goes_on

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if not isinstance(packet, Publish) or packet.payload != b"by alias":
            return [packet]
        right = by_topic(packet, f"fleet/meters/{passage.identity.name}/telemetry")
        self.leak(right)
        return [right] if self.goes_on else [packet]

    def unreadable(self, passage: Passage, frame: bytes) -> bytes:
        del passage
        return b"" if self.goes_on else frame  # Alias 0 is invalid in any packet.


class SaysNothing(Changing):
    """It closes without a DISCONNECT."""

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [] if isinstance(packet, Disconnect) else [packet]


# Aliases that the broker uses towards a device


class UsesAliases(Changing):
    """It uses an alias for all that it sends to a device, and omits the topic where it considers it *told*."""

    def __init__(self, alias: int, *, told: Callable[[Passage], bool] = lambda _: False) -> None:
        super().__init__()
        self.alias = alias
        self.told = told

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Connect):
            return [connecting(packet, properties=replace(packet.properties, topic_alias_maximum=None))]
        return [packet]

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if not isinstance(packet, Publish) or not passage.is_device:
            return [packet]
        topic = "" if self.told(passage) else packet.topic
        passage.memory["aliased"] = True
        return [replace(packet, topic=topic, properties=replace(packet.properties, topic_alias=self.alias))]


# Connections and sessions


class ChangesConnects(Changing):
    """It changes CONNECT into another one."""

    def __init__(self, changed: Callable[[Passage, Connect], Connect]) -> None:
        super().__init__()
        self.changed = changed

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        return [self.changed(passage, packet)] if isinstance(packet, Connect) else [packet]


def keeping_for(seconds: int) -> ChangesConnects:
    """Return a broker that keeps every session for *seconds*."""
    return ChangesConnects(
        lambda _, packet: connecting(packet, properties=replace(packet.properties, session_expiry_interval=seconds))
    )


def keeping_as_at_first() -> ChangesConnects:
    """Return a broker that always keeps a session for as long as requested when it began."""
    first: dict[str, int | None] = {}

    def changed(_: Passage, packet: Connect) -> Connect:
        asked = packet.properties.session_expiry_interval
        seconds = first.setdefault(packet.client_id, asked)
        return connecting(packet, properties=replace(packet.properties, session_expiry_interval=seconds))

    return ChangesConnects(changed)


def taking_nobody_over() -> ChangesConnects:
    """Return a broker that treats each connection as another client."""
    return ChangesConnects(lambda passage, packet: connecting(packet, client_id=f"{packet.client_id}-{id(passage)}"))


class ChangesConnacks(Changing):
    """It sends false information in CONNACK."""

    def __init__(self, changed: Callable[[Passage, Properties], Properties]) -> None:
        super().__init__()
        self.changed = changed

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Connack):
            return [replace(packet, properties=self.changed(passage, packet.properties))]
        return [packet]


class AssignsOne(ChangesConnects):
    """It treats all clients without a client identifier as one."""

    def __init__(self) -> None:
        super().__init__(self._named)

    def _named(self, passage: Passage, packet: Connect) -> Connect:
        passage.memory["nameless"] = not packet.client_id
        return connecting(packet, client_id=packet.client_id or "nameless")

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Connack) and passage.memory["nameless"]:
            return [replace(packet, properties=replace(packet.properties, assigned_client_identifier="nameless"))]
        return [packet]


class IgnoresGoodbyes(Changing):
    """It ignores what DISCONNECT says about the session."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [replace(packet, properties=NO_PROPERTIES)] if isinstance(packet, Disconnect) else [packet]


class Impatient(Changing):
    """It disconnects a client after one keep alive, whatever it has sent meanwhile."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Connect) and packet.keep_alive == _KEEP_ALIVE_OF_THE_CASE:
            asyncio.get_running_loop().call_later(packet.keep_alive, passage.device.close)
        return [packet]


class NeverAnswersPings(Changing):
    """It accepts a PINGREQ as a sign of life, but does not answer clients with a short keep alive."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Connect):
            passage.memory["short"] = packet.keep_alive == _KEEP_ALIVE_OF_THE_CASE
        return [packet]

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        return [] if packet.packet_type is PacketType.PINGRESP and passage.memory.get("short") else [packet]


class TellsProblems(Changing):
    """It gives reasons to clients that do not want them, in packets of one kind."""

    def __init__(self, kind: type[Suback | Unsuback | Puback]) -> None:
        super().__init__()
        self.kind = kind

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, self.kind):
            return [replace(packet, properties=Properties(reason_string="because"))]
        return [packet]


class DoublesWhatComesThen(Changing):
    """After a reconnection it has two subscriptions instead of one: new messages come twice."""

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Publish) and passage.memory.get("returned") and not packet.dup and packet.packet_id:
            return [packet, replace(packet, packet_id=packet.packet_id + 5000)]
        return [packet]


class Swaps(Changing):
    """It sends a client's second message of *qos* after the third, among those that begin alike."""

    def __init__(self, qos: QoS) -> None:
        super().__init__()
        self.qos = qos

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if not isinstance(packet, Publish) or packet.qos is not self.qos:
            return [packet]
        count, held = (f"{what} {packet.payload[:1]!r}" for what in ("count", "held"))
        passage.memory[count] = passage.memory.get(count, 0) + 1
        match passage.memory[count]:
            case 2:
                passage.memory[held] = packet
                return []
            case 3:
                return [packet, passage.memory.pop(held)]
            case _:
                return [packet]
