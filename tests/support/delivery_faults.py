"""Faults of a broker in its obligations to good devices: wills, quotas, exchanges, expiry, retained messages.

Each is a `OneFault`: it changes what passes between a device and a real broker. Handles: one fault at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.connect import Will
from broker.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
)
from broker.mqtt.topics import matches
from tests.support.one_fault import OneFault, Passage

_KEEP_ALIVE_OF_THE_CONTROL = 60


class Changing(OneFault):
    """It changes packets; each subclass says which, and how."""

    async def from_device(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Subscribe):
            passage.memory.setdefault("filters", []).extend(each.filter for each in packet.requests)
        return self.sent(passage, packet)

    async def from_broker(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Connack):
            passage.memory["returned"] = packet.session_present
        return self.came(passage, packet)

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [packet]

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [packet]

    def leak(self, packet: Publish) -> None:
        """Deliver *packet* to all its subscribers."""
        for passage in self.passages:
            if any(matches(each, packet.topic) for each in passage.memory.get("filters", [])):
                passage.tell_device(replace(packet, qos=QoS.AT_MOST_ONCE, dup=False, packet_id=None))


def connecting(packet: Connect, **changes: Any) -> Connect:
    fields = {name: getattr(packet, name) for name in ("client_id", "protocol_version", "clean_start", "keep_alive",
                                                       "will", "username", "password", "properties")}  # fmt: skip
    return Connect(**{**fields, **changes})


class ChangesWills(Changing):
    """It does not preserve a will as it was set."""

    def __init__(self, changed: Callable[[Will], Will | None]) -> None:
        super().__init__()
        self.changed = changed

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Connect) and packet.will is not None:
            return [connecting(packet, will=self.changed(packet.will))]
        return [packet]


class SendsWillsAnyway(Changing):
    """It sends the will of a client that disconnected cleanly."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Disconnect):
            return [Disconnect(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE)]
        return [packet]


class SendsNoWillThatIsAskedFor(Changing):
    """It treats every DISCONNECT as a normal one."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [Disconnect()] if isinstance(packet, Disconnect) else [packet]


class SendsTheWillOfWhoReturned(Changing):
    """It does not drop a delayed will when its owner reconnects."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Connect) and not packet.clean_start:
            will = Publish(f"fleet/meters/{packet.client_id}/state", f"will of {packet.client_id}".encode())
            asyncio.get_running_loop().call_later(2.0, self.leak, will)
        return [packet]


class SendsAGoodbyesWillLate(Changing):
    """It sends the will of a cleanly disconnected client much later: when the last of all devices connects."""

    def __init__(self) -> None:
        super().__init__()
        self.wills: list[Publish] = []

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Disconnect):
            name = passage.identity.name
            self.wills.append(Publish(f"fleet/meters/{name}/state", f"will of {name}".encode()))
        if isinstance(packet, Connect) and packet.keep_alive == _KEEP_ALIVE_OF_THE_CONTROL:
            for will in self.wills:
                self.leak(will)
        return [packet]


class SendsWillsTwice(Changing):
    """It sends each will twice."""

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Publish) and packet.payload.startswith(b"will of") and packet.packet_id is not None:
            return [packet, replace(packet, packet_id=packet.packet_id + 5000)]
        return [packet]


class IgnoresLimits(Changing):
    """It ignores the limits that a device declares."""

    def __init__(self, limit: str) -> None:
        super().__init__()
        self._without: dict[str, Any] = {limit: None}

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Connect):
            return [connecting(packet, properties=replace(packet.properties, **self._without))]
        return [packet]


class CountsUntilPubrec(Changing):
    """It considers an exchange of QoS 2 finished when PUBREC has arrived."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [] if isinstance(packet, Pubcomp) else [packet]

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Pubrel):
            passage.tell_broker(Pubcomp(packet.packet_id))
        return [packet]


class ForgetsTheRest(Changing):
    """It drops what does not fit at once."""

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Publish) and packet.packet_id is not None and passage.is_device:
            passage.memory["count"] = passage.memory.get("count", 0) + 1
            if passage.memory["count"] > 3:
                return []
        return [packet]


class ForgetsTheLimit(Changing):
    """It respects a Receive Maximum until something is acknowledged, and then sends all that it has."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Connect) and packet.properties.receive_maximum is not None:
            passage.memory["room"] = packet.properties.receive_maximum
            passage.memory["held"] = []
            return [connecting(packet, properties=replace(packet.properties, receive_maximum=None))]
        if isinstance(packet, Puback | Pubcomp) and "held" in passage.memory:
            passage.memory["room"] = 1000
            for each in passage.memory.pop("held"):
                passage.tell_device(each)
        return [packet]

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Publish) and packet.qos and "held" in passage.memory:
            if not passage.memory["room"]:
                passage.memory["held"].append(packet)
                return []
            passage.memory["room"] -= 1
        return [packet]


class ForgetsCompletions(Changing):
    """It keeps completed exchanges, and releases them again on the next connection."""

    def __init__(self) -> None:
        super().__init__()
        self.completed: dict[str, int] = {}

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Connack) and packet.session_present and passage.identity.name in self.completed:
            return [packet, Pubrel(self.completed[passage.identity.name])]
        return [packet]

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Pubcomp) and passage.is_device:
            self.completed[passage.identity.name] = packet.packet_id
        return [packet]


class ReleasesTwice(Changing):
    """It delivers a QoS 2 message again when its release is repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: dict[str, Publish] = {}
        self.released: set[str] = set()

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        name = passage.identity.name
        if isinstance(packet, Publish) and packet.qos is QoS.EXACTLY_ONCE and passage.is_device:
            self.messages[name] = packet
            self.released.discard(name)
        if isinstance(packet, Pubrel) and name in self.messages:
            if name in self.released:
                self.leak(self.messages[name])
            self.released.add(name)
        return [packet]


class DeliversWhatComesAgain(Changing):
    """It delivers a QoS 2 message that a device resends as if it were a new one."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Publish) and packet.dup:
            self.leak(packet)
        return [packet]


class LosesWhatIsReleased(Changing):
    """After a reconnection it completes an exchange's handshake and drops the message."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Pubrel) and passage.memory.get("returned"):
            passage.tell_device(Pubcomp(packet.packet_id))
            return []
        return [packet]


class RefusesReleases(Changing):
    """It does not know the message it is to release."""

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Pubcomp) and passage.is_device:
            return [Pubcomp(packet.packet_id, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND)]
        return [packet]


class SwallowsUsedIdentifiers(Changing):
    """It takes a reused packet identifier for the same message, even if its exchange is over."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, int]] = set()

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if not isinstance(packet, Publish | Pubrel) or packet.packet_id is None or not passage.is_device:
            return [packet]
        key = passage.identity.name, packet.packet_id
        if isinstance(packet, Publish) and packet.qos is QoS.EXACTLY_ONCE:
            if key in self.seen and not packet.dup:
                passage.memory["swallowed"] = True
                passage.tell_device(Pubrec(packet.packet_id))
                return []
            self.seen.add(key)
        if isinstance(packet, Pubrel) and "swallowed" in passage.memory:
            passage.tell_device(Pubcomp(packet.packet_id))
            return []
        return [packet]


class ForgetsSessions(Changing):
    """It keeps no session."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [connecting(packet, clean_start=True)] if isinstance(packet, Connect) else [packet]


class KeepsSessions(Changing):
    """It gives every client the existing session."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [connecting(packet, clean_start=False)] if isinstance(packet, Connect) else [packet]


class SaysThatASessionWasThere(Changing):
    """It deletes a session as requested, and claims to have kept it."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[str] = set()

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Connack):
            was_there = passage.identity.name in self.known
            self.known.add(passage.identity.name)
            return [replace(packet, session_present=was_there)]
        return [packet]


class SendsAgainWithoutDup(Changing):
    """It does not set DUP on a resent message."""

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [replace(packet, dup=False)] if isinstance(packet, Publish) else [packet]


class SendsAgainUnderAnotherIdentifier(Changing):
    """It begins a new exchange for a message whose exchange was in progress."""

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Publish) and packet.dup and packet.packet_id is not None:
            return [replace(packet, packet_id=packet.packet_id + 5000)]
        if isinstance(packet, Pubrel) and passage.memory.get("returned"):
            return [Pubrel(packet.packet_id + 5000)]
        return [packet]

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Puback | Pubrec | Pubcomp) and packet.packet_id > 5000:
            return [type(packet)(packet.packet_id - 5000)]
        return [packet]


class SendsTheMessageForTheRelease(Changing):
    """After a reconnection it resends a QoS 2 message whose PUBREC it has received."""

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Publish):
            passage.memory["new"] = True
        if isinstance(packet, Pubrel) and passage.memory.get("returned") and "new" not in passage.memory:
            topic = f"fleet/meters/{passage.identity.name}/cmd/open"
            return [Publish(topic, b"open", QoS.EXACTLY_ONCE, dup=True, packet_id=packet.packet_id), packet]
        return [packet]


class LosesReleases(Changing):
    """After a reconnection it does not resend its PUBRELs."""

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        return [] if isinstance(packet, Pubrel) and passage.memory.get("returned") else [packet]


class ForgetsAcknowledgements(Changing):
    """It keeps fully acknowledged messages, and sends them again on the next connection."""

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged: dict[str, Publish] = {}
        self.returns: dict[str, int] = {}

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        name = passage.identity.name
        if isinstance(packet, Publish) and packet.qos:
            passage.memory["last"] = packet
        if isinstance(packet, Connack) and packet.session_present and name in self.acknowledged:
            return [packet, replace(self.acknowledged[name], dup=True)]
        return [packet]

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        over = isinstance(packet, Puback | Pubcomp) and passage.is_device and passage.memory.get("returned")
        if over and "last" in passage.memory:
            self.acknowledged[passage.identity.name] = passage.memory["last"]
        return [packet]


class Overtakes(Changing):
    """After a reconnection it sends the first message after the second."""

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if not isinstance(packet, Publish) or not packet.qos or not passage.memory.get("returned"):
            return [packet]
        if "first" not in passage.memory:
            passage.memory["first"] = packet
            return []
        if "swapped" not in passage.memory:
            passage.memory["swapped"] = True
            return [packet, passage.memory["first"]]
        return [packet]


class ChangesLives(Changing):
    """It does not respect an expiry interval."""

    def __init__(self, life: int | None) -> None:
        super().__init__()
        self.life = life

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Publish) and packet.properties.message_expiry_interval is not None:
            return [replace(packet, properties=replace(packet.properties, message_expiry_interval=self.life))]
        return [packet]


class TellsOneLife(Changing):
    """It drops expired messages, but sends everybody the same interval."""

    def __init__(self, life: int) -> None:
        super().__init__()
        self.life = life

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Publish) and packet.properties.message_expiry_interval is not None:
            return [replace(packet, properties=replace(packet.properties, message_expiry_interval=self.life))]
        return [packet]


class ChangesRetain(Changing):
    """It delivers with a different RETAIN flag."""

    def __init__(self, *, retain: bool) -> None:
        super().__init__()
        self.retain = retain

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [replace(packet, retain=self.retain)] if isinstance(packet, Publish) else [packet]


class RetainsEverything(Changing):
    """It retains messages without RETAIN."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Publish) and packet.topic.endswith("/state"):
            return [replace(packet, retain=True)]
        return [packet]


class NeverClears(Changing):
    """It delivers an empty message, but keeps the retained one."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        empty = isinstance(packet, Publish) and packet.retain and not packet.payload
        return [replace(packet, retain=False)] if isinstance(packet, Publish) and empty else [packet]


class ChangesSubscriptions(Changing):
    """It ignores a subscription option."""

    def __init__(self, **option: Any) -> None:
        super().__init__()
        self.option = option

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Subscribe):
            return [replace(packet, requests=tuple(replace(each, **self.option) for each in packet.requests))]
        return [packet]
