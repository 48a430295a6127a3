"""What one admitted client can make the broker keep: each of it has its bound, in memory and not only in number."""

from __future__ import annotations

import tracemalloc

import pytest

from broker.admission.refusal import RefusalCode
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.session.queue import OBJECTS
from tests.support.pki import shared_service
from tests.support.wire import V5, V311, MemoryBroker, publication

MINE = "fleet/meters/meter-1/cmd/"
EMOJI = "\U0001f600"


def long_filter(number: int, size: int = 65_000, last: str = "x") -> str:
    return f"{MINE}{number}{'x' * size}{last}"


@pytest.mark.parametrize("last", ["x", EMOJI])
def test_subscriptions_are_bounded_in_memory(last: str) -> None:
    client = MemoryBroker(max_subscription_bytes=1_000_000).device("meter-1")
    tracemalloc.start()
    try:
        answers = [client.subscribe(long_filter(number, last=last)).reason_codes[0] for number in range(40)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    granted = answers.index(ReasonCode.QUOTA_EXCEEDED)
    assert granted == (15 if last == "x" else 3)
    assert taken < 2_500_000, "each is kept as it is, and by its levels"
    assert client.subscribe(MINE + "#").reason_codes == (0,), "a short one has room still"
    assert client.subscribe(long_filter(0, last=last)).reason_codes == (0,), "what is there may be asked for again"


def test_what_is_unsubscribed_makes_room() -> None:
    client = MemoryBroker(max_subscription_bytes=100_000).device("meter-1")
    answer = client.subscribe(long_filter(0), long_filter(1), "fleet/meters/meter-1/cmd/a")
    assert answer.reason_codes == (0, ReasonCode.QUOTA_EXCEEDED, 0)
    client.unsubscribe(long_filter(0))
    assert client.subscribe(long_filter(1), long_filter(0)).reason_codes == (0, ReasonCode.QUOTA_EXCEEDED)
    older = MemoryBroker(max_subscription_bytes=100).device("meter-1", version=V311)
    assert older.subscribe(long_filter(0)).reason_codes == (ReasonCode.UNSPECIFIED_ERROR,)


def test_the_reason_names_the_setting() -> None:
    client = MemoryBroker(max_subscription_bytes=100).device("meter-1")
    said = client.subscribe(long_filter(0)).properties.reason_string
    assert said is not None
    assert "100 bytes of topic filters" in said
    assert "max_subscription_bytes" in said


def test_who_publishes_to_himself_does_not_fill_the_memory_with_small_messages() -> None:
    # Nobody can be held for it, so that the bound in messages, which is for those who are away, does not help.
    broker = MemoryBroker(max_queued_messages=100, max_queued_bytes=400_000)
    client = broker.service(receive_maximum=1)
    client.subscribe("fleet/#", qos=1)
    topic = "fleet/m/m/cmd/x"
    for start in range(0, 20_000, 1_000):
        client.send(*(publication(topic, b"", 1, packet_id=number + 1) for number in range(start, start + 1_000)))
    assert 100 < client.session.queued <= 100 + 400_000 // OBJECTS
    assert broker.metrics.dropped_queue_full > 18_000
    assert not client.closed


def test_who_begins_anew_each_time_leaves_no_session_behind_until_it_would_have_ended() -> None:
    # Each had a week, and what came for its client meanwhile: that a session has ended must not wait for its time.
    broker = MemoryBroker(max_connects_per_identity=0, flapping_count=0)
    backend = broker.service("backend")

    def come_and_go() -> None:
        client = broker.device("meter-1", clean_start=True, session_expiry_interval=7 * 24 * 3600)
        client.subscribe(f"{MINE}#", qos=1)
        client.leave()
        backend.publish(f"{MINE}go", b"x" * 100_000, qos=1)
        broker.advance(1)

    come_and_go()
    tracemalloc.start()
    try:
        for _ in range(50):
            come_and_go()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 1_000_000, "of 50 sessions with a message of 100 kB each, one is there"


@pytest.mark.parametrize("version", [V311, V5])
def test_a_client_identifier_is_no_longer_than_the_limit(version: ProtocolVersion) -> None:
    broker = MemoryBroker(max_client_id_length=30)
    longest = "backend-" + "x" * 22
    assert broker.service(client_id=longest, version=version).session.client_id == longest
    client = broker.open(shared_service("backend"), version=version)
    answer = client.connect(client_id=longest + "x", expect=None)
    assert answer.reason_code.is_failure
    events = [event for shelf in broker.engine.history.known() for event in shelf]
    (said,) = [event.detail for event in events if event.code == RefusalCode.CLIENT_ID_MISMATCH]
    assert "31 characters, 30 at most (max_client_id_length)" in said
    if version is V5:
        assert answer.reason_code is ReasonCode.CLIENT_IDENTIFIER_NOT_VALID
        assert answer.properties.reason_string == f"CLIENT_ID_MISMATCH: {said}"
