"""A client that does not keep up: which packets it is not sent, and how much it has not taken yet."""

from __future__ import annotations

import socket

from broker.metrics import Metrics
from broker.mqtt.acks import Puback
from broker.mqtt.introduction import Introduction
from broker.mqtt.ping import Pingresp
from broker.sockets.slow_reader import in_kernel, without_qos0
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
