"""Whose message it is: stamped by the broker from the certificate, and never by anybody else."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from broker.admission.bundle import TrustBundle
from broker.admission.bundle_terms import BundleTerms
from broker.admission.trust import Trust
from broker.engine.presence import Presence
from broker.engine.vouched import RESERVED, without_reserved
from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.properties import Properties
from broker.settings.trust_settings import TrustSettings
from provisioning.pki.role import Role
from tests.support.pki import DOMAIN, shared_device, shared_pki, shared_service
from tests.support.wire import V5, V311, MemoryBroker, WireClient, will

TOPIC = "fleet/meters/meter-1/telemetry"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
FORGED = (
    ("fleet-device", "victim"),
    ("Fleet-Serial", "0"),
    ("FLEET-FINGERPRINT", "0"),
    ("fleet-\u017ferial", "0"),
    ("\ufb02eet-group", "0"),
    ("fleet-service", "x"),
)


def stamping() -> MemoryBroker:
    broker = MemoryBroker()
    broker.engine.stamps = True
    broker.engine.admission.fingerprints = True
    return broker


def stamp_of_meter_1() -> dict[str, str]:
    held = shared_device("meter-1")
    return {
        "fleet-device": "meter-1",
        "fleet-group": "meters",
        "fleet-serial": f"{held.certificate.serial_number:x}",
        "fleet-fingerprint": hashlib.sha256(held.der).hexdigest(),
    }


def reader_of(broker: MemoryBroker) -> WireClient:
    backend = broker.service("backend")
    backend.subscribe("fleet/#", qos=1)
    backend.received()
    return backend


def user_properties(packet: Any) -> tuple[tuple[str, str], ...]:
    found: tuple[tuple[str, str], ...] = packet.properties.user_properties
    return found


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize("qos", [0, 1])
def test_every_message_says_whose_it_is_also_the_second_and_of_an_older_client(
    version: ProtocolVersion, qos: int
) -> None:
    broker = stamping()
    backend = reader_of(broker)
    meter = broker.device("meter-1", version=version)
    for _ in range(3):
        meter.publish(TOPIC, b"1", qos=qos)
    packets = backend.received()
    assert len(packets) == 3
    assert all(dict(user_properties(packet)) == stamp_of_meter_1() for packet in packets)


def test_what_a_client_sends_under_these_names_is_taken_out_and_the_rest_passes() -> None:
    for broker in (stamping(), MemoryBroker()):
        backend = reader_of(broker)
        meter = broker.device("meter-1")
        own = (("b", "2"), ("a", "1"))
        meter.publish(TOPIC, b"1", properties=Properties(user_properties=(own[0], *FORGED, own[1])))
        (packet,) = backend.received()
        stamp = tuple(stamp_of_meter_1().items()) if broker.engine.stamps else ()
        assert user_properties(packet) == (*own, *stamp)


def test_a_will_is_stamped_and_cleaned_too() -> None:
    for broker in (stamping(), MemoryBroker()):
        backend = reader_of(broker)
        meter = broker.device("meter-1", will=will(TOPIC, user_properties=FORGED))
        meter.connection.lost("CONNECTION_LOST", broker.now)
        broker.settle()
        (packet,) = backend.received()
        assert dict(user_properties(packet)) == (stamp_of_meter_1() if broker.engine.stamps else {})


def test_a_service_named_like_a_device_is_not_taken_for_it() -> None:
    broker = stamping()
    meter = broker.device("meter-1")
    meter.subscribe("fleet/meters/meter-1/cmd/#")
    meter.received()
    broker.service("meter-1").publish("fleet/meters/meter-1/cmd/go", b"")
    (packet,) = meter.received()
    named = dict(user_properties(packet))
    assert named["fleet-service"] == "meter-1"
    assert "fleet-device" not in named
    assert named["fleet-serial"] == f"{shared_service('meter-1').certificate.serial_number:x}"


def test_whom_a_foreign_ca_calls_like_one_of_ours_is_named_by_the_whole_identity() -> None:
    broker = stamping()
    backend = reader_of(broker)
    backend.subscribe("$SYS/broker/presence/#")
    backend.received()
    broker.engine.presence = Presence(
        broker.engine.admission, broker.engine.publish_own, lambda: NOON, broker.engine.turn
    )
    anchors, roles = (Path("-"),), (Role.DEVICE,)
    settings = TrustSettings(
        name="plant", anchors=anchors, trust_domain=DOMAIN, groups=("meters",), roles=roles, unsafe_no_revocation=True
    )
    plant = TrustBundle("plant", [shared_pki().issuing.certificate], terms=BundleTerms.of(settings))
    broker.engine.admission.trust_domain = "fleet.example"
    broker.engine.admission.believe(Trust([plant]))
    meter = broker.device("meter-1", will=will(TOPIC))
    meter.publish(TOPIC, b"")
    meter.vanish()
    packets = backend.received()
    assert len(packets) == 4, "that it comes, what it says, what it leaves, that it goes"
    for packet in packets:
        assert dict(user_properties(packet))["fleet-device"] == f"spiffe://{DOMAIN}/device/meters/meter-1"


def test_a_retained_message_keeps_its_stamp() -> None:
    broker = stamping()
    broker.device("meter-1").publish(TOPIC, b"1", retain=True)
    backend = broker.service("backend")
    backend.subscribe("fleet/#")
    (packet,) = [each for each in backend.received() if hasattr(each, "topic")]
    assert dict(user_properties(packet)) == stamp_of_meter_1()


@pytest.mark.parametrize("qos", [0, 1])
def test_in_shared_subscriptions_and_kept_queues_nothing_is_forged_either(qos: int) -> None:
    for broker in (stamping(), MemoryBroker()):
        worker = broker.service("worker")
        worker.subscribe("$share/workers/fleet/#", qos=qos)
        away = broker.service("away", session_expiry_interval=600)
        away.subscribe("fleet/#", qos=1)
        away.leave()
        worker.received()
        meter = broker.device("meter-1")
        for number in range(2):
            forged = Properties(user_properties=(*FORGED, ("a", str(number))))
            meter.publish(TOPIC, b"1", qos=qos, properties=forged)
        stamp = stamp_of_meter_1() if broker.engine.stamps else {}
        shared = worker.received()
        back = broker.service("away", clean_start=False, session_expiry_interval=600)
        kept = [each for each in back.received() if hasattr(each, "topic")]
        assert len(shared) == 2
        assert len(kept) == (2 if qos else 0)
        for packets in (shared, kept):
            for number, packet in enumerate(packets):
                assert dict(user_properties(packet)) == {"a": str(number)} | stamp


def test_off_nothing_is_added_and_the_fast_way_is_taken() -> None:
    broker = MemoryBroker()
    backend = reader_of(broker)
    meter = broker.device("meter-1")
    meter.publish(TOPIC, b"1")
    assert [user_properties(packet) for packet in backend.received()] == [()]
    assert TOPIC.encode() in meter.connection.topics.permitted
    assert meter.connection.peer is not None
    assert meter.connection.peer.fingerprint == b""
    stamped = stamping()
    other = stamped.device("meter-1")
    other.publish(TOPIC, b"1")
    assert not other.connection.topics.permitted


def test_properties_without_reserved_names_are_not_even_copied() -> None:
    properties = Properties(user_properties=(("a", "1"),))
    assert without_reserved(properties) is properties
    assert {"fleet-device", "fleet-serial", "fleet-fingerprint", "fleet-group"} < RESERVED
