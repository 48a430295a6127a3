"""REV cases of the feed: revoked at the real service, refused and put out by the real broker, whatever the way in."""

from __future__ import annotations

import contextlib
import json
import ssl
from pathlib import Path
from typing import Any

import pytest

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.publication import Publish
from provisioning.client.feed_reader import EventReader, FeedLost
from provisioning.pki.tls import client_context
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.enrolled import Enrolled, enrol
from tests.support.mosquitto import Mosquitto
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient
from tests.support.wire import V5, V311, connect_packet, will

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
def test_rev_6_17_a_live_session_is_closed_with_the_reason_and_no_other(
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


def test_rev_7_a_live_session_of_an_older_client_is_closed(
    fleet_broker: BrokerProcess, service: ProvisioningService, device: Enrolled, name: str
) -> None:
    with TlsClient(fleet_broker.port, service.bundle, device.credential, version=V311) as client:
        client.connect(client_id=name)
        revoke(service, fleet_broker, device)
        assert client.expect_end() is None


@pytest.mark.parametrize("version", [V311, V5])
def test_rev_1_a_new_connection_is_refused(
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


@pytest.mark.parametrize(
    ("tls", "ticket", "clean"),
    [
        (ssl.TLSVersion.TLSv1_3, True, True),
        (ssl.TLSVersion.TLSv1_3, True, False),
        (ssl.TLSVersion.TLSv1_2, True, True),
        (ssl.TLSVersion.TLSv1_2, True, False),
        (ssl.TLSVersion.TLSv1_2, False, True),  # By its id, whatever the broker would give.
        (ssl.TLSVersion.TLSv1_2, False, False),
    ],
    ids=[
        *("TLS 1.3", "TLS 1.3 abrupt", "TLS 1.2 ticket", "TLS 1.2 ticket abrupt"),
        *("TLS 1.2 session id", "TLS 1.2 session id abrupt"),
    ],
)
def test_rev_2_3_4_5_a_resumed_tls_session_is_refused(
    fleet_broker: BrokerProcess,
    service: ProvisioningService,
    device: Enrolled,
    name: str,
    tls: ssl.TLSVersion,
    ticket: bool,
    clean: bool,
) -> None:
    context = client_context(service.bundle, device.credential, allow_tls12=True)
    context.maximum_version = tls
    if not ticket:
        context.options |= ssl.OP_NO_TICKET
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
def test_rev_1_6_7_with_mosquittos_clients(
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


def test_rev_15_another_certificate_of_the_same_identity_is_not_revoked_and_keeps_the_session(
    fleet_broker: BrokerProcess, service: ProvisioningService, device: Enrolled, name: str
) -> None:
    with TlsClient(fleet_broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=name, session_expiry_interval=600)
        client.subscribe(f"fleet/meters/{name}/cmd/#", qos=1)
    (renewed,) = enrol(service, name)
    revoke(service, fleet_broker, device, serial=device.serial)
    with TlsClient(fleet_broker.port, service.bundle, renewed.credential) as client:
        assert client.connect(client_id=name, clean_start=False).session_present


def test_rev_13_14_a_revocation_counts_after_a_restart_and_when_it_was_made_meanwhile(
    service: ProvisioningService, tmp_path: Path, device: Enrolled, name: str
) -> None:
    broker = BrokerProcess.enrolled(tmp_path / name[-8:].strip("-"), service)
    with broker, TlsClient(broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=name)
    service.revoke(device=name, reason="keyCompromise")
    with broker, TlsClient(broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=name, expect=ReasonCode.NOT_AUTHORIZED)
    with broker, TlsClient(broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=name, expect=ReasonCode.NOT_AUTHORIZED)


def test_rev_12_the_feed_is_taken_up_again_when_the_service_comes_back(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 0.2}) as service:
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


def test_rev_12_what_was_revoked_while_the_broker_could_not_hear_it_takes_effect_at_once(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 0.2}) as service:
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


def test_rev_41_newcomers_are_refused_as_unavailable_when_the_feed_is_lost_too_long(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 0.2}) as service:
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


@pytest.mark.parametrize(
    ("policy", "answer"),
    [("require", ReasonCode.SERVER_UNAVAILABLE), ("grace 1h", ReasonCode.SUCCESS), ("advisory", ReasonCode.SUCCESS)],
)
def test_rev_41_the_policy_says_what_a_lost_feed_means(tmp_path: Path, policy: str, answer: ReasonCode) -> None:
    with contextlib.ExitStack() as stack:
        with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 0.2}) as service:
            device, gone = enrol(service, "meter", "gone")
            broker = stack.enter_context(BrokerProcess.enrolled(tmp_path / "b", service, "--feed-policy", policy))
            revoke(service, broker, gone)
        wait_until(lambda: broker.events("FEED_LOST"), "the broker knows that the feed is lost")
        with TlsClient(broker.port, service.bundle, device.credential) as client:
            connack = client.connect(client_id="meter", expect=answer)
        with TlsClient(broker.port, service.bundle, gone.credential) as client:
            client.connect(client_id="gone", expect=ReasonCode.NOT_AUTHORIZED)
    said = (connack.properties.reason_string or "").partition(":")[0]
    assert said == ("REVOCATION_STATUS_UNKNOWN" if policy == "require" else "")
    assert {event["policy"] for event in broker.events("revocation feed lost")} == {policy.replace("1h", "3600s")}
    warned = [event["sources"] for event in broker.events("ADVISORY")]
    assert warned == ([["feed"]] if policy == "advisory" else [])


def test_rev_41_under_advisory_a_broker_that_never_read_the_feed_admits_and_says_so(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet") as service:
        (device,) = enrol(service, "meter")
        broker = BrokerProcess.enrolled(tmp_path / "b", service, "--feed-policy", "advisory")
        with broker:
            pass
    with broker:
        [event] = [each for each in broker.events("FEED_LOST") if "advisory" in each["event"]]
        assert event["event"] == "clients are admitted without the revocation feed (feed_policy is advisory)"
        with TlsClient(broker.port, service.bundle, device.credential) as client:
            client.connect(client_id="meter")


def test_rev_8_9_a_kept_session_and_its_messages_are_not_the_revoked_clients(
    fleet_broker: BrokerProcess, service: ProvisioningService, device: Enrolled, name: str
) -> None:
    (sender,) = enrol(service, f"s-{name}"[:60], role="service")
    with TlsClient(fleet_broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=name, session_expiry_interval=600)
        client.subscribe(f"fleet/meters/{name}/cmd/#", qos=1)
    with TlsClient(fleet_broker.port, service.bundle, sender.credential) as commander:
        commander.connect()
        commander.publish(f"fleet/meters/{name}/cmd/open", b"secret", qos=1)
    revoke(service, fleet_broker, device)
    with TlsClient(fleet_broker.port, service.bundle, device.credential) as client:
        answer = client.connect(client_id=name, clean_start=False, expect=ReasonCode.NOT_AUTHORIZED)
        assert not answer.session_present
        assert client.expect_end() is None


def test_rev_10_the_will_and_the_queue_of_a_revoked_session_go_with_it(
    fleet_broker: BrokerProcess, service: ProvisioningService, device: Enrolled, name: str
) -> None:
    (watcher,) = enrol(service, f"w-{name}"[:60], role="service")
    with (
        TlsClient(fleet_broker.port, service.bundle, watcher.credential) as watching,
        TlsClient(fleet_broker.port, service.bundle, device.credential) as client,
    ):
        watching.connect()
        watching.subscribe(f"fleet/meters/{name}/#")
        client.connect(client_id=name, session_expiry_interval=600, will=will(f"fleet/meters/{name}/event"))
        revoke(service, fleet_broker, device)
        client.farewell()
        watching.check_alive()  # Nothing has come before the answer.
    (again,) = enrol(service, name)
    with TlsClient(fleet_broker.port, service.bundle, again.credential) as client:
        assert not client.connect(client_id=name, clean_start=False).session_present


def test_rev_10_a_setting_keeps_will_and_session(
    service: ProvisioningService, tmp_path: Path, device: Enrolled, name: str
) -> None:
    (watcher,) = enrol(service, f"w-{name}"[:60], role="service")
    broker = BrokerProcess.enrolled(tmp_path / "keeps", service, revoked_session="keep")
    with (
        broker,
        TlsClient(broker.port, service.bundle, watcher.credential) as watching,
        TlsClient(broker.port, service.bundle, device.credential) as client,
    ):
        watching.connect()
        watching.subscribe(f"fleet/meters/{name}/#")
        client.connect(client_id=name, session_expiry_interval=600, will=will(f"fleet/meters/{name}/event"))
        revoke(service, broker, device)
        client.farewell()
        assert isinstance(watching.next_packet(), Publish)
        (again,) = enrol(service, name)
        with TlsClient(broker.port, service.bundle, again.credential) as back:
            assert back.connect(client_id=name, clean_start=False).session_present


def test_rev_16_a_suspended_device_is_put_out_refused_and_admitted_again_when_it_is_resumed(
    fleet_broker: BrokerProcess, service: ProvisioningService, device: Enrolled, name: str
) -> None:
    with TlsClient(fleet_broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=name, session_expiry_interval=600)
        service.suspend(device=name)
        farewell = client.farewell()
        assert farewell.reason_code is ReasonCode.ADMINISTRATIVE_ACTION
        assert farewell.properties.reason_string == "SUSPENDED: the certificate is suspended (certificateHold)"
    with TlsClient(fleet_broker.port, service.bundle, device.credential) as client:
        answer = client.connect(client_id=name, expect=ReasonCode.BANNED)
        assert str(answer.properties.reason_string).startswith("SUSPENDED: ")
    with TlsClient(fleet_broker.port, service.bundle, device.credential, version=V311) as client:
        client.connect(client_id=name, expect=ReasonCode.SERVER_UNAVAILABLE)
    service.resume(device=name)
    wait_until(lambda: fleet_broker.events("RELEASED", serial=device.serial), "the broker learns of the release")
    with TlsClient(fleet_broker.port, service.bundle, device.credential) as client:
        assert client.connect(client_id=name, clean_start=False).session_present, "its session has waited for it"


def test_rev_42_a_gap_in_the_feed_is_a_lost_feed_and_nothing_behind_it_counts() -> None:
    def event(sequence: int) -> bytes:
        facts = {"sequence": sequence, "issuer_key_id": "00", "serial": "1", "reason": "unspecified"}
        data = json.dumps(facts | {"revoked_at": "2026-01-02T03:04:05Z", "device": "meter-1"})
        return f"id: {sequence}\nevent: revoked\ndata: {data}\n\n".encode()

    reader = EventReader(7)
    assert [getattr(each, "sequence", None) for each in reader.feed(event(8))] == [8]
    with pytest.raises(FeedLost):
        list(reader.feed(event(10)))
