"""CONNECT, in all its variants: who gets in, as whom, with which answers; and who does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from broker.admission.refusal import RefusalCode, Refused, unavailable
from broker.connection.connection import ClientConnection
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.errors import MalformedPacket
from broker.mqtt.packets import Pingreq
from broker.mqtt.properties import Properties
from broker.revocation.enforcement import revoke
from provisioning.pki.identity import Identity
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from tests.support.pki import Held, shared_device, shared_pki, shared_service
from tests.support.wire import V5, V31, V311, MemoryBroker, connect_packet, will

ALL_VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5], ids=lambda version: version.name)


@ALL_VERSIONS
def test_a_device_is_admitted_under_its_own_name(broker: MemoryBroker, version: ProtocolVersion) -> None:
    client = broker.open(shared_device("meter-1"), version=version)
    answer = client.connect(client_id="meter-1")
    assert not answer.session_present
    assert not client.closed
    assert broker.engine.connected == 1
    assert broker.metrics.admitted == 1


def test_the_log_calls_the_version_as_the_admin_api_does(broker: MemoryBroker) -> None:
    """It said V5 where the API and the standard say 5.0."""
    with capture_logs() as logs:
        for version in (V31, V311, V5):
            broker.open(shared_device("meter-1"), version=version).connect(client_id="meter-1")
    assert [line["version"] for line in logs if line["event"] == "admitted"] == ["3.1", "3.1.1", "5.0"]


def test_mqtt5_client_is_told_what_the_broker_takes(broker: MemoryBroker) -> None:
    # What is not said is available: QoS 2, retained messages, wildcards, identifiers, shared subscriptions.
    answer = broker.open(shared_device("meter-1")).connect(client_id="meter-1", keep_alive=60)
    assert answer.properties == Properties(
        receive_maximum=1024, maximum_packet_size=1024 * 1024, topic_alias_maximum=32
    )


def test_a_broker_without_topic_aliases_does_not_offer_any() -> None:
    answer = MemoryBroker(max_topic_alias=0).open(shared_device("meter-1")).connect(client_id="meter-1", keep_alive=60)
    assert answer.properties.topic_alias_maximum is None


def test_an_empty_client_identifier_is_assigned_the_device_name(broker: MemoryBroker) -> None:
    client = broker.open(shared_device("meter-1"))
    assert client.connect().properties.assigned_client_identifier == "meter-1"
    assert client.session.client_id == "meter-1"


def test_services_without_client_identifier_get_one_each(broker: MemoryBroker) -> None:
    first, second = (broker.open(shared_service("backend")).connect().properties for _ in range(2))
    assert first.assigned_client_identifier != second.assigned_client_identifier
    assert str(first.assigned_client_identifier).startswith("backend-")
    assert broker.engine.connected == 2


def test_an_older_client_may_leave_its_identifier_out_only_with_a_clean_session(broker: MemoryBroker) -> None:
    broker.open(shared_device("meter-1"), version=V311).connect(clean_start=True)
    other = broker.open(shared_device("meter-2"), version=V311)
    other.connect(clean_start=False, expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
    assert other.closed
    assert broker.engine.connected == 1


@pytest.mark.parametrize("clean_start", [True, False])
def test_an_mqtt_31_client_needs_an_identifier(broker: MemoryBroker, clean_start: bool) -> None:
    """As mosquitto answers: MQTT 3.1 asks for 1 to 23 characters, be the session clean or not."""
    client = broker.open(shared_device("meter-1"), version=V31)
    client.connect(clean_start=clean_start, expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
    assert client.closed
    assert broker.engine.connected == 0


@pytest.mark.parametrize("client_id", ["backend", "backend-7", "backend-"])
def test_a_service_may_run_several_instances(broker: MemoryBroker, client_id: str) -> None:
    broker.open(shared_service("backend")).connect(client_id=client_id)


@pytest.mark.parametrize(
    ("holder", "client_id"),
    [
        (shared_device("meter-1"), "meter-2"),
        (shared_device("meter-1"), "METER-1"),
        (shared_device("meter-1"), "meter-1-2"),
        (shared_device("meter-1"), "meter-1 "),
        (shared_service("backend"), "backend2"),
        (shared_service("backend"), "backen"),
        (shared_service("backend"), "meter-1"),
    ],
)
@ALL_VERSIONS
def test_nobody_connects_under_another_name(
    broker: MemoryBroker, holder: Held, client_id: str, version: ProtocolVersion
) -> None:
    client = broker.open(holder, version=version)
    answer = client.connect(client_id=client_id, expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
    assert client.closed
    assert broker.metrics.refused == {RefusalCode.CLIENT_ID_MISMATCH: 1}
    assert broker.engine.connected == 0
    if version is V5:
        assert str(answer.properties.reason_string).startswith("CLIENT_ID_MISMATCH: ")


def test_a_live_session_does_not_notice_an_impostor(broker: MemoryBroker) -> None:
    victim = broker.device("meter-1", session_expiry_interval=100)
    victim.subscribe("fleet/meters/meter-1/cmd/#", qos=1)
    impostor = broker.open(shared_device("meter-2"))
    impostor.connect(client_id="meter-1", expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
    broker.service().publish("fleet/meters/meter-1/cmd/go", b"go", qos=1)
    assert victim.payloads() == [b"go"]


@pytest.mark.parametrize("client_id", ["backend-audit", "backend-audit-1"])
@pytest.mark.parametrize("connected", [True, False])
def test_who_comes_by_its_own_name_is_not_kept_out_by_one_that_calls_an_instance_so(
    broker: MemoryBroker, connected: bool, client_id: str
) -> None:
    squatter = broker.service("backend", client_id=client_id, session_expiry_interval=600)
    squatter.subscribe("fleet/#", qos=1)
    if not connected:
        squatter.vanish()
    rightful = broker.open(shared_service("backend-audit"))
    assert not rightful.connect(client_id=client_id, clean_start=False).session_present, "it is another's"
    if connected:
        farewell = squatter.farewell()
        assert farewell.reason_code is ReasonCode.SESSION_TAKEN_OVER
        assert str(farewell.properties.reason_string).startswith(f"CLIENT_ID_OF_ANOTHER: '{client_id}' is the name of")
    broker.device("meter-1").publish("fleet/meters/meter-1/telemetry", b"7", qos=1)
    assert rightful.messages() == [], "nor has it what that had subscribed"
    again = broker.open(shared_service("backend"))
    again.connect(client_id=client_id, expect=ReasonCode.NOT_AUTHORIZED)
    assert not rightful.closed
    assert broker.metrics.refused == {RefusalCode.CLIENT_ID_OF_ANOTHER: 1}


@pytest.mark.parametrize("clean", [False, True])
def test_a_kept_session_is_given_to_its_owner_only(broker: MemoryBroker, clean: bool) -> None:
    owner = broker.device("meter-1", session_expiry_interval=1000)
    owner.subscribe("fleet/meters/meter-1/cmd/#", qos=1)
    owner.vanish()
    thief = broker.open(shared_pki().device("meter-1", "thieves"))
    thief.connect(client_id="meter-1", clean_start=clean, expect=ReasonCode.NOT_AUTHORIZED)
    assert broker.metrics.refused == {RefusalCode.CLIENT_ID_OF_ANOTHER: 1}
    broker.service().publish("fleet/meters/meter-1/cmd/go", b"go", qos=1)
    returned = broker.open(shared_device("meter-1"))
    assert returned.connect(client_id="meter-1", clean_start=False).session_present
    assert returned.payloads() == [b"go"]


def test_a_renewed_certificate_resumes_the_session(broker: MemoryBroker) -> None:
    broker.device("meter-1", session_expiry_interval=1000).vanish()
    renewed = broker.open(shared_pki().device("meter-1"))
    assert renewed.connect(client_id="meter-1", clean_start=False).session_present


@pytest.mark.parametrize(
    ("holder", "code"),
    [
        (None, RefusalCode.NO_CERTIFICATE),
        (shared_pki().device("meter-1", uris=[]), RefusalCode.INVALID_IDENTITY),
        (shared_pki().broker(), RefusalCode.WRONG_ROLE),
        (shared_pki().device("m", not_after=shared_pki().now - timedelta(seconds=1)), RefusalCode.EXPIRED),
        (shared_pki().device("m", not_before=shared_pki().now + timedelta(seconds=1)), RefusalCode.NOT_YET_VALID),
        (shared_pki().certify(Identity("elsewhere", Role.DEVICE, "m", "g")), RefusalCode.WRONG_TRUST_DOMAIN),
    ],
    ids=lambda value: value.name if isinstance(value, RefusalCode) else "",
)
@ALL_VERSIONS
def test_a_bad_certificate_is_refused_with_its_code(
    broker: MemoryBroker, holder: Held | None, code: RefusalCode, version: ProtocolVersion
) -> None:
    client = broker.open(holder, version=version)
    answer = client.connect(expect=ReasonCode.NOT_AUTHORIZED)
    assert broker.metrics.refused == {code: 1}
    assert client.closed
    if version is V5:
        assert str(answer.properties.reason_string).startswith(f"{code}: ")


def test_whose_certificate_is_refused_cannot_resume_again_as_he_may_have_another_by_now(broker: MemoryBroker) -> None:
    """With the TLS session of the old one he was refused for as long as that was kept: two hours."""
    held = shared_device("meter-1")

    def forgets(client_id: str = "meter-1") -> str | None:
        client = broker.open(held)
        client.send(connect_packet(V5, client_id=client_id))
        return client.transport.forgets_tls_session

    assert forgets() is None
    assert forgets("meter-2") == "if it costs nobody else", "it may be called otherwise by now"
    broker.engine.admission.shut = unavailable(RefusalCode.SHUTTING_DOWN, "a moment")
    assert forgets() is None, "that is for now, and not for the certificate"
    for reason in (RevocationReason.CERTIFICATE_HOLD, RevocationReason.SUPERSEDED):
        broker.engine.admission.status.index.add(replace(held.revocation, reason=reason))
        assert forgets() == "if it costs nobody else"


def test_a_certificate_revoked_between_handshake_and_connect_is_refused(broker: MemoryBroker) -> None:
    holder = shared_pki().device("meter-1")
    client = broker.open(holder)
    revoke(broker.engine, holder.revocation, broker.now)
    answer = client.connect(client_id="meter-1", expect=ReasonCode.NOT_AUTHORIZED)
    assert answer.properties.reason_string == "REVOKED: certificate revoked (keyCompromise)"


def test_nobody_is_admitted_before_the_revocation_data_is_complete() -> None:
    broker = MemoryBroker(fresh=False)
    client = broker.open(shared_device("meter-1"))
    client.connect(client_id="meter-1", expect=ReasonCode.SERVER_UNAVAILABLE)
    broker.keep_fresh()
    broker.device("meter-1")


@pytest.mark.parametrize(
    ("fields", "reason", "code"),
    [
        ({"authentication_method": "SCRAM"}, ReasonCode.BAD_AUTHENTICATION_METHOD, "UNSUPPORTED"),
        ({"will": will("fleet/meters/meter-2/event")}, ReasonCode.NOT_AUTHORIZED, "WILL_NOT_PERMITTED"),
        ({"will": will("fleet/meters/meter-1/cmd/x")}, ReasonCode.NOT_AUTHORIZED, "WILL_NOT_PERMITTED"),
        ({"will": will("fleet/meters/meter-1" + "/x" * 64)}, ReasonCode.TOPIC_NAME_INVALID, "WILL_NOT_PERMITTED"),
    ],
)
def test_what_is_not_possible_is_refused_at_the_door(
    broker: MemoryBroker, fields: dict[str, object], reason: ReasonCode, code: str
) -> None:
    client = broker.open(shared_device("meter-1"))
    answer = client.connect(client_id="meter-1", expect=reason, **fields)
    assert str(answer.properties.reason_string).startswith(f"{code}: ")
    assert broker.metrics.refused == {code: 1}


def test_password_and_user_name_mean_nothing(broker: MemoryBroker) -> None:
    broker.device("meter-1", username="meter-2", password=b"secret")


def test_keep_alive_longer_than_the_limit_is_shortened_and_said(broker: MemoryBroker) -> None:
    assert broker.open(shared_device("a")).connect(keep_alive=7200).properties.server_keep_alive == 3600
    assert broker.open(shared_device("b")).connect(keep_alive=0).properties.server_keep_alive == 3600
    assert broker.open(shared_device("c")).connect(keep_alive=60).properties.server_keep_alive is None


def test_session_expiry_longer_than_the_limit_is_shortened_and_said() -> None:
    broker = MemoryBroker(max_session_expiry=100)
    answer = broker.open(shared_device("a")).connect(session_expiry_interval=101)
    assert answer.properties.session_expiry_interval == 100
    answer = broker.open(shared_device("b")).connect(session_expiry_interval=100)
    assert answer.properties.session_expiry_interval is None


@pytest.mark.parametrize(("seconds", "present"), [(9.9, True), (10.1, False)])
def test_an_expired_session_is_not_resumed_whenever_the_next_tick_is(
    broker: MemoryBroker, seconds: float, present: bool
) -> None:
    """Session state is discarded when its interval has passed [MQTT-4.1.0-2]."""
    first = broker.open(shared_device("meter-1"))
    first.connect(client_id="meter-1", session_expiry_interval=10)
    first.vanish()
    broker.now += seconds  # Without a tick.
    answer = broker.open(shared_device("meter-1")).connect(client_id="meter-1", clean_start=False)
    assert answer.session_present is present
    assert broker.metrics.sessions_expired == (not present)


@pytest.mark.parametrize("data", [b"\x10\x07\x00\x04MQTT\x09", b"\x10\x09\x00\x06MQIsdp\x04"])
def test_an_unknown_protocol_version_is_answered_in_the_oldest(broker: MemoryBroker, data: bytes) -> None:
    client = broker.open(shared_device("meter-1"), version=V311)
    client.send_bytes(data)
    assert client.received() == [Connack(ReasonCode.UNSUPPORTED_PROTOCOL_VERSION)]
    assert client.closed


def test_the_first_packet_is_connect(broker: MemoryBroker) -> None:
    client = broker.open(shared_device("meter-1"))
    client.send(Pingreq())
    assert client.closed
    assert client.received() == []
    assert broker.metrics.refused == {RefusalCode.BAD_PACKET: 1}


def test_a_second_connect_ends_the_connection(broker: MemoryBroker) -> None:
    client = broker.device("meter-1")
    client.send(connect_packet(V5, client_id="meter-1"))
    assert client.farewell().reason_code is ReasonCode.PROTOCOL_ERROR


def test_a_second_connect_in_an_unknown_version_ends_it_with_a_reason_that_a_disconnect_may_have(
    broker: MemoryBroker,
) -> None:
    client = broker.device("meter-1")
    client.send_bytes(b"\x10\x07\x00\x04MQTT\x09")
    assert client.farewell().reason_code is ReasonCode.PROTOCOL_ERROR


def test_what_follows_connect_in_the_same_read_is_done(broker: MemoryBroker) -> None:
    client = broker.open(shared_device("meter-1"))
    client.send(connect_packet(V5, client_id="meter-1"), Pingreq())
    assert [packet.packet_type.name for packet in client.received()] == ["CONNACK", "PINGRESP"]
    assert client.transport.writes == 1


def test_what_follows_a_refused_connect_is_not_read(broker: MemoryBroker) -> None:
    client = broker.open(shared_device("meter-1"))
    client.send(connect_packet(V5, client_id="meter-2"), connect_packet(V5, client_id="meter-1"))
    client.next_packet(Connack)
    assert client.received() == []
    assert broker.engine.connected == 0


def test_a_client_too_small_for_its_connack_is_refused(broker: MemoryBroker) -> None:
    client = broker.open(shared_device("meter-1"))
    answer = client.connect(client_id="meter-1", maximum_packet_size=12, expect=ReasonCode.PACKET_TOO_LARGE)
    assert answer.properties == Properties()
    assert broker.engine.connected == 0


def test_a_farewell_is_never_larger_than_the_client_takes(broker: MemoryBroker) -> None:
    holder = shared_pki().device("meter-1")
    client = broker.open(holder)
    client.connect(client_id="meter-1", maximum_packet_size=30)
    revoke(broker.engine, holder.revocation, broker.now)
    assert client.farewell().reason_code is ReasonCode.ADMINISTRATIVE_ACTION


def test_one_service_cannot_take_the_name_of_a_device(broker: MemoryBroker) -> None:
    broker.open(shared_service("meter")).connect(client_id="meter-1", session_expiry_interval=1000)
    device = broker.device("meter-1", session_expiry_interval=1000)
    device.subscribe("fleet/meters/meter-1/cmd/#")
    assert len(broker.engine.registry) == 2


def test_one_service_cannot_make_sessions_without_end() -> None:
    broker = MemoryBroker(max_instances=3)
    for index in range(3):
        broker.service(client_id=f"backend-{index}", session_expiry_interval=100).vanish()
    refused = broker.open(shared_service("backend"))
    answer = refused.connect(client_id="backend-3", expect=ReasonCode.QUOTA_EXCEEDED)
    assert str(answer.properties.reason_string).startswith("TOO_MANY_SESSIONS: ")
    broker.service(client_id="backend-1")
    broker.service("backend")  # By its own name: that is one session, however many there are beside it.
    broker.service("other")
    broker.advance(101)
    broker.service(client_id="backend-3")


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (b"\x10\x10\x00\x04MQTT\x05\x03\x00\x3c\x00\x00\x03abc", 0x81, "connect flags: the reserved bit is set"),
        (b"\x10\x10\x00\x04MQTT\x05\x1e\x00\x3c\x00\x00\x03abc", 0x81, "connect flags: will QoS 3 does not exist"),
        (b"\x10\x13\x00\x04MQTT\x05\x02\x00\x3c\x03\x21\x00\x00\x00\x03abc", 0x82, "receive maximum: 0 is not allowed"),
        (b"\x11\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03abc", 0x81, "CONNECT: the flags 0b0001 should be 0b0000"),
        (b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03abc!", 0x81, "CONNECT: 1 bytes behind the last field"),
        (b"\x10\x0b\x00\x04MQTT\x05\x02\x00\x3c\x00", 0x81, "client identifier: "),
    ],
)  # fmt: skip
def test_a_bad_connect_of_mqtt_5_is_told_what_is_bad(broker: MemoryBroker, data: bytes, reason: int, said: str) -> None:
    client = broker.open(shared_device("meter-1"))
    client.send_bytes(data)
    (answer,) = client.received()
    assert isinstance(answer, Connack)
    assert answer.reason_code == reason
    assert str(answer.properties.reason_string).startswith(f"BAD_PACKET: {said}")
    assert client.closed
    assert broker.metrics.refused == {RefusalCode.BAD_PACKET: 1}


def test_a_bad_connect_of_an_older_client_is_not_answered(broker: MemoryBroker) -> None:
    client = broker.open(shared_device("meter-1"), version=V311)
    client.send_bytes(b"\x10\x0f\x00\x04MQTT\x04\x03\x00\x3c\x00\x03abc")
    assert client.received() == []
    assert client.closed


OVERSIZED = b"\x10\xff\xff\x7f\x00\x04MQTT"


@pytest.mark.parametrize("more", [b"\x05", b"\x05\x02\x00\x3c\x00\x00\x03abc"])
def test_an_oversized_connect_of_mqtt_5_is_told_so_as_soon_as_its_version_is_there(
    broker: MemoryBroker, more: bytes
) -> None:
    client = broker.open(shared_device("meter-1"))
    client.send_bytes(OVERSIZED + more)
    answer = client.next_packet(Connack)
    assert answer.reason_code is ReasonCode.PACKET_TOO_LARGE
    assert "exceeds the maximum of 131072" in str(answer.properties.reason_string)
    assert client.closed


@pytest.mark.parametrize(
    "data", [OVERSIZED + b"\x04", OVERSIZED + b"\x06", OVERSIZED, OVERSIZED[:4], b"\x30\xff\xff\x7f\x00\x04MQTT\x05"]
)
def test_an_oversized_first_packet_of_anybody_else_is_not_answered(broker: MemoryBroker, data: bytes) -> None:
    client = broker.open(shared_device("meter-1"))
    client.send_bytes(data)
    assert client.received() == []
    assert client.closed
    assert broker.metrics.refused == {RefusalCode.BAD_PACKET: 1}


def test_who_is_refused_for_the_certificate_is_told_that_first(broker: MemoryBroker) -> None:
    client = broker.open(shared_pki().device("late", not_after=shared_pki().now - timedelta(seconds=1)))
    client.send_bytes(b"\x10\x10\x00\x04MQTT\x05\x03\x00\x3c\x00\x00\x03abc")
    assert str(client.next_packet(Connack).properties.reason_string).startswith("EXPIRED: ")


@pytest.mark.parametrize(
    ("holder", "use"),
    [
        (shared_device("meter-1"), "use 'meter-1'"),
        (shared_service("backend"), "use 'backend', or one that begins with 'backend-'"),
    ],
)
def test_who_uses_another_name_is_told_which_are_allowed(broker: MemoryBroker, holder: Held, use: str) -> None:
    answer = broker.open(holder).connect(client_id="x", expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
    assert str(answer.properties.reason_string).endswith(f": {use}")


@pytest.mark.parametrize("held", [shared_device("meter-1"), None], ids=["good", "refused"])
def test_who_says_nothing_after_tls_has_so_long_whatever_his_certificate(held: Held | None) -> None:
    broker = MemoryBroker(handshake_timeout=60, connect_timeout=10)
    client = broker.open(held)
    broker.advance(9)
    assert not client.closed
    broker.advance(2)
    assert client.closed


ENDS: dict[str, Callable[[ClientConnection, float], None]] = {
    "lost": lambda connection, now: connection.lost("CONNECTION_LOST", now),
    "left": lambda connection, now: connection.left(now, publish_will=True),
    "put out": lambda connection, now: connection.disconnect("REVOKED", ReasonCode.NOT_AUTHORIZED, "", now),
    "failed": lambda connection, now: connection.fail(MalformedPacket("nonsense"), now),
    "refused": lambda connection, now: connection.refuse(refusal(), 0, now),
}


@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("second", ENDS)
def test_whatever_ends_a_connection_ends_it_once(first: str, second: str) -> None:
    broker = MemoryBroker()
    backend = broker.service()
    backend.subscribe("fleet/#")
    meter = broker.device("meter-1", will=will("fleet/meters/meter-1/event"))
    for each in (first, second):
        ENDS[each](meter.connection, broker.now)
        broker.settle()
    assert broker.engine.connected == 1
    assert len(backend.messages()) == (first != "refused")


def refusal() -> Refused:
    return Refused(RefusalCode.RATE_LIMITED, ReasonCode.CONNECTION_RATE_EXCEEDED, "too often")
