"""What recently happened to each client: admitted, refused, closed, and why. For ``fleet-broker why``.

Theory
------
There are two shelves. On the *known* shelf an event is filed under the identity in a verified certificate; on the
*strangers'* shelf under the address, because a client that TLS refuses has not proved any identity. However often a
stranger comes, and from however many addresses, it displaces only other strangers' events, never those of the fleet.

Each shelf is bounded in total, and so is each key on it. The event that must go is the oldest of the key that has been
silent longest. A repeated event is stored once with a count, so a device that tries every second for a week is one
line with a first and a last time. A refusal also counts as repeated if something else has happened in between, and
refusals displace no more than half of what is known of an identity: whoever has several certificates of it that are
revoked comes with one after the other, and would hide what happens to the device itself. Then the oldest goes of the
certificate that has most of them, and where none has more than another, of the address: the device's own refusals stay.

Rules
-----
1. No I/O, no clock: the time is passed in. Nothing on the data path: events concern connections, not messages.
2. At most *most* events on the known shelf and a quarter of that on the other, in all circumstances.
3. No message content, no key, no token is recorded.
4. While very many sessions are closed, their events wait to be filed, in order (`hold`); whoever looks finds them
   filed. Where there is an audit log nothing waits: it is told at once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import structlog

from broker.admission.guard import WindowCount
from broker.admission.peer import Peer
from broker.admission.refusal import Refused
from broker.engine.denials import Denials
from provisioning.pki.identity import SCHEME, Identity
from provisioning.program.host_and_port import unbracketed, with_port, without_port
from provisioning.program.printable import printable

log = structlog.get_logger("broker")

MOST_OF_ONE = 16
"""Events kept per identity or address."""
MOST_DENIED: Final = 10
"""Denials reported one by one: per connection, and per identity within `_DENIED_SECONDS`."""
_DENIED_SECONDS: Final = 60.0
LONGEST_SHOWN: Final = 300
"""Characters kept of a text whose length the client chooses."""
MOST_WAITING = 20_000
"""Events that wait to be filed; for each further one the oldest is filed."""
_STRANGERS_PART: Final = 4


class Happened(StrEnum):
    """The kind of an event."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    CLOSED = "closed"
    DENIED = "denied"


@dataclass(slots=True, init=False)
class Event:
    """One event, and how often it happened in a row. Times are monotonic."""

    what: Happened
    code: str
    detail: str
    address: str
    identity: Identity | str | None
    serial: str
    client_id: str
    """For a refused client: the client identifier it asked for, which need not be its own."""
    first: float
    last: float
    times: int

    def __init__(  # Written out for mypyc to compile.
        self,
        what: Happened,
        code: str,
        detail: str,
        address: str,
        identity: Identity | str | None,
        serial: str,
        client_id: str,
        now: float,
        times: int = 1,
    ) -> None:
        self.what = what
        self.code = code
        self.detail = detail
        self.address = address
        self.identity = identity
        self.serial = serial
        self.client_id = client_id
        self.first = self.last = now
        self.times = times

    @property
    def name(self) -> str:
        """The name in the certificate, empty if unknown."""
        if isinstance(self.identity, Identity):
            return self.identity.name
        return self.identity.rpartition("/")[2] if self.identity else ""

    @property
    def host(self) -> str:
        """The address without the port."""
        return without_port(self.address)

    def is_about(self, text: str, serial: str) -> bool:
        """Whether *text* is the event's client, name, identity, address or serial number (then also as *serial*).

        Client and name match with or without the trust domain before them; the client also in its printable form.
        """
        return bool(text) and (
            text
            in {
                self.client_id,
                printable(self.client_id),
                self.name,
                self.address,
                self.serial,
                str(self.identity),
            }
            or unbracketed(text) == self.host
            or (bool(self.serial) and serial == self.serial)
            or (self.identity is not None and text in self._with_domain(str(self.identity)))
        )

    def _with_domain(self, identity: str) -> tuple[str, str, str]:
        domain = identity.removeprefix(SCHEME).partition("/")[0]
        return f"{domain}/{self.client_id}", f"{domain}/{printable(self.client_id)}", f"{domain}/{self.name}"

    def repeats(self, other: Event) -> bool:
        """Whether this event repeats *other*.

        A refused client may ask for another client identifier each time, as libraries that generate one do; and with
        one certificate the words may be others each time, as they are where they say what time it is.
        """
        if (self.what, self.code, self.serial) != (other.what, other.code, other.serial):
            return False
        same_words, same_client = self.detail == other.detail, self.client_id == other.client_id
        if self.what is Happened.REFUSED:
            return same_words or (same_client and bool(self.serial))
        return same_words and same_client


class Party(Protocol):
    """The subject of an event: a connection."""

    @property
    def address(self) -> str:
        """Its address."""

    peer: Peer | None
    refusal: Refused | None


def named(party: Party) -> dict[str, str]:
    """Return the identity of *party* for the log, as far as a verified certificate states it."""
    peer, refusal = party.peer, party.refusal
    if peer is not None:
        return {"identity": peer.identity.uri, "serial": peer.serial}
    return {"identity": refusal.identity, "serial": refusal.serial} if refusal is not None and refusal.serial else {}


class Witness(Protocol):
    """Another recipient of each event, at once: the audit log."""

    def saw(self, event: Event) -> None:
        """Record *event* now; it may change afterwards."""

    def told(self, event: str, **facts: object) -> None:
        """Record something that does not concern a client."""


class History:
    """The events of one broker."""

    __slots__ = ("_denied", "_holds", "_known", "_pace", "_strangers", "_waiting", "witness")

    def __init__(self, most: int) -> None:
        self.witness: Witness | None = None
        self._holds = False
        self._waiting: deque[tuple[Happened, Party, str, str, str, float, int]] = deque()
        """What happened and is not filed yet, in order."""
        self._denied = WindowCount(_DENIED_SECONDS)
        self._pace = WindowCount(_DENIED_SECONDS)
        self._known = _Shelf(most)
        self._strangers = _Shelf(most // _STRANGERS_PART)

    def __len__(self) -> int:
        self.settle()
        return len(self._known) + len(self._strangers)

    def hold(self) -> None:
        """File nothing until `release`: many sessions are being closed, and nobody looks."""
        self._holds = True

    def release(self) -> None:
        """File what happens at once again; what waits follows by `settle`."""
        self._holds = False

    def settle(self, most: int | None = None) -> bool:
        """File what waits, *most* events of it; return whether some still wait."""
        waiting = self._waiting
        for _ in range(len(waiting) if most is None else min(most, len(waiting))):
            self._file(*waiting.popleft())
        return len(waiting) > 0

    def note(
        self, what: Happened, party: Party, code: str, detail: str, client_id: str, now: float, times: int = 1
    ) -> None:
        """Record that *what* happened to *party*, which has ended or does not change meanwhile, *times* times."""
        if self.witness is None and (self._holds or self._waiting):
            self._waiting.append((what, party, code, detail, client_id, now, times))
            if len(self._waiting) > MOST_WAITING:
                self._file(*self._waiting.popleft())
        else:
            self._file(what, party, code, detail, client_id, now, times)

    def _file(
        self, what: Happened, party: Party, code: str, detail: str, client_id: str, now: float, times: int
    ) -> None:
        peer, refusal = party.peer, party.refusal
        identity: Identity | str | None = None
        serial = ""
        if peer is not None:
            identity, serial = peer.identity, peer.serial
        elif refusal is not None and refusal.identity:
            identity, serial = refusal.identity, refusal.serial
        detail = detail[:LONGEST_SHOWN]
        event = Event(what, code, detail, party.address, identity, serial, client_id[:LONGEST_SHOWN], now, times)
        if self.witness is not None:
            self.witness.saw(event)
        if identity is not None:
            self._known.add(str(identity), event)
        else:
            self._strangers.add(event.host, event)

    def tells_of_denials(self, party: Party, now: float) -> bool:
        """Whether another denial of *party* is reported individually; if so, count it against the identity's minute.

        Otherwise a client that reconnects after every few denials could fill the log as fast as it can connect.
        """
        return _tells(self._denied, party, now)

    def tells_of_pace(self, party: Party, now: float) -> bool:
        """Whether it is reported that *party* is too slow or too fast; counted likewise."""
        return _tells(self._pace, party, now)

    def denied(self, party: Party, event: str, details: Mapping[str, object], client_id: str, now: float) -> None:
        """Log and record that the client was denied something."""
        log.warning(event, client=client_id, address=party.address, **details, **named(party))
        said = f"{event}: {details.get('topic') or details.get('topic_filter') or ''}"
        self.note(Happened.DENIED, party, str(details.get("code", "")), said, client_id, now)

    def denied_more(self, party: Party, denials: Denials, client_id: str, now: float) -> None:
        """Log and record what *denials* has counted, one line per kind, and reset its counts."""
        for (event, code), times in denials.taken(now).items():
            log.warning(event, client=client_id, address=party.address, code=code, more=times, **named(party))
            self.note(Happened.DENIED, party, code, f"{event}: and more", client_id, now, times)

    def told(self, event: str, **facts: object) -> None:
        """Tell the audit log, if there is one, of something that does not concern a client."""
        if self.witness is not None:
            self.witness.told(event, **facts)

    def turned_away(self, host: str, code: str, now: float) -> None:
        """Record that a connection from *host* was closed before TLS."""
        self.settle()
        event = Event(Happened.REFUSED, code, "", with_port(host, 0), None, "", "", now)
        if self.witness is not None:
            self.witness.saw(event)
        self._strangers.add(host, event)

    def known(self) -> Iterator[list[Event]]:
        """Yield the events of each identity, from a copy."""
        self.settle()
        return iter(self._known.copy())

    def strangers(self, host: str) -> list[Event]:
        """Return the events of unidentified clients at *host*."""
        self.settle()
        return self._strangers.find(host)

    def unnamed(self) -> Iterator[list[Event]]:
        """Yield the events of unidentified clients at each address, from a copy."""
        self.settle()
        return iter(self._strangers.copy())


def _tells(told: WindowCount, party: Party, now: float) -> bool:
    if party.peer is None:
        return True
    identity = party.peer.identity
    if told.of(identity, now) > MOST_DENIED - 1:
        return False
    told.add(identity, now)
    return True


def _goes(events: Sequence[Event]) -> int:
    """Return which of one identity's *events* makes room for a refusal: a refusal, if they are more than half."""
    refusals = [place for place, each in enumerate(events) if each.what is Happened.REFUSED]
    if len(refusals) <= MOST_OF_ONE // 2:
        return next(place for place, each in enumerate(events) if each.what is not Happened.REFUSED)
    serials = Counter(events[place].serial for place in refusals)
    hosts = Counter(events[place].host for place in refusals)
    return max(refusals, key=lambda place: (serials[events[place].serial], hosts[events[place].host]))


class _Shelf:
    """Events by key, bounded in total and per key."""

    __slots__ = ("_events", "_most", "_size")

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._events: dict[str, list[Event]] = {}
        """By key; the key with the newest event comes last."""

    def __len__(self) -> int:
        return self._size

    def add(self, key: str, event: Event) -> None:
        """File *event*, and drop one if there are too many."""
        if self._most < 1:
            return
        events = self._events.pop(key, None)
        if events is None:
            self._events[key] = [event]
            self._size += 1
        else:
            self._events[key] = events
            refusal = event.what is Happened.REFUSED and event.identity is not None
            for place in range(len(events) - 1, -1 if refusal else len(events) - 2, -1):
                earlier = events[place]
                if event.repeats(earlier):
                    earlier.times += event.times
                    earlier.last = event.last
                    earlier.detail = event.detail
                    earlier.address = event.address
                    earlier.client_id = event.client_id
                    del events[place]
                    events.append(earlier)
                    return
            events.append(event)
            if len(events) > MOST_OF_ONE:
                del events[_goes(events) if refusal else 0]
            else:
                self._size += 1
        if self._size > self._most:
            silent = next(iter(self._events))
            del self._events[silent][0]
            self._size -= 1
            if not self._events[silent]:
                del self._events[silent]

    def find(self, key: str) -> list[Event]:
        """Return the events of *key*, the oldest first."""
        return list(self._events.get(key, ()))

    def copy(self) -> list[list[Event]]:
        """Return the events of every key, in copied lists."""
        return list(self._events.values())
