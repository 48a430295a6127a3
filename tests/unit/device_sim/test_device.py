from __future__ import annotations

import itertools

import pytest

from device_sim.device import TRANSITIONS, Device, Event, ImpossibleEvent, State
from device_sim.link.closure import Closure, Layer

LOST = Closure(Layer.TCP, "reset", "", 0)
REFUSED = Closure(Layer.TLS, "unknown_ca", "", 0)
REVOKED = Closure(Layer.MQTT, "0x98", "REVOKED: certificate revoked (keyCompromise)", 0, 0x98)


def connected() -> Device:
    device = Device("meter-1", "meters")
    for event in (Event.ISSUED, Event.DIALLED, Event.ADMITTED):
        device.happened(event)
    return device


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_event_leads_to_a_listed_state_or_is_a_bug(state: State, event: Event) -> None:
    device = Device("meter-1", "meters", state)
    if event in TRANSITIONS[state]:
        assert device.happened(event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(ImpossibleEvent, match="meter-1"):
            device.happened(event)
        assert device.state is state


def test_every_state_can_be_reached_and_left() -> None:
    targets = {target for moves in TRANSITIONS.values() for target in moves.values()}
    assert targets == set(State) - {State.UNPROVISIONED}
    assert all(TRANSITIONS[state] for state in State)


@pytest.mark.parametrize(
    ("closure", "state"), [(LOST, State.WAITING), (REFUSED, State.REFUSED), (REVOKED, State.REVOKED)]
)
def test_the_end_of_a_connection_decides_what_comes_next(closure: Closure, state: State) -> None:
    device = connected()
    assert device.ended(closure) is state
    assert device.closure is closure


def test_a_connection_that_we_close_is_no_loss() -> None:
    assert connected().ended(LOST, by_us=True) is State.ENROLLED


def test_attempts_are_counted_until_one_is_admitted() -> None:
    device = connected()
    device.ended(LOST)
    for attempt in (1, 2, 3):
        assert device.attempts == attempt
        device.happened(Event.RETRIED)
        device.happened(Event.DIALLED)
        device.ended(LOST)
    device.happened(Event.RETRIED)
    device.happened(Event.DIALLED)
    device.happened(Event.ADMITTED)
    assert device.attempts == 0


def test_a_sequence_number_is_spent_only_by_publishing() -> None:
    device = connected()
    assert device.next_sequence() == device.next_sequence() == 1
    device.published()
    assert device.next_sequence() == 2


def test_topics_are_the_devices_own() -> None:
    assert Device("meter-1", "north").topic_prefix == "fleet/north/meter-1"
