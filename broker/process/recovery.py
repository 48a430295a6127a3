"""Restores the state from before a restart: from the store into the engine.

Theory
------
There may be hundreds of thousands of sessions and a million retained messages, and nobody is served before they are
here (decision 0227). So rows are read one by one; what many rows have in common is kept once, and what is sorted is
filed beside its predecessor. The caller has the garbage collector paused. Slow twin: `tests.support.restored_slowly`,
which adds each as if its client had just sent it.

Rules
-----
1. A QoS 1 message that was under way is sent again; the client may get it twice, as QoS 1 allows. A QoS 2 message is
   sent again with the packet identifier that the client knows: exactly once. All of them in order [MQTT-4.6.0-1].
2. An expired session is not restored, unless it has a will or messages, which may concern others: then it ends with the
   first tick. The rows of the others are removed while clients are served (`Journal.lapsed`).
3. If a session was connected when the broker was killed, its expiry counts from the restart; so does the delay of its
   will, which also waits while clients return (`broker.engine.returning`): they lost their connection through no fault
   of theirs. Of a session that ended with its connection only the will is restored:
   its client finds no session. If a certificate was revoked meanwhile, or its anchors are gone, it is treated as if its
   client had been connected (`broker.revocation.enforcement`).
4. Expired messages are dropped.
5. A row that no broker has written, or without its counterpart, means a damaged database: it is refused
   (`broker.store.soundness`), and the error names the table.
6. A message that no delivery names is nobody's: no broker leaves one, but each start would read it again. They are
   counted, reported and removed, at most `_REMOVED_AT_ONCE` a start, in the transaction of the first batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import structlog

from broker.engine.engine import Engine
from broker.engine.session_rows import certificate_in
from broker.engine.stored_cas import cas_of
from broker.mqtt.errors import PacketError
from broker.mqtt.message import Message, PersonalMessage, Released
from broker.mqtt.subscription import Subscription
from broker.session.framing import framing
from broker.session.incoming import Incoming
from broker.session.inflight import unused
from broker.session.session import NEVER, Session
from broker.session.will import Will
from broker.store.dispatch import PLACE_BITS, unpacked
from broker.store.journal import Journal
from broker.store.soundness import unusable
from broker.store.sqlite import SqliteStore
from provisioning.pki.identity import Identity, parse_uri

log = structlog.get_logger("broker")

_OWED: Final = """
SELECT deliveries.places, sessions, coalesce(remaining.places, deliveries.places)
    FROM deliveries LEFT JOIN remaining USING (id)
"""
_DELIVERIES: Final = """
SELECT deliveries.*, coalesce(remaining.places, deliveries.places)
    FROM deliveries LEFT JOIN remaining USING (id) ORDER BY deliveries.id
"""
_PROGRESS: Final = "SELECT * FROM progress"
_KEPT: Final = 4096
"""Values that rows may have in common, remembered while they are read."""
_REMOVED_AT_ONCE: Final = 10_000
"""Messages that nobody is to get: the first batch holds answers, and must not take long."""


class _UnsoundRow(Exception):
    """A row that cannot be restored; says of which table, and why not."""


@contextlib.contextmanager
def _rows_of(table: str) -> Iterator[None]:
    """Raise `_UnsoundRow` for what a row of *table* does not allow."""
    try:
        yield
    except KeyError as error:
        raise _UnsoundRow(f"a row of {table} refers to row {error} of another table, which is not there") from error
    except (ValueError, PacketError) as error:
        raise _UnsoundRow(f"a row of {table}: {error}") from error


def recover(engine: Engine, store: SqliteStore, now: float, wall_now: float) -> Journal:
    """Restore the new *engine* from *store*; return the journal that continues from there.

    Raises `StoreError` for a damaged database.
    """
    engine.returning.opened(now)  # The default; a caller may set another time.
    try:
        journal = _recover(engine, store, now, wall_now)
    except _UnsoundRow as error:
        raise unusable(store.path, f"it is damaged ({error})") from error
    return journal


def _recover(engine: Engine, store: SqliteStore, now: float, wall_now: float) -> Journal:
    offset = wall_now - now
    last_session = _highest(store, "sessions")
    last_message = _highest(store, "messages")
    last_delivery = _highest(store, "deliveries")
    journal = Journal(offset, last_session=last_session, last_message=last_message, last_delivery=last_delivery)
    with _rows_of("deliveries"):
        owing = {row for listed, packed, left in store.each(_OWED) for _, row in unpacked(listed, packed, left)}
    with _rows_of("sessions"):
        sessions = _sessions(engine, journal, store, owing, now)
    gone = frozenset(journal.lapsed.values())
    engine.metrics.sessions_expired += len(gone)
    unfinished: list[tuple[Session, Subscription, int]] = []
    with _rows_of("subscriptions"):
        newest_pending = _subscriptions(engine, store, sessions, gone, unfinished)
    with _rows_of("messages"):
        messages = {row[0]: _message(row[1:], offset) for row in store.each("SELECT * FROM messages")}
    with _rows_of("deliveries"):
        _deliveries(store, journal, sessions, messages, now)
    with _rows_of("incoming"):
        for row, packet_id in store.each("SELECT * FROM incoming"):
            if row in gone:
                continue
            session = sessions[row]
            if session.incoming is None:
                session.incoming = Incoming()
            session.incoming.add(packet_id)  # One by one: there may be 65,535.
    with _rows_of("retained"):
        engine.retained.restore(_retained(engine, store, journal, now))
    # The latest retained message may be gone: its number is not reused while a row of a replay refers to it.
    engine.retained.last_number = max(engine.retained.last_number, newest_pending)
    with _rows_of("replayed"):
        _replays(engine, store, unfinished)
    journal.first_retained = engine.retained.last_number
    for session in sessions.values():  # Only now: what a session loses here was stored before.
        session.journal = journal if session.expiry_interval > 0 else None
    engine.journal = journal
    if sessions or gone or len(engine.retained):
        found = {"sessions": len(sessions), "messages": len(messages), "retained": len(engine.retained)}
        log.info("recovered", code="RECOVERED", **found, expired=len(gone))
    return journal


def _highest(store: SqliteStore, table: str) -> int:
    ((highest,),) = store.rows(f"SELECT coalesce(max(id), 0) FROM {table}")  # noqa: S608 - our own table names
    return int(highest)


class _Owners:
    """Reads the owners of sessions, most of which differ in the name alone."""

    def __init__(self) -> None:
        self._known: dict[str, Identity] = {}

    def read(self, uri: str) -> Identity:
        """Return whom *uri* denotes, as `parse_uri` does."""
        before, _, name = uri.rpartition("/")
        known = self._known.get(before)
        if known is not None:
            return Identity(known.trust_domain, known.role, name, known.group)
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[before] = identity = parse_uri(uri)
        return identity


def _sessions(engine: Engine, journal: Journal, store: SqliteStore, owing: set[int], now: float) -> dict[int, Session]:
    """Restore the sessions, without those that have expired and are not *owing* anybody anything."""
    owners = _Owners()
    wall_now = now + journal.wall_offset
    sessions: dict[int, Session] = {}
    for row in store.each("SELECT * FROM sessions"):
        number, client_id, owner, _, expiry_interval, ended_at, will_topic, *_ = row
        if (
            ended_at is not None
            and 0 < expiry_interval != NEVER
            and ended_at + expiry_interval <= wall_now
            and will_topic is None
            and number not in owing
        ):
            owners.read(owner)
            journal.lapsed[client_id, owner] = number
            journal.earlier.add(number)
        else:
            sessions[number] = _session(engine, journal, row, owners.read(owner), now)
    return sessions


def _session(engine: Engine, journal: Journal, row: tuple[Any, ...], owner: Identity, now: float) -> Session:
    *row_before, certificate, authorities, will_certificate, will_authorities, will_cas = row
    number, client_id, _, v5, expiry_interval, ended_at, *will, will_delay = row_before
    if client_id == owner.name:
        client_id = owner.name  # The same text, once in memory.
    offset = journal.wall_offset
    ended = now if ended_at is None else min(ended_at - offset, now)  # Later than now: the clock is behind.
    session = engine.registry.create(client_id, owner, left=expiry_interval == 0)
    session.row = number
    if ended_at is not None:
        journal.earlier.add(number)
    session.framing = framing(v5=bool(v5))
    session.expiry_interval = expiry_interval
    session.certificate, session.authorities = certificate_in(certificate, authorities)
    if will[0] is not None:
        *columns, will_expiry_interval = will
        # Older brokers stored the certificate only of sessions that were connected.
        left_with = certificate_in(will_certificate or certificate, will_authorities or authorities)
        above = None if will_cas is None else cas_of(will_cas)
        session.will = Will(_message((*columns, None), offset), will_delay, will_expiry_interval, *left_with, above)
        session.will_due_at = ended + min(will_delay, expiry_interval)
        engine.returning.expect(session)
        engine.registry.schedule(session, session.will_due_at)
    if expiry_interval != NEVER:
        session.expires_at = ended + expiry_interval  # Not before its will is sent, see `Engine._due`.
        engine.registry.schedule(session, session.expires_at)
    return session


def _subscriptions(
    engine: Engine,
    store: SqliteStore,
    sessions: dict[int, Session],
    gone: frozenset[int],
    unfinished: list[tuple[Session, Subscription, int]],
) -> int:
    """Restore the subscriptions, but of sessions that are *gone*; add to those *unfinished*, and return the newest."""
    newest_pending = 0
    for row, topic_filter, qos, no_local, retain_as_published, retain_handling, identifiers, pending in store.each(
        "SELECT * FROM subscriptions"
    ):
        newest_pending = max(newest_pending, pending)
        if row in gone:
            continue
        subscription = Subscription(
            topic_filter, qos, bool(no_local), bool(retain_as_published), retain_handling, identifiers
        )
        engine.subscribe(sessions[row], subscription)
        if pending:
            unfinished.append((sessions[row], subscription, pending))
    return newest_pending


def _deliveries(
    store: SqliteStore, journal: Journal, sessions: dict[int, Session], messages: dict[int, Message], now: float
) -> None:
    progress = {sequence: (packet_id, released) for sequence, packet_id, released in store.each(_PROGRESS)}
    free = unused({packet_id for packet_id, _ in progress.values()}) if progress else ()
    expired: list[PersonalMessage] = []
    for number, of, qos, retain, identifiers, share, listed, packed, left in store.each(_DELIVERIES):
        message = messages[of]
        message.row = of
        journal.restore(number, listed, left)
        for place, row in unpacked(listed, packed, left):
            message.references += 1
            sequence = number << PLACE_BITS | place
            packet_id, released = progress.pop(sequence, (None, 0))
            if released:
                sessions[row].restore(Released(message, sequence), packet_id, free)
                continue
            stored = PersonalMessage(message, qos=qos, retain=bool(retain), identifiers=identifiers, share=share)
            stored.sequence = sequence
            stored.recorded = packet_id is not None
            if packet_id is None and message.expires_at is not None and message.expires_at <= now:
                expired.append(stored)
            else:
                sessions[row].restore(stored, packet_id, free)
    if progress:
        raise ValueError("progress has an exchange that no session has")
    _remove_unneeded(journal, messages)
    for each in expired:  # Only now: a message goes with the last that needs it.
        journal.remove(each)


def _remove_unneeded(journal: Journal, messages: dict[int, Message]) -> None:
    """Have the *messages* removed that no delivery names."""
    unneeded = [row for row, message in messages.items() if not message.references]
    if unneeded:
        removed = unneeded[:_REMOVED_AT_ONCE]
        journal.remove_unneeded(removed)
        log.warning(
            "messages that nobody is to get are removed",
            code="STORE_UNNEEDED_MESSAGES",
            removed=len(removed),
            left=len(unneeded) - len(removed),
        )


def _retained(
    engine: Engine, store: SqliteStore, journal: Journal, now: float
) -> Iterator[tuple[str, Message, str, int]]:
    """Yield the retained messages as `RetainedMessages.restore` takes them: the table is sorted by their topics."""
    own, offset = engine.admission.trust_domain, journal.wall_offset
    stored = publisher = ""
    for topic_name, topic, payload, qos, retain, properties, expires_at, by, number in store.each(
        "SELECT * FROM retained ORDER BY topic_name"
    ):
        if by != stored:  # Neighbours are mostly of one publisher, whose name is kept once.
            stored, publisher = by, _publisher(by, own)
        if expires_at is not None:
            expires_at -= offset  # noqa: PLW2901 - by the monotonic clock from here on
            if expires_at <= now:
                journal.retain(topic_name, None)
                continue
        yield (
            topic_name,
            Message(topic, payload, qos, retain=bool(retain), properties=properties, expires_at=expires_at),
            publisher,
            number,
        )


def _publisher(stored: str, own: str | None) -> str:
    """Return the `Session.name` of the publisher of a retained message.

    Before client identifiers were separate per trust domain it was role and client identifier; the latter may contain
    slashes, and nothing precedes the role. Such a name is taken as one of *own*, if the broker has a domain.
    """
    if own is None or not stored or stored.startswith("/"):
        return stored
    role, _, client_id = stored.partition("/")
    return f"/{role}/{own}/{client_id}"


def _replays(engine: Engine, store: SqliteStore, unfinished: list[tuple[Session, Subscription, int]]) -> None:
    sent: dict[tuple[int, str], set[int]] = {}
    for row, topic_filter, number in store.each("SELECT * FROM replayed"):
        sent.setdefault((row, topic_filter), set()).add(number)
    for session, subscription, newest in unfinished:
        known = frozenset(sent.get((session.row, subscription.topic_filter), ()))
        engine.replays.resume(session, subscription, newest, known)


def _message(columns: tuple[Any, ...], offset: float) -> Message:
    topic, payload, qos, retain, properties, expires_at = columns
    return Message(
        topic,
        payload,
        qos,
        retain=bool(retain),
        properties=properties,
        expires_at=None if expires_at is None else expires_at - offset,
    )
