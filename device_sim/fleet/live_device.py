"""One device on the network: its state machine, certificate and connection combined.

Rules
-----
1. The state machine (`device`) decides; this file only dials, sends, and reports events to it.
2. Telemetry of QoS 1 or 2 is kept until it is acknowledged and sent again after a reconnection, so a message is lost
   only if the broker acknowledges it wrongly. It is sent before new messages: the device itself never reorders. The
   number of unacknowledged messages is bounded; beyond the bound the device holds its readings back.
3. The TLS context is the fleet's; the key and certificate in each handshake are the device's own (`tls_dial` rule 3).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from device_sim.behaviour.behaviour import Answering, Behaviour, Outcome
from device_sim.credentials.credential import HeldCredential
from device_sim.device import Device, Event, State
from device_sim.fleet.commands import Action, Answer, UnreadableCommand, decode_command, execute
from device_sim.fleet.publications import Publications
from device_sim.fleet.surroundings import Surroundings
from device_sim.fleet.tally import Sent
from device_sim.link.closure import SERVER_CERTIFICATE, Closure
from device_sim.link.link import FAILURE, Link, NotConnected, Terms, UserProperties
from device_sim.link.tls_dial import NotAdmitted
from device_sim.scenario.groups import Group, Telemetry
from device_sim.scenario.metrics import Duration
from device_sim.telemetry.seal import is_intact, key_of, sealed_object

_AT_LEAST_ONCE = 1
_TAKEN_OVER = 0x8E
_MOST_UNACKNOWLEDGED = 50
_SHORTEST_INTERVAL = 0.01
_LONGEST_INTERVAL = 3600.0


class Unacknowledged(NamedTuple):
    """A message that the broker has not acknowledged; *due* and *sent* are `time.monotonic`."""

    sequence: int
    payload: bytes
    due: float
    sent: float
    user_properties: UserProperties = ()


class LiveDevice:
    """A device that can connect and publish. *ended* is called whenever one of its connections has ended."""

    __slots__ = (
        "_closing", "_commands", "_early", "_ended", "_keeps_tls_session", "_moves", "_publications", "_surroundings",
        "away", "behaviours",
        "connection", "credential", "group", "interval", "machine", "out_since", "repeated", "unacknowledged", "urgent",
    )  # fmt: skip

    def __init__(
        self,
        machine: Device,
        surroundings: Surroundings,
        group: Group,
        ended: Callable[[LiveDevice], None],
        behaviours: tuple[Behaviour, ...] = (),
    ) -> None:
        self.machine = machine
        self.group = group
        self.behaviours = behaviours
        self.away: float | None = None
        self.out_since: float | None = None
        """Since when it should be connected and is not."""
        self.urgent = False
        self._commands = 0
        self.interval = group.telemetry.every if group.telemetry is not None else 0.0
        self.credential: HeldCredential | None = None
        self.connection: Link | None = None
        self.unacknowledged: dict[int, Unacknowledged] = {}
        self.repeated: tuple[int, ...] = ()
        self._surroundings = surroundings
        self._ended = ended
        self._publications = Publications(machine, group.telemetry or Telemetry(), surroundings.seed, surroundings.mark)
        self._closing = False
        self._keeps_tls_session = False
        self._early: tuple[tuple[str, bytes], ...] = ()
        """What arrived before the link was handed to us; answering needs a link."""
        self._moves = 0

    @property
    def name(self) -> str:
        """The device's name, which is in its topics."""
        return self.machine.name

    def issued(self, credential: HeldCredential) -> None:
        """Use *credential* from now on; the next connection presents it."""
        self.credential = credential
        self.machine.happened(Event.ISSUED)

    def renewed(self, credential: HeldCredential) -> bool:
        """Use *credential*, a successor, from now on; return whether a connection with the former one is still open."""
        self.credential = credential
        return self.is_connected

    def keep_tls_session(self) -> None:
        """Keep the TLS session of its present connection, and of all later ones: it will try to resume it."""
        self._keeps_tls_session = True
        if self.connection is not None:
            self.connection.keeps_tls_session = True

    async def connect(self, session: ssl.SSLSession | None = None) -> Link:
        """Connect, resend what was not acknowledged, and subscribe to the device's commands.

        Raises `NotAdmitted`; the state machine has been informed.
        """
        if self.credential is None:
            raise RuntimeError(f"{self.name} has no certificate: enrol it first")
        with self._moving():
            return await self._connect(self.credential, session)

    async def _connect(self, credential: HeldCredential, session: ssl.SSLSession | None) -> Link:
        self._closing = False
        self.away = None
        terms, presented = self._terms(), credential.pem
        self._early = ()
        self.machine.happened(Event.DIALLED)
        try:
            connection = await self._surroundings.driver.open(
                self._surroundings.endpoint,
                self._surroundings.context.of(presented),
                self.machine.client_id,
                credential=presented,
                keep_alive=self._surroundings.keep_alive,
                terms=terms,
                received=self._received,
                acknowledged=self._acknowledged,
                session=session,
                source=self._source(),
            )
        except NotAdmitted as error:
            self.machine.ended(error.closure)
            raise
        except asyncio.CancelledError:
            self.machine.happened(Event.CLOSED)
            raise
        connection.keeps_tls_session = self._keeps_tls_session
        self.connection = connection
        self.machine.happened(Event.ADMITTED)
        connection.closed.add_done_callback(self._connection_ended)
        try:
            self._send_again(connection)  # In the same turn that allows publishing: older messages go first.
            early: tuple[tuple[str, bytes], ...] = self._early
            self._early = ()
            for topic_name, payload in early:
                self._received(topic_name, payload)
            if not self._resumed(connection, terms):
                asked = time.monotonic()
                await connection.subscribe(f"{self.machine.topic_prefix}/cmd/#", _AT_LEAST_ONCE)
                self._surroundings.record(Duration.SUBACK, time.monotonic() - asked, 0.0)
            for behaviour in self.behaviours:
                behaviour.admitted(self, connection)
        except NotConnected:
            pass  # Admitted and lost at once: `ended` is called as for any lost connection.
        return connection

    def sent(self, *, kept_waiting: bool = False) -> Sent:
        """Return what was published so far, what of it is unacknowledged, and what was resent."""
        unacknowledged = frozenset(message.sequence for message in self.unacknowledged.values())
        return Sent(self.machine.sequence, unacknowledged, self.repeated, kept_waiting)

    @property
    def _answer_to_telemetry(self) -> str:
        exactly_once = self.group.telemetry is not None and self.group.telemetry.qos > _AT_LEAST_ONCE
        return "PUBREC or PUBCOMP" if exactly_once else "PUBACK"

    @property
    def is_connected(self) -> bool:
        """Whether a connection is open now."""
        return self.machine.state is State.CONNECTED

    @property
    def is_asleep(self) -> bool:
        """Whether it has disconnected cleanly and will come back."""
        return self.away is not None and self.machine.state is State.ENROLLED

    @property
    def is_moving(self) -> bool:
        """Whether it, or a copy of it, is connecting or leaving; stopped midway, its presence would be wrong."""
        return self._moves > 0

    @contextlib.contextmanager
    def _moving(self) -> Iterator[None]:
        self._moves += 1
        try:
            yield
        finally:
            self._moves -= 1

    @property
    def is_undecided(self) -> bool:
        """Whether it has been told to connect and is neither connected nor refused yet."""
        if self.away is not None or self.machine.state not in {State.ENROLLED, State.CONNECTING, State.WAITING}:
            return False
        # It tries again, and will refuse the broker until its clock is right.
        closure = self.machine.closure
        return closure is None or closure.code != SERVER_CERTIFICATE

    def cut(self) -> None:
        """Break the connection as a network does, without a DISCONNECT."""
        if self.connection is not None:
            self.connection.abort()

    async def close(self) -> None:
        """Disconnect cleanly."""
        self._closing = True
        if self.connection is None:
            return
        with self._moving():
            if self.machine.state is State.CONNECTED:
                for behaviour in self.behaviours:
                    behaviour.leaving(self, self.connection)
            await self.connection.close()
            await asyncio.sleep(0)  # The state follows in the loop's next turn.

    async def open_copy(self) -> Link:
        """Open a second connection with the same key under the same name, as a thief does. Raises `NotAdmitted`."""
        if self.credential is None:
            raise RuntimeError(f"{self.name} has no certificate to copy")
        surroundings, presented = self._surroundings, self.credential.pem
        with self._moving():
            return await surroundings.driver.open(
                surroundings.endpoint,
                surroundings.context.of(presented),
                self.machine.client_id,
                credential=presented,
                keep_alive=surroundings.keep_alive,
                source=self._source(),
            )

    def publish_reading(self, due: float) -> bool:
        """Publish the next reading, due at *due* (`time.monotonic`); return whether it was handed to the connection."""
        counters = self._surroundings.counters
        if self.connection is None or self.machine.state is not State.CONNECTED:
            counters.missed += self.out_since is not None
            return False
        if len(self.unacknowledged) >= _MOST_UNACKNOWLEDGED:
            counters.held_back += 1
            return False
        sequence = self.machine.next_sequence()
        telemetry, publications = self.group.telemetry or Telemetry(), self._publications
        sent = time.monotonic()
        payload, user_properties, self.urgent = publications.next(sequence, due, sent)
        try:
            packet_id = self.connection.publish(
                publications.topic_name, payload, telemetry.qos, user_properties=user_properties
            )
        except NotConnected:
            counters.held_back += 1
            return False
        self.machine.published()
        if telemetry.qos:
            self.unacknowledged[packet_id] = Unacknowledged(sequence, payload, due, sent, user_properties)
        counters.published += 1
        return True

    def _send_again(self, connection: Link) -> None:
        # Packet identifiers restart with each connection. All in one turn of the loop, so nobody sees it half done;
        # what cannot be queued now is kept under a negative key for the next connection.
        waiting = list(self.unacknowledged.values())
        self.unacknowledged = {-index: message for index, message in enumerate(waiting, 1)}
        qos = self.group.telemetry.qos if self.group.telemetry is not None else _AT_LEAST_ONCE
        for index, message in enumerate(waiting, 1):
            packet_id = connection.publish(
                self._publications.topic_name, message.payload, qos, user_properties=message.user_properties
            )
            self.unacknowledged[packet_id] = self.unacknowledged.pop(-index)
            self.repeated += (message.sequence,)
            self._surroundings.counters.repeated += 1

    def _acknowledged(self, packet_id: int, number: int, _reason: str) -> None:
        message = self.unacknowledged.pop(packet_id, None)
        if message is None:
            return  # An answer to a command.
        self._surroundings.record(Duration.PUBACK, time.monotonic() - message.sent, message.sent - message.due)
        if number >= FAILURE:
            self._surroundings.counters.refused[f"{self._answer_to_telemetry} 0x{number:02x}"] += 1
        else:
            self._surroundings.counters.acknowledged += 1

    def _received(self, topic_name: str, payload: bytes) -> None:
        if self.machine.state is State.CONNECTING:  # Kept for it: it comes right behind CONNACK.
            self._early += ((topic_name, payload),)
            return
        prefix = f"{self.machine.topic_prefix}/cmd/"
        try:
            command = decode_command(topic_name.removeprefix(prefix), payload)
        except UnreadableCommand:
            return  # A device ignores what it does not understand.
        if not is_intact(payload, key_of(topic_name, self._surroundings.mark)):
            self._surroundings.counters.altered += 1
            return  # Nor does it do what nobody has asked of it.
        self._commands += 1
        answering = self._answering()
        if answering.outcome is Outcome.IGNORED:
            return
        if answering.outcome is Outcome.REFUSED:
            answer = Answer(command.identifier, done=False, detail="this device refuses some commands")
        else:
            answer = execute(command, self._actions())
        if answering.delay:
            asyncio.get_running_loop().call_later(answering.delay, self._answer, answer)
        else:
            self._answer(answer)

    def _answering(self) -> Answering:
        for behaviour in self.behaviours:
            answering = behaviour.answering(self, self._surroundings.seed, self._commands)
            if answering is not None:
                return answering
        return Answering()

    def _answer(self, answer: Answer) -> None:
        if self.connection is not None and not self.connection.closed.done():
            topic_name = f"{self.machine.topic_prefix}/ack"
            payload = sealed_object(answer.encode(), key_of(topic_name, self._surroundings.mark))
            with contextlib.suppress(NotConnected):  # Its queue is full: to the backend it has not answered.
                self.connection.publish(topic_name, payload, _AT_LEAST_ONCE)

    def _terms(self) -> Terms:
        terms = self._surroundings.terms
        for behaviour in self.behaviours:
            terms = behaviour.terms(self, terms)
        return terms

    def _resumed(self, connection: Link, terms: Terms) -> bool:
        """Return whether the broker has kept this device's session; count expected sessions that were not kept."""
        counters = self._surroundings.counters
        if connection.session_present:
            counters.sessions_resumed += 1
            return True
        if terms.session_seconds and self.machine.admitted > 1:
            counters.sessions_lost += 1
        return False

    def _source(self) -> str | None:
        sources = self._surroundings.sources
        return sources[zlib.crc32(self.name.encode()) % len(sources)] if sources else None

    def _actions(self) -> Mapping[str, Action]:
        return {"identify": self._identify, "set-interval": self._set_interval}

    def _identify(self, _arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"device": self.name, "published": self.machine.sequence, "interval": self.interval}

    def _set_interval(self, arguments: Mapping[str, Any]) -> float:
        seconds = arguments.get("seconds")
        if not isinstance(seconds, int | float) or not _SHORTEST_INTERVAL <= seconds <= _LONGEST_INTERVAL:
            raise ValueError(f"seconds: use a number from {_SHORTEST_INTERVAL} to {_LONGEST_INTERVAL:g}")
        self.interval = float(seconds)
        return self.interval

    def _connection_ended(self, closed: asyncio.Future[Closure]) -> None:
        closure = closed.result()
        if closure.number == _TAKEN_OVER and not self._closing:
            self._surroundings.counters.takeovers += 1
        if closure.number == _TAKEN_OVER and self.group.clone is not None and not self._closing:
            self.machine.taken_over(closure)  # By its copy; the device takes its place back.
        else:
            self.machine.ended(closure, by_us=self._closing)
        self._ended(self)
