"""Sessions as plugins see them: whom they may take a client for, and for how long they see its password."""

from __future__ import annotations

from typing import Any

import pytest

from broker.mqtt.codes import QoS
from broker.plugins.errors import NotOffered
from broker.plugins.sessions import HostedSession, PeerCertificate, described, password_of
from tests.support.pki import shared_device
from tests.support.wire import V5, MemoryBroker, connect_packet, publication


def presented(broker: MemoryBroker, **connect: Any) -> HostedSession:
    """Return the session of a client that is not admitted yet, as its authentication sees it."""
    session, client = HostedSession(), broker.open(shared_device("meter-1"))
    assert client.connection.peer is not None
    packet = connect_packet(V5, client_id="meter-1", **connect)
    session.present(client.connection, client.connection.peer, "meter-1", "meter-1", packet)
    session.claim(packet)
    return session


@pytest.mark.parametrize(
    ("claimed", "is_anonymous", "username"),
    [(True, False, "anna"), (True, True, "meter-1"), (False, False, "meter-1"), (False, True, "meter-1")],
)
def test_a_user_name_is_believed_if_a_plugin_has_checked_it_and_no_password_is_kept(
    broker: MemoryBroker, *, claimed: bool, is_anonymous: bool, username: str
) -> None:
    """One that lets somebody in as nobody in particular has checked nothing."""
    session = presented(broker, username="anna", password=b"s3cret")
    assert (session.username, session.password) == ("anna", "s3cret")
    session.is_anonymous = is_anonymous
    session.believe(claimed=claimed)
    assert (session.username, session.password) == (username, None)
    admitted = HostedSession()
    session.attributes["tenant"] = "north"
    admitted.resemble(session)
    assert (admitted.username, admitted.is_anonymous) == (username, is_anonymous)
    assert admitted.attributes == session.attributes


def test_an_empty_user_name_is_the_one_that_was_claimed_and_none_is_the_certificate_s(broker: MemoryBroker) -> None:
    assert presented(broker, username="").username == ""
    assert presented(broker).username == "meter-1"
    assert presented(broker).password is None


def test_a_password_that_is_no_text_is_one_all_the_same() -> None:
    assert password_of(connect_packet(V5, client_id="a", username="b", password=b"p\xff")) == "p�"


def test_of_the_certificate_there_is_the_form_that_was_kept() -> None:
    assert PeerCertificate(b"der").getpeercert(True) == b"der"
    with pytest.raises(NotOffered, match=r"only binary_form=True; parse the DER with cryptography\.x509"):
        PeerCertificate(b"der").getpeercert()


def test_a_session_from_before_the_start_is_described_by_its_owner(broker: MemoryBroker) -> None:
    meter = broker.device("meter-1", session_expiry_interval=60)
    session = meter.session
    hosted = described(session, "meter-1", "meter-1")
    assert (hosted.client_id, hosted.username, hosted.clean_session) == ("meter-1", "meter-1", False)
    assert hosted.attributes["fleetgate.identity"] == session.owner.uri
    assert hosted.attributes["fleetgate.group"] == "meters"
    assert "fleetgate.serial" not in hosted.attributes, "nobody has presented one yet"
    brief = broker.device("meter-2").session
    assert described(brief, "meter-2", "meter-2").clean_session is True


def test_what_is_under_way_is_counted_by_direction(broker: MemoryBroker) -> None:
    reader = broker.service("reader", session_expiry_interval=60)
    reader.subscribe("fleet/#", qos=1)
    reader.send(publication("fleet/meters/meter-1/cmd/a", b"", QoS.EXACTLY_ONCE, packet_id=7))
    meter = broker.device("meter-1")
    for _ in range(2):
        meter.publish("fleet/meters/meter-1/t", qos=1)
    session = reader.session
    hosted = described(session, "reader", "reader")
    before = (hosted.inflight_in_count, hosted.inflight_out_count, hosted.retained_messages_count)
    reader.vanish()
    for _ in range(3):
        meter.publish("fleet/meters/meter-1/t", qos=1)
    assert (before, hosted.retained_messages_count) == ((1, 3, 0), 3), "its own message is on its way back to it, too"


def test_two_sessions_are_two_whatever_they_are_called() -> None:
    one, other = HostedSession(), HostedSession()
    one.client_id = other.client_id = "meter-1"
    assert one != other
    assert len({one, other}) == 2


def test_an_address_without_a_port_is_shown_without_one(broker: MemoryBroker) -> None:
    client = broker.open(shared_device("meter-1"))
    client.transport.address = "here:there"
    assert client.connection.peer is not None
    session = HostedSession()
    packet = connect_packet(V5, client_id="meter-1")
    session.present(client.connection, client.connection.peer, "meter-1", "meter-1", packet)
    assert session.remote_port is None
