"""Sessions that are left, resumed, taken over, expired and revoked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.admission.inquiry import Inquiry
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.disconnect import Disconnect
from broker.mqtt.ping import Pingreq
from broker.revocation.enforcement import revoke
from broker.session.session import Session
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from tests.support.judge import Judge
from tests.support.pki import DOMAIN, shared_device, shared_pki
from tests.support.wire import V5, V311, MemoryBroker, WireClient

COMMANDS = "fleet/meters/meter-1/cmd/#"
COMMAND = "fleet/meters/meter-1/cmd/go"


def command(broker: MemoryBroker, payload: bytes) -> None:
    sender = broker.service("commander")
    sender.publish(COMMAND, payload, qos=1)
    sender.leave()


@pytest.mark.parametrize("keep", [{"version": V5, "session_expiry_interval": 60}, {"version": V311}])
def test_a_kept_session_gets_what_came_while_it_was_away(broker: MemoryBroker, keep: dict[str, object]) -> None:
    client = broker.device("meter-1", clean_start=False, **keep)  # type: ignore[arg-type]
    client.subscribe(COMMANDS, qos=1)
    client.leave()
    for payload in (b"1", b"2", b"3"):
        command(broker, payload)
    back = broker.open(shared_device("meter-1"), version=client.version)
    assert back.connect(client_id="meter-1", clean_start=False).session_present
    assert back.payloads() == [b"1", b"2", b"3"]


def test_an_unacknowledged_message_comes_again_with_dup_and_the_same_identifier(broker: MemoryBroker) -> None:
    client = broker.device("meter-1", session_expiry_interval=60)
    client.subscribe(COMMANDS, qos=1)
    command(broker, b"1")
    command(broker, b"2")
    first, second = client.messages()
    client.acknowledge(first)
    client.vanish()
    back = broker.device("meter-1", clean_start=False)
    (again,) = back.messages()
    assert (again.payload, again.packet_id, again.dup) == (b"2", second.packet_id, True)


def test_a_clean_start_forgets_everything(broker: MemoryBroker) -> None:
    client = broker.device("meter-1", session_expiry_interval=60)
    client.subscribe(COMMANDS, qos=1)
    client.vanish()
    command(broker, b"1")
    back = broker.open(shared_device("meter-1"))
    assert not back.connect(client_id="meter-1", clean_start=True).session_present
    command(broker, b"2")
    assert back.received() == []
    assert broker.engine.routes.subscription_count == 0


@pytest.mark.parametrize("version", [V311, V5])
def test_a_session_without_expiry_ends_with_its_connection(broker: MemoryBroker, version: ProtocolVersion) -> None:
    client = broker.device("meter-1", version=version)
    client.subscribe(COMMANDS, qos=1)
    client.vanish()
    assert len(broker.engine.registry) == 0
    assert broker.engine.routes.subscription_count == 0


def test_a_session_expires_when_its_time_has_come(broker: MemoryBroker) -> None:
    client = broker.device("meter-1", session_expiry_interval=60)
    client.subscribe(COMMANDS, qos=1)
    client.vanish()
    broker.advance(59)
    assert len(broker.engine.registry) == 1
    broker.advance(2)
    assert len(broker.engine.registry) == 0
    assert broker.engine.routes.subscription_count == 0


def test_the_time_begins_anew_with_each_connection(broker: MemoryBroker) -> None:
    for _ in range(4):
        broker.device("meter-1", clean_start=False, session_expiry_interval=60, keep_alive=0).vanish()
        broker.advance(40)
    client = broker.device("meter-1", clean_start=False, session_expiry_interval=60, keep_alive=0)
    broker.keep_fresh()
    broker.advance(100)
    assert not client.closed, "a connected session does not expire"


def test_a_goodbye_may_shorten_the_session(broker: MemoryBroker) -> None:
    broker.device("meter-1", session_expiry_interval=600).leave(session_expiry_interval=0)
    assert len(broker.engine.registry) == 0


def test_a_goodbye_cannot_lengthen_it_over_the_limit() -> None:
    broker = MemoryBroker(max_session_expiry=50)
    broker.device("meter-1", session_expiry_interval=10).leave(session_expiry_interval=0xFFFFFFFF)
    broker.advance(52)
    assert len(broker.engine.registry) == 0


def test_a_kept_session_of_an_older_client_does_not_live_for_ever() -> None:
    broker = MemoryBroker(max_session_expiry=50)
    broker.device("meter-1", version=V311, clean_start=False).vanish()
    broker.advance(52)
    assert len(broker.engine.registry) == 0


def test_an_operator_may_let_sessions_live_for_ever() -> None:
    broker = MemoryBroker(max_session_expiry=0xFFFFFFFF)
    older = broker.device("meter-1", version=V311, clean_start=False)
    newer = broker.open(shared_device("meter-2"))
    connack = newer.connect(client_id="meter-2", session_expiry_interval=0xFFFFFFFF)
    assert connack.properties.session_expiry_interval is None  # It got what it asked for.
    brief = broker.device("meter-3", session_expiry_interval=0xFFFFFFFE)
    for client in (older, newer, brief):
        client.vanish()
    broker.advance(200 * 365 * 24 * 3600)
    kept = [broker.engine.registry.find(DOMAIN, Role.DEVICE, f"meter-{number}") for number in (1, 2, 3)]
    assert [session is not None for session in kept] == [True, True, False]


@pytest.mark.parametrize("version", [V311, V5])
def test_a_second_connection_takes_the_session_over(broker: MemoryBroker, version: ProtocolVersion) -> None:
    old = broker.device("meter-1", version=version, session_expiry_interval=60) if version is V5 else broker.device(
        "meter-1", version=version, clean_start=False
    )  # fmt: skip
    old.subscribe(COMMANDS, qos=1)
    command(broker, b"1")
    new = broker.open(shared_device("meter-1"))
    assert new.connect(client_id="meter-1", clean_start=False).session_present
    assert old.closed
    if version is V5:
        assert old.farewell().reason_code is ReasonCode.SESSION_TAKEN_OVER
    assert [(message.payload, message.dup) for message in new.messages()] == [(b"1", True)]
    assert broker.engine.connected == 1
    old.send_bytes(b"\xc0\x00")
    assert new.received() == []


def test_cloned_devices_take_turns(broker: MemoryBroker) -> None:
    for _ in range(20):
        broker.device("meter-1", clean_start=False, session_expiry_interval=60)
    assert broker.engine.connected == 1
    assert len(broker.engine.registry) == 1
    assert broker.metrics.closed == {"SESSION_TAKEN_OVER": 19}


@pytest.mark.parametrize(("first", "second"), [(V311, V5), (V5, V311)])
def test_a_session_survives_a_change_of_protocol(
    broker: MemoryBroker, first: ProtocolVersion, second: ProtocolVersion
) -> None:
    fields = {"session_expiry_interval": 60} if first is V5 else {}
    client = broker.device("meter-1", version=first, clean_start=False, **fields)
    client.subscribe(COMMANDS, qos=0)
    command(broker, b"warm")
    client.vanish()
    back = broker.device("meter-1", version=second, clean_start=False)
    for payload in (b"1", b"2"):
        command(broker, payload)
    assert back.payloads() == [b"1", b"2"]


def test_a_new_maximum_packet_size_counts_for_routes_made_before(broker: MemoryBroker) -> None:
    client = broker.device("meter-1", session_expiry_interval=60)
    client.subscribe(COMMANDS, qos=0)
    command(broker, bytes(100))
    client.vanish()
    back = broker.device("meter-1", clean_start=False, maximum_packet_size=60)
    command(broker, bytes(100))
    command(broker, b"small")
    assert back.payloads() == [b"small"]


def test_revocation_ends_the_live_sessions_of_the_certificate_and_no_other(broker: MemoryBroker) -> None:
    old, renewed = shared_pki().service("backend"), shared_pki().service("backend")
    clients = []
    for index, holder in enumerate((old, old, renewed)):
        client = broker.open(holder)
        client.connect(client_id=f"backend-{index}")
        clients.append(client)
    assert revoke(broker.engine, old.revocation, broker.now) == 2
    assert [client.closed for client in clients] == [True, True, False]
    for client in clients[:2]:
        farewell = client.farewell()
        assert farewell.reason_code is ReasonCode.ADMINISTRATIVE_ACTION
        assert farewell.properties.reason_string == "REVOKED: certificate revoked (keyCompromise)"
    assert revoke(broker.engine, old.revocation, broker.now) == 0
    assert broker.metrics.revocations == 1


def test_revocation_ends_who_has_the_certificate_of_others_that_have_left(broker: MemoryBroker) -> None:
    """Instances of a service share one: that one of them leaves hides none of the others."""
    holder = shared_pki().service("backend")
    clients = [broker.open(holder) for _ in range(3)]
    for index, client in enumerate(clients):
        client.connect(client_id=f"backend-{index}")
    clients[1].leave()
    assert revoke(broker.engine, holder.revocation, broker.now) == 2
    assert all(client.closed for client in clients)


def test_an_older_client_that_is_revoked_is_only_closed(broker: MemoryBroker) -> None:
    holder = shared_pki().device("meter-1")
    client = broker.open(holder, version=V311)
    client.connect(client_id="meter-1")
    revoke(broker.engine, holder.revocation, broker.now)
    assert client.closed
    assert client.received() == []


def test_what_a_revoked_client_had_sent_is_acknowledged_before_it_is_put_out(broker: MemoryBroker) -> None:
    holder = shared_pki().device("meter-1")
    client = broker.open(holder)
    client.connect(client_id="meter-1")
    engine = broker.engine
    engine.turn.begin()
    client.connection.receive(b"\x32\x12\x00\x0cfleet/meters\x00\x07\x00x", broker.now)
    revoke(engine, holder.revocation, broker.now)
    engine.turn.end()
    puback, farewell = client.received()
    assert (puback.packet_id, puback.reason_code) == (7, ReasonCode.NOT_AUTHORIZED)  # type: ignore[union-attr]
    assert farewell.packet_type.name == "DISCONNECT"


@pytest.mark.parametrize("version", [V311, V5])
def test_a_revoked_client_that_does_not_keep_up_is_reset_and_a_kicked_one_is_not(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """What waits for it in the broker would be sent for as long as it cares to read, behind it what it is told."""
    holder, other = shared_pki().device("meter-1"), shared_pki().device("meter-2")
    revoked, kicked = broker.open(holder, version=version), broker.open(other, version=version)
    for client, name in ((revoked, "meter-1"), (kicked, "meter-2")):
        client.connect(client_id=name)
        client.transport.unsent = True
    revoke(broker.engine, holder.revocation, broker.now)
    kicked.connection.disconnect("KICKED", ReasonCode.ADMINISTRATIVE_ACTION, "", broker.now)
    assert (revoked.transport.was_reset, kicked.transport.was_reset) == (True, False)
    assert revoked.received() == []
    assert len(kicked.received()) == (version is V5)
    assert broker.engine.connected == 0


def test_a_revoked_device_cannot_come_back(broker: MemoryBroker) -> None:
    holder = shared_pki().device("meter-1")
    revoke(broker.engine, holder.revocation, broker.now)
    for version in (V311, V5):
        broker.open(holder, version=version).connect(client_id="meter-1", expect=ReasonCode.NOT_AUTHORIZED)
    assert broker.metrics.refused == {"REVOKED": 2}


def test_of_a_compromise_that_becomes_known_later_who_comes_is_told(broker: MemoryBroker) -> None:
    holder = shared_pki().device("meter-1")
    for reason in ("superseded", "keyCompromise", "superseded"):  # The last as if the feed were read anew.
        assert revoke(broker.engine, replace(holder.revocation, reason=RevocationReason(reason)), broker.now) == 0
    client = broker.open(holder)
    connack = client.connect(client_id="meter-1", expect=ReasonCode.NOT_AUTHORIZED)
    assert connack.properties.reason_string == "REVOKED: certificate revoked (keyCompromise)"
    assert broker.metrics.revocations == 1


def test_connections_names_every_client_once(broker: MemoryBroker) -> None:
    clients: list[WireClient] = [broker.device("meter-1"), broker.service("a"), broker.service("b")]
    broker.open(shared_device("meter-2"))
    assert {id(each) for each in broker.engine.connections()} == {id(client.connection) for client in clients}
    clients[1].vanish()
    assert len(broker.engine.connections()) == 2


def test_a_retained_message_that_does_not_fit_still_reaches_who_is_there() -> None:
    broker = MemoryBroker(max_retained=1)
    backend = broker.service()
    backend.subscribe("fleet/#")
    meter = broker.device("meter-1")
    for name in ("a", "b"):
        meter.publish(f"fleet/meters/meter-1/{name}", name.encode(), retain=True, qos=1)
    assert backend.payloads() == [b"a", b"b"]
    assert len(broker.engine.retained) == 1
    assert (broker.metrics.dropped_retained_full, broker.metrics.dropped_queue_full) == (1, 0), "counted as what it is"


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        ({"max_retained": 1}, "max_retained"),
        ({"max_retained_bytes": 100}, "max_retained_bytes"),
        ({"max_retained_of_device": 1}, "max_retained_of_device"),
        ({"max_retained_bytes_of_device": 100}, "max_retained_bytes_of_device"),
    ],
)
def test_what_is_not_retained_is_said_with_the_limit_that_forbids_it(limits: dict[str, Any], limit: str) -> None:
    broker = MemoryBroker(**limits)
    meter = broker.device("meter-1")
    with capture_logs() as logs:
        for name in ("a", "b"):
            meter.publish(f"fleet/meters/meter-1/{name}", bytes(40), retain=True)
    (said,) = [each for each in logs if each.get("code") == "RETAINED_FULL"]
    assert (said["client"], said["topic"], said["limit"]) == ("meter-1", "fleet/meters/meter-1/b", limit)
    assert said["retained"] == 1


def test_a_connection_lasts_as_long_as_the_operator_lets_it() -> None:
    broker = MemoryBroker(max_connection_lifetime=100)
    meter = broker.device("meter-1", keep_alive=0)
    broker.advance(99)
    assert not meter.transport.closed
    broker.advance(3)
    (farewell,) = meter.received()
    assert isinstance(farewell, Disconnect)
    assert farewell.reason_code is ReasonCode.MAXIMUM_CONNECT_TIME
    assert str(farewell.properties.reason_string).startswith("LIFETIME_OVER: ")


class Slow:
    """A subscriber that never catches up, and takes back whom it has let go at once."""

    def __init__(self, client: WireClient) -> None:
        self.client = client

    def hold(self, _publisher: object, _now: float) -> bool:
        return True

    def give_up(self) -> None:
        broker = self.client.broker
        self.client.connection.release()
        broker._soon.append(lambda: self.client.connection.hold(self, broker.now))


def test_a_certificate_that_ends_between_handshake_and_connect_admits_nobody(broker: MemoryBroker) -> None:
    pki = shared_pki()
    meter = broker.device("meter-1", session_expiry_interval=600)
    late = broker.open(pki.device("meter-1", not_after=pki.now + timedelta(seconds=3)))
    broker.advance(3)
    answer = late.connect(client_id="meter-1", clean_start=False, expect=ReasonCode.NOT_AUTHORIZED)
    assert answer.properties.reason_string == "EXPIRED: the certificate, or that of a CA above it, has expired"
    assert broker.metrics.refused == {"EXPIRED": 1}
    assert not meter.closed, "nor is the session of its successor taken over"


@pytest.mark.parametrize("why", ["held", "waiting"])
def test_who_is_not_read_is_put_out_at_the_end_of_its_certificate_all_the_same(why: str) -> None:
    broker = MemoryBroker()
    meter = broker.open(shared_pki().device("short-1", not_after=shared_pki().now + timedelta(seconds=100)))
    meter.connect(client_id="short-1", keep_alive=10)
    if why == "held":
        meter.connection.hold(Slow(meter), broker.now)
    else:
        meter.connection.wait(Inquiry(), Pingreq())
    broker.advance(99)
    assert not meter.closed, "it may speak, and nobody listens: that is no silence"
    broker.advance(3)
    assert meter.farewell().reason_code is ReasonCode.NOT_AUTHORIZED
    assert broker.metrics.closed == {"EXPIRED": 1}


def test_the_end_of_a_certificate_is_announced_once_and_then_kept() -> None:
    broker = MemoryBroker(expiry_notice=60)
    meter = broker.open(shared_pki().device("short-1", not_after=shared_pki().now + timedelta(seconds=100)))
    meter.connect(client_id="short-1")
    with capture_logs() as logs:
        broker.advance(35)
        assert [event for event in logs if event.get("code") == "CERTIFICATE_ENDS"] == []
        broker.advance(30)
        broker.keep_fresh()
        broker.advance(30)
        announced = [event for event in logs if event.get("code") == "CERTIFICATE_ENDS"]
    assert len(announced) == 1
    assert announced[0]["identity"] == "spiffe://fleet.internal/device/meters/short-1"
    broker.advance(10)
    (farewell,) = meter.received()
    assert isinstance(farewell, Disconnect)
    assert str(farewell.properties.reason_string).startswith("EXPIRED: ")


def test_who_is_disconnected_is_ended_first_and_closed_even_if_that_fails(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has the line when the client can know of it."""

    class Defective(Judge):
        def disconnected(self, session: Session) -> None:
            raise RuntimeError(f"a defect with {session.client_id}")

    client = broker.device("meter-1")
    Defective(broker)
    close, told = client.transport.close, []
    with capture_logs() as logs:

        def look(last: Sequence[bytes] = ()) -> None:
            told.append((len(last), [each["code"] for each in logs]))
            close(last)

        monkeypatch.setattr(client.transport, "close", look)
        with pytest.raises(RuntimeError, match="a defect with meter-1"):
            client.connection.disconnect("KICKED", ReasonCode.ADMINISTRATIVE_ACTION, "why", broker.now)
    assert told == [(1, ["KICKED"])]
    assert client.closed
