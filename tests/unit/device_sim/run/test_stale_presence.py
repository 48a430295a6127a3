"""Whose presence is stale: for any of the receivers, and for who will ask the broker for what it retains."""

from __future__ import annotations

import pytest

from device_sim.behaviour.presence import OFFLINE, ONLINE
from device_sim.fleet.backend import Backend
from device_sim.latency import Latency
from device_sim.run.part import PartOutcome
from device_sim.run.reckoning import stale


def outcome(**present: bool) -> PartOutcome:
    nothing = Latency().encoded()
    return PartOutcome({}, {}, {}, {}, nothing, nothing, 0, {}, {}, 0.0, present=present)


def receiver(name: str, told: dict[str, bytes], retained: dict[str, bytes] | None = None) -> Backend:
    backend = Backend(name, ["a", "b"])
    backend.presence, backend.retained = told, retained
    return backend


RIGHT = {"a": ONLINE, "b": OFFLINE}


@pytest.mark.parametrize(
    ("told", "retained", "count"),
    [
        (RIGHT, None, 0),
        (RIGHT, RIGHT, 0),
        (RIGHT | {"a": OFFLINE}, None, 1),
        (RIGHT | {"a": OFFLINE, "b": ONLINE}, RIGHT, 2),
        (RIGHT, RIGHT | {"b": ONLINE}, 1),
        ({"b": OFFLINE}, RIGHT, 1),  # It was told nothing of the other.
        (RIGHT, {}, 2),
        (RIGHT | {"a": OFFLINE}, RIGHT | {"a": OFFLINE}, 1),  # One device, wrong twice.
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_a_presence_that_one_receiver_has_wrong_is_stale(
    told: dict[str, bytes], retained: dict[str, bytes] | None, count: int, first: bool
) -> None:
    wrong, right = receiver("one", told, retained), receiver("two", RIGHT)
    outcomes = [outcome(a=True), outcome(b=False)]
    assert stale([wrong, right] if first else [right, wrong], outcomes) == count
