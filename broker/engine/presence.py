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
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

from broker.admission.admission import Admission
from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode
from broker.engine.vouched import forwarded, stamp_of
from broker.mqtt.codes import PacketType
from broker.mqtt.message import Message
from broker.mqtt.properties import NO_PROPERTIES
from broker.session.session import Session
from provisioning.program.moments import rfc3339_milliseconds

TOPICS = "$SYS/broker/presence"


class Party(Protocol):
    """The subject of an event: a connection."""

    peer: Peer | None

    @property
    def address(self) -> str:
        """Its address."""


class Presence:
    """Publishes the events of one broker."""

    __slots__ = ("_admission", "_clock", "_publish", "_sequence")

    def __init__(
        self, admission: Admission, publish: Callable[[Message, float], None], clock: Callable[[], datetime]
    ) -> None:
        """*publish* delivers a message to subscribers; *clock* returns the UTC time; *admission* knows who is ours."""
        self._admission = admission
        self._publish = publish
        self._clock = clock
        self._sequence = 0

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

    def _tell(self, event: str, party: Party, session: Session, reason: Mapping[str, str | int], now: float) -> None:
        peer = party.peer
        if peer is None:
            return
        owner = session.owner
        self._sequence += 1
        topic = f"{TOPICS}/{owner.role}/{owner.group or '-'}/{owner.name}/{event}"
        facts = {
            "event": event,
            "sequence": self._sequence,
            "at": rfc3339_milliseconds(self._clock()),
            "client_id": session.client_id,
            "identity": owner.uri,
            "serial": peer.serial,
            "fingerprint": peer.fingerprint.hex(),
            "address": party.address,
            **reason,
        }
        properties = forwarded(NO_PROPERTIES, PacketType.PUBLISH, stamp_of(self._admission, peer))
        self._publish(Message(topic.encode(), json.dumps(facts).encode(), 1, properties=properties), now)
