"""A TLS client that sends many records in one piece: OpenSSL at the other end receives them all at once."""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Sequence
from typing import Self

from tests.support.key_updates import change_keys


class OneSegmentClient:
    """TLS in memory, above a blocking socket: data is sent when the caller says so."""

    def __init__(
        self, port: int, context: ssl.SSLContext, with_the_handshake: Sequence[bytes] = (), *, key_changes: int = 0
    ) -> None:
        """Connect; *key_changes*, and the records *with_the_handshake*, are sent in one piece with its last bytes."""
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._exchange()
            else:
                break
        change_keys(self._tls, key_changes)
        self.send(with_the_handshake)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def send(self, records: Sequence[bytes]) -> None:
        """Send each of *records* as a separate TLS record, all of them in one piece."""
        for record in records:
            self._tls.write(record)
        self._socket.sendall(self._outgoing.read())

    def receive(self, size: int) -> bytes:
        """Return the next *size* bytes."""
        received = b""
        while len(received) < size:
            try:
                received += self._tls.read(size - len(received))
            except ssl.SSLWantReadError:
                self._exchange()
        return received

    def receive_to_the_end(self) -> bytes:
        """Return all that the server still sends until it closes TLS and the stream."""
        received = b""
        while True:
            try:
                data = self._tls.read()
            except ssl.SSLWantReadError:
                self._exchange()
                continue
            if not data:
                assert not self._socket.recv(1), "close_notify is the last"
                return received
            received += data

    @property
    def segments(self) -> int:
        """How many segments with data have arrived: `tcpi_data_segs_in` of Linux."""
        told = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 156)
        return int.from_bytes(told[152:156], sys.byteorder)

    def _exchange(self) -> None:
        if self._outgoing.pending:
            self._socket.sendall(self._outgoing.read())
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self._incoming.write(data)
