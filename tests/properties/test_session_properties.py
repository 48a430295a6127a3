"""Deadlines, inflight messages and sessions against naive models."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from broker.engine.deadlines import Deadlines
from broker.metrics import Metrics
from broker.mqtt.message import Message
from broker.mqtt.subscription import Subscription
from broker.session.framing import PLAIN_V4
from broker.session.inflight import Inflight
from broker.session.queue import QueueLimits
from broker.session.session import Session
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.examples import examples

RELIABLE = Subscription("t", 1)
OWNER = Identity("d", Role.DEVICE, "m", "g")


class Owner:
    """An owner of a deadline whose model is in the test."""

    def __init__(self, fired: Callable[[Owner, float], None]) -> None:
        self.bucket = 0
        self.fired = fired

    def on_deadline(self, now: float) -> None:
        self.fired(self, now)


@examples(200)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("file"), st.integers(0, 4), st.floats(0, 60)),
            st.tuples(st.just("cancel"), st.integers(0, 4), st.just(0.0)),
            st.tuples(st.just("pass"), st.just(0), st.floats(0, 20)),
        ),
        max_size=60,
    )
)
def test_deadlines_are_met_once_in_time_and_never_early(steps: list[tuple[str, int, float]]) -> None:
    now = 100.0
    deadlines: Deadlines[Owner] = Deadlines(now)
    model: dict[Owner, float] = {}

    def fired(owner: Owner, at: float) -> None:
        assert model.pop(owner) <= at, "early, or not filed"

    owners = [Owner(fired) for _ in range(5)]
    for kind, index, value in steps:
        match kind:
            case "file":
                deadlines.file(owners[index], now + value)
                model[owners[index]] = now + value
            case "cancel":
                deadlines.cancel(owners[index])
                model.pop(owners[index], None)
            case _:
                now += value
                list(deadlines.due(now))
                assert all(when > now - 1 for when in model.values()), "more than a second late"
    assert sum(map(len, deadlines._buckets.values())) == len(model)


@examples(200)
@given(st.lists(st.integers(-6, 6), max_size=80), st.integers(1, 6))
def test_inflight_is_an_ordered_mapping_of_free_identifiers(steps: list[int], receive_maximum: int) -> None:
    """Positive: acknowledge the n-th; zero: connect again; negative: add."""
    inflight: Inflight[int] = Inflight(receive_maximum, QueueLimits(1, 1))
    model: dict[int, int] = {}
    unsent: list[int] = []
    for count, step in enumerate(steps):
        if step < 0 and inflight.room > 0:
            packet_id = inflight.add(count)
            assert 1 <= packet_id <= 65535
            assert packet_id not in model
            model[packet_id] = count
        elif step > 0 and model:
            packet_id = list(model)[step % len(model)]
            assert inflight.acknowledge(packet_id) == model.pop(packet_id)
            unsent = [each for each in unsent if each != packet_id]
        elif step == 0:
            inflight.restart(receive_maximum := 1 + count % 4)
            unsent = list(model)
        if inflight.sends_again:
            assert inflight.room <= 0 or not model
            for packet_id, message in inflight.send_again():
                assert packet_id == unsent.pop(0)
                assert message == model[packet_id]
        assert len(inflight) == len(model)
        assert len(model) - len(unsent) <= max(receive_maximum, 1) or not unsent
        if unsent:
            assert len(model) - len(unsent) >= receive_maximum, "room was left unused"


class Peer:
    """A client that notes what it gets."""

    def __init__(self) -> None:
        self.unacknowledged: list[int] = []
        self.payloads: list[int] = []

    def send(self, packets: list[bytes]) -> None:
        for packet in packets:
            packet_id = int.from_bytes(packet[5:7])
            assert packet_id not in self.unacknowledged
            self.unacknowledged.append(packet_id)
            self.payloads.append(int(packet[7:]))

    def release(self) -> None: ...


@examples(200)
@given(
    st.lists(st.sampled_from(["message", "message", "acknowledge", "vanish", "connect"]), max_size=80),
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
)
def test_a_session_loses_nothing_repeats_only_what_was_not_acknowledged_and_keeps_the_order(
    steps: list[str], maxima: list[int]
) -> None:
    session = Session("m", OWNER, QueueLimits(1000, 100_000), Metrics())
    session.expiry_interval = 100
    acknowledged: list[int] = []
    sent = connections = 0
    peer: Peer | None = None
    limit = 0

    def connect() -> None:
        nonlocal peer, limit, connections
        if peer is not None:
            session.disconnect()
        limit = maxima[connections % len(maxima)]
        connections += 1
        peer = Peer()
        session.connect(peer, PLAIN_V4, receive_maximum=limit)  # type: ignore[arg-type]
        session.resume(0.0)
        session.flush()

    def acknowledge() -> None:
        assert peer is not None
        if peer.unacknowledged:
            acknowledged.append(peer.payloads[len(peer.payloads) - len(peer.unacknowledged)])
            session.acknowledged(peer.unacknowledged.pop(0), 0.0)
            session.flush()

    for step in steps:
        match step:
            case "message":
                session.deliver(Message(b"t", b"%d" % sent, 1), RELIABLE, 0.0)
                session.flush()
                sent += 1
            case "acknowledge" if peer is not None:
                acknowledge()
            case "vanish" if peer is not None:
                session.disconnect()
                peer = None
            case "connect":
                connect()
        if peer is not None:
            assert len(peer.unacknowledged) <= limit
    connect()
    while peer is not None and peer.unacknowledged:
        acknowledge()
    assert acknowledged == list(range(sent))
    assert session.queued == 0
