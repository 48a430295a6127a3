"""One TLS connection on a non-blocking socket, driven by `broker.sockets.poller`.

Theory
------
The TLS transports of asyncio and uvloop lose the alert that tells a refused device why, and keep large buffers per
connection (docs/decisions/0002). Using OpenSSL on the socket directly avoids both.

Where OpenSSL can be configured so (`provisioning.pki.openssl`), one system call reads all records that are there, and
they are decrypted one by one; what a turn leaves is taken in the next (`Poller.again`). From a peer that was silent for
a second, or has sent nothing yet, one record is read without reading ahead (docs/decisions/0127). Elsewhere (the slow
twin) each readiness event reads one record, in two system calls, and another one only from a peer that was also
readable a moment ago, since it is sending a burst. Two bounds keep a greedy publisher from starving the others: a
number of records per connection, and a number beyond the first for all connections together (`Turn.allowance`). Writing
happens once per turn (`broker.sockets.turn`); what the socket does not accept forms the backlog.

Hot: `on_readable`, `_read`, `write`. Budget, with all else: two thirds of mosquitto's CPU time a message, 200 to one
(``benchmarks/side_by_side.py --only fan-in-qos0``). Slow twin: `ssl`; tests/properties/test_direct_read_properties.py.

Rules
-----
1. A refusal is closed cleanly: after what was written (the alert, the CONNACK, the DISCONNECT) the write side is shut
   down, and what the peer still sends is discarded for a moment. Closing with unread bytes would reset the connection.
2. A peer that leaves is heard out: what it had sent before a write failed is still read, including its DISCONNECT and
   its acknowledgements. A write fails, too, that would have to wait for the other half of a message of TLS itself.
3. The backlog is bounded. Beyond the bound the transport is *choked*: QoS 0 messages are dropped and counted, the
   session keeps the others in its own bounded queue, and the peer is not read: it must accept its answers first.
4. Whatever happens to the socket ends in `_close`, once, and the receiver has been told.

Does not handle: the meaning of the bytes, deadlines (`broker.connection.connection` files them), who may connect, when
the peer is not read (`broker.sockets.readiness`).
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

from broker.metrics import Metrics
from broker.sockets.byte_stream import Receiver
from broker.sockets.kernel_buffer import gather, give_up_in_time, send_on
from broker.sockets.kernel_probes import probe
from broker.sockets.poller import READABLE, WRITABLE, Poller
from broker.sockets.readiness import Readiness
from broker.sockets.slow_reader import in_kernel, without_qos0
from broker.sockets.tls_refusal import code_of, cut_off_by, words_of
from broker.sockets.tls_session import TlsSession, shake_hands
from broker.sockets.transport_state import CLOSED, CLOSING, HANDSHAKE, LINGERING, MUTE, OPEN
from broker.sockets.turn import Turn
from broker.sockets.work import PORTION
from provisioning.pki import handshake_bounds, openssl, resumption
from provisioning.pki.key_updates import bound_key_updates
from provisioning.pki.late_handshake import drop
from provisioning.pki.openssl import READS, address_of, has_pending, read_on
from provisioning.pki.openssl_library import RECORD
from provisioning.pki.stapling import forget_staple
from provisioning.pki.verified_path import peer_certificate, verified_path
from provisioning.program.host_and_port import with_port

_BURST_SECONDS: Final = 0.003
_QUIET_SECONDS: Final = 1.0
"""After this much silence a single record is expected, and it is read without reading ahead."""
_READS_A_TURN: Final = 64
_LINGER_SECONDS: Final = 1.0
_DRAIN_SECONDS: Final = 5.0
_DISCARD: Final = 65536
_NO_PATH: Final[Callable[[], list[bytes]]] = list  # Of a resumed session.


class TlsTransport(Readiness):
    """A server-side TLS connection."""

    __slots__ = (
        "_ahead",
        "_backlog",
        "_failure",
        "_host",
        "_last_read",
        "_max_backlog",
        "_metrics",
        "_owes_ticket",
        "_port",
        "_receiver",
        "_settled",
        "_socket",
        "_timer",
        "_tls",
        "_turn",
    )

    def __init__(
        self,
        loop: AbstractEventLoop,
        connected: socket.socket,
        tls: TlsSession,
        address: tuple[str, int],
        metrics: Metrics,
        poller: Poller,
        turn: Turn,
        max_backlog: int,
    ) -> None:
        """Take over the non-blocking socket *connected* from the peer's *address*, before the handshake of *tls*."""
        super().__init__(loop, poller, connected.fileno(), address_of(tls))
        self._host, self._port = sys.intern(address[0]), address[1]  # A fleet has few addresses.
        self._socket = connected
        self._tls: TlsSession | None = tls
        self._ahead = False
        self._metrics, self._turn = metrics, turn
        self._last_read = 0.0
        self._max_backlog = max_backlog
        self._receiver: Receiver | None = None
        self._backlog: bytearray | None = None
        self._failure = ""
        self._timer: TimerHandle | None = None
        self._settled = self._owes_ticket = False
        """Whether its client has been admitted, and is still to get a TLS session ticket."""

    @property
    def address(self) -> str:
        """The peer's address and port."""
        return with_port(self._host, self._port)

    @property
    def host(self) -> str:
        """The peer's address."""
        return self._host

    @property
    def unsent(self) -> bool:
        """Whether written data still waits for the socket."""
        return self._backlog is not None

    @property
    def untaken(self) -> int:
        """How many written bytes the peer has not acknowledged, those in the kernel's buffer included."""
        return 0 if self._state is CLOSED else in_kernel(self._fd) + len(self._backlog or b"")

    def start(self, receiver: Receiver) -> None:
        """Begin the handshake; *receiver* is told the result."""
        self._receiver = receiver
        if self._inside:
            handshake_bounds.begin(self._inside)
        self._events = READABLE
        self._poller.watch(self._fd, self, READABLE)

    def settle(self, *, dozes: bool = False) -> None:
        """Take note that the client is admitted: it is served before newcomers, and if it *dozes*, a little later."""
        if not self._settled:
            self._settled, self._owes_ticket = True, bool(self._inside) and resumption.CAN_REMEMBER
        if self._state is not CLOSED:
            self._poller = self._poller.settled(self._fd, self, self._events, dozes=dozes)

    def probe(self, silence: int) -> None:
        """Let the kernel look for the peer after *silence* seconds."""
        probe(self._socket, silence)

    # Reading

    def on_readable(self) -> None:
        """Read, or continue the handshake, or discard what arrives after the end."""
        if self._state is OPEN:
            self._read()
        elif self._state is HANDSHAKE:
            self._handshake()
        elif self._state is LINGERING:
            self._discard()
        elif self._state is MUTE:
            self._hear_out()
        else:  # An error while the last bytes are being written: epoll reports it unasked.
            self._close()

    def _handshake(self) -> None:
        receiver, tls = self._receiver, self._tls
        if receiver is None or tls is None:
            return
        try:
            wants = shake_hands(tls, self._inside, self._socket)
        except (ssl.SSLError, OSError) as error:
            openssl.forget_errors()
            self._metrics.handshakes["failed", tls.version() or "none"] += 1
            receiver.lost(code_of(error), self._loop.time(), words_of(error))
            self._linger()  # OpenSSL has written the alert.
            return
        if wants == openssl.WANTS_WRITE:
            self._watch(self._events | WRITABLE)
            return
        self._watch(self._events & ~WRITABLE)
        if wants == openssl.COMPLETE:
            self._secured(receiver, tls)

    def _secured(self, receiver: Receiver, tls: TlsSession) -> None:
        self._state = OPEN
        self._metrics.handshakes_completed += 1
        resumed = bool(tls.session_reused)
        self._metrics.handshakes_resumed += resumed
        self._metrics.handshakes["resumed" if resumed else "full", tls.version() or "none"] += 1
        certificate = tls.getpeercert(True)
        if self._inside:
            openssl.forget_handshake(self._inside, resumed=resumed)
            forget_staple(self._inside)
            bound_key_updates(self._inside)
        path = _NO_PATH if resumed else partial(verified_path, tls, certificate)
        receiver.secured(certificate, self._loop.time(), datetime.now(UTC), path)

    def presented(self) -> tuple[bytes | None, list[bytes]]:
        """Return the peer's certificate, in DER, and its verified path."""
        return (None, []) if self._tls is None else (peer_certificate(self._tls), verified_path(self._tls))

    def forget_tls_session(self, *, at_any_price: bool) -> None:
        """Take note that the client may not come back with its TLS session; *at_any_price* as in `ByteStream`."""
        resumption.forget(self._tls, at_any_price=at_any_price)

    def _read(self) -> None:
        receiver, tls = self._receiver, self._tls
        if receiver is None or tls is None:
            return
        now = self._loop.time()
        silent, self._last_read = now - self._last_read, now
        turn, inside, ahead = self._turn, self._inside, self._ahead
        if inside and not ahead and silent < _QUIET_SECONDS:
            ahead = self._ahead = read_on(inside, ahead=True)
        burst = not inside and silent < _BURST_SECONDS
        most = turn.work.done + PORTION
        for _ in range(_READS_A_TURN):
            data = self._take(tls, receiver, now)
            if not data:
                return
            receiver.receive(data, now)
            turn.allowance -= 1 + (len(data) >> 10)
            if self._state is not OPEN or not self._events & READABLE:
                return  # The call that resumes reading looks for bytes inside OpenSSL.
            if not (has_pending(inside) if ahead else burst):
                if ahead and silent > _QUIET_SECONDS:
                    self._ahead = read_on(inside, ahead=False)
                return
            if turn.allowance <= 0 or turn.work.done >= most:
                break
        if ahead:
            self._poller.again(self._fd)

    def _take(self, tls: TlsSession, receiver: Receiver, now: float) -> bytes:
        """Return the content of the next record; empty if there is none, or if *receiver* was told of the end."""
        data: bytes | None
        try:
            data = openssl.read(self._inside) if READS and self._inside else tls.read(RECORD)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            return b""
        except ssl.SSLEOFError:  # No close_notify. MQTT has its own end, and other brokers are no stricter.
            data = b""
        except (ssl.SSLError, OSError) as error:
            openssl.forget_errors()
            receiver.lost("CONNECTION_LOST", now, words_of(error))
            self._close()
            return b""
        if data is None:
            return b""
        if not data:
            detail = cut_off_by(self._inside, self._socket)
            receiver.lost("CONNECTION_LOST" if detail else "CLIENT_CLOSED", now, detail)
            self._finish()
        return data

    def _hear_out(self) -> None:
        """Read one more record from a peer that is lost, unless it may not be read now (held, resting)."""
        data = b""
        if self._tls is not None and self._events & READABLE:
            try:
                data = self._tls.read(RECORD)
            except (ssl.SSLError, OSError):
                openssl.forget_errors()
        if not data or self._receiver is None:
            self.abort("CONNECTION_LOST", self._failure)
            return
        self._poller.again(self._fd)
        self._receiver.receive(data, self._loop.time())

    def _discard(self) -> None:
        try:
            if not os.read(self._fd, _DISCARD):
                self._close()
        except BlockingIOError:
            pass
        except OSError:
            self._close()

    # Writing

    def write(self, packets: list[bytes]) -> None:
        """Write *packets*, each a whole one; keep what the socket does not accept."""
        tls = self._tls
        if self._state is not OPEN or tls is None:
            return
        backlog = self._backlog
        if backlog is not None:
            if self.choked:  # Rare: a client that does not keep up.
                packets = without_qos0(packets, self._metrics)
            self._metrics.packets_sent += len(packets)
            for packet in packets:
                backlog += packet
            self._choke_if_long(backlog)
            return
        data, metrics = packets[0] if len(packets) == 1 else b"".join(packets), self._metrics
        metrics.packets_sent += len(packets)
        size = len(data)
        if self._owes_ticket:  # The first write.
            sent = self._send_first(tls, data)
        elif size <= RECORD:  # Best case: one record, one system call, everything accepted.
            try:
                sent = tls.write(data)
            except (ssl.SSLWantWriteError, BlockingIOError):
                sent = 0
            except (ssl.SSLError, OSError) as error:
                self._fail(error)
                return
            metrics.bytes_sent += sent
        else:
            sent = self._send(tls, data)
        if sent < size and self._state is OPEN:
            backlog = self._backlog = bytearray(data[sent:] if sent else data)
            self._watch(self._events | WRITABLE)
            self._choke_if_long(backlog)

    def _send_first(self, tls: TlsSession, data: bytes) -> int:
        """Write like `_send`, after a TLS session ticket and in one segment with it."""
        self._owes_ticket = False
        gather(self._socket)
        resumption.offer_ticket(self._inside, resumed=bool(tls.session_reused))
        sent = self._send(tls, data)
        if self._state is not CLOSED:
            send_on(self._socket)
        return sent

    def _choke_if_long(self, backlog: bytearray) -> None:
        if len(backlog) > self._max_backlog and not self.choked:
            self.choked = True
            self._pause_reading()
            if self._receiver is not None:
                self._receiver.choke(self._loop.time())

    def _unchoke(self) -> None:
        self.choked = False
        self._read_on()
        if self._receiver is not None:
            self._receiver.unchoke(self._loop.time())

    def _send(self, tls: TlsSession, data: bytes | bytearray) -> int:
        """Write as much of *data* as the socket accepts; return how many bytes."""
        sent, size = 0, len(data)
        try:
            if 0 < size <= RECORD:
                sent = tls.write(data)
            else:
                with memoryview(data) as view:
                    while sent < size:  # Record by record: OpenSSL does not report a partly accepted call.
                        with view[sent : sent + RECORD] as record:
                            sent += tls.write(record)
        except (ssl.SSLWantWriteError, BlockingIOError):
            pass
        except (ssl.SSLError, OSError) as error:
            self._fail(error)
            return size
        self._metrics.bytes_sent += sent
        return sent

    def _fail(self, error: OSError) -> None:
        openssl.forget_errors()
        # The receiver is told later, since the caller is in the middle of a flush; and the peer is not heard for ever.
        self._backlog = None
        if self._state is not OPEN:
            self._loop.call_soon(self._close)
            return
        self._state, self._failure = MUTE, words_of(error)
        self.choked = False
        self._watch(0 if self._held or self._resting else READABLE)
        self._poller.again(self._fd)
        self._timer = self._loop.call_later(_LINGER_SECONDS, self.abort, "CONNECTION_LOST", self._failure)

    def on_writable(self) -> None:
        """Continue writing."""
        if self._state is HANDSHAKE:
            self._handshake()
            return
        backlog, tls = self._backlog, self._tls
        if backlog is not None and tls is not None:
            sent = self._send(tls, backlog)
            if self._backlog is None:
                return
            del backlog[:sent]
            if backlog:
                if self.choked and len(backlog) <= self._max_backlog // 2 and self._state is OPEN:
                    self._unchoke()
                return
            self._backlog = None
        self._watch(self._events & ~WRITABLE)
        if self._state is CLOSING:
            self._finish()
            return
        if self.choked:
            self._unchoke()
        if backlog is not None and self._receiver is not None:
            self._receiver.drained(self._loop.time())

    # Closing

    def close(self, last: Sequence[bytes] = ()) -> None:
        """Write what is left and the *last* packets, close TLS and the socket; after a few seconds give up the rest.

        The last packets, close_notify and the end of the stream are one segment if the socket takes them: segments are
        most of what the kernel does here, at both ends, and a thousand may be closed at once.
        """
        if last and self._state is OPEN:
            if self._backlog is None:
                gather(self._socket)
            self.write(list(last))
        if self._state in (HANDSHAKE, MUTE):
            self._close()
        elif self._state is OPEN and self._backlog is None:
            self._finish()
        elif self._state is OPEN:
            self._state = CLOSING
            self._pause_reading()
            self._timer = self._loop.call_later(_DRAIN_SECONDS, self._close)

    def abort(self, code: str = "ABORTED", detail: str = "") -> None:
        """Close the socket at once, and report why."""
        try:
            if self._receiver is not None:
                self._receiver.lost(code, self._loop.time(), detail)
        finally:  # Nobody else would close it.
            self._close()

    def reset(self) -> None:
        """Close the socket at once; what waits for the peer, in the kernel's buffer too, is not sent.

        The peer gets RST. The receiver is not told: this is its decision.
        """
        if self._state is not CLOSED:
            drop(self._socket)
            self._close()

    def _finish(self) -> None:
        """Send close_notify, so that the peer knows that nothing was cut off (RFC 8446 §6.1), and linger."""
        if self._tls is not None:
            said = openssl.say_goodbye(self._tls, self._inside)
            if self._inside and not said:  # A peer that has already gone may still resume the session later.
                resumption.stay_resumable(self._inside)
        self._linger()

    def _linger(self) -> None:
        if self._state is CLOSED:
            return
        self._state = LINGERING  # What arrives from now on is discarded unread.
        if self._settled:  # TLS and the connection are freed with the socket: a thousand may be closed at once.
            self._backlog, self._inside = None, 0
        else:
            self._let_go()
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._close()
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._settled:
            self._poller.linger(self._fd, self)
        else:
            self._watch(READABLE)
            self._timer = self._loop.call_later(_LINGER_SECONDS, self._close)

    def _close(self) -> None:
        if self._state is CLOSED:
            return
        if self._inside and self._state in (OPEN, MUTE, CLOSING):  # The handshake was completed.
            resumption.stay_resumable(self._inside)
        unheard = self._state is HANDSHAKE and in_kernel(self._fd) > 0
        self._state = CLOSED
        self._let_go()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._poller.forget(self._fd)
        if unheard:  # The end of the stream would wait behind it, and many a client waits for that for ever.
            drop(self._socket)
        else:
            give_up_in_time(self._socket)
        self._socket.close()

    def _let_go(self) -> None:
        if self._inside and not self._settled:
            handshake_bounds.end(self._inside)
            resumption.leave_nothing(self._inside)
        self._receiver = self._backlog = self._tls = None
        self._inside = 0
