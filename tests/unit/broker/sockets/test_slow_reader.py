"""A client that does not keep up: which packets it is not sent, how much it has not taken yet, and what counts."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from broker.metrics import Metrics
from broker.mqtt.acks import Puback
from broker.mqtt.introduction import Introduction
from broker.mqtt.ping import Pingresp
from broker.sockets.poller import READABLE, WRITABLE, Poller
from broker.sockets.slow_reader import in_kernel, without_qos0
from broker.sockets.transport import TlsTransport
from broker.sockets.transport_state import CLOSED, CLOSING, LINGERING, OPEN
from broker.sockets.turn import Turn
from tests.support.broker_process import wait_until
from tests.support.wire import V5, publication


def test_messages_of_qos_0_alone_are_left_out_and_counted() -> None:
    """What else is sent somebody waits for, or it will be asked for again; the order stays."""
    lost = [publication("t", b"x", retain=retain).encode(V5) for retain in (False, True)]
    kept = [
        publication("t", b"x", qos, packet_id=7, retain=retain, dup=dup).encode(V5)
        for qos in (1, 2)
        for retain in (False, True)
        for dup in (False, True)
    ]
    kept += [Puback(7).encode(V5), Pingresp().encode(V5)]
    metrics = Metrics()
    assert without_qos0([lost[0], *kept[:4], lost[1], *kept[4:]], metrics) == kept
    assert metrics.dropped_slow_consumer == 2
    assert without_qos0(lost, metrics) == []
    assert without_qos0(kept, metrics) == kept
    assert metrics.dropped_slow_consumer == 4


def test_a_message_that_introduces_an_alias_is_not_left_out() -> None:
    """Those behind it have no topic but that alias, and a client that does not know it ends the connection."""
    introduction = Introduction(publication("t", b"x", topic_alias=1).encode(V5))
    metrics = Metrics()
    assert without_qos0([publication("u").encode(V5), introduction], metrics) == [introduction]
    assert metrics.dropped_slow_consumer == 1


def test_what_the_peer_has_not_taken_is_told_and_nothing_of_what_it_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()) as ours:
        theirs, _ = door.accept()
        with theirs:
            assert in_kernel(ours.fileno()) == 0
            ours.setblocking(False)
            sent = 0
            try:
                while True:
                    sent += ours.send(b"x" * 65536)
            except BlockingIOError:
                pass
            assert 0 < in_kernel(ours.fileno()) <= sent
            while sent:
                sent -= len(theirs.recv(1 << 20))
            wait_until(lambda: in_kernel(ours.fileno()) == 0, "the peer has taken it all, and says so")


class Full:
    """A TLS session whose socket takes nothing."""

    session_reused = False

    def write(self, _data: bytes) -> int:
        raise ssl.SSLWantWriteError

    def shutdown(self) -> None: ...


class Receiver:
    def choke(self, now: float) -> None: ...
    def lost(self, code: str, now: float, detail: str = "") -> None: ...


def test_packets_to_a_client_that_does_not_keep_up_are_counted_as_all_others() -> None:
    """Those that waited for its socket were not, and `messages/sent` stood still while it was slow."""
    loop = asyncio.new_event_loop()
    ours, theirs = socket.socketpair()
    metrics, turn = Metrics(), Turn(loop.call_soon)
    poller = Poller(loop, turn)
    session: Any = Full()
    transport = TlsTransport(loop, ours, session, ("192.0.2.1", 1), metrics, poller, turn, 10)
    receiver: Any = Receiver()
    transport._receiver, transport._state = receiver, OPEN
    poller.watch(ours.fileno(), transport, 0)
    lost, kept = publication("t", b"x").encode(V5), publication("t", b"x", 1, packet_id=7).encode(V5)
    transport.write([kept])
    transport.write([kept, lost])
    assert transport.choked
    transport.write([kept, lost])
    assert (metrics.packets_sent, metrics.dropped_slow_consumer) == (4, 1)
    poller.abort()
    poller.close()
    theirs.close()
    loop.close()


class Narrow(Full):
    """A TLS session whose socket takes as much as there is room for, or has failed."""

    def __init__(self) -> None:
        self.room = 0
        self.taken = b""
        self.broken = False

    def write(self, data: bytes) -> int:
        if self.broken:
            raise ConnectionResetError
        size = min(self.room, len(data))
        if size == 0:
            raise ssl.SSLWantWriteError
        self.room -= size
        self.taken += data[:size]
        return size


class Told:
    """What the receiver of a transport was told."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def choke(self, _now: float) -> None:
        self.words.append("choke")

    def unchoke(self, _now: float) -> None:
        self.words.append("unchoke")

    def drained(self, _now: float) -> None:
        self.words.append("drained")

    def lost(self, code: str, _now: float, _detail: str = "") -> None:
        self.words.append(code)


class Slow:
    """A connected transport, read, whose backlog may have a hundred bytes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ours: socket.socket) -> None:
        self.loop, self.session, self.told = loop, Narrow(), Told()
        turn = Turn(loop.call_soon)
        self.poller = Poller(loop, turn)
        session: Any = self.session
        receiver: Any = self.told
        self.transport = TlsTransport(loop, ours, session, ("192.0.2.1", 1), Metrics(), self.poller, turn, 100)
        self.transport._receiver, self.transport._state, self.transport._events = receiver, OPEN, READABLE
        self.poller.watch(ours.fileno(), self.transport, READABLE)

    def takes(self, size: int) -> None:
        self.session.room = size
        self.transport.on_writable()


@pytest.fixture
def slow() -> Iterator[Slow]:
    loop = asyncio.new_event_loop()
    ours, theirs = socket.socketpair()
    slow = Slow(loop, ours)
    yield slow
    slow.poller.abort()
    slow.poller.close()
    theirs.close()
    loop.close()


def test_a_client_that_took_what_waited_is_read_as_before(slow: Slow) -> None:
    slow.transport.write([b"x" * 100])
    assert (slow.transport._events, slow.told.words) == (READABLE | WRITABLE, []), "the bound is not exceeded"
    slow.takes(99)
    assert (slow.transport._events, slow.told.words) == (READABLE | WRITABLE, [])
    slow.takes(1)
    assert (slow.transport._events, slow.told.words) == (READABLE, ["drained"])


@pytest.mark.parametrize("held", [False, True])
def test_a_choked_client_is_read_again_at_half_of_the_bound_unless_it_is_held(slow: Slow, held: bool) -> None:
    slow.transport.write([b"x" * 101])
    assert (slow.transport._events, slow.told.words) == (WRITABLE, ["choke"])
    if held:
        slow.transport.hold()
    slow.takes(50)
    assert (slow.transport._events, slow.told.words) == (WRITABLE, ["choke"])
    slow.takes(1)
    assert (slow.transport._events, slow.told.words) == (WRITABLE | (0 if held else READABLE), ["choke", "unchoke"])
    slow.transport.release()
    assert slow.transport._events == READABLE | WRITABLE


def test_a_client_that_is_closed_gets_what_waits_though_it_goes_on_sending(slow: Slow) -> None:
    """Its bytes are not read any more: they would be taken for an error of the socket, which ends it at once."""
    slow.transport.write([b"x" * 10])
    slow.transport.close([b"last"])
    assert (slow.transport._state, slow.transport._events) == (CLOSING, WRITABLE)
    slow.takes(10)
    assert slow.transport._state is CLOSING
    slow.takes(4)
    assert (slow.transport._state, slow.session.taken) == (LINGERING, b"x" * 10 + b"last")


def test_a_client_that_is_closed_and_goes_before_it_took_all_is_not_listened_to(slow: Slow) -> None:
    slow.transport.write([b"x" * 10])
    slow.transport.close()
    slow.session.broken = True
    slow.takes(10)
    assert slow.transport._state is CLOSING, "the caller may be in the middle of a flush"
    slow.loop.run_until_complete(asyncio.sleep(0))
    assert (slow.transport._state, slow.told.words) == (CLOSED, [])
