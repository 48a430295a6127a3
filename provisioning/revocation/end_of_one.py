"""Revokes one certificate and, if its key is compromised, all certificates for that key.

Theory
------
One key may have thousands of certificates, as a device may renew with the same key. They follow in portions, as a
device's do (`provisioning.revocation.portions`)::

    the one that was named, key ended, first portion ─► portion ─ others ─ portion ─ … ─► nothing is left ─► answered
     nobody gets or renews anything by that key        feed, CRL, OCSP follow each portion

Rules
-----
1. From the first transaction on the key is useless here: nothing is certified for it, no certificate for it is
   accepted, renewed or released, and OCSP reports all of them as revoked, whether they are revoked themselves yet or
   not.
2. Brokers and CRLs know only certificates. Good ones are revoked first, then those that are on hold, expired or revoked
   for another reason, which are refused anyway; the newest first in both. The first transaction includes a portion.
3. No certificate is added to those left, as one that the store had lost is revoked when it is recorded: so they are
   listed once by whoever finishes the end, with no position to keep.
4. A key reported as compromised twice is ended once; a second report waits while the first is processed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

import structlog
from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation import portions as portioned
from provisioning.revocation.affected import facts_before, is_affected
from provisioning.revocation.departed_operators import (
    Departed,
    Voided,
    check_short,
    take_back,
    with_what_is_left,
    written,
)
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.issued_to import TooMany, first_of_key
from provisioning.revocation.listed_end import revoke_portion
from provisioning.revocation.named_certificate import NamedCertificate
from provisioning.revocation.portions import Portions
from provisioning.revocation.protection import check_an_admin_is_left
from provisioning.revocation.recording import IN_WHAT_FOLLOWS, Changed, RevocationOutcome, facts_of, record
from provisioning.store import audit, certificates, certificates_of_key, revocations, unfinished_key_ends
from provisioning.store.audit import Action
from provisioning.store.certificates import StoredCertificate
from provisioning.store.certificates_of_key import DeviceKey, key_of
from provisioning.store.database import Database

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Begun:
    """What the first transaction of several has done."""

    key: DeviceKey
    taken: Changed
    changed: bool
    ends_key: bool
    """It has ended the key; otherwise that was done before."""
    before: int
    """The feed's newest sequence number then."""
    departed: Sequence[Departed]


class EndOfOne:
    """Revokes single certificates."""

    def __init__(
        self, database: Database, clock: Callable[[], datetime], tell: Callable[[Changed], None], portions: Portions
    ) -> None:
        self._database = database
        self._clock = clock
        self._tell = tell
        self._portions = portions

    async def end(self, named: NamedCertificate, grounds: Grounds, by: str, *, keep: bool = False) -> RevocationOutcome:
        """Revoke the certificate that is *named*; raise `Refused` if there is none, or it is the last admin's.

        *keep* what its operator has promised (`provisioning.revocation.departed_operators`).
        """
        work = partial(self._at_once, named=named, grounds=grounds, by=by, keep=keep)
        try:
            outcome, fresh = await written(self._database, work)
        except TooMany:
            return await self._told(await self._in_portions(named, grounds, by))
        for each in fresh:
            log.info(
                "certificate revoked", device=each.device.name, serial=each.serial, reason=grounds.reason.value, by=by
            )
        self._tell(fresh)
        return await self._told(outcome)

    async def _told(self, outcome: RevocationOutcome) -> RevocationOutcome:
        departed = await with_what_is_left(self._database, outcome.departed, self._clock())
        return replace(outcome, departed=departed)

    def _at_once(
        self, connection: Connection, named: NamedCertificate, grounds: Grounds, by: str, *, keep: bool, short: bool
    ) -> tuple[RevocationOutcome, Changed]:
        """Revoke all in this transaction; raise `TooMany` if the key has more than a few certificates.

        Raises `MayBeLong` for that of an operator with many tokens, if the transaction is to be *short*.
        """
        certificate = named.locked(connection, self._clock, by)
        if short:
            check_short(connection, certificate.device, grounds)
        fresh, before = ([certificate], ()) if is_affected(certificate, grounds) else ([], (certificate,))
        if grounds.reason is RevocationReason.KEY_COMPROMISE:
            same_key = first_of_key(connection, key_of(certificate))
            fresh += [each for each in same_key if each.id != certificate.id and is_affected(each, grounds)]
        now = self._clock()
        revoked = record(connection, fresh, grounds, now, by)
        voided = take_back(connection, (), [certificate], grounds, now, by=by, keep=keep)
        check_an_admin_is_left(connection, [each.device for each in fresh], now)
        if fresh or voided:
            _audit(connection, certificate, fresh, voided, grounds, now, by)
        return RevocationOutcome(revoked + facts_of(before), bool(fresh or voided), voided.departed), fresh

    async def _in_portions(self, named: NamedCertificate, grounds: Grounds, by: str) -> RevocationOutcome:
        def look(connection: Connection) -> list[int]:
            return certificates_of_key.not_compromised(connection, named.key(connection), self._clock())

        left = await self._database.read(look)
        begun = await self._database.write(partial(self._begin, named=named, left=left, grounds=grounds, by=by))
        self._portions.shut_out()
        self._tell(begun.taken)
        await self._portions.finish(begun.key)
        every = await self._database.read(partial(certificates_of_key.every, key=begun.key))
        ended = [each for each in every if each.revocation is not None and each.revocation.sequence > begun.before]
        if begun.ends_key:
            name, serial, count = every[0].device.name, named.serial, len(ended)
            log.info("key ended", device=name, serial=serial, certificates=count, reason=grounds.reason.value, by=by)
        told = (begun.ends_key and ended) or [each for each in every if each.serial == named.serial]
        facts = facts_of(sorted(told, key=lambda each: each.serial != named.serial))
        return RevocationOutcome(facts, begun.changed, begun.departed)

    def _begin(
        self, connection: Connection, named: NamedCertificate, left: Sequence[int], grounds: Grounds, by: str
    ) -> _Begun:
        """Revoke the certificate that was named and, unless no others are *left* for its key, end the key."""
        certificate = named.locked(connection, self._clock, by)
        key, now = key_of(certificate), self._clock()
        taken: list[StoredCertificate] = [certificate] if is_affected(certificate, grounds) else []
        first = certificates.with_ids(connection, set(left[: portioned.PORTION]))
        # Another process may have revoked them since they were listed.
        is_left = any(is_affected(each, grounds) for each in first)
        ends_key = is_left and unfinished_key_ends.of_key(connection, key) is None
        before = revocations.newest(connection)
        record(connection, taken, grounds, now, by)
        # Never kept: more than a few are ended for a compromised key only.
        voided = take_back(connection, (), [certificate], grounds, now, by=by, keep=False)
        changed = bool(taken or voided or ends_key)
        if changed:
            _audit(connection, certificate, taken, voided, grounds, now, by, ends_key=ends_key)
        if ends_key:
            unfinished_key_ends.begin(
                connection, [key], invalidity_date=grounds.invalidity_date, ended_at=now, ended_by=by
            )
            others = [each for each in left if each != certificate.id]
            more, _ = revoke_portion(connection, key, others[: portioned.PORTION], now, last=False)
            taken += more
        check_an_admin_is_left(connection, [certificate.device] if taken else [], now)
        return _Begun(key, taken, changed, ends_key, before, voided.departed)


def _audit(
    connection: Connection,
    certificate: StoredCertificate,
    taken: Changed,
    voided: Voided,
    grounds: Grounds,
    now: datetime,
    by: str,
    *,
    ends_key: bool = False,
) -> None:
    voided.note_what_ended(connection, grounds, now, by)
    facts = {**grounds.facts, "serials": [each.serial for each in taken], **facts_before(taken)}
    facts |= voided.facts_of(certificate.device.name) if voided or voided.departed else {}
    facts |= {"same_key": IN_WHAT_FOLLOWS} if ends_key else {}
    audit.append(connection, now, by, Action.REVOKED, certificate.device.name, facts)
