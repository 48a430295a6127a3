"""The behaviours that a group of a scenario asks for, as objects."""

from __future__ import annotations

from collections.abc import Iterator

from device_sim.behaviour.absence import Flapping, Sleeping
from device_sim.behaviour.behaviour import Behaviour
from device_sim.behaviour.burden import Cloned, Stalling
from device_sim.behaviour.presence import Present
from device_sim.behaviour.renewing import Renewing, WrongClock
from device_sim.behaviour.responding import Responding
from device_sim.scenario.groups import Group


def behaviours_of(group: Group) -> tuple[Behaviour, ...]:
    """Return the behaviours of *group*, in the order of its fields."""
    return tuple(_named(group))


def _named(group: Group) -> Iterator[Behaviour]:
    if group.commands is not None:
        yield Responding(group.commands)
    if group.presence is not None:
        yield Present(group.presence)
    if group.renewal is not None:
        yield Renewing(group.renewal, group.clock)
    if group.flap is not None:
        yield Flapping(group.flap)
    if group.sleep is not None:
        yield Sleeping(group.sleep)
    if group.slow_reader is not None:
        yield Stalling(group.slow_reader)
    if group.clock is not None:
        yield WrongClock(group.clock)
    if group.clone is not None:
        yield Cloned(group.clone)
