"""The will: sent when a client goes without saying goodbye, delayed, and called back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.engine.returning import GRACE
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import Disconnect
from broker.mqtt.properties import Properties
from broker.revocation.enforcement import revoke
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.pki import shared_device, shared_pki
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, V311, MemoryBroker, WireClient, connect_packet, will

TOPIC = "fleet/meters/meter-1/event"


@pytest.fixture
def watcher(broker: MemoryBroker) -> WireClient:
    client = broker.service()
    client.subscribe("fleet/#", qos=1)
    return client


def leave(client: WireClient, reason: ReasonCode = ReasonCode.NORMAL_DISCONNECTION) -> None:
    client.leave(reason)


def vanish(client: WireClient) -> None:
    client.vanish()


def talk_nonsense(client: WireClient) -> None:
    client.send_bytes(b"\x00\x00")


def fall_silent(client: WireClient) -> None:
    client.broker.advance(40)


@pytest.mark.parametrize(
    ("end", "sent"),
    [
        (leave, False),
        (lambda client: leave(client, ReasonCode.DISCONNECT_WITH_WILL_MESSAGE), True),
        # MQTT 5 §3.1.2.5: only a DISCONNECT with reason code 0x00 deletes the will.
        (lambda client: leave(client, ReasonCode.UNSPECIFIED_ERROR), True),
        (vanish, True),
        (talk_nonsense, True),
        (fall_silent, True),
    ],
)
def test_the_will_is_sent_unless_the_client_says_goodbye(
    broker: MemoryBroker, watcher: WireClient, end: Any, sent: bool
) -> None:
    client = broker.device("meter-1", will=will(TOPIC, qos=1), keep_alive=10)
    end(client)
    assert watcher.payloads() == ([b"gone"] if sent else [])
    assert client.closed


def test_who_may_keep_no_session_may_ask_for_one_again_when_it_says_goodbye(watcher: WireClient) -> None:
    """MQTT 5 §3.14.2.2.2: an error only if CONNECT asked for none; CONNACK has told it that it gets none."""
    broker = watcher.broker
    broker.engine.limit(replace(broker.engine.limits, max_session_expiry=0))
    client = broker.open(shared_device("meter-1"))
    connack = client.connect(client_id="meter-1", session_expiry_interval=60, will=will(TOPIC))
    assert connack.properties.session_expiry_interval == 0
    client.leave(session_expiry_interval=60)
    assert broker.metrics.closed == {"CLIENT_DISCONNECTED": 1}
    assert watcher.payloads() == []
    assert len(broker.engine.registry) == 1, "the watcher's"


def test_a_311_client_that_says_goodbye_leaves_no_will(broker: MemoryBroker, watcher: WireClient) -> None:
    broker.device("meter-1", version=V311, will=will(TOPIC)).leave()
    assert watcher.received() == []
    broker.device("meter-1", version=V311, will=will(TOPIC)).vanish()
    assert watcher.payloads() == [b"gone"]


def test_a_broker_that_stops_sends_no_will_but_says_why_it_ends(broker: MemoryBroker, watcher: WireClient) -> None:
    """What becomes of wills then is the store's: `test_wills_after_a_restart`."""
    client = broker.device("meter-1", will=will(TOPIC))
    broker.engine.stop(broker.now)
    broker.settle()
    assert client.farewell().reason_code is ReasonCode.SERVER_SHUTTING_DOWN
    assert [type(each) for each in watcher.received()] == [Disconnect]


@pytest.mark.parametrize("reason", list(RevocationReason))
@pytest.mark.parametrize("keeps", [False, True], ids=["discard", "keep"])
def test_what_a_revoked_device_leaves_behind(
    broker: MemoryBroker, watcher: WireClient, reason: RevocationReason, keeps: bool
) -> None:
    broker.engine.keeps_revoked = keeps
    holder = shared_pki().device("meter-1")
    delayed = broker.open(holder)
    delayed.connect(client_id="meter-1", session_expiry_interval=60, will=will(TOPIC, will_delay_interval=5))
    delayed.subscribe("fleet/meters/meter-1/cmd/#", qos=1)
    revoke(broker.engine, replace(holder.revocation, reason=reason), broker.now)
    broker.settle()
    broker.advance(10)
    assert watcher.payloads() == ([b"gone"] if keeps else [])
    # Who is suspended comes back, and who has a newer certificate is the same client.
    kept = keeps or reason in {RevocationReason.CERTIFICATE_HOLD, RevocationReason.SUPERSEDED}
    again = broker.open(shared_device("meter-1"))
    assert again.connect(client_id="meter-1", clean_start=False).session_present is kept


@pytest.mark.parametrize("ends", ["delay", "session", "clean start"])
@pytest.mark.parametrize("reason", [RevocationReason.KEY_COMPROMISE, RevocationReason.CERTIFICATE_HOLD])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_will_that_waits_goes_with_its_certificate(
    broker: MemoryBroker, watcher: WireClient, ends: str, reason: RevocationReason, keeps: bool
) -> None:
    """Else who has stolen a key would choose what is said long after that is known: a will may wait for days."""
    broker.engine.keeps_revoked = keeps
    holder = shared_pki().device("meter-1")
    thief = broker.open(holder)
    expiry = 20 if ends == "session" else 100
    thief.connect(client_id="meter-1", session_expiry_interval=expiry, will=will(TOPIC, will_delay_interval=30))
    thief.vanish()
    broker.advance(1)
    revoke(broker.engine, replace(holder.revocation, reason=reason), broker.now)
    if ends == "clean start":
        broker.device("meter-1")
    broker.advance(40)
    assert watcher.payloads() == ([b"gone"] if keeps else [])


def test_a_will_that_waits_is_sent_where_another_certificate_is_revoked(
    broker: MemoryBroker, watcher: WireClient
) -> None:
    broker.device("meter-1", session_expiry_interval=100, will=will(TOPIC, will_delay_interval=30)).vanish()
    revoke(broker.engine, shared_pki().device("meter-1").revocation, broker.now)
    broker.advance(40)
    assert watcher.payloads() == [b"gone"]


def test_a_will_waits_for_its_delay(broker: MemoryBroker, watcher: WireClient) -> None:
    client = broker.device("meter-1", session_expiry_interval=100, will=will(TOPIC, will_delay_interval=30))
    client.vanish()
    broker.advance(29)
    assert watcher.received() == []
    broker.advance(2)
    assert watcher.payloads() == [b"gone"]
    broker.advance(200)
    assert watcher.received() == []


@pytest.mark.parametrize("seconds", [29.5, 30.5])
def test_whoever_is_back_behind_the_delay_does_not_call_its_will_back(
    broker: MemoryBroker, watcher: WireClient, seconds: float
) -> None:
    """Nor does it depend on when the next tick is."""
    broker.device("meter-1", session_expiry_interval=100, will=will(TOPIC, will_delay_interval=30)).vanish()
    broker.now += seconds  # Without a tick.
    broker.device("meter-1", clean_start=False, session_expiry_interval=100)
    broker.advance(100)
    assert watcher.payloads() == ([b"gone"] if seconds > 30 else [])


def test_a_will_does_not_wait_longer_than_its_session_lives(broker: MemoryBroker, watcher: WireClient) -> None:
    client = broker.device("meter-1", session_expiry_interval=10, will=will(TOPIC, will_delay_interval=30))
    client.vanish()
    broker.advance(11)
    assert watcher.payloads() == [b"gone"]
    broker.advance(60)
    assert watcher.received() == []


def test_a_will_whose_session_ends_at_once_does_not_wait(broker: MemoryBroker, watcher: WireClient) -> None:
    broker.device("meter-1", will=will(TOPIC, will_delay_interval=30)).vanish()
    assert watcher.payloads() == [b"gone"]


def test_a_client_that_is_back_in_time_cancels_its_will(broker: MemoryBroker, watcher: WireClient) -> None:
    client = broker.device("meter-1", session_expiry_interval=100, will=will(TOPIC, will_delay_interval=30))
    client.vanish()
    broker.advance(10)
    broker.device("meter-1", clean_start=False, session_expiry_interval=100)
    broker.advance(60)
    assert watcher.received() == []


def test_a_client_that_starts_clean_does_not(broker: MemoryBroker, watcher: WireClient) -> None:
    client = broker.device("meter-1", session_expiry_interval=100, will=will(TOPIC, will_delay_interval=30))
    client.vanish()
    broker.device("meter-1", clean_start=True)
    assert watcher.payloads() == [b"gone"]


@pytest.mark.parametrize(("clean", "delay", "sent"), [(False, 0, True), (False, 9, False), (True, 9, True)])
def test_the_will_of_a_connection_that_is_taken_over(
    broker: MemoryBroker, watcher: WireClient, clean: bool, delay: int, sent: bool
) -> None:
    # [MQTT-3.1.3-9] and the text behind it.
    broker.device("meter-1", session_expiry_interval=100, will=will(TOPIC, will_delay_interval=delay or None))
    broker.device("meter-1", clean_start=clean, session_expiry_interval=100)
    broker.advance(30)
    assert watcher.payloads() == ([b"gone"] if sent else [])


def test_the_newcomers_own_will_counts_after_a_takeover(broker: MemoryBroker, watcher: WireClient) -> None:
    old = broker.device("meter-1", session_expiry_interval=9, will=will(TOPIC, b"old", will_delay_interval=5))
    new = broker.device(
        "meter-1", clean_start=False, session_expiry_interval=9, will=will(TOPIC, b"new", will_delay_interval=5)
    )
    assert old.closed
    new.vanish()
    broker.advance(20)
    assert watcher.payloads() == [b"new"]


def test_a_session_expiry_in_the_disconnect_counts_for_the_will(broker: MemoryBroker, watcher: WireClient) -> None:
    client = broker.device("meter-1", session_expiry_interval=100, will=will(TOPIC, will_delay_interval=30))
    client.leave(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE, session_expiry_interval=5)
    broker.advance(7)
    assert watcher.payloads() == [b"gone"]


def test_a_will_carries_its_properties_and_may_be_retained(broker: MemoryBroker, watcher: WireClient) -> None:
    properties: dict[str, Any] = {"content_type": "text", "user_properties": (("b", "1"), ("a", "2"))}
    broker.device("meter-1", will=will(TOPIC, qos=1, retain=True, **properties)).vanish()
    (message,) = watcher.messages()
    assert message.properties == Properties(**properties)
    assert not message.retain
    assert message.qos == 1
    late = broker.service("late")
    late.subscribe(TOPIC)
    (message,) = late.messages()
    assert message.retain


def test_the_expiry_of_a_will_is_counted_from_its_publication(broker: MemoryBroker) -> None:
    # MQTT 5 §3.1.3.2.4: sent as the Publication Expiry Interval when the server publishes the will.
    watcher = broker.service(keep_alive=0)
    watcher.subscribe("fleet/#", qos=1)
    client = broker.device("meter-1", will=will(TOPIC, qos=1, message_expiry_interval=20))
    broker.advance(300)
    client.vanish()
    (message,) = watcher.messages()
    assert message.properties.message_expiry_interval == 20


def test_a_will_on_a_kept_session_of_its_own_device_comes_back_to_it(broker: MemoryBroker) -> None:
    broker.service("backend", will=will("fleet/meters/meter-1/cmd/stop", b"stop", qos=1)).vanish()
    client = broker.open(shared_device("meter-1"), version=V5)
    client.connect(client_id="meter-1", session_expiry_interval=100)
    client.subscribe("fleet/meters/meter-1/cmd/#", qos=1)
    client.vanish()
    broker.service("backend", will=will("fleet/meters/meter-1/cmd/stop", b"stop", qos=1)).vanish()
    back = broker.device("meter-1", clean_start=False)
    assert back.payloads() == [b"stop"]


def lost_in_a_busy_turn(client: WireClient) -> None:
    """Let *client* be lost in a turn in which others have done so much that its will has to wait."""
    turn = client.broker.engine.turn
    turn.begin()
    turn.most_work = turn.work.done
    client.transport.closed = True
    client.connection.lost("CONNECTION_LOST", client.broker.now)
    turn.end()


@pytest.mark.parametrize("clean_start", [False, True])
@pytest.mark.parametrize("expiry", [0, 60])
def test_a_will_that_waits_for_its_portion_is_sent_before_its_client_is_back(
    broker: MemoryBroker, watcher: WireClient, expiry: int, clean_start: bool
) -> None:
    """Who is back at once has been gone all the same: a delay of none is none [MQTT-3.1.2-8]."""
    client = broker.device("meter-1", will=will(TOPIC, qos=1), session_expiry_interval=expiry)
    client.subscribe("fleet/meters/meter-1/cmd/#", qos=1)
    lost_in_a_busy_turn(client)
    assert watcher.payloads() == []
    again = broker.open(shared_device("meter-1"))
    packet = connect_packet(V5, client_id="meter-1", clean_start=clean_start, session_expiry_interval=expiry)
    again.connection.receive(packet.encode(V5), broker.now)  # The event loop has not gone round.
    broker.engine.turn.end()
    assert watcher.payloads() == [b"gone"]
    assert again.next_packet(Connack).session_present is (expiry > 0 and not clean_start)
    broker.settle()
    broker.advance(3)
    assert watcher.payloads() == []
    assert len(broker.engine.registry) == 2
    assert not again.closed


def test_a_will_that_waits_for_its_portion_is_sent_at_the_next_tick_if_that_is_earlier(
    broker: MemoryBroker, watcher: WireClient
) -> None:
    lost_in_a_busy_turn(broker.device("meter-1", will=will(TOPIC, qos=1)))
    for _ in broker.engine.duties(broker.now + 1):
        pass
    broker.engine.turn.end()
    assert watcher.payloads() == [b"gone"]
    broker.settle()
    assert watcher.payloads() == []
    assert len(broker.engine.registry) == 1
    assert broker.metrics.sessions_expired == 0, "it ended with its connection"


@pytest.mark.parametrize("expiry", [0, 60])
def test_a_will_that_waits_for_its_portion_outlives_the_broker(tmp_path: Path, expiry: int) -> None:
    broker = StoredBroker(tmp_path)
    broker.service(**KEPT).subscribe("fleet/#", qos=1)
    device = broker.device("meter-1", will=will(TOPIC, qos=1), session_expiry_interval=expiry)
    device.subscribe("fleet/meters/meter-1/cmd/#", qos=1)
    lost_in_a_busy_turn(device)
    while broker.write():  # Its end is on disk, if it is said so, and its will is sent to nobody yet.
        pass
    after = broker.killed()
    after.advance(GRACE + 2)
    assert after.service(**KEPT).payloads() == [b"gone"]
    after.close()


def test_a_will_that_waits_for_its_portion_is_not_sent_of_who_is_revoked_meanwhile(
    broker: MemoryBroker, watcher: WireClient
) -> None:
    holder = shared_pki().device("meter-1")
    client = broker.open(holder)
    client.connect(client_id="meter-1", will=will(TOPIC, qos=1))
    lost_in_a_busy_turn(client)
    revoke(broker.engine, holder.revocation, broker.now)
    broker.settle()
    broker.advance(3)
    assert watcher.payloads() == []
