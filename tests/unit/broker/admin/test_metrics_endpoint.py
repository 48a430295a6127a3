from __future__ import annotations

import select
import socket

from broker.admin.metrics_endpoint import listen


def test_what_was_sent_to_a_peer_that_has_vanished_is_kept_for_half_a_minute() -> None:
    with listen("127.0.0.1", 0, "metrics_port") as listening, socket.create_connection(listening.getsockname()):
        select.select([listening], [], [], 30)
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
