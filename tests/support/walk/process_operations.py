"""What happens to the processes and to the line between them."""

from __future__ import annotations

import random
import signal

from broker.mqtt.codes import ReasonCode
from tests.support.tls_client import Ended
from tests.support.walk.comparison import compare_all, compare_backend, compare_devices, compare_lists
from tests.support.walk.fleet_operations import broker_hears
from tests.support.walk.fleet_oracle import Certificate
from tests.support.walk.reality import Ticket
from tests.support.walk.session_oracle import Message
from tests.support.walk.walk import World, operation
from tests.support.walk.walking_client import WalkingClient
from tests.support.wire import V5


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


@operation(1)
def restart_deaf_broker(world: World, choices: random.Random) -> str | None:
    """Start the broker again while its feed is cut, or the service down: nobody gets in before it has read the feed."""
    sessions, reality = world.sessions, world.reality
    number = choices.choice((signal.SIGTERM, signal.SIGKILL))
    be_on_disk(world)
    world.repeats = number is signal.SIGKILL
    reality.line.cut()
    sessions.hears = False
    sessions.broker_ends(killed=world.repeats)
    reality.end_broker(number)
    reality.start_deaf_broker()
    held = world.fleet.held()
    tickets = list(reality.tickets.values())
    asked: list[tuple[Certificate, Ticket | None]] = [(each, None) for each in choices.sample(held, min(3, len(held)))]
    asked += [(each.certificate, each) for each in choices.sample(tickets, min(2, len(tickets)))]
    for certificate, ticket in asked:
        _check_waits(world, certificate, ticket)
    if not sessions.serves:
        _start(world)
    reality.line.mend()
    reality.watch_again()
    return f"{number.name}, {len(asked)} were refused; then it hears of {_mend(world)}"


def _check_waits(world: World, certificate: Certificate, ticket: Ticket | None) -> None:
    """Check that nobody is admitted by a broker that has read no feed."""
    try:
        with world.reality.dial(certificate, V5, ticket) as tls:
            told = WalkingClient(tls, set()).connect(client_id=certificate.device.name).reason_code
    except (OSError, Ended):
        assert certificate.expired, certificate.serial
    else:
        assert told in (ReasonCode.SERVER_UNAVAILABLE, ReasonCode.NOT_AUTHORIZED, ReasonCode.BANNED), told


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
def stop_service(world: World, choices: random.Random) -> str | None:
    """End the service for a while, in which the broker goes on."""
    if not world.sessions.serves:
        return None
    number = choices.choice((signal.SIGTERM, signal.SIGKILL))
    world.reality.end_service(number)
    world.sessions.serves = False
    return number.name


@operation(6)
def start_service(world: World, _choices: random.Random) -> str | None:
    if world.sessions.serves:
        return None
    _start(world)
    return "it is back"


def _start(world: World) -> None:
    world.reality.start_service()
    world.sessions.serves = True


@operation(2)
def kill_worker(world: World, choices: random.Random) -> str | None:
    """End one of several processes of the service."""
    if world.reality.workers == 1 or not world.sessions.serves:
        return None
    world.reality.kill_worker(place := choices.randrange(world.reality.workers))
    return f"process {place}"


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
    """Have the service back, and the broker hear what it has missed, and compare all there is."""
    if not world.sessions.serves:
        _start(world)
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
