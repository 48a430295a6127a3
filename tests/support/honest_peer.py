"""An MQTT 5 client as the standard describes it, which notes what it was told, and holds the broker to it.

Theory
------
A peer publishes numbers, retains numbers, subscribes and leaves wills, over a connection that may break at any packet,
to a broker that may be killed. It forgets nothing of an exchange before that is over, or before it is told that its
session is gone.
`Ledger` has what all of them know together: the promises, each with the moment at which it was given.

Rules
-----
1. What was not answered may have happened, or not: nothing follows from it.
2. What a peer can see at once it checks at once: a message at QoS 2 twice, a session that is gone, one that came back.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import (
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
)
from broker.mqtt.properties import Properties
from tests.support.pki import Held
from tests.support.stored import StoredBroker
from tests.support.wire import V5, WireClient, connect_packet, publication, will

EXPIRY = 600
FILTERS = {1: "fleet/+/+/telemetry", 2: "$share/w/fleet/+/+/telemetry", 3: "fleet/+/+/event"}
"""By Subscription Identifier. What comes through the second must come once to all peers together."""
SHARED = 2
_MOST_UNDER_WAY = 4


class Fate(Enum):
    """What a publisher knows of its message."""

    OPEN = "nobody knows"
    TAKEN = "acknowledged"
    REFUSED = "refused"


@dataclass
class Sent:
    """One message, or one change of a retained one."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    first: int
    """When it was sent first."""
    last: int
    fate: Fate = Fate.OPEN


@dataclass
class Ledger:
    """What the peers were promised."""

    messages: dict[int, Sent] = field(default_factory=dict)
    retained: dict[str, list[Sent]] = field(default_factory=lambda: defaultdict(list))
    shared: set[int] = field(default_factory=set)
    """What came through the share at QoS 2."""
    wills: dict[int, int] = field(default_factory=dict)
    """Wills that must come, with the moment at which the broker saw their peer go."""
    cancelled: set[int] = field(default_factory=set)
    """Wills that must not."""
    unsure_wills: dict[int, int] = field(default_factory=dict)
    unsure_cancelled: set[int] = field(default_factory=set)
    """The same, not yet on disk: a broker that is killed forgets them."""
    _moments: Iterator[int] = field(default_factory=itertools.count)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def now(self) -> int:
        """Return the next moment."""
        return next(self._moments)

    def number(self) -> int:
        """Return a number that nobody has sent."""
        return next(self._numbers)

    def on_disk(self) -> None:
        """Take note that everything that has happened is on disk."""
        self.wills |= self.unsure_wills
        self.cancelled |= self.unsure_cancelled
        self.killed()

    def killed(self) -> None:
        """Take note that the broker was killed."""
        self.unsure_wills, self.unsure_cancelled = {}, set()


class Peer:
    """One client, over all its connections."""

    def __init__(self, name: str, holder: Held, ledger: Ledger, *, leaves_wills: bool = False) -> None:
        self.name, self._holder, self._ledger, self._leaves_wills = name, holder, ledger, leaves_wills
        self.client: WireClient | None = None
        self.up = False
        """Whether it has read its CONNACK."""
        self.got: dict[int, set[int]] = defaultdict(set)
        """Numbers that have come, by Subscription Identifier."""
        self._once: dict[int, set[int]] = defaultdict(set)
        """Those that must not come again."""
        self._asked: dict[str, Any] = {"clean_start": False, "session_expiry_interval": EXPIRY}
        self._will: int | None = None
        self._afresh = False
        """Whether it has asked for a new session, and not been answered: then it has none to resume."""
        self._resumed = False
        """Whether it is on disk that it has come back to its session: otherwise that expires by its former end."""
        self._late = False
        """Whether a crash is the end of its session for that reason."""
        self._older: list[tuple[WireClient, int | None]] = []
        """Connections that it has given up, but the broker has not, each with its will."""
        self._begin_session()

    def _begin_session(self, *, sure: bool = False) -> None:
        self.since: dict[int, int] = {}
        """Since when it knows that it has these subscriptions."""
        self._stored = False
        """Whether its session is on disk."""
        self._requested: set[int] | None = set() if sure else None
        """The subscriptions that it has asked for; None: it may have others."""
        self._open: dict[int, Sent | None] = {}
        """Packet identifier to message; None once PUBREC has come."""
        self._asking: dict[int, int] = {}
        self._known: set[int] = set()
        self._late = False

    # What it does

    def connect(self, broker: StoredBroker, *, clean: bool = False, brief: bool = False) -> None:
        """Send CONNECT, whether it has a connection or not; *brief*: the session is to end with it."""
        if self.up and self.client is not None:
            self._older.append((self.client, self._will))
        elif self.client is not None:
            self.client.vanish()
        self._asking, self.client, self.up = {}, None, False
        self._afresh = clean = clean or self._afresh
        if clean or brief or self._brief:
            self._doubt()
        self._asked = {"clean_start": clean, "session_expiry_interval": 0 if brief else EXPIRY}
        self._will = self._ledger.number() if self._leaves_wills else None
        last = None if self._will is None else will(f"fleet/meters/{self.name}/event", b"%d" % self._will, 2)
        self.client = broker.open(self._holder)
        self.client.send(connect_packet(V5, client_id=self.name, receive_maximum=3, will=last, **self._asked))

    def vanish(self) -> None:
        """Lose the connection, with whatever is on the way to it."""
        if self.client is not None:
            self.client.vanish()
            self._gone()

    def leave(self, *, for_good: bool = False) -> None:
        """Send DISCONNECT; *for_good*: with a Session Expiry Interval of 0."""
        if self.client is None or not self.up or self.client.closed:
            return
        properties: dict[str, Any] = {"session_expiry_interval": 0} if for_good else {}
        self.client.leave(**properties)
        if self._will is not None:
            self._ledger.unsure_cancelled.add(self._will)
        if for_good or self._brief:
            self._doubt()
        self.client, self.up = None, False

    def publish(self, qos: int) -> None:
        """Publish the next number."""
        number = self._ledger.number()
        sent = self._publish(f"fleet/meters/{self.name}/telemetry", number, qos, retain=False)
        if sent is not None:
            self._ledger.messages[number] = sent

    def retain(self, qos: int, *, clear: bool = False) -> None:
        """Retain the next number, or nothing."""
        topic = f"fleet/meters/{self.name}/state"
        sent = self._publish(topic, None if clear else self._ledger.number(), qos, retain=True)
        if sent is not None:
            self._ledger.retained[topic].append(sent)

    def _publish(self, topic: str, number: int | None, qos: int, *, retain: bool) -> Sent | None:
        if not self.up or len(self._open) >= _MOST_UNDER_WAY:
            return None
        moment = self._ledger.now()
        sent = Sent(topic, b"" if number is None else b"%d" % number, qos, retain, moment, moment)
        packet_id = None
        if qos:
            packet_id = next(each for each in range(1, 9) if each not in self._open and each not in self._asking)
            self._open[packet_id] = sent
        self._send(packet_id, sent, dup=False)
        return sent

    def _send(self, packet_id: int | None, sent: Sent | None, *, dup: bool) -> None:
        assert self.client is not None
        if sent is None:
            assert packet_id is not None
            self.client.send(Pubrel(packet_id))
        else:
            sent.last = self._ledger.now()
            fields: dict[str, Any] = {"packet_id": packet_id, "dup": dup, "retain": sent.retain}
            self.client.send(publication(sent.topic, sent.payload, sent.qos, **fields))

    def subscribe(self, identifier: int, qos: int) -> None:
        """Ask for one of `FILTERS`, always at the same QoS."""
        if self.client is None or not self.up:
            return
        self._asking[packet_id := 100 + identifier] = identifier
        if self._requested is not None:
            self._requested.add(identifier)
        request = SubscriptionRequest(FILTERS[identifier], QoS(qos))
        self.client.send(Subscribe(packet_id, (request,), Properties(subscription_identifiers=(identifier,))))

    def unsubscribe(self, identifier: int) -> None:
        """Give one up."""
        if self.client is None or not self.up:
            return
        self.since.pop(identifier, None)
        self._asking = {key: each for key, each in self._asking.items() if each != identifier}
        self.client.send(Unsubscribe(200 + identifier, (FILTERS[identifier],)))

    def on_disk(self) -> None:
        """Take note that everything that has happened is on disk."""
        if self.up:
            self._resumed = True
            self._stored = not self._brief

    @property
    def _brief(self) -> bool:
        return bool(self._asked["session_expiry_interval"] == 0)

    def _doubt(self) -> None:
        """Take note that its session may have ended, or may not; the next CONNACK tells."""
        self.since, self._stored, self._requested = {}, False, None

    def look(self) -> None:
        """Take note of the moment if the broker has ended a connection, which will be read later."""
        if self.client is not None and self.client.closed:
            if self.up:
                self._left_will(self._will)
            self._will = None
        for client, last in self._older:
            if client.closed:
                self._left_will(last)
        self._older = [each for each in self._older if not each[0].closed]

    def _left_will(self, number: int | None) -> None:
        if number is not None:
            self._ledger.unsure_wills[number] = self._ledger.now()

    def _gone(self) -> None:
        """Take note that the connection is no more."""
        for client, _ in self._older:
            client.vanish()
        self.look()
        if self._brief:
            self._doubt()
        self._asking, self.client, self.up = {}, None, False

    def killed(self) -> None:
        """Take note that the broker is."""
        self._older, self._asking, self.client, self.up = [], {}, None, False
        if self._late or self._brief:
            self._doubt()

    def expired(self) -> None:
        """Take note that more time has passed than a session has without a connection."""
        if self.client is None or self.client.closed:
            self._gone()
            self._doubt()
        elif not self._resumed:
            self._late = True

    # What comes

    def read(self, most: int = 1000) -> bool:
        """Take packets that have come; return whether there were any."""
        count = 0
        while (client := self.client) is not None and client.transport.packets and count < most:
            self._take(client._decode(client.transport.packets.popleft()))
            count += 1
        if self.client is not None and self.client.closed and not self.client.transport.packets:
            self._gone()
        return count > 0

    def _take(self, packet: Packet) -> None:
        assert self.client is not None
        match packet:
            case Connack():
                self._admitted(packet)
            case Suback(packet_id, reasons):
                identifier = self._asking.pop(packet_id, None)
                if identifier is not None and not reasons[0].is_failure:
                    self.since.setdefault(identifier, self._ledger.now())
                    self._stored = not self._brief
            case Puback(packet_id, reason) | Pubrec(packet_id, reason):
                self._answered(packet_id, reason, over=isinstance(packet, Puback))
            case Pubcomp(packet_id):
                self._open.pop(packet_id, None)
            case Pubrel(packet_id):
                self._known.discard(packet_id)
                self.client.send(Pubcomp(packet_id))
            case Publish():
                self._receive(packet)
            case _:
                assert isinstance(packet, Unsuback) or packet.packet_type.name == "DISCONNECT", packet

    def _admitted(self, packet: Connack) -> None:
        assert self.client is not None
        broker = self.client.broker
        assert isinstance(broker, StoredBroker)
        self._afresh = False
        if packet.reason_code is not ReasonCode.SUCCESS:
            return
        clean, present = self._asked["clean_start"], packet.session_present
        assert not (clean and present), f"{self.name} wanted a new session"
        assert clean or present or not self._stored, f"{self.name} has lost its session"
        if not present:
            self._begin_session(sure=not broker.journal.failed)
        self.up, self._resumed = True, False
        for packet_id, sent in list(self._open.items()):
            self._send(packet_id, sent, dup=True)

    def _answered(self, packet_id: int, reason: ReasonCode, *, over: bool) -> None:
        if packet_id not in self._open:
            return  # An exchange of before a session that is gone.
        sent = self._open[packet_id]
        if sent is not None:
            sent.fate = Fate.REFUSED if reason.is_failure else Fate.TAKEN
        if over or reason.is_failure:
            del self._open[packet_id]
        else:
            self._open[packet_id] = None
            self._send(packet_id, None, dup=False)

    def _receive(self, packet: Publish) -> None:
        assert self.client is not None
        if packet.qos < 2 or packet.packet_id not in self._known:
            for identifier in packet.properties.subscription_identifiers:
                self._note(identifier, int(packet.payload), packet.qos)
        if packet.packet_id is not None:
            if packet.qos == 2:
                self._known.add(packet.packet_id)
            self.client.send((Pubrec if packet.qos == 2 else Puback)(packet.packet_id))

    def _note(self, identifier: int, number: int, qos: int) -> None:
        assert self._requested is None or identifier in self._requested, f"{self.name}: of a session that had ended"
        if qos == 2 and not self._brief:  # Nothing of a brief session outlives a crash.
            assert number not in self._once[identifier], f"{number} came to {self.name} twice"
            self._once[identifier].add(number)
            if identifier == SHARED:
                assert number not in self._ledger.shared, f"{number} came through the share twice"
                self._ledger.shared.add(number)
        self.got[identifier].add(number)
