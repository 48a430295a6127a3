"""What a recipient keeps for a client that is slow or away, in which order it gets it, and when publishers wait."""

from __future__ import annotations

import pytest

from broker.metrics import Metrics
from broker.mqtt.message import Message
from broker.mqtt.subscription import Subscription
from broker.session.framing import PLAIN_V4, framing
from broker.session.queue import QueueLimits
from broker.session.session import Session
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

OWNER = Identity("fleet.internal", Role.DEVICE, "meter-1", "meters")
RELIABLE = Subscription("t", 1)
BEST_EFFORT = Subscription("t", 0)


class Wire:
    """The connection of a session, or a publisher that it holds."""

    session: Session | None = None
    unsent = False

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.released = 0

    def send(self, packets: list[bytes]) -> None:
        self.sent += packets

    def disconnect(self, *_why: object, publish_will: bool = True) -> None:
        raise AssertionError(publish_will)

    def release(self) -> None:
        self.released += 1

    def drain_later(self, _now: float) -> None:
        raise AssertionError("these queues are short")

    def payloads(self) -> list[int]:
        """Return the numbers that have arrived since the last look."""
        numbers = [int(packet[7 if packet[0] & 6 else 5 :]) for packet in self.sent]
        self.sent.clear()
        return numbers


@pytest.fixture
def wire() -> Wire:
    return Wire()


def session_with(
    wire: Wire | None, *, messages: int = 100, size: int = 10_000, receive_maximum: int = 100, largest: int = 0
) -> Session:
    session = Session("meter-1", OWNER, QueueLimits(messages, size), Metrics())
    session.expiry_interval = 100
    if wire is not None:
        session.connect(wire, framing(v5=False, maximum_packet_size=largest), receive_maximum=receive_maximum)
    return session


def number(value: int, qos: int = 1, *, padding: int = 0, expires_at: float | None = None) -> Message:
    return Message(b"t", b"%0*d" % (padding, value), qos, expires_at=expires_at)


def give(session: Session, *values: int) -> None:
    for value in values:
        session.deliver(number(value), RELIABLE, 0.0)
    session.flush()


def test_no_more_than_the_receive_maximum_is_sent(wire: Wire) -> None:
    session = session_with(wire, receive_maximum=2)
    give(session, 1, 2, 3, 4)
    assert wire.payloads() == [1, 2]
    assert session.acknowledged(1, 0.0)
    session.flush()
    assert wire.payloads() == [3]
    assert session.queued == 1


def test_what_comes_while_others_wait_waits_behind_them(wire: Wire) -> None:
    session = session_with(wire, receive_maximum=1)
    give(session, 1, 2, 3)
    for packet_id in (1, 2, 3):
        session.acknowledged(packet_id, 0.0)
        give(session, 3 + packet_id)
    assert wire.payloads() == [1, 2, 3, 4]


def test_an_acknowledgement_of_nothing_changes_nothing(wire: Wire) -> None:
    session = session_with(wire, receive_maximum=1)
    assert not session.acknowledged(1, 0.0)
    give(session, 1, 2)
    assert not session.acknowledged(7, 0.0)
    session.acknowledged(1, 0.0)
    assert not session.acknowledged(1, 0.0)
    session.flush()
    assert wire.payloads() == [1, 2]


def test_the_queue_of_who_is_away_is_bounded_in_messages_and_drops_the_newest(wire: Wire) -> None:
    session = session_with(None, messages=3)
    give(session, 1, 2, 3, 4, 5)
    session.connect(wire, PLAIN_V4, receive_maximum=100)
    session.resume(0.0)
    session.flush()
    assert wire.payloads() == [1, 2, 3]
    assert session._metrics.dropped_queue_full == 2


def test_the_queue_is_bounded_in_bytes() -> None:
    session = session_with(None, size=250)
    for value in range(5):
        session.deliver(number(value, padding=99), RELIABLE, 0.0)
    assert session.queued == 2
    assert session._metrics.dropped_queue_full == 3


def test_bytes_that_left_the_queue_make_room(wire: Wire) -> None:
    session = session_with(wire, size=250, receive_maximum=1)
    for value in range(3):
        session.deliver(number(value, padding=99), RELIABLE, 0.0)
    for packet_id in range(1, 20):
        session.acknowledged(packet_id, 0.0)
        session.deliver(number(packet_id + 2, padding=99), RELIABLE, 0.0)
    assert session._metrics.dropped_queue_full == 0


def test_nothing_is_kept_for_a_session_that_ends_with_its_connection() -> None:
    session = session_with(None)
    session.expiry_interval = 0
    give(session, 1)
    assert session.queued == 0


def test_best_effort_messages_are_not_kept(wire: Wire) -> None:
    session = session_with(None)
    session.deliver(number(1, 0), RELIABLE, 0.0)
    session.deliver(number(2, 1), BEST_EFFORT, 0.0)
    session.connect(wire, PLAIN_V4, receive_maximum=9)
    session.resume(0.0)
    session.flush()
    assert wire.sent == []


def test_what_was_not_acknowledged_is_sent_again_first_with_dup_and_its_identifier(wire: Wire) -> None:
    session = session_with(wire, receive_maximum=3)
    give(session, 1, 2, 3, 4)
    first = list(wire.sent)
    session.acknowledged(2, 0.0)
    session.flush()
    wire.sent.clear()
    session.disconnect()
    give(session, 5)
    again = Wire()
    session.connect(again, PLAIN_V4, receive_maximum=100)
    session.resume(0.0)
    session.flush()
    assert again.sent[0] == bytes([first[0][0] | 8]) + first[0][1:]
    assert [packet[0] & 8 for packet in again.sent] == [8, 8, 8, 0]
    assert again.payloads() == [1, 3, 4, 5]


def test_a_smaller_receive_maximum_counts_for_what_is_sent_again_too(wire: Wire) -> None:
    # [MQTT-3.3.4-9] knows no exception for retransmissions.
    session = session_with(wire, receive_maximum=5)
    give(session, 1, 2, 3, 4, 5, 6)
    session.disconnect()
    again = Wire()
    session.connect(again, PLAIN_V4, receive_maximum=2)
    session.resume(0.0)
    session.flush()
    assert again.payloads() == [1, 2]
    give(session, 7)
    for packet_id, expected in ((1, 3), (2, 4), (3, 5), (4, 6), (5, 7)):
        session.acknowledged(packet_id, 0.0)
        session.flush()
        flags = again.sent[0][0] & 8
        assert again.payloads() == [expected]
        assert flags == (8 if expected <= 5 else 0)


def test_a_message_may_be_acknowledged_before_it_is_sent_again(wire: Wire) -> None:
    session = session_with(wire, receive_maximum=3)
    give(session, 1, 2, 3)
    session.disconnect()
    again = Wire()
    session.connect(again, PLAIN_V4, receive_maximum=1)
    session.resume(0.0)
    session.acknowledged(2, 0.0)
    session.acknowledged(1, 0.0)
    session.flush()
    assert again.payloads() == [1, 3]


def test_a_second_interruption_sends_all_again(wire: Wire) -> None:
    session = session_with(wire, receive_maximum=3)
    give(session, 1, 2, 3, 4)
    for receive_maximum in (1, 2, 9):
        session.disconnect()
        wire.sent.clear()
        session.connect(wire, PLAIN_V4, receive_maximum=receive_maximum)
        session.resume(0.0)
        session.flush()
    assert wire.payloads() == [1, 2, 3, 4]


def test_a_message_too_large_for_the_client_that_came_back_is_let_go(wire: Wire) -> None:
    session = session_with(wire, receive_maximum=1)
    session.deliver(number(1, padding=50), RELIABLE, 0.0)
    give(session, 2)
    session.disconnect()
    wire.sent.clear()
    session.connect(wire, framing(v5=False, maximum_packet_size=20), receive_maximum=1)
    session.resume(0.0)
    session.flush()
    assert wire.payloads() == [2]


def test_messages_too_large_for_the_client_keep_nothing_back(wire: Wire) -> None:
    session = session_with(None)
    for padding in (50, 50, 0):
        session.deliver(number(3, padding=padding), RELIABLE, 0.0)
    session.connect(wire, framing(v5=False, maximum_packet_size=20), receive_maximum=1)
    session.resume(0.0)
    session.flush()
    assert wire.payloads() == [3], "nobody acknowledges what was never sent: nothing else would ask for the next"
    assert session.queued == 0
    assert session._metrics.dropped_too_large == 2


def test_expired_messages_do_not_keep_newer_ones_out_of_a_full_queue(wire: Wire) -> None:
    session = session_with(None, messages=3)
    for value, expires_at in ((1, 5.0), (2, None), (3, 9.0)):
        session.deliver(number(value, expires_at=expires_at), RELIABLE, 0.0)
    session.deliver(number(4), RELIABLE, 4.9)
    session.deliver(number(5), RELIABLE, 5.0)
    session.deliver(number(6), RELIABLE, 9.0)
    session.deliver(number(7), RELIABLE, 9.0)
    assert (session._metrics.dropped_expired, session._metrics.dropped_queue_full) == (2, 2)
    session.connect(wire, PLAIN_V4, receive_maximum=9)
    session.resume(9.0)
    session.flush()
    assert wire.payloads() == [2, 5, 6]


def test_expired_messages_make_room_in_bytes_too(wire: Wire) -> None:
    session = session_with(None, size=250)
    for value in (1, 2):
        session.deliver(number(value, padding=99, expires_at=5.0), RELIABLE, 0.0)
    for value in (3, 4, 5):
        session.deliver(number(value, padding=99), RELIABLE, 5.0)
    session.connect(wire, PLAIN_V4, receive_maximum=9)
    session.resume(5.0)
    session.flush()
    assert wire.payloads() == [3, 4]


def test_a_full_queue_is_searched_for_expired_messages_once_a_second() -> None:
    session = session_with(None, messages=2)
    for value in (1, 2):
        session.deliver(number(value, expires_at=5.0 + value / 10), RELIABLE, 0.0)
    for now in (5.1, 5.2, 6.0):  # At 5.2 the second has expired, and is not looked for.
        session.deliver(number(9), RELIABLE, now)
    assert (session._metrics.dropped_expired, session._metrics.dropped_queue_full) == (1, 2)
    session.deliver(number(9), RELIABLE, 6.1)
    assert (session._metrics.dropped_expired, session._metrics.dropped_queue_full) == (2, 2)


def test_a_long_queue_is_searched_less_often() -> None:
    session = session_with(None, messages=3000, size=1 << 20)
    for value in range(3000):
        session.deliver(number(value, expires_at=5.0 if value == 0 else 6.0 if value == 1 else None), RELIABLE, 0.0)
    for now in (5.0, 6.0, 7.9, 8.0):
        session.deliver(number(9), RELIABLE, now)
    assert (session._metrics.dropped_expired, session._metrics.dropped_queue_full) == (2, 2)


def test_expired_messages_are_dropped_from_the_queue(wire: Wire) -> None:
    session = session_with(wire, receive_maximum=1)
    give(session, 1)
    session.deliver(number(2, expires_at=5.0), RELIABLE, 0.0)
    give(session, 3)
    session.acknowledged(1, 5.0)
    session.flush()
    assert wire.payloads() == [1, 3]
    assert session._metrics.dropped_expired == 1


def test_a_subscriber_that_falls_behind_asks_for_its_publishers_to_be_held(wire: Wire) -> None:
    session = session_with(wire, messages=10, receive_maximum=1)
    assert [session.deliver_reliably(number(value)) for value in range(6)] == [False] * 5 + [True]
    publisher = Wire()
    session.hold(publisher, 0.0)
    for packet_id in range(1, 4):
        session.acknowledged(packet_id, 0.0)
    assert publisher.released == 0
    session.acknowledged(4, 0.0)
    assert publisher.released == 1
    assert session._metrics.dropped_queue_full == 0


def test_a_subscriber_of_large_messages_holds_until_the_bytes_are_gone(wire: Wire) -> None:
    session = session_with(wire, messages=1000, size=1000, receive_maximum=1)
    held = [session.deliver_reliably(number(value, padding=99)) for value in range(7)]
    assert held == [False] * 5 + [True] * 2
    publisher = Wire()
    session.hold(publisher, 0.0)
    session.acknowledged(1, 0.0)
    assert publisher.released == 0, "500 of 1000 bytes still wait"
    for packet_id in range(2, 7):
        session.acknowledged(packet_id, 0.0)
    assert publisher.released == 1


def test_nobody_waits_for_a_subscriber_that_takes_nothing(wire: Wire) -> None:
    session = session_with(wire, messages=10, receive_maximum=1)
    for value in range(8):
        session.deliver_reliably(number(value))
    publisher = Wire()
    session.hold(publisher, 0.0)
    session.give_up()
    assert publisher.released == 1
    assert not session.deliver_reliably(number(8))
    for packet_id in range(1, 9):
        session.acknowledged(packet_id, 0.0)
    assert [session.deliver_reliably(number(value)) for value in range(6)][-1]


def test_the_queue_of_a_subscriber_that_takes_nothing_is_bounded_in_messages(wire: Wire) -> None:
    session = session_with(wire, messages=10, receive_maximum=1)
    for value in range(8):
        session.deliver_reliably(number(value))
    session.give_up()
    for value in range(100):
        session.deliver_reliably(number(value))
    assert session.queued == 10
    assert session._metrics.dropped_queue_full == 97


def test_held_publishers_are_let_go_when_the_subscriber_leaves(wire: Wire) -> None:
    session = session_with(wire, messages=2, receive_maximum=1)
    for value in range(3):
        session.deliver_reliably(number(value))
    publishers = [Wire(), Wire()]
    for publisher in publishers:
        session.hold(publisher, 0.0)
    session.disconnect()
    assert [publisher.released for publisher in publishers] == [1, 1]
    assert not session.congested


def test_deliver_says_as_the_fast_way_does_whether_to_hold(wire: Wire) -> None:
    session = session_with(wire, messages=2, receive_maximum=1)
    assert [session.deliver(number(value), RELIABLE, 0.0) for value in range(3)] == [False, True, True]
    assert not session.deliver(number(9, 0), RELIABLE, 0.0)


def test_the_outbox_list_is_never_replaced(wire: Wire) -> None:
    session = session_with(wire)
    outbox = session.outbox
    give(session, 1)
    session.disconnect()
    session.connect(wire, framing(v5=True), receive_maximum=1)
    session.resume(0.0)
    session.flush()
    assert session.outbox is outbox
    assert outbox == []


def test_best_effort_messages_of_the_turn_in_which_a_client_connects_do_not_precede_its_connack(wire: Wire) -> None:
    session = session_with(None)
    session.outbox.append(b"stray")
    session.connect(wire, PLAIN_V4, receive_maximum=1)
    session.flush()
    assert wire.sent == []


@pytest.mark.parametrize("gives_up", [True, False], ids=["a second passes", "it leaves before that"])
def test_who_comes_back_after_taking_nothing_holds_nobody_until_it_has_caught_up(wire: Wire, gives_up: bool) -> None:
    session = session_with(wire, messages=10, receive_maximum=1)
    for value in range(6):
        session.deliver_reliably(number(value))
    publisher = Wire()
    session.hold(publisher, 0.0)
    if gives_up:
        session.give_up()
    session.disconnect()
    assert publisher.released == 1
    session.connect(Wire(), PLAIN_V4, receive_maximum=1)
    session.resume(0.0)
    assert not session.deliver_reliably(number(6)), "else it comes back each second, and holds them for ever"
    for packet_id in range(1, 8):
        session.acknowledged(packet_id, 0.0)
    assert [session.deliver_reliably(number(value)) for value in range(6)][-1]


def test_who_comes_back_with_a_full_queue_and_has_held_nobody_yet_holds_publishers(wire: Wire) -> None:
    session = session_with(wire, messages=10, receive_maximum=1)
    session.disconnect()
    for value in range(6):
        session.deliver_reliably(number(value))
    session.connect(Wire(), PLAIN_V4, receive_maximum=1)
    session.resume(0.0)
    assert session.deliver_reliably(number(6))
