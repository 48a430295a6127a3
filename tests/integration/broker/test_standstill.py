"""A broker whose process is stopped for a while (SIGSTOP, a paused container) goes on with everybody."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

from broker.mqtt.packets import Pingreq, Pingresp
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.pki import Pki
from tests.support.tls_client import TlsClient
from tests.support.wire import KEPT, will

CLIENTS = 300
"""More than are read in one turn."""
KEEP_ALIVE = 4
EVENTS = "fleet/meters/{}/event"


class Pinging:
    """Clients that ping in time."""

    def __init__(self) -> None:
        self.clients: list[TlsClient] = []
        self._open: dict[TlsClient, int] = {}
        self._pinged = time.monotonic()

    def add(self, client: TlsClient) -> None:
        self.clients.append(client)
        self._open[client] = 0
        if time.monotonic() - self._pinged > KEEP_ALIVE / 4:  # It takes a while until all are there.
            self.ping()

    def ping(self) -> None:
        self._pinged = time.monotonic()
        for client in self.clients:
            client.send(Pingreq())
            self._open[client] += 1

    def check(self) -> None:
        """Check that each ping is answered, and nothing else said."""
        for client, count in self._open.items():
            for _ in range(count):
                assert isinstance(packet := client.next_packet(), Pingresp), packet


def test_who_has_sent_in_time_what_was_not_read_stays_connected(pki: Pki, tmp_path: Path) -> None:
    with BrokerProcess.with_files(tmp_path / "b", pki) as broker, contextlib.ExitStack() as stack:
        anchors, pinging = broker.dir / "anchors.pem", Pinging()

        def come(name: str) -> TlsClient:
            held = pki.service(name) if name == "watcher" else pki.device(name)
            return stack.enter_context(TlsClient(broker.port, anchors, held.credential))

        watcher = come("watcher")
        watcher.connect(client_id="watcher", keep_alive=0)
        watcher.subscribe(EVENTS.format("+"))
        for number in range(CLIENTS):
            client, name = come(f"meter-{number}"), f"meter-{number}"
            client.connect(client_id=name, keep_alive=KEEP_ALIVE, will=will(EVENTS.format(name), b"gone"))
            pinging.add(client)
        away = come("away")
        away.connect(
            client_id="away", will=will(EVENTS.format("away"), b"gone", will_delay_interval=KEEP_ALIVE), **KEPT
        )
        away.socket.close()
        wait_until(lambda: broker.events("closed", client="away"), "it is gone")
        pinging.ping()
        broker.send_signal(signal.SIGSTOP)
        for _ in range(2 * KEEP_ALIVE):
            pinging.ping()
            time.sleep(1)
        broker.send_signal(signal.SIGCONT)
        back = come("away")
        assert back.connect(client_id="away", **KEPT).session_present
        pinging.ping()  # For the time from now on: of that in which it stood still it has told everybody.
        pinging.check()
        assert broker.events("STOOD_STILL")
        watcher.check_alive()
