"""Reports each packet, in and out, to plugins: a layer between a connection and its stream, only if a plugin needs it.

Theory
------
The data path counts messages, and parses packets in place. Reporting each packet there would cost every installation.
So it is done in a byte stream above the transport, as for a WebSocket, which reads the lengths of what passes. Without
a plugin that needs it, there is no such stream.

Rules
-----
1. Everything passes unchanged, and in order; what cannot be parsed as packets passes unreported.
2. Only a packet's first byte and its size are reported, after its last byte arrived and before it is handled.
3. A packet that trickles in byte by byte costs its length; nothing is copied but its first five bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from broker.connection.connection import ClientConnection
from broker.door.passing_on import PassesOn
from broker.engine.engine import Engine
from broker.mqtt.errors import MalformedPacket
from broker.mqtt.framing import decode_length
from broker.sockets.byte_stream import ByteStream


class PacketWatch(PassesOn):
    """One connection, watched."""

    __slots__ = ("_blind", "_engine", "_head", "_left", "_size", "_stream")

    def __init__(self, engine: Engine, stream: ByteStream, now: float) -> None:
        """Stand between *stream* and a new connection."""
        self._engine = engine
        self._stream = stream
        self._head = bytearray()
        self._left = 0
        self._size = 0
        self._blind = False
        super().__init__(ClientConnection(engine, self, now))

    # Towards the connection

    def secured(
        self, certificate: bytes | None, now: float, wall_now: datetime, path: Callable[[], Sequence[bytes]] = tuple
    ) -> None:
        """Pass on that TLS is up."""
        self._connection.secured(certificate, now, wall_now, path)

    def receive(self, data: bytes, now: float) -> None:
        """Look at *data*, and pass it on."""
        if not self._blind:
            try:
                self._look(data)
            except MalformedPacket:  # The connection will deal with it.
                self._blind = True
        super().receive(data, now)

    def _look(self, data: bytes) -> None:
        extension, session, head = self._engine.extension, self._connection.session, self._head
        position, limit = 0, len(data)
        while position < limit and extension is not None:
            if self._left:
                step = min(self._left, limit - position)
                position += step
                self._left -= step
            else:
                head.append(data[position])
                position += 1
                length, body = decode_length(bytes(head), 1)
                if body == 0:
                    continue
                self._left, self._size = length, body + length
            if not self._left:
                extension.packet_received(session, head[0], self._size)
                head.clear()

    # From the connection

    @property
    def address(self) -> str:
        """The peer's address and port."""
        return self._stream.address

    @property
    def unsent(self) -> bool:
        """Whether written data still waits for the socket."""
        return self._stream.unsent

    @property
    def untaken(self) -> int:
        """How many written bytes the peer has not acknowledged."""
        return self._stream.untaken

    def write(self, packets: list[bytes]) -> None:
        """Look at *packets*, and write them."""
        self._report(packets)
        self._stream.write(packets)

    def close(self, last: Sequence[bytes] = ()) -> None:
        """Look at the *last* packets, and close the stream with them."""
        self._report(last)
        self._stream.close(last)

    def reset(self) -> None:
        """Close the stream at once."""
        self._stream.reset()

    def _report(self, packets: Sequence[bytes]) -> None:
        extension = self._engine.extension
        if extension is not None:
            for packet in packets:
                extension.packet_sent(self._connection.session, packet[0], len(packet))

    def presented(self) -> tuple[bytes | None, Sequence[bytes]]:
        """Return the peer's certificate, and its verified path."""
        return self._stream.presented()

    def forget_tls_session(self, *, at_any_price: bool) -> None:
        """Take note that the client may not come back with its TLS session; *at_any_price* as in `ByteStream`."""
        self._stream.forget_tls_session(at_any_price=at_any_price)

    def hold(self) -> None:
        """Stop reading until `release`."""
        self._stream.hold()

    def release(self) -> None:
        """Resume reading."""
        self._stream.release()

    def rest(self, seconds: float) -> None:
        """Stop reading for *seconds*."""
        self._stream.rest(seconds)

    def settle(self, *, dozes: bool = False) -> None:
        """Take note that the client is admitted, and whether it *dozes*."""
        self._stream.settle(dozes=dozes)

    def probe(self, silence: int) -> None:
        """Let the kernel look for the peer after *silence* seconds."""
        self._stream.probe(silence)
