"""A revoked device that reads slowly: what waits for it is sent no more, neither by the broker nor by the kernel."""

from __future__ import annotations

import pytest

from broker.mqtt.publication import Publish
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.enrolled import enrol
from tests.support.kernel_sockets import state_of
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import Ended, TlsClient

SMALL = 4096
MESSAGE = bytes(64 * 1024)


def delivered(client: TlsClient) -> int:
    """Return how many bytes of messages *client* still reads before its connection ends."""
    got = 0
    try:
        while True:
            packet = client.next_packet()
            assert isinstance(packet, Publish), packet
            got += len(packet.payload)
    except Ended:
        return got


@pytest.mark.parametrize("act", ["revoke", "suspend"])
def test_a_device_that_is_shut_out_gets_nothing_more_of_what_waits_for_it(
    fleet_broker: BrokerProcess, service: ProvisioningService, name: str, act: str
) -> None:
    """A thief who read slowly had up to `max_backlog` bytes waiting, and was sent them all after the revocation."""
    (device,) = enrol(service, name)
    (sender,) = enrol(service, f"s-{name}"[:64], role="service")
    with (
        TlsClient(fleet_broker.port, service.bundle, device.credential, receive_buffer=SMALL) as slow,
        TlsClient(fleet_broker.port, service.bundle, sender.credential) as backend,
    ):
        slow.connect(client_id=name)
        slow.subscribe(f"fleet/meters/{name}/cmd/#")
        backend.connect(client_id=sender.name)
        while not fleet_broker.events("SLOW_CONSUMER", client=name):
            backend.publish(f"fleet/meters/{name}/cmd/secret", MESSAGE)
        peer = slow.socket.getsockname()[1]
        assert state_of(fleet_broker.port, peer) == "ESTABLISHED"
        if act == "revoke":
            service.revoke(device=name, reason="keyCompromise")
        else:
            service.suspend(device=name)
        wait_until(lambda: fleet_broker.events("revoked", serial=device.serial), "the broker learns of it")
        assert state_of(fleet_broker.port, peer) is None, "the kernel still has something for it"
        got = delivered(slow)
        assert got <= 2 * len(MESSAGE), f"{got} bytes of messages were delivered after the revocation"
