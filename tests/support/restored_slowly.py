"""The slow twin of `broker.process.recovery`: each row is added as if its client had just sent it, expired ones too."""

from __future__ import annotations

import sys
from typing import Any

import structlog

from broker.engine.engine import Engine
from broker.engine.session_rows import certificate_in
from broker.engine.stored_cas import StoredCas
from broker.mqtt.errors import PacketError
from broker.mqtt.message import Message, PersonalMessage, Released
from broker.mqtt.subscription import Subscription
from broker.routing.retained import Room
from broker.session.framing import framing
from broker.session.incoming import Incoming
from broker.session.session import NEVER, Session
from broker.session.will import Will
from broker.store.journal import Journal
from broker.store.soundness import unusable
from broker.store.sqlite import SqliteStore
from provisioning.pki.identity import parse_uri
from tests.support.due import do_what_is_due

log = structlog.get_logger("broker")


def recover(engine: Engine, store: SqliteStore, now: float, wall_now: float) -> Journal:
    """Restore the new *engine* from *store*; return the journal that continues from there.

    Raises `StoreError` for a damaged database.
    """
    engine.returning.opened(now)  # The default; a caller may set another time.
    try:
        journal = _recover(engine, store, now, wall_now)
    except (KeyError, ValueError, PacketError) as error:  # A row without its counterpart, or an invalid identity.
        raise unusable(store.path, f"it is damaged ({type(error).__name__}: {error})") from error
    do_what_is_due(engine, now)  # Do what became due while the broker was down.
    return journal


def _recover(engine: Engine, store: SqliteStore, now: float, wall_now: float) -> Journal:
    offset = wall_now - now
    last_session = _highest(store, "sessions")
    last_message = _highest(store, "messages")
    last_delivery = _highest(store, "deliveries")
    journal = Journal(offset, last_session=last_session, last_message=last_message, last_delivery=last_delivery)
    sessions = {row[0]: _session(engine, journal, row, now) for row in store.rows("SELECT * FROM sessions")}
    unfinished: list[tuple[Session, Subscription, int]] = []
    for row, topic_filter, *options, identifiers, pending in store.rows("SELECT * FROM subscriptions"):
        qos, no_local, retain_as_published, retain_handling = options
        subscription = Subscription(
            topic_filter, qos, bool(no_local), bool(retain_as_published), retain_handling, identifiers
        )
        engine.subscribe(sessions[row], subscription)
        if pending:
            unfinished.append((sessions[row], subscription, pending))
    messages = {row[0]: _message(row[1:], offset) for row in store.rows("SELECT * FROM messages")}
    _deliveries(store, journal, sessions, messages, now)
    for row, packet_id in store.rows("SELECT * FROM incoming"):
        session = sessions[row]
        if session.incoming is None:
            session.incoming = Incoming()
        session.incoming.add(packet_id)  # One by one: there may be 65,535.
    _retained(engine, store, journal, now)
    _replays(engine, store, unfinished)
    journal.first_retained = engine.retained.last_number
    for session in sessions.values():  # Only now: what a session loses here was stored before.
        session.journal = journal if session.expiry_interval > 0 else None
    engine.journal = journal
    if sessions or len(engine.retained):
        log.info(
            "recovered", code="RECOVERED", sessions=len(sessions), messages=len(messages), retained=len(engine.retained)
        )
    return journal


def _highest(store: SqliteStore, table: str) -> int:
    ((highest,),) = store.rows(f"SELECT coalesce(max(id), 0) FROM {table}")
    return int(highest)


def _session(engine: Engine, journal: Journal, row: tuple[Any, ...], now: float) -> Session:
    *row_before, certificate, authorities, will_certificate, will_authorities, will_cas = row
    number, client_id, owner, v5, expiry_interval, ended_at, *will, will_delay = row_before
    offset = journal.wall_offset
    ended = now if ended_at is None else min(ended_at - offset, now)  # Later than now: the clock is behind.
    session = engine.registry.create(client_id, parse_uri(owner), left=expiry_interval == 0)
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
        above = None if will_cas is None else StoredCas(will_cas)
        session.will = Will(_message((*columns, None), offset), will_delay, will_expiry_interval, *left_with, above)
        session.will_due_at = ended + min(will_delay, expiry_interval)
        engine.returning.expect(session)
        engine.registry.schedule(session, session.will_due_at)
    if expiry_interval != NEVER:
        session.expires_at = ended + expiry_interval  # Not before its will is sent, see `Engine._due`.
        engine.registry.schedule(session, session.expires_at)
    return session


def _deliveries(
    store: SqliteStore, journal: Journal, sessions: dict[int, Session], messages: dict[int, Message], now: float
) -> None:
    """Each session's, one after the other: bit by bit, and with one look-up for each."""
    found = []
    for number, of, *way, places, listed in store.rows("SELECT * FROM deliveries"):
        ((left,),) = store.rows(f"SELECT coalesce(max(places), {places}) FROM remaining WHERE id = {number}")
        journal.restore(number, places, left)
        rows = iter(range(0, len(listed), 8))
        for place in range(62):
            if places & 1 << place:
                at = next(rows)
                row = int.from_bytes(listed[at : at + 8], "little")
                found.extend([(row, number * 64 + place, of, *way)] if left & 1 << place else [])
    used = {packet_id for (packet_id,) in store.rows("SELECT packet_id FROM progress")}
    free = [each for each in range(1, 65_536) if each not in used]
    expired: list[PersonalMessage] = []
    for row, sequence, of, qos, retain, identifiers, share in sorted(found):
        message = messages[of]
        message.row = of
        message.references += 1
        under_way = store.rows(f"SELECT packet_id, released FROM progress WHERE sequence = {sequence}")
        ((packet_id, released),) = under_way or [(None, 0)]
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
    for each in expired:  # Only now: a message goes with the last that needs it.
        journal.remove(each)


def _retained(engine: Engine, store: SqliteStore, journal: Journal, now: float) -> None:
    own, retained, newest = engine.admission.trust_domain, engine.retained, 0
    retained.limit = retained.bytes_limit = sys.maxsize  # No limit applies to what is stored.
    retained.device_limit = Room(sys.maxsize, sys.maxsize)
    for topic_name, *columns, publisher, number in store.rows("SELECT * FROM retained"):
        message = _message(tuple(columns), journal.wall_offset)
        if message.expires_at is None or message.expires_at > now:
            retained.last_number = number - 1
            retained.retain(topic_name, message, _publisher(publisher, own))
            newest = max(newest, number)
        else:
            journal.retain(topic_name, None)
    retained.last_number = newest
    engine.limit(engine.limits)


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
    for row, topic_filter, number in store.rows("SELECT * FROM replayed"):
        sent.setdefault((row, topic_filter), set()).add(number)
    for session, subscription, newest in unfinished:
        # The latest retained message may be gone: its number is not reused while a replay refers to it.
        engine.retained.last_number = max(engine.retained.last_number, newest)
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
