"""What a device is doing: a state machine without I/O or clock.

Theory
------
::

    UNPROVISIONED ──issued──► ENROLLED ──dialled──► CONNECTING ──admitted──► CONNECTED
                                  ▲                  │   │                     │   │
                                  └──────retried── WAITING ◄───────lost────────┘   │
                                                     │                             │
                            REFUSED ◄──refused───────┴─────────────────────────────┤
                            REVOKED ◄──revoked─────────────────────────────────────┘

A device that is refused or revoked does not try again by itself; a test may make it (``retried``), as a thief would.

Rules
-----
1. `TRANSITIONS` is the whole machine; an event that a state does not list is a bug and raises.
2. A sequence number is used up only by a message that was really handed to the connection (`next_sequence`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from device_sim.link.closure import Closure, Verdict


class State(StrEnum):
    """The state of a device."""

    UNPROVISIONED = "unprovisioned"
    ENROLLED = "enrolled"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"
    REFUSED = "refused"
    REVOKED = "revoked"


class Event(StrEnum):
    """What may happen to a device, in the past tense."""

    ISSUED = "certificate issued"
    DIALLED = "dialled"
    ADMITTED = "admitted"
    CLOSED = "closed by itself"
    LOST = "connection lost"
    REFUSED = "refused"
    REVOKED = "revoked"
    RETRIED = "retried"


_ENDED = {
    Event.CLOSED: State.ENROLLED,
    Event.LOST: State.WAITING,
    Event.REFUSED: State.REFUSED,
    Event.REVOKED: State.REVOKED,
}

TRANSITIONS: dict[State, dict[Event, State]] = {
    State.UNPROVISIONED: {Event.ISSUED: State.ENROLLED},
    State.ENROLLED: {Event.ISSUED: State.ENROLLED, Event.DIALLED: State.CONNECTING},
    State.CONNECTING: {Event.ADMITTED: State.CONNECTED, **_ENDED},
    State.CONNECTED: _ENDED,
    State.WAITING: {Event.RETRIED: State.ENROLLED, Event.CLOSED: State.ENROLLED},
    State.REFUSED: {Event.RETRIED: State.ENROLLED},
    State.REVOKED: {Event.RETRIED: State.ENROLLED},
}


class ImpossibleEvent(Exception):
    """An event occurred in a state that does not allow it: a bug of the simulator."""


@dataclass(slots=True)
class Device:
    """One device: its name, its group, its state, and what it has published."""

    name: str
    group: str
    state: State = State.UNPROVISIONED
    attempts: int = 0
    dialled: int = 0
    admitted: int = 0
    sequence: int = 0
    closure: Closure | None = field(default=None)
    identifier: str | None = None
    """Its MQTT client identifier, if that is not its name."""

    @property
    def client_id(self) -> str:
        """Return under which client identifier it connects."""
        return self.identifier or self.name

    @property
    def topic_prefix(self) -> str:
        """Return the root of the device's own topics."""
        return f"fleet/{self.group}/{self.name}"

    def happened(self, event: Event) -> State:
        """Enter, and return, the state that follows *event*."""
        try:
            self.state = TRANSITIONS[self.state][event]
        except KeyError:
            raise ImpossibleEvent(f"{self.name}: {event} while {self.state}") from None
        if event is Event.DIALLED:
            self.dialled += 1
        elif event is Event.ADMITTED:
            self.attempts = 0
            self.admitted += 1
        elif event is Event.LOST:
            self.attempts += 1
        return self.state

    def ended(self, closure: Closure, *, by_us: bool = False) -> State:
        """Record how a connection, or an attempt at one, ended; return the new state."""
        self.closure = closure
        if by_us:
            return self.happened(Event.CLOSED)
        match closure.verdict:
            case Verdict.REVOKED:
                return self.happened(Event.REVOKED)
            case Verdict.FINAL:
                return self.happened(Event.REFUSED)
            case Verdict.AGAIN:
                return self.happened(Event.LOST)

    def taken_over(self, closure: Closure) -> State:
        """Record that another client connected under its name; it will come back."""
        self.closure = closure
        return self.happened(Event.LOST)

    def next_sequence(self) -> int:
        """Return the sequence number of the next message, without using it up."""
        return self.sequence + 1

    def published(self) -> None:
        """Use up a sequence number."""
        self.sequence += 1
