"""A client that does not keep up: which packets it is not sent, how much it has not taken yet, and what counts."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

from broker.metrics import Metrics
from broker.mqtt.acks import Puback
from broker.mqtt.introduction import Introduction
from broker.mqtt.ping import Pingresp
from broker.sockets.poller import Poller
from broker.sockets.slow_reader import in_kernel, without_qos0
from broker.sockets.transport import TlsTransport
from broker.sockets.transport_state import OPEN
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
