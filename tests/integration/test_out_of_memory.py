"""Real processes that run out of memory: they end at once, say why, and what was acknowledged is there afterwards.

The limit is set to what the process has and a little more (`RLIMIT_AS`, what ``ulimit -v`` sets); clients do the rest.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path

from broker.mqtt.packets import Publish
from provisioning.pki.tls import client_context
from tests.support.broker_process import BrokerProcess
from tests.support.pki import Pki
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import Ended, TlsClient

ROOM = 24 << 20
"""Bytes that the process may still have: enough for many a handshake, and for some of what follows."""
SIZE = 6 << 20
"""Of a packet, as its header says it: 80 80 80 03."""
PATIENCE = 120.0
LAST_WORDS = "out of memory, and ended at once, to be started again"


def leave_room(pid: int) -> None:
    """Let the process *pid* have `ROOM` more than it has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + ROOM
    resource.prlimit(pid, resource.RLIMIT_AS, (bound, bound))


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def beset(pid: int, come: Callable[[contextlib.ExitStack, int], None]) -> None:
    """Let clients *come* to the process, and stay, until it has ended by itself."""
    leave_room(pid)
    deadline = time.monotonic() + PATIENCE
    with contextlib.ExitStack() as stay:
        for number in itertools.count(1):
            if has_ended(pid):
                return
            assert time.monotonic() < deadline, "it goes on without memory"
            with contextlib.suppress(OSError, Ended):  # It may end while this one is served.
                come(stay, number)


def test_a_broker_without_memory_ends_and_has_what_it_has_acknowledged_when_it_is_started_again(tmp_path: Path) -> None:
    pki = Pki()
    anchors, topic = pki.write_anchors(tmp_path), "fleet/meters/meter-0/telemetry"
    broker = BrokerProcess.with_files(tmp_path / "b", pki, limits__max_packet_size=2 * SIZE).afresh()
    backend = pki.service("backend").credential
    with broker:
        with TlsClient(broker.port, anchors, backend) as client:
            client.connect(client_id="backend", clean_start=False, session_expiry_interval=3600)
            client.subscribe("fleet/#", qos=1)
        with TlsClient(broker.port, anchors, pki.device("meter-0").credential) as client:
            client.connect(client_id="meter-0")
            client.publish(topic, b"kept", qos=1)

        def come(stay: contextlib.ExitStack, number: int) -> None:
            name = f"meter-{number}"
            client = stay.enter_context(TlsClient(broker.port, anchors, pki.device(name).credential))
            client.socket.settimeout(5)
            client.connect(client_id=name)
            # All but its last byte: it is kept until then.
            client.send_bytes(b"\x30\x80\x80\x80\x03" + bytes(SIZE - 1))

        beset(broker.pid, come)
        assert broker.stop() == 1
        assert broker.log.splitlines()[-1].startswith(f"fleet-broker: {LAST_WORDS}")
    with broker, TlsClient(broker.port, anchors, backend) as client:
        client.connect(client_id="backend", clean_start=False, session_expiry_interval=3600)
        received = client.expect(Publish)
        assert (received.topic, received.payload) == (topic, b"kept")


def test_provisioning_without_memory_ends_and_has_the_tokens_that_it_has_made_when_it_is_started_again(
    tmp_path: Path,
) -> None:
    service = ProvisioningService.copied(tmp_path / "fleet", {"requests_per_second": 0}, afresh=True)
    with service:
        service.token(device="meter-1")
        context = client_context(service.bundle, service.operator)
        begun = f"POST /v1/tokens HTTP/1.1\r\nHost: localhost:{service.port}\r\nContent-Type: application/json\r\n"

        def come(stay: contextlib.ExitStack, _number: int) -> None:
            raw = stay.enter_context(socket.create_connection(("127.0.0.1", service.port), 5))
            secure = stay.enter_context(context.wrap_socket(raw, server_hostname="localhost"))
            secure.sendall(f"{begun}Content-Length: 1000000\r\n\r\n".encode() + bytes(999_999))

        beset(service.pid, come)
        assert service.stop() == 1
        assert service.log.splitlines()[-1].startswith(f"fleet-provisioning: {LAST_WORDS}")
    with service:
        assert service.stored("SELECT device FROM tokens") == [("meter-1",)]
