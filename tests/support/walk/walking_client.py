"""An MQTT client that keeps what it gets: acknowledges it, or not, and remembers what it has not finished.

Handles: QoS 0, 1 and 2 in both directions. Does not handle: what should have arrived, which is the oracle's.
"""

from __future__ import annotations

import contextlib
from typing import Any

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.disconnect import Disconnect
from broker.mqtt.packets import (
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
)
from broker.mqtt.properties import Properties
from tests.support.tls_client import Ended, TlsClient
from tests.support.walk.session_oracle import Message
from tests.support.wire import Kind, connect_packet, publication


class WalkingClient:
    """One connection. *unfinished* outlives it: the packet identifiers of messages at QoS 2 that are not released."""

    def __init__(self, tls: TlsClient, unfinished: set[int], *, lazy: bool = False, half: bool = False) -> None:
        """It acknowledges nothing if it is *lazy*, and releases nothing at QoS 2 if it does things by *half*."""
        self.tls = tls
        self.got: list[Message] = []
        self._unfinished = unfinished
        self._lazy, self._half = lazy, half
        self._next_id = 0

    def connect(self, **fields: Any) -> Connack:
        """Return the answer. Raises `OSError` or `Ended` if there is none; then this is closed."""
        try:
            self.tls.send(connect_packet(self.tls.version, **fields))
            answer = self.tls.expect(Connack)
        except (OSError, Ended):
            self.close()
            raise
        if answer.reason_code is ReasonCode.SUCCESS and not answer.session_present:
            self._unfinished.clear()
        return answer

    def subscribe(self, topic_filter: str, qos: int) -> ReasonCode:
        """Return what is granted, or why nothing is."""
        self.tls.send(Subscribe(self._packet_id(), (SubscriptionRequest(topic_filter, QoS(qos)),)))
        (granted,) = self.until(Suback).reason_codes
        return granted

    def publish(self, message: Message, *, retain: bool = False, **properties: Any) -> ReasonCode:
        """Publish, complete the exchange, and return its result; at QoS 0, when the broker has read it."""
        packet_id = self._packet_id() if message.qos else None
        fields = {"packet_id": packet_id, "retain": retain, **properties}
        self.tls.send(publication(message.topic, message.payload, message.qos, **fields))
        if not message.qos:
            self.ping()
            return ReasonCode.SUCCESS
        if message.qos == 1:
            return self.until(Puback).reason_code
        answer = self.until(Pubrec).reason_code
        if answer < ReasonCode.UNSPECIFIED_ERROR:
            self.tls.send(Pubrel(packet_id or 0))
            self.until(Pubcomp)
        return answer

    def ping(self) -> None:
        """Return when the broker has read all that was sent, and all that it sent before is here."""
        self.tls.send(Pingreq())
        self.until(Pingresp)

    def await_messages(self, count: int) -> list[Message]:
        """Return all that has come since the last call, which must be *count* at least."""
        while len(self.got) < count:
            self._take(self.tls.next_packet())
        self.ping()
        got, self.got = self.got, []
        return got

    def leave(self, reason: ReasonCode = ReasonCode.NORMAL_DISCONNECTION, **properties: Any) -> None:
        """Send DISCONNECT, and wait until the broker has closed the connection."""
        self.tls.send(Disconnect(reason, Properties(**properties)))
        self.farewell()

    def vanish(self) -> None:
        """Close the socket without a word."""
        self.tls.socket.close()

    def rest(self) -> list[Message]:
        """Return what has come and was not asked for, now that the broker has ended."""
        with contextlib.suppress(OSError):  # What it would be answered with reaches nobody.
            self.farewell()
        self.close()
        return self.got

    def farewell(self) -> ReasonCode | None:
        """Wait until the broker has closed the connection, and return its DISCONNECT's reason, if it has sent one."""
        reason = None
        try:
            while True:
                packet = self.tls.next_packet()
                if isinstance(packet, Disconnect):
                    reason = packet.reason_code
                else:
                    self._take(packet)
        except Ended:
            return reason
        finally:
            self.tls.socket.close()

    def until(self, kind: type[Kind]) -> Kind:
        """Return the next packet of *kind*, having dealt with what comes before it."""
        while True:
            packet = self.tls.next_packet()
            if isinstance(packet, kind):
                return packet
            self._take(packet)

    def _take(self, packet: object) -> None:
        match packet:
            case Publish(qos=QoS.AT_MOST_ONCE):
                self._keep(packet)
            case Publish(packet_id=int(number), qos=QoS.AT_LEAST_ONCE):
                self._keep(packet)
                if not self._lazy:
                    self.tls.send(Puback(number))
            case Publish(packet_id=int(number)):
                if self._lazy:
                    self._keep(packet)
                    return
                if number not in self._unfinished:
                    self._unfinished.add(number)
                    self._keep(packet)
                self.tls.send(Pubrec(number))
            case Pubrec() | Pubrel() if self._half:
                pass
            case Pubrel(packet_id=number):
                self._unfinished.discard(number)
                self.tls.send(Pubcomp(number))
            case _:
                raise AssertionError(f"not expected now: {packet}")

    def _keep(self, packet: Publish) -> None:
        self.got.append(Message(packet.topic, bytes(packet.payload), int(packet.qos)))

    def _packet_id(self) -> int:
        self._next_id = self._next_id % 65535 + 1
        return self._next_id

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.tls.socket.close()
