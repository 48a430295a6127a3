"""What TLS has beside a handshake and data: early data is thrown away, and nobody handshakes twice."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import Publish
from provisioning.pki.tls import client_context
from tests.support.broker_process import PATIENCE, BrokerProcess, wait_until
from tests.support.odd_handshakes import REJECTED, ask_to_renegotiate, early_data_status, offered, send_early
from tests.support.pki import Held, Pki
from tests.support.tls_client import TlsClient
from tests.support.wire import V5, connect_packet, publication


def hear_out(secured: ssl.SSLSocket) -> None:
    """Raise `OSError` when the broker has ended the connection, whatever the handshake came to."""
    secured.do_handshake()
    secured.settimeout(PATIENCE)
    assert not secured.recv(1)
    raise ConnectionResetError


@pytest.mark.parametrize("size", [0, 8_000, 20_000])
def test_nothing_is_acted_on_that_comes_before_the_handshake_is_complete(
    broker: BrokerProcess, pki: Pki, anchors: Path, meter: Held, name: str, size: int
) -> None:
    """A CONNECT, and a message of *size* bytes, in early data: who has recorded them could send them once more."""
    context = client_context(anchors, meter.credential)
    with TlsClient(broker.port, anchors, context=context) as client:
        client.connect(client_id=name)
        assert offered(client.socket) == 0
        session = client.socket.session
        client.leave()
    topic = f"fleet/meters/{name}/state"
    early = connect_packet(V5, client_id=name).encode(V5) + publication(topic, bytes(size)).encode(V5)
    before = len(broker.events("admitted", client=name))
    with TlsClient(broker.port, anchors, pki.service("backend").credential) as backend:
        backend.connect(client_id="backend")
        backend.subscribe(topic)
        raw = socket.create_connection(("127.0.0.1", broker.port))
        with context.wrap_socket(
            raw, server_hostname="localhost", session=session, do_handshake_on_connect=False
        ) as secured:
            for start in range(0, len(early), 10_000):
                send_early(secured, early[start : start + 10_000])
            if size > 1 << 14:  # More than OpenSSL throws away.
                with pytest.raises(OSError):  # noqa: PT011 - an alert, or the end, whichever is read first
                    hear_out(secured)
            else:
                secured.do_handshake()
                assert early_data_status(secured) == REJECTED
                assert len(broker.events("admitted", client=name)) == before
                secured.sendall(connect_packet(V5, client_id=name).encode(V5))
                secured.settimeout(PATIENCE)
                assert secured.recv(1)[0] == 0x20
        with TlsClient(broker.port, anchors, meter.credential) as other:
            other.connect(client_id=name)
            other.send(publication(topic, b"late"))
            assert backend.expect(Publish).payload == b"late", "nothing of what came early"


def test_who_asks_to_renegotiate_while_it_takes_nothing_harms_itself_alone(
    tmp_path: Path, pki: Pki, anchors: Path
) -> None:
    """TLS 1.2, and a socket full of messages: the answer, an alert, cannot be written."""
    with BrokerProcess.with_files(tmp_path / "b", pki, "--allow-tls12") as broker:
        held, backend = pki.device("m"), pki.service("backend")
        context = client_context(anchors, backend.credential, allow_tls12=True)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.options &= ~ssl.OP_NO_RENEGOTIATION
        with (
            TlsClient(broker.port, anchors, held.credential) as meter,
            TlsClient(broker.port, anchors, context=context, receive_buffer=4096) as greedy,
        ):
            assert greedy.socket.version() == "TLSv1.2"
            meter.connect(client_id="m")
            greedy.connect(client_id="backend")
            greedy.subscribe("fleet/meters/m/#")
            for _ in range(60):  # 6 MB: more than sockets hold, and less than is kept for one that does not read.
                meter.send(publication("fleet/meters/m/state", bytes(100_000), 0))
            meter.check_alive()
            ask_to_renegotiate(greedy.socket)
            for _ in range(5):
                meter.check_alive()
            with TlsClient(broker.port, anchors, pki.device("n").credential) as newcomer:
                newcomer.send(connect_packet(V5, client_id="n"))
                assert newcomer.expect(Connack).reason_code is ReasonCode.SUCCESS
            greedy.socket.close()
            wait_until(lambda: broker.events("closed", client="backend"), "it has gone")
            meter.check_alive()
        assert broker.events("INTERNAL_ERROR") == []
