"""The OCSP responder: a request in DER, the status from the store, a response in DER.

Theory
------
A certificate's status from the store is cached for a few minutes, with the responses signed for it (one for each
hash that clients use), so that most requests cost a dictionary access::

    request ─► CertID ─► ours? ─► entry (status) ─► answer for this hash ─► bytes
                           │no        │none: one read for all who ask at once
                           ▼          ▼
                     unauthorized   store

A revocation removes the entry right after its commit, before the operator gets the answer; and again when
the feed reads it, which covers other processes on the same store. A look-up that was under way meanwhile is
not cached.

Signing is done where the request is handled: the delegated key is an ECDSA key in memory, whose signature takes
30 microseconds, less than the way to a thread and back. The issuing CA's key, which may be slow, is used by
`provisioning.revocation.ocsp_signer` in a thread.

Rules
-----
1. "Good" only for certificates that this CA issued, and "try later" where the store has lost that one was ended
   (`provisioning.store.lost_ends`); "unknown" for a serial number that it never issued; for another
   CA's certificates the error "unauthorized" (RFC 9919 §3.2.3).
2. A response is at most `remembered` older than the store; a request after a revocation was answered sees it.
3. A response with a nonce is signed for its one request and never cached.
4. The cache is bounded: strangers choose the serial numbers. Unknown ones are not cached at all.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.ca.ocsp import (
    CertificateStatus,
    Failure,
    Good,
    OcspRefused,
    OcspRequest,
    Revoked,
    Unknown,
    issuer_hashes,
    read_request,
)
from provisioning.errors import Refused
from provisioning.pki.serial_number import serial_text
from provisioning.program.shielded import shielded
from provisioning.revocation.feed_event import FeedEvent
from provisioning.revocation.ocsp_signer import RenewedOcspSigner
from provisioning.store import certificates, lost_ends
from provisioning.store.certificates import StoredCertificate
from provisioning.store.database import Database

LONGEST_REMEMBERED: Final = timedelta(minutes=5)
_ENTRIES: Final = 16_384
"""About 30 MB when every entry has two answers."""
_FORMS: Final = 4
"""Answers that an entry has at most."""

_QUESTIONS: Final = 4096
"""Parsed requests that are cached, about 1 KB each."""
_LONGEST_QUESTION: Final = 256
"""Most octets of a cached request: the usual ones have half of that."""

CertificateName = tuple[str, str]
"""Issuer's key identifier and serial number, as the store writes them."""


@dataclass(frozen=True, slots=True, eq=False)
class OcspAnswer:
    """A signed response; *remembered* is how long others may cache it, None if it is for one request only.

    Whenever it is given, *remembered* later is not after *next_update* (RFC 9919 §7.2).
    """

    der: bytes
    this_update: datetime
    next_update: datetime
    remembered: timedelta | None
    etag: bytes
    """Empty if it is for one request only."""


@dataclass(slots=True)
class _Entry:
    status: CertificateStatus
    read_at: datetime
    fresh_until: datetime
    answers: dict[tuple[str, bool], OcspAnswer] = field(default_factory=dict)
    """By the hash algorithm of the request, and whether that is named without parameters."""


@dataclass(frozen=True, slots=True)
class _Asked:
    request: OcspRequest
    signer: RenewedOcspSigner
    name: CertificateName


class OcspResponder:
    """Answers for the issuing CAs whose delegated signers it has."""

    def __init__(
        self,
        database: Database,
        signers: Sequence[RenewedOcspSigner],
        clock: Callable[[], datetime],
        life: timedelta,
    ) -> None:
        """*life* is the time from thisUpdate to nextUpdate."""
        self._database = database
        self._clock = clock
        self._life = life
        self.remembered: Final = min(LONGEST_REMEMBERED, life / 2)
        self._questions: Final[dict[bytes, _Asked]] = {}
        self.answer_for(signers)
        self._entries: Final[dict[CertificateName, _Entry]] = {}
        self._pending: Final[dict[CertificateName, asyncio.Task[_Entry]]] = {}

    def answer_for(self, signers: Sequence[RenewedOcspSigner]) -> None:
        """Answer from now on for the CAs of *signers*, and for no others."""
        self._questions.clear()
        self._signers = {name: signer for signer in signers for name in issuer_hashes(signer.issuer.certificate)}

    async def answer(self, der: bytes) -> OcspAnswer:
        """Return the response to a request; raise `OcspRefused` with the error status."""
        asked = self._asked(der)
        entry = self._fresh(asked.name, self._clock()) or await self._look_up(asked.name)
        return self._told(asked, entry, self._clock())

    def answer_at_once(self, der: bytes) -> OcspAnswer | None:
        """Return what `answer` would, None if it has to query the store; raise `OcspRefused` as it does."""
        asked = self._asked(der)
        now = self._clock()
        entry = self._fresh(asked.name, now)
        return None if entry is None else self._told(asked, entry, now)

    def _asked(self, der: bytes) -> _Asked:
        asked = self._questions.get(der)
        if asked is None:
            asked = self._read(der)
            if asked.request.nonce is None and len(der) <= _LONGEST_QUESTION:
                if len(self._questions) >= _QUESTIONS:  # Perhaps by strangers: each costs one parse.
                    self._questions.clear()
                self._questions[der] = asked
        return asked

    def _read(self, der: bytes) -> _Asked:
        request = read_request(der)
        signer = self._signers.get((request.algorithm.name, request.issuer_name_hash, request.issuer_key_hash))
        if signer is None:
            raise OcspRefused(Failure.UNAUTHORIZED, "not an issuer of this service")
        return _Asked(request, signer, (signer.issuer.key_id.hex(), serial_text(request.serial)))

    def _fresh(self, name: CertificateName, now: datetime) -> _Entry | None:
        entry = self._entries.get(name)
        # The clock may have been set back.
        return entry if entry is not None and entry.read_at <= now < entry.fresh_until else None

    def _told(self, asked: _Asked, entry: _Entry, now: datetime) -> OcspAnswer:
        request = asked.request
        if request.nonce is not None:
            return self._sign(asked.signer, request, entry.status, now, remembered=False)
        form = request.algorithm.name, request.bare
        answer = entry.answers.get(form)
        # Its signer was not renewed in time; or the clock was set back, but not before the status was read.
        if answer is None or not answer.this_update <= now <= answer.next_update - (answer.remembered or timedelta()):
            answer = self._sign(asked.signer, request, entry.status, now, remembered=True)
            if len(entry.answers) >= _FORMS:  # Of one certificate, in all forms: that is no client.
                entry.answers.clear()
            entry.answers[form] = answer
        return answer

    def forget(self, names: Iterable[CertificateName]) -> None:
        """Drop what is cached, or being looked up, about certificates whose status has changed."""
        for name in names:
            self._entries.pop(name, None)
            self._pending.pop(name, None)

    def forget_all(self) -> None:
        """Forget everything: a device, key or CA was shut out that has too many certificates to list."""
        self._entries.clear()
        self._pending.clear()

    def forget_changed(self, changed: Iterable[StoredCertificate | FeedEvent]) -> None:
        """Forget certificates whose status this process has changed, or, as the feed says, any."""
        self.forget((each.issuer_key_id, each.serial) for each in changed)

    def _sign(
        self,
        signer: RenewedOcspSigner,
        request: OcspRequest,
        status: CertificateStatus,
        now: datetime,
        *,
        remembered: bool,
    ) -> OcspAnswer:
        current = signer.current(now)
        this_update = now.replace(microsecond=0)
        # A response must not outlive its signer's certificate.
        next_update = min(this_update + self._life, current.not_after)
        der = current.sign(request, status, this_update, next_update)
        if not remembered:
            return OcspAnswer(der, this_update, next_update, None, b"")
        # A signer near its end gives answers that others may keep for less, and that are given again for less.
        kept = min(self.remembered, (next_update - now) / 2)
        return OcspAnswer(der, this_update, next_update, kept, hashlib.sha256(der).hexdigest().encode())

    async def _look_up(self, name: CertificateName) -> _Entry:
        task = self._pending.get(name)
        if task is None:
            task = self._pending[name] = asyncio.create_task(self._status_of(name))
            task.add_done_callback(_observe)
        try:
            return await shielded(task)
        except Refused as refusal:
            raise OcspRefused(Failure.TRY_LATER, refusal.detail) from refusal

    async def _status_of(self, name: CertificateName) -> _Entry:
        unchanged = False
        try:
            status = await self._database.read(lambda connection: _status(connection, name))
        finally:
            unchanged = self._finish(name)
        now = self._clock()
        entry = _Entry(status, now, now + self.remembered)
        if unchanged and not isinstance(status, Unknown):
            self._remember(name, entry)
        return entry

    def _finish(self, name: CertificateName) -> bool:
        """Note that this task's look-up is over; return whether nothing has changed since it began."""
        if self._pending.get(name) is not asyncio.current_task():
            return False
        del self._pending[name]
        return True

    def _remember(self, name: CertificateName, entry: _Entry) -> None:
        self._entries.pop(name, None)
        while len(self._entries) >= _ENTRIES:
            del self._entries[next(iter(self._entries))]  # The oldest.
        self._entries[name] = entry


def _status(connection: Connection, name: CertificateName) -> CertificateStatus:
    known, revocation = certificates.revocation_of(connection, *name)
    if not known:
        return Unknown()
    if revocation is None:
        lost_ends.of(connection).check_certificate(*name)
    return Good() if revocation is None else Revoked(*revocation)


def _observe(task: asyncio.Task[_Entry]) -> None:
    if not task.cancelled():
        task.exception()  # Retrieve it: those who still wait get it, and if all have left it must not be logged.
