"""What a client waits for whose earlier session has ended: until that is gone from the store, too.

Theory
------
A client that is told that it has no session begins its packet identifiers afresh. If its old session came back after a
crash, the broker would take a new QoS 2 message for an old one with the same identifier, and acknowledge it without
routing it; and messages of the old one would be sent again (decision 0226). So CONNECT waits, before anything is opened
for it, and is then handled again from the start.

Rules
-----
1. Only a client waits whose session of the same name was stored, and whose end is not written yet: whatever ended it.
2. While the store fails nobody waits: a message can only be lost or doubled if the old session had an unfinished
   exchange at QoS 2, or one whose end is not written. Then the client is refused, and its session stays; any other is
   admitted.
3. No I/O, no clock.
"""

from __future__ import annotations

from broker.admission.inquiry import Inquiry
from broker.admission.refusal import RefusalCode, Refused, unavailable
from broker.engine.session_rows import session_row
from broker.session.inflight import holds_exactly_once
from broker.session.session import Session
from broker.store.journal import Journal


def unfinished(session: Session) -> bool:
    """Whether *session* has an exchange at QoS 2 that has begun, in either direction, and not ended for the store.

    If the end of one that the client began is not written, its packet identifier comes back with the session.
    """
    inflight, journal = session.inflight, session.journal
    return (
        bool(session.incoming)
        or (inflight is not None and holds_exactly_once(inflight))
        or (journal is not None and journal.freed(session.row))
    )


def refuse_to_end(session: Session, *, brief: bool) -> Refused | None:
    """Return why *session* cannot be ended by its client while the store fails, or None.

    *brief*: it is resumed for the time of one connection. Then what waits in it at QoS 2 would be sent, and after a
    crash, which brings back the session as it was, sent again.
    """
    journal = session.journal
    if journal is None or not journal.failed:
        return None
    doubles = brief and any(each.exactly_once for each in session.deliveries())
    return _refusal() if doubles or unfinished(session) else None


def what_to_wait_for(journal: Journal, name: str) -> Inquiry | Refused | None:
    """Return what the client of session *name* waits for before it is admitted; why it cannot be; or None."""
    left = journal.unwritten_end(name)
    if left is None:
        return None
    if journal.failed:
        return _refusal() if left else None
    inquiry = Inquiry()
    journal.when_ended(name, lambda now: inquiry.answer(None, now))
    return inquiry


def end_in_store(session: Session) -> None:
    """Record that *session*, which its client resumes for the time of one connection, ends if the broker does.

    Until it is admitted all stays as it was: the client may be gone before, and come back with another wish.
    """
    journal = session.journal
    if journal is not None and session.row not in journal.brief:
        journal.save_session(session.row, session_row(session, None, journal.wall_offset, expiry_interval=0))
        journal.brief.add(session.row)
        journal.ended(session.name, unfinished=unfinished(session))


def _refusal() -> Refused:
    detail = "the store cannot be written: your earlier session, with an unfinished exchange, cannot be ended now"
    return unavailable(RefusalCode.STORE_FAILED, detail)
