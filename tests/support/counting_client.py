"""A client without TLS that counts what it sends and receives: what the figures of a broker are held against."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Self

from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.connect import Connect
from broker.mqtt.framing import decode_length
from broker.mqtt.packets import Packet, decode_packet
from broker.mqtt.publication import Publish
from tests.support.broker_process import PATIENCE
from tests.support.wire import V311


@dataclass
class Counts:
    """What went over the sockets of all clients together, as the broker sees it: received is what clients sent."""

    sockets: int = 0
    connects: int = 0
    packets_received: int = 0
    publishes_received: int = 0
    bytes_received: int = 0
    packets_sent: int = 0
    bytes_sent: int = 0


class CountingClient:
    """One connection; what it says and hears is added to *counts*."""

    def __init__(self, port: int, counts: Counts, version: ProtocolVersion = V311) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._counts, self._version, self._unread = counts, version, b""
        counts.sockets += 1

    def send(self, *packets: Packet) -> None:
        """Send *packets*, in one segment."""
        data = b"".join(packet.encode(self._version) for packet in packets)
        self._counts.packets_received += len(packets)
        self._counts.publishes_received += sum(isinstance(packet, Publish) for packet in packets)
        self._counts.connects += sum(isinstance(packet, Connect) for packet in packets)
        self._counts.bytes_received += len(data)
        self._socket.sendall(data)

    def receive(self) -> Packet | None:
        """Return the next packet; None: the end."""
        while True:
            length, body = decode_length(self._unread, 1) if len(self._unread) > 1 else (0, 0)
            if body and len(self._unread) >= body + length:
                packet, self._unread = self._unread[: body + length], self._unread[body + length :]
                self._counts.packets_sent += 1
                self._counts.bytes_sent += len(packet)
                return decode_packet(packet[0], packet[body:], self._version)
            chunk = self._socket.recv(65536)
            if not chunk:
                return None
            self._unread += chunk

    def until(self, kind: type[Packet], count: int = 1) -> list[Packet]:
        """Return the packets up to the *count*-th of this *kind*."""
        packets: list[Packet] = []
        while count:
            packet = self.receive()
            assert packet is not None, f"the end, and before it {packets}"
            packets.append(packet)
            count -= isinstance(packet, kind)
        return packets

    def ended(self) -> bool:
        """Wait for the end of the connection; whether nothing came before it."""
        return self.receive() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()
