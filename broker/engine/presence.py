"""Presence events: messages that tell services who connects and disconnects, as vouched for by the certificates.

Theory
------
A will reports that a device is gone, but only if the device has set one, and only what the device chose to say. Here
the broker reports it, for every client, with the reason: ``$SYS/broker/presence/<role>/<group>/<name>/connected`` and
``…/disconnected`` (``-`` where there is no group); and ``…/expiring`` when the certificate of a connected client ends
soon. The payload is JSON; the user properties are those of `broker.engine.vouched`. The topic contains the party's
name in any trust domain; the user properties, and ``identity``, tell which domain it is.

Rules
-----
1. Numbered without gaps since the broker started, at QoS 1, never retained: the numbers reveal a missed event.
2. The policy decides who may read them (``$SYS/#``: services and operators by default).
3. None while the broker stops, since every client leaves then. None for clients that were never admitted: see the log.
4. An event for which there is no room in the turn waits for its portion (decision 0329), and all later ones behind it:
   a thousand may end at once, and hundreds read of each. It has the number and the time of when it happened. At most
   `MOST_WAITING` wait: for each further one the oldest is published at once.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from broker.admission.admission import Admission
from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode
from broker.engine.vouched import forwarded, stamp_of
from broker.mqtt.codes import PacketType
from broker.mqtt.message import Message
from broker.mqtt.properties import NO_PROPERTIES
from broker.session.session import Session
from broker.sockets.turn import Turn
from provisioning.pki.identity import Identity
from provisioning.program.moments import rfc3339_milliseconds

TOPICS = "$SYS/broker/presence"
MOST_WAITING: Final = 10_000
_AN_EVENT: Final = 2
"""As much as so many packets it costs to put an event together (`broker.sockets.work`)."""


class Party(Protocol):
    """The subject of an event: a connection."""

    peer: Peer | None

    @property
    def address(self) -> str:
        """Its address."""


@dataclass(frozen=True, slots=True)
class _Event:
    """What happened, to whom, and when."""

    name: str
    sequence: int
    at: datetime
    now: float
    peer: Peer
    address: str
    owner: Identity
    client_id: str
    reason: Mapping[str, str | int]


class Presence:
    """Publishes the events of one broker."""

    __slots__ = ("_admission", "_clock", "_goes_on", "_publish", "_sequence", "_turn", "_waiting")

    def __init__(
        self,
        admission: Admission,
        publish: Callable[[Message, float], None],
        clock: Callable[[], datetime],
        turn: Turn,
    ) -> None:
        """*publish* delivers a message to subscribers; *clock* returns the UTC time; *admission* knows who is ours."""
        self._admission = admission
        self._publish = publish
        self._clock = clock
        self._turn = turn
        self._sequence = 0
        self._waiting: deque[_Event] = deque()
        self._goes_on = False
        """Whether `_go_on` will be called."""

    def connected(self, party: Party, session: Session, now: float) -> None:
        """Report that the client of *session* has connected."""
        self._tell("connected", party, session, {}, now)

    def disconnected(self, party: Party, session: Session, code: str, detail: str, now: float) -> None:
        """Report that it has disconnected, and why."""
        if code != RefusalCode.SHUTTING_DOWN:
            self._tell("disconnected", party, session, {"code": str(code), "detail": detail}, now)

    def ends_soon(self, party: Party, session: Session, seconds_left: float, now: float) -> None:
        """Report that the certificate of a connected client ends in *seconds_left*: it should have renewed."""
        facts: dict[str, str | int] = {"code": "CERTIFICATE_ENDS", "seconds_left": round(seconds_left)}
        self._tell("expiring", party, session, facts, now)

    def finish(self) -> None:
        """Publish all that waits: the broker stops."""
        while self._waiting:
            self._send(self._waiting.popleft())

    def _tell(self, name: str, party: Party, session: Session, reason: Mapping[str, str | int], now: float) -> None:
        peer = party.peer
        if peer is None:
            return
        self._sequence += 1
        at, owner = self._clock(), session.owner
        event = _Event(name, self._sequence, at, now, peer, party.address, owner, session.client_id, reason)
        if not (self._waiting or self._turn.is_spent or self._turn.rounds.full):
            self._send(event)
            return
        self._waiting.append(event)
        if len(self._waiting) > MOST_WAITING:
            self._send(self._waiting.popleft())
        self._go_on_soon()

    def _go_on_soon(self) -> None:
        if self._waiting and not self._goes_on:
            self._goes_on = True
            self._turn.portion(self._go_on)

    def _go_on(self) -> None:
        """Publish what waits, as long as there is room for it."""
        if self._turn.rounds.full:
            self._turn.rounds.wait(self._go_on)
            return
        self._goes_on = False
        try:
            while self._waiting:
                self._send(self._waiting.popleft())
                if self._turn.is_spent or self._turn.rounds.full:
                    break
        finally:
            self._go_on_soon()

    def _send(self, event: _Event) -> None:
        self._turn.work.done += _AN_EVENT
        peer, owner = event.peer, event.owner
        topic = f"{TOPICS}/{owner.role}/{owner.group or '-'}/{owner.name}/{event.name}"
        facts = {
            "event": event.name,
            "sequence": event.sequence,
            "at": rfc3339_milliseconds(event.at),
            "client_id": event.client_id,
            "identity": owner.uri,
            "serial": peer.serial,
            "fingerprint": peer.fingerprint.hex(),
            "address": event.address,
            **event.reason,
        }
        properties = forwarded(NO_PROPERTIES, PacketType.PUBLISH, stamp_of(self._admission, peer))
        self._publish(Message(topic.encode(), json.dumps(facts).encode(), 1, properties=properties), event.now)
