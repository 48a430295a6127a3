"""Revoked at the real service, refused and put out by the real broker: new connections, resumed ones, live ones."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connack
from provisioning.pki.tls import client_context
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.enrolled import Enrolled, enrol
from tests.support.mosquitto import Mosquitto
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient
from tests.support.wire import V5, V311, connect_packet

REASON = "REVOKED: certificate revoked (keyCompromise)"


@pytest.fixture
def device(service: ProvisioningService, name: str) -> Enrolled:
    (enrolled,) = enrol(service, name)
    return enrolled


def revoke(service: ProvisioningService, broker: BrokerProcess, device: Enrolled, /, **what: Any) -> None:
    """Revoke *device* and wait until the broker knows it."""
    service.revoke(**(what or {"device": device.name}), reason="keyCompromise")
    wait_until(lambda: broker.events("revoked", serial=device.serial), "the broker learns of the revocation")


@pytest.mark.parametrize("by", ["device", "serial"])
def test_a_live_session_is_closed_with_the_reason(
    fleet_broker: BrokerProcess, service: ProvisioningService, device: Enrolled, name: str, by: str
) -> None:
    (other,) = enrol(service, f"other-{name}"[:64])
    with (
        TlsClient(fleet_broker.port, service.bundle, device.credential) as client,
        TlsClient(fleet_broker.port, service.bundle, other.credential) as bystander,
    ):
        client.connect(client_id=name, session_expiry_interval=600)
        bystander.connect(client_id=other.name)
        revoke(service, fleet_broker, device, **{by: device.name if by == "device" else device.serial})
        farewell = client.farewell()
        assert farewell.reason_code is ReasonCode.ADMINISTRATIVE_ACTION
        assert farewell.properties.reason_string == REASON
        bystander.check_alive()


def test_a_live_session_of_an_older_client_is_closed(
    fleet_broker: BrokerProcess, service: ProvisioningService, device: Enrolled, name: str
) -> None:
    with TlsClient(fleet_broker.port, service.bundle, device.credential, version=V311) as client:
        client.connect(client_id=name)
        revoke(service, fleet_broker, device)
        assert client.expect_end() is None


@pytest.mark.parametrize("version", [V311, V5])
def test_a_new_connection_is_refused(
    fleet_broker: BrokerProcess,
    service: ProvisioningService,
    device: Enrolled,
    name: str,
    version: ProtocolVersion,
) -> None:
    revoke(service, fleet_broker, device)
    with TlsClient(fleet_broker.port, service.bundle, device.credential, version=version) as client:
        answer = client.connect(client_id=name, expect=ReasonCode.NOT_AUTHORIZED)
        if version is V5:
            assert answer.properties.reason_string == REASON
        assert client.expect_end() is None


@pytest.mark.parametrize("clean", [True, False], ids=["clean close", "abrupt close"])
@pytest.mark.parametrize("tls", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
def test_a_resumed_tls_session_is_refused(
    fleet_broker: BrokerProcess,
    service: ProvisioningService,
    device: Enrolled,
    name: str,
    tls: ssl.TLSVersion,
    clean: bool,
) -> None:
    context = client_context(service.bundle, device.credential, allow_tls12=True)
    context.maximum_version = tls
    port = fleet_broker.port
    session = None
    for _ in range(2):  # Twice, to see that resumption works while the device is good.
        with TlsClient(port, "", context=context, session=session) as client:
            assert client.socket.session_reused == (session is not None)
            client.connect(client_id=name)
            if clean:
                session = client.leave()
            else:
                client.check_alive()
                session = client.socket.session
    revoke(service, fleet_broker, device)
    with TlsClient(port, "", context=context, session=session) as client:
        assert client.socket.session_reused
        assert client.socket.version() == ("TLSv1.3" if tls is ssl.TLSVersion.TLSv1_3 else "TLSv1.2")
        answer = client.connect(client_id=name, expect=ReasonCode.NOT_AUTHORIZED)
        assert answer.properties.reason_string == REASON
        assert client.expect_end() is None


@pytest.mark.parametrize("version", ["311", "5"])
def test_mosquitto_is_refused_after_revocation(
    fleet_broker: BrokerProcess,
    service: ProvisioningService,
    device: Enrolled,
    name: str,
    tmp_path: Path,
    version: str,
) -> None:
    clients = Mosquitto(fleet_broker.port, service.bundle, device.write(tmp_path), version)
    topic = f"fleet/meters/{name}/state"
    assert clients.publish(topic, "x", "-q", "1", "-i", name).returncode == 0
    with clients.subscribe(f"fleet/meters/{name}/cmd/#", "-i", name) as sub:
        revoke(service, fleet_broker, device)
        if version == "5":
            sub.wait_for("DISCONNECT")
        done = clients.publish(topic, "x", "-q", "1", "-i", name)
    assert done.returncode != 0
    assert "not auth" in (done.stdout + done.stderr).lower()


def test_a_renewed_certificate_keeps_the_session_when_the_old_one_is_revoked(
    fleet_broker: BrokerProcess, service: ProvisioningService, device: Enrolled, name: str
) -> None:
    with TlsClient(fleet_broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=name, session_expiry_interval=600)
        client.subscribe(f"fleet/meters/{name}/cmd/#", qos=1)
    (renewed,) = enrol(service, name)
    revoke(service, fleet_broker, device, serial=device.serial)
    with TlsClient(fleet_broker.port, service.bundle, renewed.credential) as client:
        assert client.connect(client_id=name, clean_start=False).session_present


def test_a_revocation_made_while_the_broker_is_down_counts_when_it_starts(
    service: ProvisioningService, tmp_path: Path, device: Enrolled, name: str
) -> None:
    broker = BrokerProcess.enrolled(tmp_path / name[-8:].strip("-"), service)
    with broker, TlsClient(broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=name)
    service.revoke(device=name, reason="keyCompromise")
    with broker, TlsClient(broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=name, expect=ReasonCode.NOT_AUTHORIZED)


def test_the_feed_is_taken_up_again_when_the_service_comes_back(tmp_path: Path) -> None:
    with ProvisioningService.founded(tmp_path / "fleet", {"feed_heartbeat_seconds": 1}) as service:
        devices = enrol(service, "first", "second", "third")
        with contextlib.ExitStack() as stack:
            broker = stack.enter_context(BrokerProcess.enrolled(tmp_path / "b", service))
            first, second, third = (
                stack.enter_context(TlsClient(broker.port, service.bundle, device.credential)) for device in devices
            )
            for client, device in zip((first, second, third), devices, strict=True):
                client.connect(client_id=device.name)
            revoke(service, broker, devices[0])
            first.farewell()
            service.kill()
            wait_until(lambda: broker.events("FEED_LOST"), "the broker notices that the feed is lost")
            second.check_alive()
            with TlsClient(broker.port, service.bundle, devices[2].credential) as newcomer:
                newcomer.connect(client_id="third", session_expiry_interval=1)  # Admitted: it is within the grace time.
                third.farewell()
                service.start(port=service.port)
                revoke(service, broker, devices[1])
                second.farewell()
                newcomer.check_alive()
            assert len(broker.events("revoked")) == 2, "nothing was read twice as news"


def test_what_was_revoked_while_the_broker_could_not_hear_it_takes_effect_at_once(tmp_path: Path) -> None:
    with ProvisioningService.founded(tmp_path / "fleet", {"feed_heartbeat_seconds": 1}) as service:
        (device,) = enrol(service, "meter")
        with (
            BrokerProcess.enrolled(tmp_path / "b", service) as broker,
            TlsClient(broker.port, service.bundle, device.credential) as client,
        ):
            client.connect(client_id="meter")
            address = service.port
            service.stop()
            wait_until(lambda: broker.events("FEED_LOST"), "the broker notices that the feed is lost")
            service.start()  # Elsewhere: the broker does not find it.
            service.revoke(device="meter", reason="keyCompromise")
            client.check_alive()
            service.stop()
            service.start(port=address)
            assert client.farewell().properties.reason_string == REASON


def test_newcomers_are_refused_as_unavailable_when_the_feed_is_lost_too_long(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with ProvisioningService.founded(tmp_path / "fleet", {"feed_heartbeat_seconds": 1}) as service:
            (device,) = enrol(service, "meter")
            broker = BrokerProcess.enrolled(tmp_path / "b", service, "--revocation-grace", "3")
            stack.enter_context(broker)

        def refused() -> bool:
            with TlsClient(broker.port, service.bundle, device.credential) as client:
                client.send(connect_packet(V5, client_id="meter"))
                answer = client.expect(Connack)
            assert answer.reason_code in {ReasonCode.SUCCESS, ReasonCode.SERVER_UNAVAILABLE}
            return answer.reason_code is ReasonCode.SERVER_UNAVAILABLE

        wait_until(refused, "newcomers are refused")
        wait_until(lambda: broker.events("REVOCATION_STATUS_UNKNOWN"), "the log says why")
