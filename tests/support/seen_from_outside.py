"""What must be true of a store at every moment, as who takes no part sees it: no let-in, no gap, no lost entry.

Handles: PostgreSQL, while `tests.support.stepped_processes` steps what writes to it, and SQLite by
`tests.support.stepped_sqlite`. Each check looks only at what is
new since the last one, so that a thousand orders can share a database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from provisioning.directory.audit_chain import BEGINNING
from provisioning.store.audit import AuditEntry
from tests.support.requests import NOON

_EVENTS = "SELECT sequence FROM revocation_events WHERE sequence > %s ORDER BY sequence"
_LET_IN = """
SELECT devices.name, certificates.serial FROM certificates JOIN devices ON devices.id = certificates.device_id
LEFT JOIN revocations ON revocations.certificate_id = certificates.id
WHERE certificates.id > %s AND certificates.not_after > %s
AND NOT EXISTS (SELECT 1 FROM unfinished_ends WHERE unfinished_ends.device_id = devices.id)
AND (revocations.sequence IS NULL AND
     coalesce(devices.revoked_at, devices.suspended_at, devices.decommissioned_at) IS NOT NULL
  OR revocations.reason = 'certificateHold' AND coalesce(devices.revoked_at, devices.decommissioned_at) IS NOT NULL)
"""
"""Certificates that count as good, or as held only, though their device as a whole was ended or suspended."""
_UNTOLD = """
SELECT certificates.serial, revocations.sequence, events.last
FROM certificates LEFT JOIN revocations ON revocations.certificate_id = certificates.id
LEFT JOIN (SELECT certificate_id, max(sequence) AS last FROM revocation_events GROUP BY certificate_id) AS events
    ON events.certificate_id = certificates.id
LEFT JOIN revocation_events ON revocation_events.sequence = events.last
WHERE certificates.id > %s AND (
    revocations.sequence IS DISTINCT FROM CASE WHEN revocation_events.kind = 'revoked' THEN events.last END
    OR revocations.reason <> revocation_events.reason)
"""
"""Certificates of which the feed says another thing than the store."""
_TWICE = "SELECT serial FROM certificates WHERE id > %s GROUP BY serial HAVING count(*) > 1"
_UNRESERVED = "SELECT serial FROM serial_reservations JOIN certificates USING (serial) WHERE certificates.id > %s"
_PAID_TWICE = """
SELECT certificate_id FROM tokens WHERE certificate_id > %s GROUP BY certificate_id HAVING count(*) > 1
"""
_KEYS = """
SELECT spki_sha256 FROM certificates WHERE id > %s GROUP BY spki_sha256 HAVING count(DISTINCT device_id) > 1
"""
_CLAIMS = """
SELECT name FROM claims WHERE created_at >= %s AND (taken > maximum_devices
OR taken <> (SELECT count(*) FROM claim_places WHERE claim_id = claims.id))
"""
_CROWDED = """
SELECT enrolment_groups.name FROM enrolment_groups JOIN devices ON devices.group_name = enrolment_groups.name
WHERE enrolment_groups.created_at >= %s AND decommissioned_at IS NULL AND EXISTS (
    SELECT 1 FROM certificates WHERE device_id = devices.id)
GROUP BY enrolment_groups.name
HAVING count(*) > min(CAST(rules->>'maximum_devices' AS integer))
"""
_NEVER = (_TWICE, _UNRESERVED, _PAID_TWICE, _KEYS)
_ENTRIES = (
    "SELECT number, at, actor, action, subject, details, mac FROM audit_entries WHERE number > %s ORDER BY number"
)


@dataclass
class Outsider:
    """A reader of the store, who remembers how far he has read."""

    session: Any
    audit_key: bytes = b""
    position: int = 0
    """The newest event of the feed that he has read."""
    since: datetime = NOON
    certificate: int = 0
    """The newest certificate of the orders before."""
    entry: tuple[int, bytes] = (0, BEGINNING)
    """The last audit entry that he has checked."""
    events: list[int] = field(default_factory=list)

    def rows(self, statement: str, *values: object) -> list[Any]:
        found: list[Any] = self.session.execute(statement.encode(), values).fetchall()
        return found

    def entry_of(self, row: Sequence[Any]) -> Sequence[Any]:
        """Return the values of an entry of the audit log."""
        return row

    def begin(self, now: datetime) -> None:
        """Look, from now on, at what comes now."""
        self.since = now
        ((self.certificate,),) = self.rows("SELECT coalesce(max(id), 0) FROM certificates")
        self.events.clear()

    def look(self, now: datetime) -> None:
        """Read on in the feed, and see that nobody is let in: at any moment."""
        for (sequence,) in self.rows(_EVENTS, self.position):
            assert sequence == self.position + 1, f"event {self.position + 1} is not there, and {sequence} is"
            self.position = sequence
            self.events.append(sequence)
        assert self.rows(_LET_IN, self.certificate, now) == [], "let in"

    def check(self, now: datetime) -> None:
        """See that everything fits together: whenever nobody is in the middle of something."""
        self.look(now)
        assert self.rows(_UNTOLD, self.certificate) == [], "feed and store differ"
        for statement in _NEVER:
            assert self.rows(statement, self.certificate) == [], statement
        for statement in (_CLAIMS, _CROWDED):
            assert self.rows(statement, self.since) == [], statement
        ((taken, newest),) = self.rows(
            "SELECT value, (SELECT coalesce(max(sequence), 0) FROM revocation_events) FROM counters "
            "WHERE name = 'revocation'"
        )
        assert taken == newest, "the feed's next number"
        self._check_audit()

    def _check_audit(self) -> None:
        number, mac = self.entry
        for row in self.rows(_ENTRIES, number):
            entry = AuditEntry(*self.entry_of(row))
            assert entry.number == number + 1, f"audit entry {number + 1} is missing"
            assert entry.authenticated_by(self.audit_key, mac), f"audit entry {entry.number} does not follow the last"
            number, mac = entry.number, entry.mac
        self.entry = number, mac
        assert self.rows("SELECT number, mac FROM audit_head") == [(number, mac)], "the audit log's end"
