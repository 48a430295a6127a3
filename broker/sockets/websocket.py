"""MQTT over WebSocket over TLS: a layer between the TLS transport and the connection (MQTT 5 §6).

Theory
------
`broker.sockets.websocket_upgrade` reads the HTTP request, and `wsproto` the frames after it, both without I/O. This
layer is the receiver for the transport and the transport for the connection; admission, limits and deadlines are those
of the connection, unchanged.

Rules
-----
1. The client offers the subprotocol ``mqtt`` and gets it, or is refused [MQTT-6.0.0-3], [MQTT-6.0.0-4]. A request that
   violates RFC 6455, or comes from a web page that is not allowed, is also refused
   (`broker.sockets.websocket_upgrade`).
2. MQTT packets travel in binary frames, split anywhere [MQTT-6.0.0-1], [MQTT-6.0.0-2]; a text frame ends the
   connection.
3. A frame is passed on as its bytes arrive, never assembled.
4. A read may hold thousands of frames of a few bytes. They are handled in portions, with a turn for all other clients
   in between (`broker.connection.portions`); of several pings in a portion only the last is answered, as RFC 6455
   §5.5.3 allows.

Does not handle: compression (not offered).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Protocol

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.utilities import LocalProtocolError

from broker.metrics import Metrics
from broker.settings.origins import NO_PAGES, Origins
from broker.sockets.byte_stream import ByteStream, Receiver
from broker.sockets.guarded import guarded
from broker.sockets.slow_reader import without_qos0
from broker.sockets.turn import Turn
from broker.sockets.websocket_upgrade import Declined, UpgradeRequest
from broker.sockets.work import PORTION

_UNSUPPORTED_DATA = 1003
_NORMAL = 1000


class Underlying(ByteStream, Protocol):
    """The TLS transport."""

    @property
    def choked(self) -> bool:
        """Whether too much is unsent."""


class WebSocket:
    """The server side of one WebSocket."""

    __slots__ = ("_above", "_frames", "_held", "_metrics", "_pauses", "_pinged", "_request", "_transport", "_turn")

    def __init__(self, transport: Underlying, metrics: Metrics, turn: Turn, origins: Origins = NO_PAGES) -> None:
        self._transport = transport
        self._metrics = metrics
        self._turn = turn
        self._request: UpgradeRequest | None = UpgradeRequest(origins)
        """None: the client has been upgraded, or declined; it would be 2.5 KB of each client for nothing."""
        self._frames: Connection | None = None
        """The frame decoder; None: the client has not been upgraded."""
        self._above: Receiver | None = None
        self._held = False
        self._pauses = False
        """Whether frames that were read wait for the next turn."""
        self._pinged: Ping | None = None

    def serve(self, connection: Receiver) -> None:
        """Pass what arrives to *connection*."""
        self._above = connection

    # Towards the connection

    def secured(
        self, certificate: bytes | None, now: float, wall_now: datetime, path: Callable[[], Sequence[bytes]] = tuple
    ) -> None:
        """Pass on that TLS is up."""
        if self._above is not None:
            self._above.secured(certificate, now, wall_now, path)

    def receive(self, data: bytes, now: float) -> None:
        """Decode frames, once the client is upgraded."""
        if self._frames is None:
            outcome = self._request.receive(data) if self._request is not None else None
            if outcome is None:
                return
            self._request = None
            self._transport.write([outcome.answer])
            if isinstance(outcome, Declined):
                self._end(outcome.code, now, outcome.recorded)
                return
            self._frames, data = Connection(ConnectionType.SERVER), outcome.rest
        try:
            self._frames.receive_data(data)
            if not self._pauses:
                self._take(self._frames, now)
        except LocalProtocolError as error:
            self._fail(f"not a WebSocket: {error}", now)

    def _take(self, frames: Connection, now: float) -> None:
        """Handle the next portion of what was read; schedule the rest."""
        turn, work = self._turn, self._turn.work
        most = max(work.done + 1, min(work.done + PORTION, turn.most_work))
        for event in frames.events():
            work.done += 1  # A frame is decoded for about as much as a small packet is handled.
            self._on_event(event, frames, now)
            if work.done >= most:
                break
        pinged, self._pinged = self._pinged, None
        if pinged is not None and frames.state is ConnectionState.OPEN:
            self._send(frames, pinged.response())
        if work.done >= most and self._above is not None:
            if not self._held:
                self._transport.hold()
            self._pauses = True
            self._turn.portion(partial(self._go_on, frames, now))

    def _go_on(self, frames: Connection, now: float) -> None:
        self._pauses = False
        if self._above is None:
            return
        if not self._held:
            self._transport.release()
        guarded(partial(self._take_more, frames, now), self, self._transport, now)
        self._turn.request()

    def _take_more(self, frames: Connection, now: float) -> None:
        try:
            self._take(frames, now)
        except LocalProtocolError as error:
            self._fail(f"not a WebSocket: {error}", now)

    def choke(self, now: float) -> None:
        """Pass on that too much is unsent."""
        if self._above is not None:
            self._above.choke(now)

    def unchoke(self, now: float) -> None:
        """Pass on that the peer accepts data again."""
        if self._above is not None:
            self._above.unchoke(now)

    def drained(self, now: float) -> None:
        """Pass on that everything that waited has been sent."""
        if self._above is not None:
            self._above.drained(now)

    def lost(self, code: str, now: float, detail: str = "") -> None:
        """Pass on that the peer is lost; waiting frames are discarded."""
        above, self._above = self._above, None
        if above is not None:
            above.lost(code, now, detail)

    def _on_event(self, event: Event, frames: Connection, now: float) -> None:
        above = self._above
        if above is None:
            return
        if isinstance(event, BytesMessage):
            if event.data:  # Nothing is no sign of life.
                above.receive(bytes(event.data), now)
        elif isinstance(event, Ping):
            self._pinged = event
        elif isinstance(event, CloseConnection):
            forbidden = frames.state is ConnectionState.OPEN  # No close frame has come: this is the decoder's verdict.
            if frames.state is not ConnectionState.CLOSED:
                self._send(frames, event.response())
            if forbidden:
                self._fail(f"not a WebSocket: {event.reason}", now)
            else:
                self._end("CLIENT_CLOSED", now)
        elif isinstance(event, TextMessage):
            self._send(frames, CloseConnection(code=_UNSUPPORTED_DATA, reason="MQTT needs binary frames"))
            self._fail("a text frame", now)

    def _fail(self, detail: str, now: float) -> None:
        self._end("BAD_PACKET", now, detail)

    def _end(self, code: str, now: float, detail: str = "") -> None:
        self.lost(code, now, detail)
        self._transport.close()

    # From the connection

    @property
    def address(self) -> str:
        """The peer's address and port."""
        return self._transport.address

    @property
    def unsent(self) -> bool:
        """Whether written data still waits for the socket."""
        return self._transport.unsent

    @property
    def untaken(self) -> int:
        """How many written bytes the peer has not acknowledged."""
        return self._transport.untaken

    def write(self, packets: list[bytes]) -> None:
        """Write *packets* as one binary frame."""
        if self._transport.choked:  # Checked here, because the transport cannot see packets inside a frame.
            packets = without_qos0(packets, self._metrics)
        frames = self._frames
        if packets and frames is not None and frames.state is ConnectionState.OPEN:
            self._send(frames, BytesMessage(data=b"".join(packets)))

    def close(self, last: Sequence[bytes] = ()) -> None:
        """Send the *last* packets and a close frame, and close; remaining frames of the same read are discarded."""
        self._above, frames = None, self._frames
        if frames is None or frames.state is not ConnectionState.OPEN:
            self._transport.close()
            return
        events: list[Event] = [BytesMessage(data=b"".join(last))] if last else []
        self._transport.close([frames.send(each) for each in (*events, CloseConnection(code=_NORMAL))])

    def reset(self) -> None:
        """Close the socket at once; the peer gets nothing more."""
        self._above = None
        self._transport.reset()

    def settle(self, *, dozes: bool = False) -> None:
        """Take note that the client is admitted, and whether it *dozes*."""
        self._transport.settle(dozes=dozes)

    def probe(self, silence: int) -> None:
        """Let the kernel look for the peer after *silence* seconds."""
        self._transport.probe(silence)

    def rest(self, seconds: float) -> None:
        """Stop reading for *seconds*."""
        self._transport.rest(seconds)

    def presented(self) -> tuple[bytes | None, Sequence[bytes]]:
        """Return the peer's certificate, and its verified path."""
        return self._transport.presented()

    def forget_tls_session(self, *, at_any_price: bool) -> None:
        """Take note that the client may not come back with its TLS session; *at_any_price* as in `ByteStream`."""
        self._transport.forget_tls_session(at_any_price=at_any_price)

    def hold(self) -> None:
        """Stop reading until `release`."""
        if not self._held and not self._pauses:
            self._transport.hold()
        self._held = True

    def release(self) -> None:
        """Resume reading."""
        self._held = False
        if not self._pauses:
            self._transport.release()

    def _send(self, frames: Connection, event: Event) -> None:
        self._transport.write([frames.send(event)])
