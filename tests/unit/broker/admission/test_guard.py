"""Somebody with a good certificate: who connects too often, loses its connection too often, or is in two places."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from broker.admission.guard import Guard, WindowCount
from broker.admission.peer import Peer
from broker.admission.refusal import Refused
from broker.metrics import Metrics
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.settings.limits import Limits
from provisioning.pki.identity import parse_uri
from tests.support.pki import shared_device, shared_pki
from tests.support.wire import V5, MemoryBroker, WireClient

DEVICE = Peer(parse_uri("spiffe://d/device/g/m-1"), (b"k", 1), 1000.0)
SERVICE = Peer(parse_uri("spiffe://d/service/s"), (b"k", 2), 1000.0)
V311 = ProtocolVersion.V311


def guard(**limits: Any) -> Guard:
    return Guard(Limits(**limits), Metrics())


def test_a_window_counts_and_forgets() -> None:
    count = WindowCount(10.0)
    assert [count.add("a", 100.0) for _ in range(4)] == [1, 2, 3, 4]
    assert count.of("b", 100.0) == 0
    assert count.of("a", 119.0) == 4, "the window before counts still, all of it"
    assert count.of("a", 124.0) == pytest.approx(2.0)
    assert count.add("a", 124.0) == pytest.approx(3.0)
    assert count.of("a", 140.0) == 0
    count.add("a", 140.0)
    assert count.of("a", 160.0) == 0, "two windows later nothing is left"


def test_a_window_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.admission.guard._MOST_KEYS", 3)
    count = WindowCount(10.0)
    for key in "abcde":
        count.add(key, 0.0)
    assert [count.of(key, 0.0) for key in "abcde"] == [1, 1, 1, 0, 0]
    assert count.add("a", 0.0) == 2
    assert count.of("a", 0.0) == 2, "who is counted already is counted on"


def test_a_device_connects_so_often_and_no_more() -> None:
    watch = guard(max_connects_per_identity=5)
    assert [watch.judge(DEVICE, "m-1", 0.0) for _ in range(5)] == [None] * 5
    refusal = watch.judge(DEVICE, "m-1", 1.0)
    assert refusal is not None
    assert (refusal.code, refusal.reason_code) == ("RATE_LIMITED", ReasonCode.CONNECTION_RATE_EXCEEDED)
    assert refusal.detail == "m-1 has connected 5 times in 10 s; keep the connection open"
    assert watch.judge(DEVICE, "m-1", 30.0) is None


def test_a_service_connects_as_often_as_it_may_have_instances() -> None:
    watch = guard(max_connects_per_identity=5, max_instances=50)
    answers = [watch.judge(SERVICE, f"s-{number}", 0.0) for number in range(51)]
    assert answers[:50] == [None] * 50
    assert answers[50] is not None


def test_no_limit_is_no_limit() -> None:
    watch = guard(max_connects_per_identity=0, max_instances=50, flapping_count=0)
    for _ in range(1000):
        assert watch.judge(DEVICE, "m-1", 0.0) is None
        assert watch.judge(SERVICE, "s-1", 0.0) is None
        watch.ended(DEVICE, "m-1", "CONNECTION_LOST", 0.0)


def test_who_is_lost_again_and_again_is_banned_for_a_while() -> None:
    watch = guard(flapping_count=3, ban_seconds=100.0)
    for _ in range(10):
        watch.ended(DEVICE, "m-1", "CLIENT_DISCONNECTED", 0.0)  # It says goodbye: that is no flapping.
        watch.ended(DEVICE, "m-1", "REVOKED", 0.0)
    for moment in (0.0, 10.0):
        watch.ended(DEVICE, "m-1", "KEEP_ALIVE_TIMEOUT", moment)
        assert watch.judge(DEVICE, "m-1", moment) is None
    watch.ended(DEVICE, "m-1", "CONNECTION_LOST", 20.0)
    refusal = watch.judge(DEVICE, "m-1", 40.0)
    assert refusal is not None
    assert (refusal.code, refusal.reason_code) == ("FLAPPING", ReasonCode.BANNED)
    assert refusal.detail == "connected and lost 3 times in 60 s; try again in 80 s"
    other = Peer(parse_uri("spiffe://d/device/g/m-2"), (b"k", 3), 1000.0)
    assert watch.judge(other, "m-2", 40.0) is None
    assert watch.judge(DEVICE, "m-1", 120.0) is None


@pytest.mark.parametrize(
    "code", ["CONNECTION_LOST", "CLIENT_CLOSED", "KEEP_ALIVE_TIMEOUT", "SESSION_TAKEN_OVER", "BAD_PACKET"]
)
def test_every_end_without_a_disconnect_is_a_loss(code: str) -> None:
    watch = guard(flapping_count=2)
    for _ in range(2):
        watch.ended(DEVICE, "m-1", code, 0.0)
    assert watch.judge(DEVICE, "m-1", 0.0) is not None


@pytest.mark.parametrize("moments", [(0.0, 0.0, 1.0), (0.0, 0.0, 61.0)], ids=["one window", "two windows"])
def test_after_a_ban_its_losses_count_no_more(moments: tuple[float, ...]) -> None:
    watch = guard(flapping_count=3, ban_seconds=10.0)
    for moment in moments:
        watch.ended(DEVICE, "m-1", "CONNECTION_LOST", moment)
    end = moments[-1] + 10.0
    assert watch.judge(DEVICE, "m-1", end - 0.1) is not None
    for _ in range(2):
        assert watch.judge(DEVICE, "m-1", end) is None
        watch.ended(DEVICE, "m-1", "CONNECTION_LOST", end)
    assert watch.judge(DEVICE, "m-1", end) is None


def test_bans_are_bounded_and_make_room_when_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.admission.guard._MOST_PLACES", 2)
    watch = guard(flapping_count=1, ban_seconds=10.0)
    names = ["m-1", "m-2", "m-3"]
    for moment in (0.0, 10.0):
        for name in names:
            watch.ended(DEVICE, name, "CONNECTION_LOST", moment)
        assert [watch.judge(DEVICE, name, moment) is not None for name in names] == [True, True, False]
    assert len(watch._bans) == 2


def test_slow_losses_are_no_flapping() -> None:
    watch = guard(flapping_count=3)
    for number in range(100):
        watch.ended(DEVICE, "m-1", "CONNECTION_LOST", number * 90.0)
        assert watch.judge(DEVICE, "m-1", number * 90.0) is None


def alternate(watch: Guard, times: int, seconds: float = 1.0) -> list[Refused | None]:
    places = ["a", "b"]
    return [watch.taken_over(DEVICE, places[n % 2], places[1 - n % 2], n * seconds) for n in range(times)]


def test_two_who_take_turns_are_said_and_left_alone() -> None:
    watch = guard()
    assert alternate(watch, 20) == [None] * 20
    assert watch._metrics.clones_suspected == 5, "and again after each four turns"
    assert watch.judge(DEVICE, "m-1", 20.0) is None


def test_two_who_take_turns_are_put_out_where_that_is_wanted() -> None:
    watch = guard(quarantine_clones=True, ban_seconds=60.0)
    *before, refusal = alternate(watch, 4)
    assert before == [None] * 3
    assert refusal is not None
    assert (refusal.code, refusal.reason_code, refusal.retry_after) == ("CLONE_SUSPECTED", ReasonCode.BANNED, 60.0)
    assert refusal.detail == "the certificate is used alternately from b and a"
    for client_id in ("m-1", "another"):
        banned = watch.judge(DEVICE, client_id, 10.0)
        assert banned is not None
        assert banned.code == "CLONE_SUSPECTED"
    renewed = Peer(DEVICE.identity, (b"k", 99), 1000.0)
    assert watch.judge(renewed, "m-1", 10.0) is None, "it is the certificate that is banned, not the device"
    assert watch.judge(DEVICE, "m-1", 70.0) is None


def test_who_moves_is_no_clone() -> None:
    watch = guard(quarantine_clones=True)
    places = ["a", "b", "c", "d", "e", "f", "g"]
    for before, after in pairwise(places):
        assert watch.taken_over(DEVICE, before, after, 0.0) is None
    assert [watch.taken_over(DEVICE, "a", "a", 0.0) for _ in range(10)] == [None] * 10
    assert alternate(guard(quarantine_clones=True), 20, seconds=700.0) == [None] * 20
    assert watch._metrics.clones_suspected == 0


@pytest.mark.parametrize(("seconds", "noticed"), [(200.0, 1), (200.1, 0)])
def test_turns_count_for_ten_minutes(seconds: float, noticed: int) -> None:
    watch = guard()
    alternate(watch, 4, seconds)
    assert watch._metrics.clones_suspected == noticed


def test_the_places_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.admission.guard._MOST_PLACES", 2)
    watch = guard()
    for serial in range(100, 105):
        watch.taken_over(Peer(DEVICE.identity, (b"k", serial), 1000.0), "a", "b", 0.0)
        assert len(watch._places) <= 2
    monkeypatch.setattr("broker.admission.guard._MOST_PLACES", 1000)
    watch = guard()
    for _ in range(4):
        alternate(watch, 1)
        watch.taken_over(Peer(DEVICE.identity, (b"k", 100), 1000.0), "a", "b", 0.0)
    assert len(watch._places) == 2, "one certificate's turns do not make another's forgotten"


# With the engine


@pytest.mark.parametrize("version", [V5, V311])
def test_a_refused_client_is_told(version: ProtocolVersion) -> None:
    broker = MemoryBroker(max_connects_per_identity=2)
    for _ in range(2):
        broker.device("meter-1", version=version).vanish()
    client = broker.open(shared_device("meter-1"), version=version)
    expected = ReasonCode.CONNECTION_RATE_EXCEEDED if version is V5 else ReasonCode.SERVER_UNAVAILABLE
    answer = client.connect(client_id="meter-1", expect=expected)
    if version is V5:
        assert str(answer.properties.reason_string).startswith("RATE_LIMITED: meter-1 has connected 2 times in 10 s")
        assert answer.properties.user_properties == (("retry-after", "10"),)
    assert broker.metrics.refused == {"RATE_LIMITED": 1}
    broker.advance(30)
    broker.device("meter-1", version=version)


def test_a_client_that_flaps_is_banned_and_comes_back() -> None:
    broker = MemoryBroker(flapping_count=3, ban_seconds=60)
    for _ in range(3):
        broker.device("meter-1").vanish()
    answer = broker.open(shared_device("meter-1")).connect(client_id="meter-1", expect=ReasonCode.BANNED)
    assert answer.properties.reason_string == "FLAPPING: connected and lost 3 times in 60 s; try again in 60 s"
    assert answer.properties.user_properties == (("retry-after", "60"),)
    broker.advance(61)
    broker.device("meter-1")


def test_who_flaps_with_a_stolen_certificate_delays_no_successor() -> None:
    """A ban lasts longer than it takes to revoke and to enrol again under the name."""
    broker = MemoryBroker(flapping_count=3, ban_seconds=60)
    for _ in range(3):
        broker.device("meter-1").vanish()
    successor = shared_pki().device("meter-1")
    for _ in range(2):
        client = broker.open(successor)
        client.connect(client_id="meter-1")
        client.vanish()
    broker.open(shared_device("meter-1")).connect(client_id="meter-1", expect=ReasonCode.BANNED)
    broker.open(successor).connect(client_id="meter-1")


def at(broker: MemoryBroker, host: str) -> WireClient:
    client = broker.open(shared_device("meter-1"))
    client.transport.address = f"{host}:1883"
    return client


@pytest.mark.parametrize("quarantine", [False, True])
def test_a_copied_key_is_noticed_by_its_turns(quarantine: bool) -> None:
    broker = MemoryBroker(quarantine_clones=quarantine)
    for number in range(4):
        client = at(broker, f"192.0.2.{1 + number % 2}")
        client.connect(client_id="meter-1")
    last = at(broker, "192.0.2.1")
    last.connect(client_id="meter-1", expect=ReasonCode.BANNED if quarantine else ReasonCode.SUCCESS)
    assert broker.metrics.clones_suspected == 1
    assert client.closed
    code = "CLONE_SUSPECTED" if quarantine else "SESSION_TAKEN_OVER"
    assert str(client.farewell().properties.reason_string).startswith(f"{code}: ")
    assert broker.engine.connected == (0 if quarantine else 1)
