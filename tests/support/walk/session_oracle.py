"""What the broker must do with its clients: whom it admits, what it keeps for them, which messages and wills arrive.

It is written from the documentation (docs/revocation.md, MQTT 5), not from the broker. A device has at most one
connection and one session; one backend reads everything and sends the commands.

Rules
-----
1. The broker acts on what it has heard (`Certificate.seen`), which is older than the truth while its feed is lost.
2. A message is a topic with a payload that is never used twice, and its quality of service.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.walk.fleet_oracle import HOLD, SUPERSEDED, Certificate, Codes, Device
from tests.support.wire import V5

ALERT: Final = "TLS alert"
ACCEPTED: Final = ReasonCode.SUCCESS.name


def refusal(reason: RevocationReason, version: ProtocolVersion) -> str:
    """Return what a client is told that comes with a certificate that is revoked for *reason*."""
    if reason is not HOLD:
        return ReasonCode.NOT_AUTHORIZED.name
    return (ReasonCode.BANNED if version is V5 else ReasonCode.SERVER_UNAVAILABLE).name


class Message(NamedTuple):
    """One as it arrives."""

    topic: str
    payload: bytes
    qos: int


class LeftWill(NamedTuple):
    """A will that waits, and the certificate with which it was left."""

    message: Message
    certificate: Certificate


@dataclass(eq=False)
class Session:
    """What the broker keeps for a device."""

    subscriptions: dict[str, int] = field(default_factory=dict)
    waiting: list[Message] = field(default_factory=list)
    """What the device has not acknowledged, in order."""
    acknowledged: list[Message] = field(default_factory=list)
    """What the device has acknowledged of it since the broker began."""
    perhaps_again: list[Message] = field(default_factory=list)
    """Of this, what a broker that was killed may send again: all at QoS 1."""
    will: LeftWill | None = None
    """One that waits for its delay."""
    left_with: Certificate | None = None
    """The certificate of the connection that the end of the broker has cut."""


@dataclass(eq=False)
class Connection:
    """An admitted one."""

    certificate: Certificate
    version: ProtocolVersion
    kept: bool
    """Its session outlives it."""
    will: Message | None
    delayed: bool
    """Its will waits for longer than a walk takes."""
    lazy: bool
    """It acknowledges nothing that it gets."""


def is_ended(reason: RevocationReason | None) -> bool:
    """Whether the session goes with the certificate: not if it may come back, or was replaced."""
    return reason not in (None, HOLD, SUPERSEDED)


class SessionOracle:
    """All that the broker knows."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.connections: dict[str, Connection] = {}
        self.retained: dict[str, Message] = {}
        self.backend: list[Message] = []
        """What the backend must have got, in order."""
        self.postponed: dict[str, LeftWill] = {}
        """By device: a will that the end of the broker has postponed. It is sent if the device stays away."""
        self.perhaps: list[Message] = []
        """Wills that are not sent any more, if they have not been just now."""
        self.hears = True
        """Whether the broker has its feed."""
        self.serves = True
        """Whether the service runs."""
        self.admitted = 0
        """Since the broker's start."""

    def answers(self, certificate: Certificate, version: ProtocolVersion, *, own_name: bool) -> Codes:
        """Return what a client that connects may be told: one of these."""
        if certificate.expired:
            return frozenset({ALERT, ReasonCode.NOT_AUTHORIZED.name})
        codes = set()
        if certificate.seen is not None:
            codes.add(refusal(certificate.seen, version))
        if not own_name:
            codes.add(ReasonCode.CLIENT_IDENTIFIER_NOT_VALID.name)
        return frozenset(codes or {ACCEPTED})

    def connected(self, connection: Connection, *, clean: bool) -> tuple[bool, list[Message]]:
        """Take note of an admission; return whether a session was present, and what is sent of it."""
        name = connection.certificate.device.name
        self.leaves(name, sends_will=True)  # It is taken over.
        session = self.sessions.get(name)
        if session is not None and session.left_with is not None and is_ended(session.left_with.seen):
            session = None
        postponed = self.postponed.pop(name, None)
        if postponed is not None and session is not None and clean:
            self._send(postponed)
        elif postponed is not None:
            self.perhaps.append(postponed.message)
        if session is not None and clean:
            self._send(session.will)
            session = None
        present = session is not None
        self.sessions[name] = session = session or Session()
        session.left_with = session.will = None
        self.connections[name] = connection
        self.admitted += 1
        sent = list(session.waiting)
        if not connection.lazy:
            session.acknowledged += session.waiting
            session.waiting.clear()
        return present, sent

    def leaves(self, name: str, *, sends_will: bool, ends_session: bool = False) -> None:
        """Take note that a connection is over, if there is one."""
        connection = self.connections.pop(name, None)
        if connection is None:
            return
        will = LeftWill(connection.will, connection.certificate) if sends_will and connection.will else None
        if will is not None and connection.delayed and connection.kept and not ends_session:
            self.sessions[name].will = will
        else:
            self._send(will)
        if ends_session or not connection.kept:
            self.sessions.pop(name, None)

    def expires(self, name: str) -> None:
        """Take note that the time of a session is over."""
        self._send(self.sessions.pop(name).will)

    def _send(self, will: LeftWill | None) -> None:
        """Publish a will, unless its author is not trusted any more."""
        if will is not None and will.certificate.seen is None:
            self.backend.append(will.message)

    def subscribed(self, name: str, topic_filter: str, qos: int) -> list[Message]:
        """Take note of a subscription, and return what was retained for it."""
        self.sessions[name].subscriptions[topic_filter] = qos
        found = [each for topic, each in self.retained.items() if topic.startswith(topic_filter.removesuffix("#"))]
        sent = [each._replace(qos=min(each.qos, qos)) for each in found]
        self._sent(name, sent)
        return sent

    def commanded(self, device: Device, message: Message) -> list[Message]:
        """Take note that the backend has sent a command; return what its device gets now."""
        self.backend.append(message)
        session, name = self.sessions.get(device.name), device.name
        if session is None or not session.subscriptions:
            return []
        (granted,) = session.subscriptions.values()
        arrives = message._replace(qos=min(message.qos, granted))
        if name in self.connections:
            self._sent(name, [arrives])
            return [arrives]
        if arrives.qos:
            session.waiting.append(arrives)
        return []

    def _sent(self, name: str, messages: list[Message]) -> None:
        session = self.sessions[name]
        into = session.waiting if self.connections[name].lazy else session.acknowledged
        into += [each for each in messages if each.qos]

    def heard(self, certificates: list[Certificate], *, by_authority: bool = False) -> dict[str, Connection]:
        """Let the broker hear the truth about *certificates*; return the connections that it must close, by name.

        *by_authority*: their CA was revoked, of which it hears first; sessions stay.
        """
        closed = {}
        for each in certificates:
            each.seen = each.reason
        for name, connection in list(self.connections.items()):
            if (seen := connection.certificate.seen) is not None:
                closed[name] = connection
                self.leaves(name, sends_will=False, ends_session=is_ended(seen) and not by_authority)
        for name, will in list(self.postponed.items()):
            if will.certificate.seen is not None:
                self.perhaps.append(self.postponed.pop(name).message)
        return closed

    def broker_ends(self, *, killed: bool) -> None:
        """Take note that the broker's process has ended."""
        for session in self.sessions.values():
            if killed:
                session.perhaps_again += [each for each in session.acknowledged if each.qos == 1]
            session.acknowledged.clear()
        for name, connection in self.connections.items():
            will = None if connection.will is None else LeftWill(connection.will, connection.certificate)
            if will is not None and connection.delayed and connection.kept:
                self.sessions[name].will = will
            elif will is not None:
                self.postponed[name] = will
            if connection.kept:
                self.sessions[name].left_with = connection.certificate
            else:
                del self.sessions[name]
        self.connections.clear()
        self.admitted = 0
