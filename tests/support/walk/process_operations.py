"""What happens to the processes and to the line between them."""

from __future__ import annotations

import random
import signal

from broker.mqtt.codes import ReasonCode
from tests.support.walk.comparison import compare_all, compare_backend, compare_devices, compare_lists
from tests.support.walk.fleet_operations import broker_hears
from tests.support.walk.session_oracle import Message
from tests.support.walk.walk import World, operation


@operation(2)
def restart_broker(world: World, choices: random.Random) -> str | None:
    """End the broker in order, or as a power failure would, and start it again."""
    if not (world.sessions.hears and world.sessions.serves):
        return None
    number = choices.choice((signal.SIGTERM, signal.SIGKILL))
    be_on_disk(world)
    world.repeats = number is signal.SIGKILL
    world.sessions.broker_ends(killed=world.repeats)
    world.reality.end_broker(number)
    world.reality.start_broker()
    return number.name


def be_on_disk(world: World) -> None:
    """Return when all is on disk that the broker was told; it has acknowledged only what is."""
    last = Message("fleet/nobody/nobody/cmd/last", world.payload(), 1)
    assert world.reality.backend.publish(last) < ReasonCode.UNSPECIFIED_ERROR
    world.sessions.backend.append(last)
    compare_backend(world)


@operation(1)
def restart_service(world: World, choices: random.Random) -> str | None:
    if not world.sessions.serves:
        return None
    number = choices.choice((signal.SIGTERM, signal.SIGKILL))
    world.reality.restart_service(number)
    return number.name


@operation(2)
def cut_the_feed(world: World, _choices: random.Random) -> str | None:
    if not world.sessions.hears:
        return None
    world.sessions.hears = False
    world.reality.line.cut()
    return "the broker hears nothing"


@operation(5)
def mend_the_feed(world: World, _choices: random.Random) -> str | None:
    if world.sessions.hears or not world.sessions.serves:
        return None
    return f"the broker hears of {_mend(world)}"


def _mend(world: World) -> int:
    world.sessions.hears = True
    world.reality.line.mend()
    missed = [each for each in world.fleet.certificates() if each.seen is not each.reason]
    broker_hears(world, missed)
    return len(missed)


def compare_all_heard(world: World) -> None:
    """Have the broker hear what it has missed, and compare all there is."""
    if not world.sessions.hears:
        _mend(world)
    compare_all(world)


@operation(1)
def reload(world: World, _choices: random.Random) -> str | None:
    if not world.sessions.serves:
        return None
    world.reality.reload()
    return "both"


@operation(2)
def take_stock(world: World, _choices: random.Random) -> str | None:
    """Compare the inventory and the CRL."""
    if not world.sessions.serves:
        return None
    compare_devices(world)
    compare_lists(world)
    return f"{len(world.fleet.listed())} listed"
