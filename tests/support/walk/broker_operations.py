"""What devices, the backend and strangers do at the broker."""

from __future__ import annotations

import functools
import random
from datetime import UTC, datetime
from typing import Any, Final

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.connect import Will
from broker.mqtt.properties import Properties
from provisioning.pki.keys import generate_key
from tests.support.broker_process import wait_until
from tests.support.pki import Pki
from tests.support.tls_client import Ended, attempt
from tests.support.walk.comparison import compare_messages
from tests.support.walk.fleet_operations import a_token, issued
from tests.support.walk.fleet_oracle import NONE, Certificate, Codes, Device, Key
from tests.support.walk.reality import Ticket
from tests.support.walk.session_oracle import ACCEPTED, ALERT, Connection, Message
from tests.support.walk.walk import GROUPS, World, operation
from tests.support.walk.walking_client import WalkingClient
from tests.support.wire import V5, V311

_LONG: Final = 3600


@operation(22)
def connect(world: World, choices: random.Random) -> str | None:
    """Connect with some certificate, mostly a good one; this takes over an older connection."""
    ticket, certificate = _chosen(world, choices)
    return None if certificate is None else connects(world, choices, ticket, certificate)


def connects(
    world: World,
    choices: random.Random,
    ticket: Ticket | None,
    certificate: Certificate,
    *,
    returns: bool = False,
    to_lose: bool = False,
    besides: Codes = NONE,
) -> str:
    """Connect somehow. One who is refused may be told something *besides* what the oracle says.

    One who *returns* asks for the session that he had, under his name; one who has something *to lose* has a session
    that outlives the connection, and a will that does not wait.
    """
    version = choices.choice((V5, V5, V311))
    clean, kept, own_name = choices.random() < 0.3, choices.random() < 0.7, choices.random() < 0.93
    if returns:
        clean, own_name = False, True
    kept = not clean if version is V311 else kept or to_lose
    name = certificate.device.name
    will = None
    if choices.random() < 0.4 or to_lose:
        will = Message(f"{place_of(certificate.device)}/event", world.payload(), choices.choice((0, 1, 2)))
    expected = world.sessions.answers(certificate, version, own_name=own_name)
    delayed = version is V5 and choices.random() < 0.4 and not to_lose
    connection = Connection(certificate, version, kept, will, delayed, lazy=choices.random() < 0.2)
    what = f"{name} {certificate.serial} {version.number}{' resumed' if ticket else ''}"
    what += f" clean={clean} kept={kept} will={will and will.payload.decode()} delayed={delayed} lazy={connection.lazy}"
    fields: dict[str, Any] = {"client_id": name if own_name else f"{name}-other", "clean_start": clean}
    if kept and version is V5:
        fields["session_expiry_interval"] = _LONG
    if will is not None:
        waits = Properties(will_delay_interval=_LONG if delayed else None)
        fields["will"] = Will(will.topic, will.payload, QoS(will.qos), properties=waits)
    try:
        tls = world.reality.dial(certificate, version, ticket)
        client = WalkingClient(tls, world.reality.unfinished.setdefault(name, set()), lazy=connection.lazy)
        answer = client.connect(**fields)
        told = answer.reason_code.name
    except (OSError, Ended):
        told, answer = ALERT, None
    if ACCEPTED not in expected:
        expected |= besides
    assert told in expected, f"{what}: told {told}, expected {sorted(expected)}"
    if told != ACCEPTED or answer is None:
        if told != ALERT:
            client.farewell()
        return f"{what} refused: {told}"
    older = world.reality.clients.pop(name, None)
    if older is not None:
        _check_taken_over(world, name, older)
    present, sent = world.sessions.connected(connection, clean=clean)
    assert answer.session_present is present, f"{what}: a session was {'' if answer.session_present else 'not '}present"
    world.reality.clients[name] = client
    got, again = client.await_messages(len(sent)), world.sessions.sessions[name].perhaps_again
    if again:
        got = [each for each in got if each not in again]
        got += client.await_messages(len(sent) - len(got))
        again.clear()
    compare_messages(got, sent, name)
    if (session := tls.socket.session) is not None:
        world.reality.tickets[certificate.serial] = Ticket(certificate, tls.context, session)
    return f"{what} present={present}: {len(sent)} sent"


def _chosen(world: World, choices: random.Random) -> tuple[Ticket | None, Certificate | None]:
    tickets = list(world.reality.tickets.values())
    if tickets and choices.random() < 0.35:
        ticket = choices.choice(tickets)
        return ticket, ticket.certificate
    every = world.fleet.held()
    good = [each for each in every if each.good]
    if not every:
        return None, None
    return None, choices.choice(good if good and choices.random() < 0.7 else every)


def _check_taken_over(world: World, name: str, older: WalkingClient) -> None:
    version = world.sessions.connections[name].version
    told = older.farewell()
    assert told == (ReasonCode.SESSION_TAKEN_OVER if version is V5 else None), f"{name}: taken over, was told {told}"


@functools.cache
def _strangers() -> Pki:
    return Pki()


@operation(1)
def stranger(world: World, choices: random.Random) -> str | None:
    """Connect with another CA's certificate for a name of ours, or with none."""
    if not world.fleet.devices:
        return None
    name = choices.choice(sorted(world.fleet.devices))
    credential = _strangers().device(name).credential if choices.random() < 0.7 else None
    told = attempt(world.reality.broker.port, world.reality.service.bundle, credential)
    required = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert told in ({required} if credential is None else {"TLSV1_ALERT_UNKNOWN_CA"}), told
    return f"{name}: {told}"


@operation(2)
def outlast(world: World, choices: random.Random) -> str | None:
    """Stay connected until the certificate ends: the connection ends with it, and the will is sent."""
    name = f"brief-{world.payload().decode()}"
    if not world.sessions.serves:
        return None
    rules = choices.choice(GROUPS)
    key, token = Key(generate_key()), a_token(world, name, rules, seconds=3)
    answer = world.reality.enrol(name, key, token)
    assert not isinstance(answer, str), answer
    token.bought = brief = issued(world, name, rules, key, answer)
    will = Message(f"{place_of(brief.device)}/event", world.payload(), 1)
    try:
        client = WalkingClient(world.reality.dial(brief, V5, None), set())
        told = client.connect(client_id=name, will=Will(will.topic, will.payload, QoS(will.qos))).reason_code
        if told is not ReasonCode.SUCCESS:
            client.farewell()
    except (OSError, Ended):
        told = ReasonCode.NOT_AUTHORIZED
    if told is ReasonCode.SUCCESS:
        world.sessions.admitted += 1
        assert client.farewell() is ReasonCode.NOT_AUTHORIZED
        world.sessions.backend.append(will)
    early = (brief.x509.not_valid_after_utc - datetime.now(UTC)).total_seconds()
    # The broker looks once a second, by its own seconds; and a turn that was held up reads its clocks at two times.
    # Where its seconds begin with those of the wall clock, the end is seen that much too early.
    assert early < 1 + max(0.0, world.reality.ahead), f"{told!r}, {early} s before the certificate ends"
    wait_until(lambda: datetime.now(UTC) > brief.x509.not_valid_after_utc, "its end")
    brief.expired = True
    return f"{name}: {'closed' if told is ReasonCode.SUCCESS else 'too late'}"


def place_of(device: Device) -> str:
    """Return where its topics are."""
    return f"fleet/{device.rules.group}/{device.name}"


def _connected(world: World, choices: random.Random) -> tuple[str, WalkingClient, Connection] | None:
    if not world.reality.clients:
        return None
    name = choices.choice(sorted(world.reality.clients))
    return name, world.reality.clients[name], world.sessions.connections[name]


@operation(8)
def publish(world: World, choices: random.Random) -> str | None:
    """Publish to the device's own topic, mostly, or to another's."""
    if (chosen := _connected(world, choices)) is None:
        return None
    name, client, connection = chosen
    own = choices.random() < 0.8
    device = connection.certificate.device
    place = place_of(device) if own else f"fleet/{device.rules.group}/other"
    message = Message(f"{place}/{choices.choice(('telemetry', 'state'))}", world.payload(), choices.choice((0, 1, 2)))
    told = client.publish(message)
    refused = not own and connection.version is V5 and message.qos
    assert told == (ReasonCode.NOT_AUTHORIZED if refused else ReasonCode.SUCCESS), f"{name}: {message} {told!r}"
    if own:
        world.sessions.backend.append(message)
    compare_messages(client.await_messages(0), [], name)
    return f"{message.topic} {message.payload.decode()} at {message.qos}: {told.name}"


@operation(8)
def subscribe(world: World, choices: random.Random) -> str | None:
    """Subscribe to the device's own commands, mostly, or to another's."""
    if (chosen := _connected(world, choices)) is None:
        return None
    name, client, connection = chosen
    qos = choices.choice((0, 1, 2))
    if choices.random() < 0.2:
        told = client.subscribe(choices.choice(("fleet/#", "fleet/plain/other/cmd/#")), qos)
        refusal = ReasonCode.NOT_AUTHORIZED if connection.version is V5 else ReasonCode.UNSPECIFIED_ERROR
        assert told is refusal, f"{name}: {told!r}"
        return f"{name} to another's: {told.name}"
    topic_filter = f"{place_of(connection.certificate.device)}/cmd/#"
    assert client.subscribe(topic_filter, qos) == qos
    sent = world.sessions.subscribed(name, topic_filter, qos)
    compare_messages(client.await_messages(len(sent)), sent, name)
    return f"{topic_filter} at {qos}: {len(sent)} retained"


@operation(10)
def command(world: World, choices: random.Random) -> str | None:
    """Have the backend send a command to a device, which is connected or away; sometimes a retained one."""
    if not world.fleet.devices:
        return None
    kept = sorted(world.sessions.sessions)
    name = choices.choice(kept if kept and choices.random() < 0.8 else sorted(world.fleet.devices))
    device = world.fleet.devices[name]
    retain = choices.random() < 0.2
    topic = f"{place_of(device)}/cmd/{'mode' if retain else 'act'}"
    message = Message(topic, world.payload(), choices.choice((1, 2) if retain else (0, 1, 2)))
    assert world.reality.backend.publish(message, retain=retain) < ReasonCode.UNSPECIFIED_ERROR
    if retain:
        world.sessions.retained[topic] = message
    sent = world.sessions.commanded(device, message)
    if name in world.reality.clients:
        compare_messages(world.reality.clients[name].await_messages(len(sent)), sent, name)
    return f"{topic} {message.payload.decode()} at {message.qos}: {len(sent)} arrive"


@operation(2)
def kick(world: World, choices: random.Random) -> str | None:
    """Have the broker's operator put a client out, with or without its session: its will is sent."""
    if (chosen := _connected(world, choices)) is None:
        return None
    name, client, connection = chosen
    forget = choices.random() < 0.5
    world.reality.admin.post("/v1/sessions/kick", {"client": name, "forget": forget})
    del world.reality.clients[name]
    told = client.farewell()
    assert told is (ReasonCode.ADMINISTRATIVE_ACTION if connection.version is V5 else None), f"{name}: {told!r}"
    world.sessions.leaves(name, sends_will=True, ends_session=forget)
    return f"{name}{', and its session' if forget else ''}"


@operation(8)
def leave(world: World, choices: random.Random) -> str | None:
    """Leave with DISCONNECT, with or without the will, with or without the session; or by closing the socket."""
    if (chosen := _connected(world, choices)) is None:
        return None
    name, client, connection = chosen
    del world.reality.clients[name]
    how = choices.choice(("orderly", "orderly", "with will", "for good", "for a second", "vanishes"))
    if connection.version is not V5 and how != "vanishes":
        how = "orderly"
    if not connection.kept and how == "for a second":
        how = "for good"
    match how:
        case "orderly":
            client.leave()
        case "with will":
            client.leave(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE)
        case "for good" if connection.kept:
            client.leave(session_expiry_interval=0)
        case "for good":
            client.leave()
        case "for a second":
            client.leave(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE, session_expiry_interval=1)
        case _:
            client.vanish()
    sends_will = how in ("with will", "for a second", "vanishes")
    world.sessions.leaves(name, sends_will=sends_will, ends_session=how == "for good")
    if how == "for a second":
        wait_until(lambda: not world.reality.sessions_of(name), f"the session of {name} expires", pause=0.1)
        world.sessions.expires(name)
    return f"{name} {how}"
