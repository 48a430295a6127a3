"""A client that does not keep up: bounded memory, and what is dropped is counted and said."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.mqtt.packets import Packet, Pingreq, Pingresp, Puback, Pubcomp, Publish, Pubrec, Pubrel, Subscribe
from broker.session.patience import MOST_HOLDING, SECONDS
from broker.sockets.slow_reader import in_kernel
from broker.store.journal import MOST_WAITING
from tests.support.pki import shared_service
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, MemoryBroker, WireClient, connect_packet, id_of, publication, request

TOPIC = "fleet/meters/meter-1/state"


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(max_queued_messages=5, max_queued_bytes=1000)


def test_what_a_peer_has_not_taken_is_known_from_the_kernel() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        ours = socket.create_connection(door.getsockname())
        theirs, _ = door.accept()
    with ours, theirs:
        ours.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += ours.send(bytes(65536))
        before = in_kernel(ours.fileno())
        assert 0 < before <= sent
        left = sent
        while left:
            left -= len(theirs.recv(1 << 20))
        assert in_kernel(ours.fileno()) < before


def test_a_full_queue_is_said_once_for_each_time_that_it_fills_up(broker: MemoryBroker) -> None:
    meter = broker.device("meter-1")
    broker.service(**KEPT).subscribe("fleet/#", qos=1)
    for round_number in (1, 2):
        broker.service(**KEPT).vanish()
        with capture_logs() as logs:
            for number in range(9):
                meter.publish(TOPIC, b"%d" % number, qos=1)
        said = [each for each in logs if each.get("code") == "QUEUE_FULL"]
        assert [(each["client"], each["queued"], each["log_level"]) for each in said] == [("backend", 5, "warning")]
        assert broker.metrics.dropped_queue_full == 4 * round_number
        back = broker.service(**KEPT)
        messages = back.messages()
        assert [each.payload for each in messages] == [b"0", b"1", b"2", b"3", b"4"]
        back.acknowledge(*messages)


def test_the_bytes_of_a_queue_are_bounded_too(broker: MemoryBroker) -> None:
    meter = broker.device("meter-1")
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=1)
    backend.vanish()
    for _ in range(3):
        meter.publish(TOPIC, bytes(400), qos=1)
    assert broker.metrics.dropped_queue_full == 1
    assert len([each for each in broker.service(**KEPT).received() if isinstance(each, Publish)]) == 2


def test_who_is_choked_is_said_a_few_times(broker: MemoryBroker) -> None:
    backend = broker.service()
    with capture_logs() as logs:
        for _ in range(50):  # It takes a little, and falls behind again.
            backend.connection.choke(broker.now)
            backend.connection.unchoke(broker.now)
    said = [each for each in logs if each.get("code") == "SLOW_CONSUMER"]
    assert 1 <= len(said) <= 10
    assert said[0]["client"] == "backend"


def test_who_comes_again_and_does_not_keep_up_does_not_fill_the_log(broker: MemoryBroker) -> None:
    with capture_logs() as logs:
        for _ in range(30):
            meter = broker.device("meter-1")
            meter.connection.choke(broker.now)
            meter.vanish()
        assert len([each for each in logs if each.get("code") == "SLOW_CONSUMER"]) == 10
        broker.service().connection.choke(broker.now)
        broker.advance(121)
        broker.keep_fresh()
        broker.device("meter-1").connection.choke(broker.now)
    said = [each["client"] for each in logs if each.get("code") == "SLOW_CONSUMER"]
    assert said[10:] == ["backend", "meter-1"], "another's are said, and its own later on"


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("again", [False, True], ids=["it reads again", "it comes back"])
def test_what_waited_while_a_client_took_nothing_is_sent_when_it_takes_something(
    broker: MemoryBroker, qos: int, again: bool
) -> None:
    meter = broker.device("meter-1")
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=2)
    meter.publish(TOPIC, b"before", qos=qos)
    backend.connection.choke(broker.now)
    for payload in (b"1", b"2"):
        meter.publish(TOPIC, payload, qos=qos)
    assert backend.payloads() == [b"before"]
    if again:
        backend.vanish()
        backend = broker.service(**KEPT)
        assert backend.payloads() == [b"before", b"1", b"2"]
    else:
        backend.connection.unchoke(broker.now)
        backend.ping()  # Whoever it is that ends the turn.
        assert [each.payload for each in backend.received() if isinstance(each, Publish)] == [b"1", b"2"]
    meter.publish(TOPIC, b"after", qos=qos)
    assert backend.payloads() == [b"after"]


def test_who_comes_back_each_second_and_takes_nothing_does_not_stop_its_publisher() -> None:
    """A service is read for the whole fleet: one device with a half full queue must not hold it again and again."""
    broker = MemoryBroker(max_queued_messages=8)
    backend = broker.service()
    topic = "fleet/meters/meter-1/cmd/x"
    broker.device("meter-1", receive_maximum=1, **KEPT).subscribe(topic, qos=1)
    for _ in range(4):
        backend.publish(topic, b"x", qos=1)
    for pause in (1, 0, 1, 0):
        meter = broker.device("meter-1", receive_maximum=1, **KEPT)
        backend.publish(topic, b"x", qos=1)
        broker.advance(pause)
        broker.keep_fresh()
        meter.leave()
    assert broker.metrics.publishers_held == 1


@pytest.mark.parametrize("takes", [False, True], ids=["they take nothing", "they catch up in time"])
@pytest.mark.parametrize("share", ["", "$share/each-{}/"], ids=["plain", "shared"])
def test_of_a_service_with_many_sessions_a_few_hold_their_publishers(share: str, takes: bool) -> None:
    """One after the other, a thousand would hold the whole fleet for as many seconds; and soon again."""
    broker = MemoryBroker(max_queued_messages=8)
    meter = broker.device("meter-1")

    def instance(name: str, number: int) -> WireClient:
        client = broker.service(name, client_id=f"{name}-{number}", receive_maximum=1)
        client.subscribe(f"{share.format(number)}fleet/#", qos=1)
        return client

    def holding(instances: list[WireClient]) -> set[WireClient]:
        found = set()
        for _ in range(16):
            meter.publish(TOPIC, b"x", qos=1)
            if meter.transport.held:
                holder = next(each for each in instances if each.session._held)
                found.add(holder)
                while takes and (messages := holder.messages()):
                    holder.acknowledge(*messages)
                if not takes:
                    broker.advance(1)
                    broker.keep_fresh()
                assert not meter.transport.held
        return found

    instances = [instance("backend", number) for number in range(8)]
    few = holding(instances)
    assert len(few) == MOST_HOLDING
    everybody = [instance("other", 1), *instances]
    assert len(holding(everybody) - few) == 1, "another service is as good as before"
    for each in everybody:
        each.vanish()
    broker.advance(SECONDS)
    broker.keep_fresh()
    assert holding([instance("backend", 9)]), "a lasting limit would lose messages of those who do keep up"


@pytest.mark.parametrize("why", ["expired", "too large"])
def test_a_long_queue_that_is_dropped_lets_others_be_served_between(why: str) -> None:
    """Else forty thousand messages, which a client sent to itself, are dropped in one step: a tenth of a second."""
    broker = MemoryBroker()
    backend = broker.service(receive_maximum=1, **KEPT)
    backend.subscribe("fleet/#", qos=1)
    topic = "fleet/meters/meter-1/cmd/x"
    fields = {"message_expiry_interval": 1} if why == "expired" else {}
    for start in range(0, 9_000, 1_000):
        ids = range(start + 1, start + 1_001)
        backend.send(*(publication(topic, b"x" * 20, 1, packet_id=each, **fields) for each in ids))
    backend.send(publication(topic, b"", 1, packet_id=9_001))
    first = next(each for each in backend.received() if isinstance(each, Publish))
    if why == "expired":
        broker.advance(2)
        packet: Packet = Puback(id_of(first))
    else:
        backend.vanish()
        backend = broker.open(shared_service("backend"))
        packet = connect_packet(V5, client_id="backend", receive_maximum=1, maximum_packet_size=40, **KEPT)
    broker.engine.turn.begin()
    backend.connection.receive(packet.encode(V5), broker.now)
    broker.engine.turn.end()
    assert backend.session.queued > 6_000
    broker.settle()
    assert backend.session.queued == 0
    assert [each.payload for each in backend.received() if isinstance(each, Publish)] == [b""], "it comes in its order"


def test_acknowledgements_of_one_read_drop_no_more_of_a_long_queue_than_one_does() -> None:
    broker = MemoryBroker()
    backend = broker.service(receive_maximum=3, **KEPT)
    backend.subscribe("fleet/#", qos=1)
    topic = "fleet/meters/meter-1/cmd/x"
    for start in range(0, 9_000, 1_000):
        ids = range(start + 1, start + 1_001)
        backend.send(*(publication(topic, b"", 1, packet_id=each, message_expiry_interval=1) for each in ids))
    taken = [Puback(id_of(each)) for each in backend.received() if isinstance(each, Publish)]
    assert len(taken) == 3
    broker.advance(2)
    broker.engine.turn.begin()
    backend.connection.receive(b"".join(each.encode(V5) for each in taken), broker.now)
    broker.engine.turn.end()
    assert backend.session.queued > 6_000
    broker.settle()
    assert backend.session.queued == 0


def test_many_messages_that_are_sent_again_let_others_be_served_between() -> None:
    """Else sixty thousand unacknowledged ones are sent again in one step: a tenth of a second."""
    broker = MemoryBroker(max_inflight=65_535)
    backend = broker.service(receive_maximum=65_535, **KEPT)
    backend.subscribe("fleet/#", qos=1)
    topic = "fleet/meters/meter-1/cmd/x"
    for start in range(0, 5_000, 1_000):
        backend.send(*(publication(topic, b"%d" % each, 1, packet_id=each + 1) for each in range(start, start + 1_000)))
    backend.vanish()
    backend = broker.open(shared_service("backend"))
    packet = connect_packet(V5, client_id="backend", receive_maximum=65_535, **KEPT)
    broker.engine.turn.begin()
    backend.connection.receive(packet.encode(V5), broker.now)
    broker.engine.turn.end()
    _, *first = backend.received()
    assert 1_000 < len(first) < 3_000
    broker.settle()
    got = [int(each.payload) for each in (*first, *backend.received()) if isinstance(each, Publish) and each.dup]
    assert got == list(range(5_000))


def test_what_is_full_is_said_by_the_name_of_the_setting(broker: MemoryBroker) -> None:
    meter = broker.device("meter-1")
    for name, size in (("messages", 1), ("bytes", 400)):
        client = f"backend-{name}"
        broker.service("backend", client_id=client, **KEPT).subscribe("fleet/#", qos=1)
        broker.service("backend", client_id=client, **KEPT).vanish()
        with capture_logs() as logs:
            for _ in range(6):
                meter.publish(TOPIC, bytes(size), qos=1)
        said = [each for each in logs if each.get("code") == "QUEUE_FULL" and each["client"] == client]
        assert [each["limit"] for each in said] == [f"max_queued_{name}"]
        assert said[0]["bytes"] <= 1000


@pytest.mark.parametrize("qos", [0, 1])
def test_what_a_client_cannot_take_is_said_once_a_connection(broker: MemoryBroker, qos: int) -> None:
    meter = broker.device("meter-1")
    for _ in range(2):
        backend = broker.service(maximum_packet_size=50)
        backend.subscribe("fleet/#", qos=qos)
        with capture_logs() as logs:
            for _ in range(3):
                meter.publish(TOPIC, bytes(100), qos=qos)
        (said,) = [each for each in logs if each.get("code") == "MESSAGE_TOO_LARGE"]
        assert (said["client"], said["maximum"]) == ("backend", 50)
        assert said["size"] > 100
        backend.vanish()
    assert broker.metrics.dropped_too_large == 6


@pytest.mark.parametrize("qos", [1, 2])
def test_who_takes_large_messages_and_acknowledges_none_gets_a_few(qos: int) -> None:
    broker = MemoryBroker(max_inflight_bytes=30_000)
    meter = broker.device("meter-1")
    backend = broker.service(**KEPT)
    backend.subscribe("fleet/#", qos=qos)
    for number in range(10):
        meter.publish(TOPIC, b"%d" % number * 10_000, qos=qos)
    first = backend.messages()
    assert [each.payload[:1] for each in first] == [b"0", b"1", b"2"]
    backend.vanish()
    back = broker.service(**KEPT)
    again = back.messages()
    assert [(each.payload[:1], each.dup) for each in again] == [(b"0", True), (b"1", True), (b"2", True)]
    got: list[bytes] = []
    while again:
        got += [each.payload[:1] for each in again]
        if qos == 1:
            back.acknowledge(*again)
        else:
            back.send(*(Pubrec(each.packet_id or 0) for each in again))
            assert {type(each) for each in back.received()} == {Pubrel}, "the message is kept until its PUBCOMP"
            back.send(*(Pubcomp(each.packet_id or 0) for each in again))
        again = back.messages()
    assert got == [b"%d" % number for number in range(10)]


def test_who_goes_and_comes_again_while_a_disk_hangs_is_not_gathered_either(tmp_path: Path) -> None:
    """Who is held hears nothing, gives up, and comes again: a fleet does so for as long as the disk hangs."""
    broker = StoredBroker(tmp_path, max_connects_per_identity=0, flapping_count=0)
    steady = broker.device("meter-2")
    backend = broker.service(clean_start=False, session_expiry_interval=60)
    broker.held = True
    backend.send(Subscribe(1, (request("fleet/other"),)))
    topic = "fleet/meters/meter-2/telemetry"
    read = b"".join(publication(topic, qos=1, packet_id=each).encode(V5) for each in range(1, 501))
    while not steady.transport.held:
        steady.send_bytes(read)
    for _ in range(3000):
        meter = broker.device("meter-1")
        assert meter.transport.held
        meter.vanish()
    assert len(broker.journal._held) <= 1025
    broker.write()
    assert not steady.transport.held
    broker.close()


@pytest.mark.parametrize("fails", [False, True])
def test_a_disk_that_hangs_holds_publishers_and_does_not_gather_their_answers(tmp_path: Path, fails: bool) -> None:
    """Nobody has subscribed to what they publish, so no queue does; each answer waits for another client's change."""
    broker = StoredBroker(tmp_path)
    fast, slow = broker.device("meter-1", keep_alive=10), broker.device("meter-2")
    backend = broker.service(clean_start=False, session_expiry_interval=60)
    broker.held = True
    backend.send(Subscribe(1, (request("fleet/other"),)))
    topics = ["fleet/meters/meter-1/telemetry", "fleet/meters/meter-2/telemetry"]
    read = b"".join(publication(topics[0], qos=1, packet_id=each).encode(V5) for each in range(1, 501))
    while not fast.transport.held:
        fast.send_bytes(read)
    waiting = len(broker.journal.open.answers)
    assert MOST_WAITING <= waiting < MOST_WAITING + 500
    slow.publish(topics[1])
    slow.publish(topics[1], content_type="text")
    slow.send(Pingreq())
    assert not slow.transport.held, "what waits for no disk is served"
    assert slow.received() == [Pingresp()]
    slow.send(publication(topics[1], qos=1, packet_id=1, content_type="text"))
    assert slow.transport.held
    broker.advance(60)
    assert fast.transport.held
    assert not fast.closed, "nobody listened to it"
    if fails:
        broker.fail()
        assert fast.received() == []
    else:
        broker.write()
    assert not fast.transport.held
    assert not slow.transport.held
    broker.held = False
    broker.settle()
    assert len(fast.received()) == waiting - 1
    assert len(slow.received()) == 1
    broker.close()
