"""Sessions for operators: listing and ending them.

Theory
------
There may be a hundred thousand sessions. Rendering them at once would make every device wait, so a listing copies the
list (nanoseconds per session) and goes through it in short stretches, with a turn of the loop between two. A session is
shown as it is at the moment of rendering; one that has ended meanwhile is skipped.

Rules
-----
1. No message content is shown: topics and payloads belong to the fleet.
2. Times: monotonic in the engine, shown as UTC.
3. Each trust domain has its own client identifiers and names. A listing includes the sessions of all; where sessions
   are ended, a bare name means one of ours, and one of another domain must be named with its domain
   (``plant-7.example/meter-1``, or the identity).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import string
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from time import monotonic
from typing import Any

import structlog

from broker.connection.connection import ClientConnection
from broker.connection.lifetime import KEEP_ALIVE_FACTOR
from broker.engine.engine import Engine
from broker.mqtt.codes import ReasonCode
from broker.session.session import NEVER, Session
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.serial_number import normal_serial
from provisioning.program.host_and_port import unbracketed, without_port
from provisioning.program.moments import rfc3339
from provisioning.program.printable import printable

log = structlog.get_logger("broker")

_STRETCH = 50
"""Sessions between two turns of the loop: well under a millisecond, though showing one takes 16 µs."""
_SHOWN_OTHERS = 5
_STORE_PATIENCE = 10.0
"""Seconds to wait for the store before an operator is told that the end of a session is not on disk yet."""

KICKED = "KICKED"
"""Stable code of a connection ended by an operator."""


class Stored(StrEnum):
    """What is known of changes that should be on disk."""

    WRITTEN = "written"
    SLOW = "slow"
    """Not written yet: the disk takes long, nothing has failed."""
    FAILED = "failed"
    """The store cannot be written now."""


class InvalidSelection(ValueError):
    """A filter that makes no sense; the text names it."""


class OfAnotherDomain(LookupError):
    """Only parties of other trust domains have that name; to end their sessions they must be named with the domain."""

    def __init__(self, others: Sequence[str]) -> None:
        super().__init__(
            f"no client of our own trust domain; those of other trust domains: {', '.join(others)}; name one of these"
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """Which sessions are selected: those that match all given filters."""

    client: str | None = None
    """The client identifier, with or without the trust domain before it."""
    beginning: str | None = None
    """How the client identifier begins."""
    device: str | None = None
    """The name in the certificate, of any role; likewise."""
    serial: str | None = None
    address: str | None = None
    """With or without the port."""
    group: str | None = None
    role: str | None = None
    domain: str | None = None
    """The trust domain."""
    connected: bool | None = None
    anything: str | None = None
    """Client identifier or name, with or without the trust domain, identity, serial number or address."""

    @classmethod
    def of(cls, query: dict[str, str]) -> Selection:
        """Return the selection in *query*. Raises `InvalidSelection`."""
        known: dict[str, Any] = {}
        for key, value in query.items():
            if key not in cls.__slots__:
                raise InvalidSelection(f"{key}: no such filter; there are {', '.join(cls.__slots__)}")
            if not value:
                raise InvalidSelection(f"{key}: is empty; leave it out, or say which")
            if key == "role" and value not in list(Role):
                raise InvalidSelection(f"role: {', '.join(Role)}, not {value[:40]!r}")
            if key == "serial":
                known[key] = _serial_in(value)
            elif key != "connected":
                known[key] = value
            elif value in {"true", "false"}:
                known[key] = value == "true"
            else:
                raise InvalidSelection(f"connected: true or false, not {value[:40]!r}")
        return cls(**known)

    @property
    def named(self) -> bool:
        """Whether it names a single party, rather than a kind."""
        return any(each is not None for each in (self.client, self.device, self.serial, self.address, self.anything))

    def matches(self, session: Session, *, bare: bool = True) -> bool:
        """Whether *session* is selected; *bare*: also by a client identifier or name without the trust domain."""
        owner = session.owner
        bare = bare or self.domain is not None
        connection = session.connection
        live = connection if isinstance(connection, ClientConnection) else None
        serial = live.peer.serial if live is not None and live.peer is not None else None
        if self.anything is not None and not (
            self.anything == owner.uri
            or _is_called(self.anything, session.client_id, owner, bare=bare)
            or _is_called(self.anything, owner.name, owner, bare=bare)
            or (serial is not None and normal_serial(self.anything) == serial)
            or (live is not None and _is_at(live.address, self.anything))
        ):
            return False
        return (
            (self.client is None or _is_called(self.client, session.client_id, owner, bare=bare))
            and (self.beginning is None or session.client_id.startswith(self.beginning))
            and (self.device is None or _is_called(self.device, owner.name, owner, bare=bare))
            and (self.serial is None or self.serial == serial)
            and (self.address is None or (live is not None and _is_at(live.address, self.address)))
            and (self.group is None or self.group == owner.group)
            and (self.role is None or self.role == owner.role)
            and (self.domain is None or self.domain == owner.trust_domain)
            and (self.connected is None or self.connected == session.connected)
        )


def _serial_in(text: str) -> str:
    serial = normal_serial(text)
    if not serial or not set(serial) <= set(string.hexdigits):  # It would match nothing, and nobody be told why.
        raise InvalidSelection(f"serial: hexadecimal, as in 4c7a or 4C:7A, not {text[:60]!r}")
    return serial


def _is_called(text: str, name: str, owner: Identity, *, bare: bool) -> bool:
    """Whether *text* is *name*, or its printable form, preceded by the *owner*'s trust domain, or bare if *bare*."""
    return any(text == f"{owner.trust_domain}/{each}" or (bare and text == each) for each in (name, printable(name)))


def _is_at(address: str, wanted: str) -> bool:
    return wanted == address or unbracketed(wanted) == without_port(address)


async def matching(engine: Engine, selection: Selection) -> AsyncIterator[list[Session]]:
    """Yield the selected sessions, a stretch at a time, with a turn of the loop between two."""
    everybody = engine.registry.all()
    for start in range(0, len(everybody), _STRETCH):
        stretch = everybody[start : start + _STRETCH]
        yield [session for session in stretch if engine.registry.has(session) and selection.matches(session)]
        await asyncio.sleep(0)


class SessionView:
    """The sessions of one engine, rendered."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = monotonic) -> None:
        """*clock* is the event loop's: monotonic seconds."""
        self._engine = engine
        self._clock = clock

    async def document(self, selection: Selection, limit: int | None) -> AsyncIterator[bytes]:
        """Yield a JSON document of at most *limit* sessions: ``{"sessions": […], "matched": n, "shown": n}``."""
        matched = shown = 0
        yield b'{"sessions": ['
        async for sessions in matching(self._engine, selection):
            matched += len(sessions)
            if limit is not None:
                sessions = sessions[: limit - shown]  # noqa: PLW2901 - the rest is counted, not shown
            if sessions:
                now, wall = self._clock(), datetime.now(UTC)
                text = ", ".join(json.dumps(described(session, now, wall)) for session in sessions)
                yield f"{', ' if shown else ''}{text}".encode()
                shown += len(sessions)
        yield f'], "matched": {matched}, "shown": {shown}}}\n'.encode()

    async def kept(self, selection: Selection) -> int:
        """Return how many sessions `kick` with *selection* would end."""
        ours, found = self._engine.admission.is_ours, 0
        async for sessions in matching(self._engine, selection):
            found += sum(selection.matches(session, bare=ours(session.owner)) for session in sessions)
        return found

    async def kick(self, selection: Selection, reason: str, caller: str, *, forget: bool) -> list[dict[str, Any]]:
        """End the connections of the selected sessions, and with *forget* the kept sessions too.

        Returns what was ended; raises `OfAnotherDomain`. MQTT 5 clients are told 0x98 and *reason*.
        """
        ended = []
        others: list[str] = []
        async for sessions in matching(self._engine, selection):
            now = self._clock()
            for session in sessions:
                connection = session.connection
                if connection is None and not forget:
                    continue
                ours = self._engine.admission.is_ours(session.owner)
                if not selection.matches(session, bare=ours):
                    others.append(f"{session.owner.trust_domain}/{printable(session.client_id)}")
                    continue
                shown = described(session, now, datetime.now(UTC))
                facts = {key: shown[key] for key in ("client_id", "identity", "serial", "address")}
                if connection is not None:
                    connection.disconnect(KICKED, ReasonCode.ADMINISTRATIVE_ACTION, reason, now)
                kept = self._engine.registry.has(session)
                if forget and kept:
                    self._engine.forget(session, now)
                    kept = False
                log.info("kicked", code=KICKED, by=caller, detail=reason, forgotten=not kept, **facts)
                ended.append({**facts, "was_connected": connection is not None, "session_kept": kept})
        if others and not ended:
            raise OfAnotherDomain(others[:_SHOWN_OTHERS])
        return ended

    async def stored(self) -> Stored:
        """Wait until what was changed so far is stored, as long as there is patience; return what is known then.

        An operator who is told that a session has ended must not find it again after a crash (decision 0226).
        """
        journal, written = self._engine.journal, asyncio.Event()
        if journal is None:
            return Stored.WRITTEN
        if self._fails():
            return Stored.FAILED
        if not journal.when_written(lambda _now: written.set()):
            return Stored.WRITTEN
        self._engine.turn.request()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STORE_PATIENCE):
                await written.wait()
        if self._fails():
            return Stored.FAILED
        return Stored.WRITTEN if written.is_set() else Stored.SLOW

    def _fails(self) -> bool:
        return self._engine.journal is not None and self._engine.journal.failed


def described(session: Session, now: float, wall: datetime) -> dict[str, Any]:
    """Return the document of *session* at monotonic time *now*, which is *wall*."""
    owner = session.owner
    facts: dict[str, Any] = {
        "client_id": session.client_id,
        "identity": owner.uri,
        "role": str(owner.role),
        "group": owner.group,
        "device": owner.name,
        "connected": session.connected,
        "serial": None,
        "address": None,
        "version": None,
        "connected_since": None,
        "keep_alive": None,
        "certificate_expires_in": None,
        "session_expires_in": None,
        "subscriptions": len(session.subscriptions),
        "queued": session.queued,
        "inflight": len(session.inflight) if session.inflight is not None else 0,
    }
    connection = session.connection
    if isinstance(connection, ClientConnection):
        facts["version"] = connection.version.number
        facts["address"] = connection.address
        facts["connected_since"] = rfc3339(wall - timedelta(seconds=now - connection.since))
        facts["keep_alive"] = round(connection.keep_alive / KEEP_ALIVE_FACTOR)
        if connection.peer is not None:
            facts["serial"] = connection.peer.serial
        if connection.expires_at != math.inf:
            facts["certificate_expires_in"] = max(0, round(connection.expires_at - now))
    elif session.expiry_interval != NEVER:
        facts["session_expires_in"] = max(0, round(session.expires_at - now))
    return facts
