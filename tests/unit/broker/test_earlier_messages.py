"""The clock is set: messages of an earlier process are moved a portion at a time, whatever happens in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.engine.handover import PORTION
from broker.mqtt.codes import QoS
from broker.mqtt.message import Message, PersonalMessage
from broker.mqtt.packets import Subscribe, SubscriptionRequest
from broker.upkeep.earlier_messages import EarlierMessages
from tests.support.stored import WALL_OFFSET, StoredBroker

STATE = "fleet/meters/meter-1/state"
TOPICS = [f"{STATE}/{number}" for number in range(4)]


@pytest.mark.parametrize("moment", range(12))
@pytest.mark.parametrize("again", [0.0, 10.0, -20.0])
def test_each_is_moved_once_whatever_is_queued_or_said_of_the_clock_in_between(
    tmp_path: Path, moment: int, again: float
) -> None:
    before = StoredBroker(tmp_path)
    for name in ("backend", "second"):
        session = before.service(name, clean_start=False, session_expiry_interval=300)
        session.subscribe("fleet/#", qos=1)
        session.leave()
    for topic in TOPICS:
        before.device("meter-1").publish(topic, b"x", qos=1, retain=True, message_expiry_interval=60)
    after = before.killed()
    rounds: deque[Callable[[], None]] = deque()
    earlier = EarlierMessages(after.engine, rounds.append, portion=1)
    earlier.clock_set(20.0)
    for _ in range(moment):
        if rounds:
            rounds.popleft()()
    newer = after.service("newer", clean_start=False, session_expiry_interval=300)
    newer.send(Subscribe(1, (SubscriptionRequest("fleet/#", QoS.AT_LEAST_ONCE),)))
    newer.leave()
    after.device("meter-1").publish(f"{STATE}/own", b"y", qos=1, message_expiry_interval=60)
    earlier.clock_set(again)
    while rounds:
        rounds.popleft()()
    after.settle()
    assert after.journal.wall_offset == WALL_OFFSET + 20.0 + again
    earlier_ones = dict.fromkeys(TOPICS, 60.0)
    all_of_them = earlier_ones | {f"{STATE}/own": 60.0 + 20.0 + again}
    for broker in (after, after.killed()):
        assert ends(broker) == dict.fromkeys(("backend", "second", "newer"), all_of_them) | {"retained": earlier_ones}
    before.close()


@pytest.mark.parametrize("given", range(4))
@pytest.mark.parametrize("moment", range(4))
def test_what_a_member_of_a_share_is_giving_to_another_at_the_time_is_moved_too(
    tmp_path: Path, given: int, moment: int
) -> None:
    """Its session has ended, and was not looked at: what it had still to give expired by the clock of before."""
    before = StoredBroker(tmp_path)
    for name in ("heir", "other"):
        session = before.service(name, clean_start=False, session_expiry_interval=300)
        if name == "other":
            session.subscribe("$share/group/fleet/#", qos=1)
        session.leave()
    topics, device = [f"{STATE}/{number}" for number in range(2 * PORTION + 1)], before.device("meter-1")
    for topic in topics:
        device.publish(topic, b"x", qos=1, message_expiry_interval=60)
    after = before.killed()
    heir = after.service("heir", clean_start=False, session_expiry_interval=300)
    heir.subscribe("$share/group/fleet/#", qos=1)
    heir.leave()
    after.held = True
    after.engine.forget(after.engine.registry.called("other")[0], after.now)
    for _ in range(given):
        if after._soon:
            after._soon.popleft()()
    rounds: deque[Callable[[], None]] = deque()
    EarlierMessages(after.engine, rounds.append, portion=1).clock_set(20.0)
    for _ in range(moment):
        if rounds:
            rounds.popleft()()
    while after._soon:
        after._soon.popleft()()
    while rounds:
        rounds.popleft()()
    after.held = False
    after.settle()
    for broker in (after, after.killed()):
        assert ends(broker) == {"heir": dict.fromkeys(topics, 60.0), "retained": {}}
    before.close()


def ends(broker: StoredBroker) -> dict[str, dict[str, float]]:
    """Return when what each session waits for expires, and what is retained, in seconds by the first clock."""
    found: dict[str, list[Message]] = {"retained": broker.engine.retained.all()}
    for session in broker.engine.registry.all():
        if session.persistent:
            waits = [each for each in session.deliveries() if isinstance(each, PersonalMessage)]
            found[session.client_id] = [each.message for each in waits]
    offset = broker.journal.wall_offset - WALL_OFFSET - broker.now
    return {
        whose: {each.topic.decode(): round((each.expires_at or 0.0) + offset, 3) for each in messages}
        for whose, messages in found.items()
    }
