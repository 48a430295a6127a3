"""Takes in CRLs from all sources: checks them outside the event loop, installs them, and ends the affected sessions.

Theory
------
A list may have a million entries. Decoding, checking the signature and reading the entries happen in a thread that
releases the interpreter's lock every half millisecond; only the library's own parser, some tenths of a second for a
million entries, keeps it. On the loop remain two assignments, and one dict access per connected client, in turns
(`broker.revocation.revocation_rounds`).

Rules
-----
1. One list at a time: a list is prepared against those held at that time. Who has many lists in one text waits for
   others between two of them: a partner's server, or who is on the way to it, delays no list of ours.
2. Whatever is wrong with a list, the previous one stays; the reason is logged with a stable code, and counted. Of one
   text the first few have their lines; the rest are one.
3. A delta may be read before its base. Its source submits it again when a complete list has come.
4. What a list revokes is put into effect to the end, even if who asked for the list gives up meanwhile: read again, it
   is known, and nothing would come of it.
5. A list refused for its dates may become usable by itself, or when this machine's clock is set: `Taken` says when, and
   the source of the list submits it again then.
6. A list that is forgotten, because its CA has expired and there are many of those, is to its source like one of an
   unknown CA: it is submitted again when more CAs are known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from broker.admission.crl_shelf import HeldList
from broker.admission.trust import Trust
from broker.engine.engine import Engine
from broker.revocation.revocation_rounds import judge_all
from provisioning.pki.crl import CertificateList, CrlProblem, CrlRefused, parse, split, verify
from provisioning.pki.ocsp import CLOCK_TOLERANCE
from provisioning.pki.revocation import unpack
from provisioning.pki.serial_number import serial_text
from provisioning.program.moments import shown_time
from provisioning.program.shielded import shielded

log = structlog.get_logger("broker")

PAUSE = 0.0002
"""Seconds for which reading a list pauses, again and again."""
_MAY_COME_RIGHT = frozenset({CrlProblem.CRL_WRONG_ISSUER, CrlProblem.CRL_BAD_SIGNATURE})
"""Problems that a newly learned CA, even of the same name, may resolve."""
_BY_THE_CLOCK = frozenset({CrlProblem.CRL_NOT_YET_VALID, CrlProblem.CRL_EXPIRED})
"""Problems that time may resolve, or setting this machine's clock."""
_BEGINNING = datetime.min.replace(tzinfo=UTC)
_EARLIEST = _BEGINNING + CLOCK_TOLERANCE
"""From a list of the first minutes of the year 1, which its CA may sign, no time can be taken away."""
_MOST_TOLD = 8
"""Lists of one text with a line of their own if they are refused."""
_MOST_DELTAS = 256
"""URLs of deltas that the lists of one text name."""
_MOST_NAMED = 20
"""New entries of a list that the audit log names individually; beyond that only the number."""


Window = tuple[datetime, datetime]
"""The period in which the dates of a list allow its use."""


def is_open(windows: Iterable[Window], now: datetime) -> bool:
    """Whether *now* is in one of *windows*."""
    return any(begin <= now <= end for begin, end in windows)


@dataclass(slots=True)
class Taken:
    """The result of submitting some bytes."""

    unmatched: bool = False
    """Whether a list is from an unknown CA; that may be learned later."""
    baseless: bool = False
    """Whether a list is a delta whose base is not here, and may come."""
    untimely: tuple[Window, ...] = ()
    """The periods in which lists could be used that were refused for their dates."""
    fresh_until: datetime | None = None
    """The earliest nextUpdate."""
    delta_urls: tuple[str, ...] = ()


class CrlIntake:
    """The only way in for CRLs, whatever their source."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._lock = asyncio.Lock()
        self.sources: tuple[Callable[[str], None], ...] = ()
        """Whom to tell which source has a list that is forgotten."""
        self.bases = 0
        """How many complete lists have come: when it changes, a delta may have its base."""

    @property
    def learned(self) -> tuple[int, int]:
        """Changes when more CAs are known that may have signed a list."""
        trust = self._engine.admission.trust
        return (0, 0) if trust is None else (trust.generation, trust.learned)

    async def take(self, content: bytes, source: str) -> Taken:
        """Use the lists in *content*, from *source*; errors are logged, never raised."""
        taken = Taken()
        trust = self._engine.admission.trust
        if trust is None:
            return taken
        refused: list[CrlRefused] = []
        for der in await self._split(content, source):
            try:
                listed = await asyncio.to_thread(parse, der)
                async with self._lock:
                    await self._take(listed, source, trust, taken)
            except CrlRefused as error:
                taken.unmatched |= error.code in _MAY_COME_RIGHT
                taken.baseless |= error.code is CrlProblem.CRL_NO_BASE
                refused.append(error)
                if len(refused) <= _MOST_TOLD:
                    self.complain(error.code, error.detail, source)
        self._complain_of_rest(refused[_MOST_TOLD:], source)
        async with self._lock:
            self._forget_ended()
        return taken

    def _forget_ended(self) -> None:
        """Forget lists for which there is no room, by the trust of this moment, and tell their sources."""
        trust, shelf = self._engine.admission.trust, self._engine.admission.status.lists
        known = set[bytes]() if trust is None else trust.keys_at(_BEGINNING)
        forgotten = shelf.forget_ended(known, datetime.now(UTC))
        for each in forgotten:
            log.info("CRL of an expired CA forgotten", issuer=each.issuer, source=each.source, number=each.number)
            for tell in self.sources:
                tell(each.source)

    async def _split(self, content: bytes, source: str) -> list[bytes]:
        try:
            return await asyncio.to_thread(split, content, lambda: time.sleep(PAUSE))
        except CrlRefused as error:
            self.complain(error.code, error.detail, source)
            return []

    async def _take(self, listed: CertificateList, source: str, trust: Trust, taken: Taken) -> None:
        lists = self._engine.admission.status.lists

        def prepare() -> HeldList | None:
            issuer = signer_of(listed, trust)
            ends, now = trust.key_ends(issuer[0]), datetime.now(UTC)
            return lists.prepare(listed, issuer, source, now, lambda: time.sleep(PAUSE), ends)

        try:
            held = await asyncio.to_thread(prepare)
        except CrlRefused as error:
            if error.code in _BY_THE_CLOCK:
                begin = max(listed.this_update, _EARLIEST) - CLOCK_TOLERANCE
                taken.untimely += ((begin, listed.next_update),)
            raise
        if room := _MOST_DELTAS - len(taken.delta_urls):
            taken.delta_urls += listed.delta_urls[:room]
        if held is None:
            known = min(listed.next_update, taken.fresh_until or listed.next_update)
            taken.fresh_until = known
            return
        taken.fresh_until = min(held.fresh_until, taken.fresh_until or held.fresh_until)
        added, released = lists.put(held)
        self.bases += listed.base_number is None
        self._engine.metrics.revocations += len(added)
        await shielded(self._put_into_effect(held, source, added, released))

    async def _put_into_effect(self, held: HeldList, source: str, added: AbstractSet[int], released: int) -> None:
        """End the sessions of those whom *held*, which is in use now, has *added*; report it."""
        closed = await self.enforce() if added else 0
        facts = {
            "code": "CRL_CURRENT",
            "issuer": held.issuer,
            "source": source,
            "number": held.number,
            "entries": len(held.entries),
            "revoked": len(added),
            "released": released,
            "next_update": held.fresh_until.isoformat(),
            "sessions_closed": closed,
        }
        log.info("CRL in use", **facts)
        self._record(held, added, facts)
        self.alarm()

    def _record(self, held: HeldList, added: AbstractSet[int], facts: Mapping[str, object]) -> None:
        """Record the list in the audit log, and each certificate that it has newly revoked, if they are few."""
        history, issuer = self._engine.history, held.issuer_key_id
        history.told("CRL in use", **_recorded(facts))
        if len(added) <= _MOST_NAMED:
            for serial in sorted(added):
                reason = str(unpack((issuer, serial), held.entries[serial]).reason)
                named = {"source": held.source, "issuer": issuer.hex(), "serial": serial_text(serial)}
                history.told("revoked", code="REVOKED", **named, reason=reason, crl_number=held.number)

    async def enforce(self) -> int:
        """Close every session that the index no longer permits; return how many."""
        return await judge_all(self._engine, self._clock)

    def alarm(self) -> None:
        """Report once which lists are late or expired: long before it matters."""
        for held, problem in self._engine.admission.status.lists.alarms(datetime.now(UTC)):
            left = (held.fresh_until - datetime.now(UTC)).total_seconds()
            detail = f"nextUpdate {shown_time(held.fresh_until)} is {abs(left):.0f} s "
            detail += "away, and the next CRL is not available" if left >= 0 else "ago"
            self.complain(problem, detail, held.source, issuer=held.issuer, number=held.number)

    def complain(self, code: CrlProblem, detail: str, source: str, **facts: object) -> None:
        """Log, record and count a problem with a list."""
        self._engine.metrics.revocation_alarms[code] += 1
        self._tell_problem(code, detail, source, facts)

    def _complain_of_rest(self, refused: Sequence[CrlRefused], source: str) -> None:
        """Count each of *refused*, further lists of one text, and log one line."""
        for error in refused:
            self._engine.metrics.revocation_alarms[error.code] += 1
        if refused:
            last = refused[-1]
            detail = f"{len(refused)} more lists from there are refused, the last one as: {last.detail}"
            self._tell_problem(last.code, detail, source, {})

    def _tell_problem(self, code: CrlProblem, detail: str, source: str, facts: dict[str, object]) -> None:
        facts |= {"code": str(code), "detail": detail, "source": source}
        log.warning("CRL problem", **facts)
        self._engine.history.told("CRL problem", **_recorded(facts))


def _recorded(facts: Mapping[str, object]) -> dict[str, object]:
    """Return *facts* under the audit log's names: its entries have a ``number`` of their own."""
    return {"crl_number" if name == "number" else name: value for name, value in facts.items()}


def signer_of(listed: CertificateList, trust: Trust) -> tuple[bytes, str]:
    """Return key identifier and name of the CA that signed *listed*; raise `CrlRefused` if none of ours did."""
    candidates = trust.authorities(listed.issuer)
    if not candidates:
        raise CrlRefused(
            CrlProblem.CRL_WRONG_ISSUER,
            f"its issuer {listed.issuer.rfc4514_string()[:200]!r} is no CA of a trust bundle, or none seen yet",
        )
    refused = None
    for candidate in candidates:
        try:
            verify(listed, candidate.certificate)
        except CrlRefused as error:
            refused = error
        else:
            return candidate.key_id, candidate.subject
    raise refused or AssertionError("there are candidates")
