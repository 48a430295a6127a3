"""A simple blocking MQTT client on a real TLS socket: it sends what it is told to, good or bad.

with TlsClient(broker.port, anchors, meter.credential) as client:
    client.connect(client_id="meter-1")
    client.send(…)
    client.expect(Publish)
    client.expect_end()
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections import deque
from pathlib import Path
from typing import Any, Self

from broker.mqtt.codes import ProtocolVersion, QoS, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.disconnect import Disconnect
from broker.mqtt.framing import split_frames
from broker.mqtt.packets import Packet, Pingreq, Pingresp, Puback, Suback, Subscribe, SubscriptionRequest
from broker.mqtt.packets import decode_packet as decode
from provisioning.pki.tls import Credential, client_context
from tests.support.wire import V5, Kind, connect_packet, publication

PATIENCE = 60.0
_ANY_SIZE = 268_435_460


class Ended(Exception):
    """The broker has closed the connection; *error* is how TLS reported it, None for a clean end."""

    def __init__(self, error: OSError | None) -> None:
        super().__init__(str(error) if error is not None else "closed cleanly")
        self.error = error


class TlsClient:
    """One connection. TLS is up after creation; a refusal that TLS reports later appears on the first read."""

    def __init__(
        self,
        port: int,
        anchors: Path | str,
        credential: Credential | None = None,
        *,
        version: ProtocolVersion = V5,
        context: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
        receive_buffer: int | None = None,
        source: str | None = None,
        before: bytes = b"",
    ) -> None:
        """Connect from *source*, over IPv6 if it is ``::1``, and send *before* in front of TLS."""
        self.version = version
        self.context = context or client_context(anchors, credential)
        here, family = ("::1", socket.AF_INET6) if source == "::1" else ("127.0.0.1", socket.AF_INET)
        raw = socket.socket(family)
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.settimeout(PATIENCE)
        if source is not None:
            raw.bind((source, 0))
        try:
            raw.connect((here, port))
            raw.sendall(before)
            self.socket = self.context.wrap_socket(raw, server_hostname="localhost", session=session)
        except OSError:
            raw.close()
            raise
        self._unread = b""
        self._packets: deque[Packet] = deque()
        self._next_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.socket.close()

    @property
    def presented(self) -> str:
        """The serial number of the broker's certificate, in log format."""
        certificate = self.socket.getpeercert()
        assert certificate is not None
        return f"{int(str(certificate['serialNumber']), 16):x}"

    # Sending

    def send_bytes(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send(self, *packets: Packet) -> None:
        self.send_bytes(b"".join(packet.encode(self.version) for packet in packets))

    def connect(self, *, expect: ReasonCode = ReasonCode.SUCCESS, **fields: Any) -> Connack:
        """Send CONNECT, and return the CONNACK, which must have *expect*."""
        self.send(connect_packet(self.version, **fields))
        answer = self.expect(Connack)
        assert answer.reason_code is expect, answer
        return answer

    def subscribe(self, *filters: str, qos: int = 0) -> Suback:
        self.send(Subscribe(self._packet_id(), tuple(SubscriptionRequest(each, QoS(qos)) for each in filters)))
        return self.expect(Suback)

    def publish(self, topic: str, payload: bytes = b"", *, qos: int = 0, **fields: Any) -> Puback | None:
        packet_id = self._packet_id() if qos else None
        self.send(publication(topic, payload, qos, packet_id=packet_id, **fields))
        return self.expect(Puback) if qos else None

    def check_alive(self) -> None:
        """Check that the broker still answers, and has sent nothing else."""
        self.send(Pingreq())
        self.expect(Pingresp)

    def leave(self) -> ssl.SSLSession | None:
        """Send DISCONNECT, close TLS as cleanly as possible, and return the TLS session for the next connection."""
        self.send(Disconnect())
        self.expect_end()
        session = self.socket.session
        with contextlib.suppress(OSError):
            self.socket.unwrap()
        self.socket.close()
        return session

    def _packet_id(self) -> int:
        self._next_id += 1
        return self._next_id

    # Receiving

    def next_packet(self, patience: float = PATIENCE) -> Packet:
        """Return the next packet; raise `Ended` if the connection ends instead."""
        deadline = time.monotonic() + patience
        while not self._packets:
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self.socket.recv(65536)
            except ssl.SSLZeroReturnError:
                data = b""
            except TimeoutError:
                raise
            except OSError as error:
                raise Ended(error) from None
            finally:
                self.socket.settimeout(PATIENCE)
            if not data:
                raise Ended(None)
            self._unread += data
            frames, used = split_frames(self._unread, _ANY_SIZE)
            self._packets += [decode(first, self._unread[body:end], self.version) for first, body, end in frames]
            self._unread = self._unread[used:]
        return self._packets.popleft()

    def expect(self, kind: type[Kind]) -> Kind:
        """Return the next packet, which must be of *kind*."""
        packet = self.next_packet()
        assert isinstance(packet, kind), f"a {kind.__name__} was expected: {packet}"
        return packet

    def expect_end(self) -> OSError | None:
        """Wait until the broker has closed the connection without another packet; return TLS's error, if any."""
        try:
            packet = self.next_packet()
        except Ended as end:
            return end.error
        raise AssertionError(f"the end was expected: {packet}")

    def farewell(self) -> Disconnect:
        """Return the broker's DISCONNECT, after which it closes the connection."""
        packet = self.expect(Disconnect)
        assert self.expect_end() is None
        return packet


def refused_with(error: OSError | None) -> str:
    """Return OpenSSL's name of the alert in *error*."""
    assert isinstance(error, ssl.SSLError), repr(error)
    return str(error.reason)


def attempt(port: int, anchors: Path | str, credential: Credential | None, **options: Any) -> str:
    """Try to connect with *credential*; return the TLS alert that refuses it, at whatever step it comes."""
    try:
        with TlsClient(port, anchors, credential, **options) as client:
            with contextlib.suppress(OSError):
                client.send(connect_packet(client.version))
            return refused_with(client.expect_end())
    except ssl.SSLError as error:
        return refused_with(error)
