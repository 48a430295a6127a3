"""What one client may ask of a moment: too much in a packet is refused, too much in a read goes in portions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.admission.policy import Rules
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.disconnect import Disconnect
from broker.mqtt.packets import Packet, Pingreq, Pingresp, Puback, Publish, Suback, Subscribe, Unsubscribe
from broker.mqtt.properties import Properties
from broker.sockets.work import PORTION
from provisioning.pki.openssl_library import RECORD
from provisioning.pki.role import Role
from tests.support.faulty_extension import FaultyExtension
from tests.support.pki import shared_device
from tests.support.policies import of_roles
from tests.support.wire import V5, V31, V311, KeptSession, MemoryBroker, WireClient, publication, request, will

OWN = "fleet/meters/meter-1/state"
PAIRS = (("name", "value"),)


def subscription(filters: int, **properties: Any) -> Subscribe:
    return Subscribe(1, tuple(request(f"fleet/{number}") for number in range(filters)), Properties(**properties))


@pytest.mark.parametrize("version", [V5, V311])
@pytest.mark.parametrize(
    ("most", "too_many"),
    [
        (subscription(20), subscription(21)),
        (Unsubscribe(1, ("a",) * 20), Unsubscribe(1, ("a",) * 21)),
    ],
)
def test_a_packet_with_more_filters_than_it_may_have_ends_the_connection(
    version: ProtocolVersion, most: Packet, too_many: Packet
) -> None:
    client = MemoryBroker(max_packet_items=20, max_subscriptions=20).device("meter-1", version=version)
    client.send(most)
    assert not client.closed
    assert len(client.received()) == 1
    client.send(too_many)
    assert client.closed
    assert client.broker.metrics.closed == {"BAD_PACKET": 1}
    if version is V5:
        assert client.farewell().reason_code is ReasonCode.QUOTA_EXCEEDED


@pytest.mark.parametrize(
    ("most", "too_many"),
    [
        (
            publication(OWN, user_properties=PAIRS * 19, content_type="text"),
            publication(OWN, user_properties=PAIRS * 20, content_type="text"),
        ),
        (subscription(10, user_properties=PAIRS * 10), subscription(10, user_properties=PAIRS * 11)),
    ],
)
def test_properties_are_counted_with_the_filters(most: Packet, too_many: Packet) -> None:
    client = MemoryBroker(max_packet_items=20, max_subscriptions=20).device("meter-1")
    client.send(most)
    assert not client.closed
    client.send(too_many)
    assert client.farewell().reason_code is ReasonCode.QUOTA_EXCEEDED


def test_all_subscriptions_that_a_session_may_have_may_be_asked_for_in_one_packet() -> None:
    client = MemoryBroker(max_packet_items=20, max_subscriptions=30).device("meter-1")
    client.send(subscription(30))
    assert not client.closed
    client.send(subscription(31))
    assert client.farewell().reason_code is ReasonCode.QUOTA_EXCEEDED


def test_the_properties_of_a_connect_and_its_will_are_bounded_before_anybody_is_admitted() -> None:
    broker = MemoryBroker(max_packet_items=20, max_subscriptions=20)
    client = broker.open(shared_device("meter-1"))
    client.connect(client_id="meter-1", user_properties=PAIRS * 21, expect=ReasonCode.QUOTA_EXCEEDED)
    assert client.closed
    assert broker.metrics.refused == {"BAD_PACKET": 1}


def in_one_read(client: WireClient, *packets: Packet) -> None:
    """Let the broker read *packets* at once; the event loop has not gone round when this returns."""
    client.connection.receive(b"".join(each.encode(client.version) for each in packets), client.broker.now)
    client.broker.engine.turn.end()


def test_a_client_that_asks_for_much_at_once_lets_others_be_served_between() -> None:
    broker = MemoryBroker()
    greedy, modest = broker.device("meter-1"), broker.device("meter-2")
    in_one_read(greedy, *(publication("not/mine", b"", 1, packet_id=number) for number in range(1, 1001)))
    assert len(greedy.received()) == PORTION
    assert greedy.transport.held
    in_one_read(modest, Pingreq())
    assert modest.received() == [Pingresp()]
    broker.settle()
    answers = greedy.received()
    assert [each.packet_id for each in answers if isinstance(each, Puback)] == list(range(PORTION + 1, 1001))
    assert not greedy.transport.held
    assert broker.metrics.publishes_denied == 1000


def one_round(broker: MemoryBroker) -> None:
    """Let the event loop go round once."""
    for _ in range(len(broker._soon)):
        broker._soon.popleft()()


def test_of_many_clients_that_ask_for_much_a_round_takes_no_longer() -> None:
    """Else fifty devices that publish what they may not hold the loop for a fifth of a second, each turn."""
    broker = MemoryBroker()
    greedy = [broker.device(f"meter-{number}") for number in range(50)]
    modest = broker.device("modest")
    much = [publication("not/mine", b"", 1, packet_id=number) for number in range(1, 301)]
    broker.engine.turn.begin()
    for client in greedy:
        client.connection.receive(b"".join(each.encode(V5) for each in much), broker.now)
    modest.connection.receive(b"".join(each.encode(V5) for each in much[:5]), broker.now)
    broker.engine.turn.end()
    denied = [broker.metrics.publishes_denied]
    assert 4 * PORTION <= denied[0] <= 4 * PORTION + len(greedy)
    assert all(len(client.received()) >= 1 for client in greedy), "somebody was not served"
    rounds_of_modest = 0
    while broker._soon:
        one_round(broker)
        denied.append(broker.metrics.publishes_denied)
        rounds_of_modest += modest.transport.held
    assert denied[-1] == 300 * len(greedy) + 5
    assert max(later - before for before, later in pairwise(denied)) <= PORTION + 8
    assert rounds_of_modest <= 2 * len(greedy) * 8 // PORTION, "who asks for little waits for all that others ask for"
    assert [each.packet_id for each in modest.received() if isinstance(each, Puback)] == [1, 2, 3, 4, 5]


def test_filters_count_as_much_as_packets() -> None:
    broker = MemoryBroker()
    greedy = broker.service()
    in_one_read(greedy, *(subscription(100) for _ in range(5)))
    assert len(greedy.received()) == 1
    broker.settle()
    assert len(greedy.received()) == 4


def test_what_the_data_path_does_by_itself_is_not_cut_up() -> None:
    broker = MemoryBroker()
    meter = broker.device("meter-1")
    in_one_read(meter, *(publication(OWN, b"x", 1, packet_id=number) for number in range(1, 501)))
    assert len(meter.received()) == 500


def test_what_waits_for_its_turn_goes_with_the_connection() -> None:
    broker = MemoryBroker()
    greedy = broker.device("meter-1")
    in_one_read(greedy, *(publication("not/mine", b"", 1, packet_id=number) for number in range(1, 1001)))
    greedy.vanish()
    assert broker.metrics.publishes_denied == PORTION


MANY_PINGS = (Pingreq(),) * 600
MANY_FILTERS = (subscription(500),) * 8
"""Work for several portions; the packet at which one ends is decoded, and waits."""
ONE_PORTION = tuple(publication("not/mine", b"", 1, packet_id=number) for number in range(1, PORTION + 1))
"""What comes behind is the packet that waits."""


@pytest.mark.parametrize("before", [MANY_PINGS, (subscription(500), *MANY_FILTERS), MANY_FILTERS[:4], ONE_PORTION])
@pytest.mark.parametrize(
    ("last", "wills"),
    [
        (Disconnect(), []),
        (Disconnect(ReasonCode.NORMAL_DISCONNECTION, Properties(session_expiry_interval=0)), []),
        (Disconnect(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE), [b"gone"]),
        (Disconnect(ReasonCode.SERVER_BUSY), [b"gone"]),  # A server's.
        (publication(OWN, b"\xe0\0"), [b"gone"]),  # Only looks like one.
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_who_has_said_goodbye_behind_much_else_leaves_no_will(
    before: tuple[Packet, ...], last: Packet, wills: list[bytes], again: bool
) -> None:
    """MQTT-3.14.4-3: the DISCONNECT was read; the client cuts the connection, or connects anew, before its turn."""
    broker = MemoryBroker(max_packet_items=1000, max_subscriptions=500)
    watcher = broker.service()
    watcher.subscribe("fleet/meters/meter-1/event", qos=1)
    kept: KeptSession = {"clean_start": False, "session_expiry_interval": 600}
    client = broker.device("meter-1", will=will("fleet/meters/meter-1/event", qos=1), **kept)
    client.connection.receive(b"".join(each.encode(V5) for each in (*before, last)), broker.now)
    assert not client.closed, "it waits"
    ends = isinstance(last, Disconnect) and last.properties.session_expiry_interval == 0
    if again:
        present = broker.open(shared_device("meter-1")).connect(client_id="meter-1", **kept).session_present
        assert present is not ends
    else:
        client.vanish()
        assert len(broker.engine.registry) == (1 if ends else 2)
    assert watcher.payloads() == wills


@pytest.mark.parametrize(
    ("version", "first", "wills"), [(V31, 0xE1, []), (V31, 0xEF, []), (V311, 0xE0, []), (V311, 0xE1, [b"gone"])]
)
def test_a_goodbye_that_waits_is_read_as_any_other(version: ProtocolVersion, first: int, wills: list[bytes]) -> None:
    """MQTT 3.1 marks the flags of DISCONNECT as "x", don't care; in 3.1.1 they are reserved."""
    broker = MemoryBroker()
    watcher = broker.service()
    watcher.subscribe("fleet/meters/meter-1/event", qos=1)
    client = broker.device("meter-1", version=version, will=will("fleet/meters/meter-1/event", qos=1))
    client.connection.receive(Pingreq().encode(version) * 600 + bytes((first, 0)), broker.now)
    assert not client.closed, "it waits"
    client.vanish()
    assert watcher.payloads() == wills


def test_a_bug_that_a_portion_meets_ends_the_connection_and_no_other() -> None:
    """As one that a read meets (`broker.sockets.poller`): else the client waited for ever, unanswered."""
    broker = MemoryBroker()
    client, other = broker.device("meter-1"), broker.device("meter-2")
    extension: Any = FaultyExtension()
    broker.engine.extension = extension
    client.connection.receive(Pingreq().encode(V5) * 600 + publication(OWN, b"x").encode(V5), broker.now)
    assert not client.closed, "the message waits"
    with capture_logs() as logs:
        broker.settle()
    assert (client.closed, client.transport.was_reset) == (True, True)
    assert broker.metrics.closed == {"ABORTED": 1}
    (line,) = [each for each in logs if each.get("code") == "INTERNAL_ERROR"]
    assert (line["event"], line["exc_info"]) == ("connection failed", True)
    other.ping()
    assert other.received() == [Pingresp()]


def test_what_waits_and_is_no_packet_holds_no_goodbye() -> None:
    broker = MemoryBroker()
    watcher = broker.service()
    watcher.subscribe("fleet/meters/meter-1/event", qos=1)
    client = broker.device("meter-1", will=will("fleet/meters/meter-1/event", qos=1))
    goodbye = Disconnect().encode(V5)
    client.connection.receive(Pingreq().encode(V5) * 600 + b"\x30\xff\xff\xff\xff\x01" + goodbye, broker.now)
    assert not client.closed
    client.vanish()
    assert watcher.payloads() == [b"gone"]


def test_portions_of_one_read_are_all_paid_for_by_the_rate() -> None:
    broker = MemoryBroker(max_packet_rate=100)
    greedy = broker.device("meter-1")
    in_one_read(greedy, *(publication("not/mine", b"", 1, packet_id=number) for number in range(1, 1001)))
    broker.settle()
    assert len(greedy.received()) == 1000
    assert greedy.transport.rests[-1] == pytest.approx(9.0, abs=0.1)


TALKS_TO_ITSELF = of_roles(
    {Role.DEVICE: Rules(publish_allow=(f"{OWN}/#",), subscribe_allow=(f"{OWN}/#",)), Role.SERVICE: Rules()}
)
"""Of a device that may read what it says: what it chooses meets what it chooses."""
LEVELS = "/a" * 56


def talker(**limits: Any) -> WireClient:
    return MemoryBroker(policy=TALKS_TO_ITSELF, **limits).device("meter-1")


def messages_to_new_topics(number: int, qos: int = 0) -> list[Publish]:
    """Return messages to topics of many levels, none of which anybody has published to."""
    return [
        publication(f"{OWN}{LEVELS}/{each}", b"", qos, packet_id=each + 1 if qos else None) for each in range(number)
    ]


def expensive_filters() -> list[str]:
    """Return filters each of which a topic of many letters a matches, level by level, and none shares its way."""
    return [OWN + "".join("/+" if each >> bit & 1 else "/a" for bit in range(56)) + "/+" for each in range(100)]


@pytest.mark.parametrize("qos", [0, 1])
def test_a_new_topic_counts_for_what_it_is_compared_with(qos: int) -> None:
    """Else a hundred messages of 140 bytes hold the loop for a quarter of a second; a turn reads 64 times so many."""
    greedy = talker()
    filters = expensive_filters()
    for first in range(0, 100, 20):
        greedy.subscribe(*filters[first : first + 20])
    greedy.received()
    before = greedy.broker.metrics.messages_received
    in_one_read(greedy, *messages_to_new_topics(100, qos))
    at_once = greedy.broker.metrics.messages_received - before
    assert 1 <= at_once <= 4
    assert greedy.transport.held
    greedy.broker.settle()
    assert greedy.broker.metrics.messages_received - before == 100
    assert len([each for each in greedy.received() if isinstance(each, Publish)]) == 100


def test_topics_that_are_known_are_not_cut_up_behind_new_ones() -> None:
    greedy = talker()
    in_one_read(greedy, *messages_to_new_topics(PORTION - 2))
    in_one_read(greedy, *(messages_to_new_topics(PORTION - 2) * 3))
    assert not greedy.transport.held


def test_a_replay_counts_for_the_places_that_it_looks_at() -> None:
    """Else a loop of SUBSCRIBE packets begins hundreds of replays in one turn."""
    greedy = talker(max_retained_of_device=3_000)
    for number in range(2_000):
        greedy.publish(f"{OWN}/{number}", b"x", retain=True)
    again = Subscribe(1, (request(f"{OWN}/+/none"),))
    in_one_read(greedy, *[again] * 100)
    assert 1 <= len([each for each in greedy.received() if isinstance(each, Suback)]) <= 4
    greedy.broker.settle()
    assert len(greedy.received()) >= 96


@pytest.mark.parametrize("packet", [Pingreq(), Puback(9)])
def test_a_read_full_of_pings_or_acknowledgements_is_taken_in_portions(packet: Packet) -> None:
    """Else fifty clients that send nothing else hold the loop for a tenth of a second, each turn."""
    broker = MemoryBroker()
    greedy, modest = broker.device("meter-1"), broker.device("meter-2")
    work = broker.engine.turn.work
    before, count = work.done, RECORD // len(packet.encode(V5))
    in_one_read(greedy, *[packet] * count)
    assert greedy.transport.held
    at_once = (work.done - before) * 64
    assert at_once == 512
    in_one_read(modest, Pingreq())
    assert modest.received() == [Pingresp()]
    answers = len(greedy.received())
    broker.settle()
    assert not greedy.transport.held
    assert work.done - before == count // 64
    assert (answers, answers + len(greedy.received())) == ((512, count) if packet == Pingreq() else (0, 0))


@pytest.mark.parametrize("packet", [Pingreq(), Puback(9)])
def test_a_portion_that_ends_with_the_read_waits_for_nothing(packet: Packet) -> None:
    client = MemoryBroker().device("meter-1")
    in_one_read(client, *[packet] * 512)
    assert not client.transport.held


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("how", ["by itself", "in a share"])
def test_a_read_full_of_messages_counts_for_the_packets_that_a_few_subscribers_get(qos: int, how: str) -> None:
    """Else a turn reads 64 times so many: half a second of one device, for five services with identifiers."""
    broker = MemoryBroker()
    services = [broker.service("w", client_id=f"w-{number}") for number in range(4)]
    for service in services:
        service.subscribe("$share/g/fleet/#" if how == "in a share" else "fleet/#", qos=qos, identifier=1)
    client = broker.device("meter-1")
    client.publish(OWN, b"", qos=qos)
    before = broker.engine.turn.work.done
    in_one_read(client, *(publication(OWN, b"", qos, packet_id=number + 1 if qos else None) for number in range(320)))
    assert broker.engine.turn.work.done - before == 320 * (1 if how == "in a share" else 4) // 16
    assert not client.transport.held, "the data path is not cut up"


def test_user_properties_count() -> None:
    greedy = talker()
    packet = publication(OWN, b"", 1, packet_id=1, user_properties=PAIRS * 900)
    in_one_read(greedy, *[packet] * 20)
    assert 1 <= len(greedy.received()) <= 4
    greedy.broker.settle()
    assert len(greedy.received()) >= 16
