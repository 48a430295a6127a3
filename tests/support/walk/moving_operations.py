"""A device that moves between two brokers on one feed, and rights that are taken from it and given back."""

from __future__ import annotations

import random
import signal
import time
from typing import Final

from broker.admission.policy_file import DEFAULT_POLICY_FILE
from broker.mqtt.codes import ReasonCode
from tests.support.walk.broker_operations import connects, place_of
from tests.support.walk.comparison import compare_messages
from tests.support.walk.elsewhere import Elsewhere
from tests.support.walk.process_operations import be_on_disk
from tests.support.walk.session_oracle import Message
from tests.support.walk.walk import World, operation
from tests.support.wire import V5, V311

_DEFAULT: Final = DEFAULT_POLICY_FILE.read_text(encoding="utf-8")
_SECONDS: Final = 1
"""How long a message lasts that expires."""


@operation(7)
def go_elsewhere(world: World, choices: random.Random) -> str | None:
    """Connect to another broker, also with the TLS session of the first one, and as one who is out."""
    if not world.sessions.serves or not world.fleet.held():
        return None
    if world.elsewhere is None:
        world.elsewhere = Elsewhere(world.reality)
    elsewhere, told = world.elsewhere, list[str]()
    if choices.random() < 0.1:
        number = choices.choice((signal.SIGTERM, signal.SIGKILL))
        elsewhere.restart(number)
        told.append(number.name)
    connected = [each.certificate for each in world.sessions.connections.values()]
    for _ in range(2):
        tickets, held = list(world.reality.tickets.values()), world.fleet.held()
        ticket = choices.choice(tickets) if tickets and choices.random() < 0.4 else None
        good = [each for each in held if each.good]
        some = connected if connected and choices.random() < 0.4 else good if choices.random() < 0.6 else held
        certificate = ticket.certificate if ticket is not None else choices.choice(some or held)
        said = elsewhere.connect(certificate, choices.choice((V5, V311)), ticket)
        told.append(f"{certificate.device.name} {certificate.serial} {'with a ticket ' * bool(ticket)}{said}")
        name = certificate.device.name
        if name in elsewhere.guests and elsewhere.guests[name].certificate is certificate:
            message = Message(f"{place_of(certificate.device)}/event", world.payload(), choices.choice((0, 1, 2)))
            elsewhere.publish(name, message)
    elsewhere.check_guests()
    return "; ".join(told)


@operation(4)
def take_rights(world: World, choices: random.Random) -> str | None:
    """Take from a device its commands or its events, live or while the broker is down; and give them back."""
    sessions, reality = world.sessions, world.reality
    names = sorted(each for each in sessions.sessions if each in world.fleet.devices)
    if not (names and sessions.serves and sessions.hears):
        return None
    here = [each for each in names if each in sessions.connections]
    name = choices.choice(here if here and choices.random() < 0.8 else names)
    place, commands = place_of(world.fleet.devices[name]), choices.random() < 0.6
    denied = f'subscribe.deny = ["{place}/cmd/#"]' if commands else f'publish.deny = ["{place}/event"]'
    how = choices.choice(("live", "live", "live", "SIGTERM", "SIGKILL"))
    text = f"{_DEFAULT}\n[device.{name}]\n{denied}\n"
    if how == "live":
        reality.change_policy(text)
        reality.reload_policy()
    else:
        be_on_disk(world)
        world.repeats = how == "SIGKILL"
        sessions.broker_ends(killed=world.repeats)
        reality.end_broker(signal.Signals[how])
        reality.change_policy(text)
        reality.start_broker()
    if commands:
        _loses_commands(world, name, choices)
    else:
        _loses_events(world, name, choices)
    reality.change_policy(_DEFAULT)
    reality.reload_policy()
    return f"{denied}: {how}"


def _loses_commands(world: World, name: str, choices: random.Random) -> None:
    """Check that a device has no subscription any more, and is told so; nothing of it waits when it is back."""
    sessions = world.sessions
    if (session := sessions.sessions.get(name)) is None:
        return
    had, connection = bool(session.subscriptions), sessions.connections.get(name)
    session.subscriptions.clear()
    device = world.fleet.devices[name]
    if had and connection is not None:
        told = world.reality.clients.pop(name).farewell()
        assert told is (ReasonCode.NOT_AUTHORIZED if connection.version is V5 else None), f"{name}: {told!r}"
        sessions.leaves(name, sends_will=True)
    elif connection is not None:
        granted = world.reality.clients[name].subscribe(f"{place_of(device)}/cmd/#", 1)
        refusal = ReasonCode.NOT_AUTHORIZED if connection.version is V5 else ReasonCode.UNSPECIFIED_ERROR
        assert granted is refusal, f"{name}: {granted!r}"
    command = Message(f"{place_of(device)}/cmd/act", world.payload(), 1)
    assert world.reality.backend.publish(command) < ReasonCode.UNSPECIFIED_ERROR
    assert not sessions.commanded(device, command)
    if name in world.reality.clients:
        compare_messages(world.reality.clients[name].await_messages(0), [], name)
    elif (good := [each for each in device.certificates if each.good and not each.lost]) and name in sessions.sessions:
        connects(world, choices, None, choices.choice(good), returns=True)


def _loses_events(world: World, name: str, choices: random.Random) -> None:
    """Check that a device publishes no event any more, neither itself nor as its will."""
    sessions = world.sessions
    if (session := sessions.sessions.get(name)) is not None:
        session.will = None
    if (postponed := sessions.postponed.pop(name, None)) is not None:
        sessions.perhaps.append(postponed.message)
    if (connection := sessions.connections.get(name)) is None:
        return
    connection.will = None
    message = Message(f"{place_of(connection.certificate.device)}/event", world.payload(), choices.choice((0, 1, 2)))
    told = world.reality.clients[name].publish(message)
    refused = connection.version is V5 and message.qos
    assert told is (ReasonCode.NOT_AUTHORIZED if refused else ReasonCode.SUCCESS), f"{name}: {told!r}"


@operation(3)
def fade(world: World, choices: random.Random) -> str | None:
    """Have the backend send a retained command that expires: who was there has got it, who comes later does not."""
    sessions, reality = world.sessions, world.reality
    names = [each for each in sorted(sessions.sessions) if each in world.fleet.devices and not _is_lazy(world, each)]
    if not names or not (sessions.serves and sessions.hears):
        return None
    name = choices.choice(names)
    device = world.fleet.devices[name]
    topic = f"{place_of(device)}/cmd/mode"
    message = Message(topic, world.payload(), choices.choice((1, 2)))
    told = reality.backend.publish(message, retain=True, message_expiry_interval=_SECONDS)
    assert told < ReasonCode.UNSPECIFIED_ERROR
    gone = time.monotonic() + _SECONDS + 0.1
    sessions.retained.pop(topic, None)
    sent = sessions.commanded(device, message)
    client = reality.clients.get(name)
    if client is not None:
        compare_messages(client.await_messages(len(sent)), sent, name)
    dies = choices.random() < 0.2
    if dies:
        be_on_disk(world)
        world.repeats = True
        sessions.broker_ends(killed=True)
        reality.end_broker(signal.SIGKILL)
        reality.start_broker()
    time.sleep(max(0.0, gone - time.monotonic()))  # Not for luck: there is no other way to let a message expire.
    session = sessions.sessions.get(name)
    if session is not None:  # At whichever quality of service it was to arrive.
        session.waiting = [each for each in session.waiting if each.payload != message.payload]
    if session is not None and name in sessions.connections:
        topic_filter = f"{place_of(device)}/cmd/#"
        assert reality.clients[name].subscribe(topic_filter, 1) == 1
        again = sessions.subscribed(name, topic_filter, 1)
        compare_messages(reality.clients[name].await_messages(len(again)), again, name)
    return f"{topic} at {message.qos}: {len(sent)} arrived{', the broker died' * dies}"


def _is_lazy(world: World, name: str) -> bool:
    """Whether a device has taken something, and not acknowledged it: that may come again after its end."""
    connection = world.sessions.connections.get(name)
    return connection is not None and connection.lazy
