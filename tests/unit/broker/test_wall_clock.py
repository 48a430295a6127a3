"""The wall clock is set, or the machine sleeps: certificates end by it all the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.packets import Publish, Subscribe, SubscriptionRequest
from broker.mqtt.properties import Properties
from broker.upkeep.wall_clock import WallClock
from tests.support.due import do_what_is_due
from tests.support.pki import shared_pki
from tests.support.stored import WALL_OFFSET, StoredBroker
from tests.support.wire import KEPT, MemoryBroker, WireClient, publication, request

EPOCH = shared_pki().now.timestamp() - 1000.0


class Clocks:
    """A broker whose wall clock can be set apart from its monotonic one."""

    def __init__(self, grace: float = 300.0) -> None:
        self.broker = MemoryBroker(expiry_notice=0, grace=grace)
        self.ahead = 0.0
        self.clock = WallClock(self.broker.now, EPOCH + self.broker.now)

    def short(self, seconds: float) -> WireClient:
        """Return a client whose certificate is valid for *seconds* from now."""
        held = shared_pki().device(f"short-{seconds:.0f}", not_after=self.broker.wall + timedelta(seconds=seconds))
        client = self.broker.open(held)
        client.connect(client_id=f"short-{seconds:.0f}", keep_alive=0)
        return client

    def waiting(self, seconds: float) -> WireClient:
        """Return a client with such a certificate, by the clock as it is set, that has not said CONNECT."""
        wall = self.broker.wall = self.wall()
        return self.broker.open(shared_pki().device("slow", not_after=wall + timedelta(seconds=seconds)))

    def wall(self) -> datetime:
        return datetime.fromtimestamp(EPOCH + self.broker.now + self.ahead, UTC)

    def advance(self, seconds: int) -> None:
        for _ in range(seconds):
            self.broker.now += 1.0
            self.clock.look(self.broker.engine, self.broker.now, EPOCH + self.broker.now + self.ahead)
            do_what_is_due(self.broker.engine, self.broker.now)
            self.broker.settle()


def test_a_clock_that_is_set_ahead_gives_nobody_more_than_his_certificate() -> None:
    clocks = Clocks()
    first, second = clocks.short(100), clocks.short(200)
    clocks.ahead = 150.0
    with capture_logs() as logs:
        clocks.advance(3)
    assert first.farewell().reason_code is ReasonCode.NOT_AUTHORIZED
    assert not second.closed
    assert [(each["seconds"], each["connections"]) for each in logs if each.get("code") == "CLOCK_SET"] == [(150, 2)]
    clocks.advance(40)
    assert not second.closed
    clocks.advance(10)
    assert second.farewell().reason_code is ReasonCode.NOT_AUTHORIZED
    assert clocks.broker.metrics.closed == {"EXPIRED": 2}


def test_a_clock_that_is_set_back_puts_nobody_out_before_his_time() -> None:
    clocks = Clocks()
    client = clocks.short(100)
    clocks.ahead = -50.0
    clocks.advance(140)
    assert not client.closed
    clocks.advance(13)
    assert client.closed


def test_a_clock_that_is_set_back_gives_nobody_more_if_others_know_the_time() -> None:
    """Its connection was extended by as much; and the log says what is wrong, once, and when it is over."""
    clocks = Clocks()
    client = clocks.short(100)
    clocks.broker.engine.admission.status.proven.hear_service(clocks.wall(), clocks.broker.now, clocks.wall())
    clocks.ahead = -7200.0
    with capture_logs() as logs:
        clocks.advance(99)
        assert not client.closed
        clocks.advance(3)
        assert client.farewell().reason_code is ReasonCode.NOT_AUTHORIZED
        clocks.ahead = 0.0
        clocks.advance(2)
    assert clocks.broker.metrics.closed == {"EXPIRED": 1}
    (behind,) = (each for each in logs if each.get("code") == "CLOCK_BEHIND")
    assert behind["seconds"] == 7200
    assert "by the provisioning service it is" in behind["detail"]
    assert [each["code"] for each in logs if each.get("code") in {"CLOCK_BEHIND", "CLOCK_AGREES"}][-1] == "CLOCK_AGREES"


def test_who_was_admitted_by_a_clock_that_is_behind_ends_when_the_time_becomes_known() -> None:
    """As by an advisory broker, which has not waited for the service's word."""
    clocks = Clocks()
    first, second = clocks.short(1000), clocks.short(4000)
    proven = clocks.broker.engine.admission.status.proven
    assert proven.hear_service(clocks.wall() + timedelta(seconds=1500), clocks.broker.now, clocks.wall())
    clocks.advance(2)
    assert first.farewell().reason_code is ReasonCode.NOT_AUTHORIZED
    assert not second.closed
    proven.hear_service(clocks.wall(), clocks.broker.now, clocks.wall())
    clocks.advance(2600)
    assert not second.closed, "the service's clock was set right: it is not as late as that"


@pytest.mark.parametrize("ahead", [150.0, -150.0])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_who_has_not_said_connect_when_the_clock_is_set_ends_with_his_certificate(
    *, ahead: float, before: bool
) -> None:
    """Also if he came after it was set, and before that was seen: then nothing is to be moved."""
    clocks = Clocks()
    if before:
        client = clocks.waiting(200)
        clocks.ahead = ahead
        left = 200 - ahead
    else:
        clocks.ahead = ahead
        client, left = clocks.waiting(200), 200.0
    clocks.advance(3)
    client.connect(client_id="slow", keep_alive=0)
    clocks.advance(int(left) - 4)
    assert not client.closed
    clocks.advance(4)
    assert client.farewell().reason_code is ReasonCode.NOT_AUTHORIZED
    assert clocks.broker.metrics.closed == {"EXPIRED": 1}


def test_who_is_admitted_between_the_clock_s_change_and_the_look_ends_with_his_certificate() -> None:
    clocks = Clocks()
    client = clocks.waiting(200)
    clocks.ahead = 150.0
    client.connect(client_id="slow", keep_alive=0)
    clocks.advance(46)
    assert not client.closed
    clocks.advance(6)
    assert client.farewell().reason_code is ReasonCode.NOT_AUTHORIZED


@pytest.mark.parametrize("ahead", [150.0, -150.0])
def test_who_comes_and_is_admitted_between_the_clock_s_change_and_the_look_is_not_moved(ahead: float) -> None:
    clocks = Clocks()
    clocks.ahead = ahead
    client = clocks.waiting(200)
    client.connect(client_id="slow", keep_alive=0)
    clocks.advance(198)
    assert not client.closed
    clocks.advance(4)
    assert client.farewell().reason_code is ReasonCode.NOT_AUTHORIZED


def test_who_waits_is_not_put_out_because_the_clock_was_set() -> None:
    clocks = Clocks()
    client = clocks.waiting(10_000)
    clocks.ahead = 5000.0
    clocks.advance(1)
    assert not client.closed
    clocks.advance(60)
    assert clocks.broker.metrics.refused == {"CONNECT_TIMEOUT": 1}


@pytest.mark.parametrize("ahead", [8 * 3600.0, 299.0, -299.0])
def test_who_comes_after_a_sleep_waits_for_the_feed(ahead: float) -> None:
    """What was revoked meanwhile is not known: the data is as old as the sleep was long, beside its grace."""
    clocks = Clocks(grace=300.0)
    clocks.broker.freshness.current(clocks.broker.now)
    clocks.ahead = ahead
    clocks.advance(1)
    admitted = ahead < 300
    late = clocks.broker.open(shared_pki().device("late", not_after=clocks.wall() + timedelta(hours=1)))
    late.connect(client_id="late", expect=ReasonCode.SUCCESS if admitted else ReasonCode.SERVER_UNAVAILABLE)
    assert clocks.broker.metrics.refused == ({} if admitted else {"REVOCATION_STATUS_UNKNOWN": 1})
    clocks.broker.freshness.current(clocks.broker.now)
    another = clocks.broker.open(shared_pki().device("another", not_after=clocks.wall() + timedelta(hours=1)))
    another.connect(client_id="another")


def test_a_clock_that_is_steered_is_followed_in_steps() -> None:
    clocks = Clocks()
    client = clocks.short(100)
    with capture_logs() as logs:
        for _ in range(60):
            clocks.ahead += 0.5
            clocks.advance(1)
    assert len([each for each in logs if each.get("code") == "CLOCK_SET"]) == 15
    assert not client.closed
    clocks.advance(14)
    assert client.closed


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_what_is_stored_from_then_on_is_by_the_clock_as_it_was_set(tmp_path: Path, ahead: float) -> None:
    broker = StoredBroker(tmp_path)
    clock = WallClock(broker.now, broker.now + WALL_OFFSET)
    clock.look(broker.engine, broker.now, broker.now + WALL_OFFSET + ahead)
    broker.keep_fresh()
    topic = "fleet/meters/meter-1/state"
    broker.device("meter-1").publish(topic, b"x", retain=True, message_expiry_interval=60)
    broker.settle()
    assert broker.store.rows("SELECT expires_at FROM retained") == [(broker.now + 60 + WALL_OFFSET + ahead,)]
    broker.close()


STATE = "fleet/meters/meter-1/state"


def times(broker: StoredBroker) -> dict[str, list[float]]:
    """Return what the store says ends, and when, in seconds after the broker's time as its clock says it."""
    now = broker.now + broker.journal.wall_offset
    found = {
        "sessions": "SELECT ended_at FROM sessions WHERE ended_at IS NOT NULL ORDER BY id",
        "messages": "SELECT expires_at FROM messages WHERE expires_at IS NOT NULL ORDER BY id",
        "retained": "SELECT expires_at FROM retained WHERE expires_at IS NOT NULL ORDER BY number",
    }
    return {table: [round(at - now) for (at,) in broker.store.rows(query)] for table, query in found.items()}


def leave_a_message(broker: StoredBroker, topic: str = STATE, *, held: bool = False) -> None:
    """Leave a session, a message for it, and a retained one that both have 60 seconds; *held*: not written yet."""
    backend = broker.service(clean_start=False, session_expiry_interval=300)
    backend.subscribe("fleet/#", qos=1)
    meter = broker.device("meter-1")
    broker.held = held
    backend.leave()
    meter.send(publication(topic, b"x", qos=1, packet_id=1, retain=True, message_expiry_interval=60))
    broker.settle()


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
@pytest.mark.parametrize("when", ["written", "noted", "being written", "not written"])
def test_what_was_stored_before_is_moved_with_the_clock(tmp_path: Path, ahead: float, when: str) -> None:
    broker = StoredBroker(tmp_path)
    clock = WallClock(broker.now, broker.now + WALL_OFFSET)
    leave_a_message(broker, held=when != "written")
    batch = broker.journal.take() if when == "being written" else None
    if when == "not written":
        broker.fail()
    assert clock.look(broker.engine, broker.now, broker.now + WALL_OFFSET + ahead)
    assert clock.look(broker.engine, broker.now, broker.now + WALL_OFFSET + 2 * ahead)
    if batch is not None:
        broker.store._apply(batch)
        broker.engine.stored(broker.now)
    if when == "not written":
        broker.fail()
    broker.held = False
    broker.advance(10)
    assert times(broker) == {"sessions": [-10], "messages": [50], "retained": [50]}
    broker.close()


def test_a_write_that_fails_after_the_clock_was_set_moves_what_is_stored_once(tmp_path: Path) -> None:
    broker = StoredBroker(tmp_path)
    clock = WallClock(broker.now, broker.now + WALL_OFFSET)
    leave_a_message(broker)
    broker.held = True
    clock.look(broker.engine, broker.now, broker.now + WALL_OFFSET + 3600)
    broker.keep_fresh()
    meter = broker.device("meter-1")
    meter.send(publication(f"{STATE}/other", b"x", qos=1, packet_id=1, retain=True, message_expiry_interval=60))
    broker.fail()
    clock.look(broker.engine, broker.now, broker.now + WALL_OFFSET + 7200)
    broker.held = False
    broker.settle()
    assert times(broker) == {"sessions": [0], "messages": [60, 60], "retained": [60, 60]}
    broker.close()


def test_what_an_earlier_process_has_stored_is_by_the_clock_of_then(tmp_path: Path) -> None:
    """A machine that starts with a clock that is behind sets it: what was stored before has been right all along."""
    before = StoredBroker(tmp_path)
    leave_a_message(before)
    after = before.killed()
    clock = WallClock(after.now, after.now + WALL_OFFSET)
    stored = after.store.rows("SELECT (SELECT expires_at FROM messages), (SELECT expires_at FROM retained)")
    clock.look(after.engine, after.now, after.now + WALL_OFFSET + 3600)
    after.settle()
    assert after.store.rows("SELECT (SELECT expires_at FROM messages), (SELECT expires_at FROM retained)") == stored
    before.close()


@pytest.mark.parametrize("behind", [20.0, 3600.0])
def test_a_message_of_an_earlier_process_expires_by_the_clock_as_it_is_set(tmp_path: Path, behind: float) -> None:
    """Stored for 60 seconds, it was delivered for 60 seconds more by a broker that began an hour later and behind."""
    before = StoredBroker(tmp_path)
    leave_a_message(before)
    after = before.killed()  # By its own clock at once.
    clock = WallClock(after.now, after.now + WALL_OFFSET)
    meter = after.device("meter-1")
    meter.publish(f"{STATE}/own", b"y", qos=1, retain=True, message_expiry_interval=60)
    clock.look(after.engine, after.now, after.now + WALL_OFFSET + behind)
    after.keep_fresh()
    left = {STATE: 40} if behind < 60 else {}
    back = after.service(clean_start=False, session_expiry_interval=300)
    queued = {each.topic: each.properties.message_expiry_interval for each in back.messages()}
    assert queued == left | {f"{STATE}/own": 60}
    other = after.service("other")
    other.subscribe("fleet/#")
    retained = {each.topic: each.properties.message_expiry_interval for each in other.messages()}
    assert retained == left | {f"{STATE}/own": 60}
    after.close()


@pytest.mark.parametrize("when", ["written", "noted", "being written", "not written"])
def test_a_retained_message_of_an_earlier_process_keeps_its_end_where_it_is_queued_anew(
    tmp_path: Path, when: str
) -> None:
    """Its row was moved with those of this process: after the next restart it was delivered when it had expired."""
    before = StoredBroker(tmp_path)
    leave_a_message(before)
    (end,) = before.store.rows("SELECT expires_at FROM retained")
    after = before.killed()
    clock = WallClock(after.now, after.now + WALL_OFFSET)
    other = after.service("other", clean_start=False, session_expiry_interval=300)
    after.held = when != "written"
    other.send(Subscribe(1, (SubscriptionRequest("fleet/#", QoS.AT_LEAST_ONCE),)))
    batch = after.journal.take() if when == "being written" else None
    if when == "not written":
        after.fail()
    for set_to in (20.0, 30.0):
        clock.look(after.engine, after.now, after.now + WALL_OFFSET + set_to)
    if batch is not None:
        after.store._apply(batch)
        after.engine.stored(after.now)
    after.held = False
    after.settle()
    assert after.store.rows("SELECT expires_at FROM messages") == [end, end]
    again = after.killed()
    back = again.service("other", clean_start=False, session_expiry_interval=300)
    assert [each.properties.message_expiry_interval for each in back.messages()] == [60]
    before.close()


def test_a_queue_that_is_full_of_what_the_clock_has_let_expire_has_room(tmp_path: Path) -> None:
    """It was found expired only when it had been by the clock before, and what came meanwhile was refused."""
    before = StoredBroker(tmp_path, max_queued_messages=1)
    leave_a_message(before)
    after = before.killed()
    WallClock(after.now, after.now + WALL_OFFSET).look(after.engine, after.now, after.now + WALL_OFFSET + 3600)
    after.keep_fresh()
    after.device("meter-1").publish(f"{STATE}/own", b"y", qos=1)
    back = after.service(clean_start=False, session_expiry_interval=300)
    assert [each.topic for each in back.messages()] == [f"{STATE}/own"]
    before.close()


@pytest.mark.parametrize("steps", [(3600,), (-3600, 3600), (-3600, 7200)])
def test_a_session_that_ended_before_this_process_stays_however_the_clock_is_set(
    tmp_path: Path, steps: tuple[float, ...]
) -> None:
    """Also where this process began by a clock that was behind, or has had one in between."""
    before = StoredBroker(tmp_path)
    for name in ("other", "backend"):
        before.service(name, clean_start=False, session_expiry_interval=300).leave()
    before.advance(10)
    after = before.killed()
    ended = "SELECT ended_at FROM sessions ORDER BY id"
    ((other,), (backend,)) = after.store.rows(ended)
    offset = WALL_OFFSET if len(steps) > 1 else WALL_OFFSET - 60  # A clock that is behind is set, or one back and on.
    after.journal.wall_offset = offset
    clock = WallClock(after.now, after.now + offset)
    after.service("backend", clean_start=False, session_expiry_interval=300).leave()
    for step in steps:
        offset += step
        clock.look(after.engine, after.now, after.now + offset)
        after.settle()
    ((still,), (moved,)) = after.store.rows(ended)
    assert still == other
    assert moved == pytest.approx(after.now + offset)
    assert backend < other + 1
    before.close()


@pytest.mark.parametrize("retain", [False, True])
def test_the_longest_expiry_is_not_longer_after_a_start_in_the_past(
    stored: StoredBroker, monkeypatch: pytest.MonkeyPatch, retain: bool
) -> None:
    """Else no packet could say it, and whoever subscribed to the topic was disconnected, each time."""
    stored.service(**KEPT).subscribe(request("fleet/#", 1, retain_handling=2))
    stored.device("meter-1").publish(
        "fleet/meters/meter-1/telemetry", b"x", qos=1, retain=retain, message_expiry_interval=0xFFFFFFFF
    )
    monkeypatch.setattr("tests.support.stored.WALL_OFFSET", WALL_OFFSET - 1e9)
    after = stored.killed()
    back = after.service(**KEPT)
    back.send(Subscribe(1, (request("fleet/#", 1),)))
    received = [each.properties for each in back.received() if isinstance(each, Publish)]
    assert received == [Properties(message_expiry_interval=0xFFFFFFFF)] * (1 + retain)
