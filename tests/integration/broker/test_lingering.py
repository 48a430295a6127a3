"""The end of an admitted client's socket: it is given back when the client has closed, and also when it never does."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.mqtt.codes import ReasonCode
from broker.mqtt.disconnect import Disconnect
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.pki import Pki
from tests.support.tls_client import TlsClient
from tests.support.wire import V5, connect_packet

_NOBODY = "0"


def is_held(broker_port: int, client_port: int) -> bool:
    """Whether a process still has the broker's end of the connection."""
    ends = f":{broker_port:04X}", f":{client_port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(ends[0]) and row[2].endswith(ends[1]) and row[9] != _NOBODY for row in rows)


@pytest.mark.parametrize("closes", [True, False], ids=["closes", "stays, and sends on"])
def test_the_broker_keeps_no_socket_of_a_client_that_it_has_disconnected(
    broker: BrokerProcess, anchors: Path, pki: Pki, name: str, closes: bool
) -> None:
    with TlsClient(broker.port, anchors, pki.device(name).credential) as client:
        client_port = client.socket.getsockname()[1]
        client.connect(client_id=name)
        assert is_held(broker.port, client_port)
        client.send(connect_packet(V5, client_id=name))
        assert client.expect(Disconnect).reason_code is ReasonCode.PROTOCOL_ERROR
        client.expect_end()
        if closes:
            client.socket.close()
        else:
            client.socket.sendall(bytes(1000))  # Discarded.
        wait_until(lambda: not is_held(broker.port, client_port), "its socket is given back")
