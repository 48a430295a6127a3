"""Takes in CRLs from all sources: checks them outside the event loop, installs them, and ends the affected sessions.

Theory
------
A list may have a million entries. Decoding, checking the signature and reading the entries happen in a thread that
releases the interpreter's lock every half millisecond; only the library's own parser, some tenths of a second for a
million entries, keeps it. On the loop remain two assignments, and one dict access per connected client, in turns
(`broker.revocation.revocation_rounds`).

Rules
-----
1. One list at a time: a list is prepared against those held at that time. A source with many lists in one text waits
   for others between two of them, so that a partner's server, or an attacker on the way to it, delays no list of ours.
2. Whatever is wrong with a list, the previous one stays; the reason is logged with a stable code, and counted. Of one
   text the first few lists, used, refused or late, have a line each, and the rest have one together: a source that has
   lists taken in every second fills no log with them.
3. A delta may be read before its base. Its source submits it again when a complete list has come.
4. What a list revokes is put into effect to the end, even if the caller who asked for the list gives up meanwhile: read
   again, the list would be known, and have no effect.
5. A list refused for its dates may become usable by itself, or when this machine's clock is set: `Taken` says when, and
   the source of the list submits it again then.
6. A list that is forgotten, because its CA has expired and there are many of those, is treated by its source like one
   of an unknown CA: it is submitted again when more CAs are known.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from broker.admission.held_list import HeldList
from broker.admission.status import RevocationStatus
from broker.admission.trust import Trust
from broker.engine.engine import Engine
from broker.revocation.revocation_rounds import judge_all
from provisioning.pki.crl import CertificateList, CrlProblem, CrlRefused, parse, split, verify
from provisioning.pki.ocsp import CLOCK_TOLERANCE
from provisioning.pki.revocation import unpack
from provisioning.pki.serial_number import serial_text
from provisioning.program.moments import rfc3339_exactly, shown_time
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
"""Lists of one text with a line of their own, and so many that are forgotten at a time."""
_MOST_DELTAS = 256
"""URLs of deltas that the lists of one text name."""
_MOST_NAMED = 20
"""New entries of one text that the audit log names individually; beyond that only the number."""
_SUMS = ("entries", "revoked", "released", "sessions_closed")


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


@dataclass(slots=True)
class _Text:
    """What is told of the lists of one text."""

    source: str
    named: int = 0
    """Certificates named as revoked."""
    used: int = 0
    """Lists in use, of these …"""
    untold: Counter[str] = field(default_factory=Counter)
    """… those without a line, and the sums of their facts."""
    refused: list[CrlRefused] = field(default_factory=list)
    ended: bool = False
    """All is told."""

    def takes(self, facts: Mapping[str, Any]) -> bool:
        """Whether a list in use is told of on its own; if not, its *facts* are added to those of the rest."""
        self.used += 1
        if self.used <= _MOST_TOLD or self.ended:
            return True
        self.untold.update({"lists": 1, **{each: facts[each] for each in _SUMS}})
        return False


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
    def status(self) -> RevocationStatus:
        """What is known about revocation here."""
        return self._engine.admission.status

    @property
    def learned(self) -> tuple[int, int]:
        """Changes when more CAs are known that may have signed a list."""
        trust = self._engine.admission.trust
        return (0, 0) if trust is None else (trust.generation, trust.learned)

    async def take(self, content: bytes, source: str) -> Taken:
        """Use the lists in *content*, from *source*; errors are logged, never raised."""
        return await self.use(await self.split(content, source), source)

    async def split(self, content: bytes, source: str) -> list[bytes]:
        """Return the lists in *content*, in DER; if there are none, or too many, that is logged."""
        try:
            return await asyncio.to_thread(split, content, lambda: time.sleep(PAUSE))
        except CrlRefused as error:
            self.complain(error.code, error.detail, source)
            return []

    async def use(self, lists: list[bytes], source: str) -> Taken:
        """Use *lists*, from *source*, and empty it meanwhile; errors are logged, never raised."""
        taken = Taken()
        trust = self._engine.admission.trust
        if trust is None:
            return taken
        text = _Text(source)
        lists.reverse()
        try:
            while lists:
                try:
                    async with self._lock:
                        await self._take(lists.pop(), text, trust, taken)
                except CrlRefused as error:
                    taken.unmatched |= error.code in _MAY_COME_RIGHT
                    taken.baseless |= error.code is CrlProblem.CRL_NO_BASE
                    text.refused.append(error)
                    if len(text.refused) <= _MOST_TOLD:
                        self.complain(error.code, error.detail, source)
        finally:
            self._tell_rest(text)
        async with self._lock:
            self._forget_ended()
        return taken

    def _forget_ended(self) -> None:
        """Forget lists for which there is no room, by the trust of this moment, and tell their sources."""
        trust, shelf = self._engine.admission.trust, self._engine.admission.status.lists
        known = set[bytes]() if trust is None else trust.keys_at(_BEGINNING)
        forgotten = shelf.forget_ended(known, datetime.now(UTC))
        for each in forgotten[:_MOST_TOLD]:
            log.info("CRL of an expired CA forgotten", issuer=each.issuer, source=each.source, number=each.number)
        if rest := forgotten[_MOST_TOLD:]:
            log.info("CRLs of expired CAs forgotten", lists=len(rest), source=rest[-1].source)
        for source in dict.fromkeys(each.source for each in forgotten):
            for tell in self.sources:
                tell(source)

    async def _take(self, der: bytes, text: _Text, trust: Trust, taken: Taken) -> None:
        lists, source = self._engine.admission.status.lists, text.source
        listed = await asyncio.to_thread(parse, der)

        def prepare() -> tuple[HeldList | None, CrlRefused | None]:
            issuer = signer_of(listed, trust)
            ends, now = trust.key_ends(issuer[0]), datetime.now(UTC)
            contradiction = lists.contradiction(issuer[0], listed, now)
            return lists.prepare(listed, issuer, source, now, lambda: time.sleep(PAUSE), ends), contradiction

        try:
            held, contradiction = await asyncio.to_thread(prepare)
        except CrlRefused as error:
            if error.code in _BY_THE_CLOCK:
                begin = max(listed.this_update, _EARLIEST) - CLOCK_TOLERANCE
                taken.untimely += ((begin, listed.next_update),)
            raise
        if len(taken.delta_urls) < _MOST_DELTAS:
            taken.delta_urls = tuple(dict.fromkeys(taken.delta_urls + listed.delta_urls))[:_MOST_DELTAS]
        fresh_until = listed.next_update if held is None else held.fresh_until
        taken.fresh_until = min(fresh_until, taken.fresh_until or fresh_until)
        if held is not None:
            added, released = lists.put(held)
            self.bases += listed.base_number is None
            self._engine.metrics.revocations += len(added)
            await shielded(self._put_into_effect(held, text, added, released))
        if contradiction is not None:  # It is used as far as it revokes.
            raise contradiction

    async def _put_into_effect(self, held: HeldList, text: _Text, added: AbstractSet[int], released: int) -> None:
        """End the sessions of those whom *held*, which is in use now, has *added*; report it."""
        closed = await self.enforce() if added else 0
        facts = {
            "code": "CRL_CURRENT",
            "issuer": held.issuer,
            "source": text.source,
            "number": held.number,
            "entries": len(held.entries),
            "revoked": len(added),
            "released": released,
            "next_update": rfc3339_exactly(held.fresh_until),
            "sessions_closed": closed,
        }
        if text.takes(facts):
            self._tell_use(facts)
        self._name(held, added, text)

    def _tell_use(self, facts: Mapping[str, object]) -> None:
        log.info("CRL in use", **facts)
        self._engine.history.told("CRL in use", **_recorded(facts))

    def _name(self, held: HeldList, added: AbstractSet[int], text: _Text) -> None:
        """Record each certificate that the list has newly revoked in the audit log, if they are few."""
        if text.named + len(added) > _MOST_NAMED:
            return
        text.named += len(added)
        history, issuer = self._engine.history, held.issuer_key_id
        for serial in sorted(added):
            reason = str(unpack((issuer, serial), held.entries[serial]).reason)
            named = {"source": held.source, "issuer": issuer.hex(), "serial": serial_text(serial)}
            history.told("revoked", code="REVOKED", **named, reason=reason, crl_number=held.number)

    async def enforce(self) -> int:
        """Close every session that the index no longer permits; return how many."""
        return await judge_all(self._engine, self._clock)

    def alarm(self) -> None:
        """Report once which lists are late or expired: long before it matters."""
        by_source: dict[str, list[CrlRefused]] = {}
        for held, problem in self._engine.admission.status.lists.alarms(datetime.now(UTC)):
            left = (held.fresh_until - datetime.now(UTC)).total_seconds()
            detail = f"nextUpdate {shown_time(held.fresh_until)} is {abs(left):.0f} s "
            detail += "away, and the next CRL is not available" if left >= 0 else "ago"
            found = by_source.setdefault(held.source, [])
            found.append(CrlRefused(problem, detail))
            if len(found) <= _MOST_TOLD:
                self.complain(problem, detail, held.source, issuer=held.issuer, number=held.number)
        for source, found in by_source.items():
            self._complain_of_rest(found[_MOST_TOLD:], "need attention", source)

    def complain(self, code: CrlProblem, detail: str, source: str, **facts: object) -> None:
        """Log, record and count a problem with a list."""
        self._engine.metrics.revocation_alarms[code] += 1
        self._tell_problem(code, detail, source, facts)

    def _tell_rest(self, text: _Text) -> None:
        """Log one line for the lists of *text* in use that have none, and one for those that are refused."""
        text.ended = True
        if text.untold:
            detail = f"{text.untold['lists']} more lists from there are in use"
            self._tell_use({"code": "CRL_CURRENT", "source": text.source, "detail": detail, **text.untold})
        self._complain_of_rest(text.refused[_MOST_TOLD:], "are refused", text.source)
        self.alarm()

    def _complain_of_rest(self, rest: Sequence[CrlRefused], what: str, source: str) -> None:
        """Count each of *rest*, further lists of one source, and log one line."""
        for error in rest:
            self._engine.metrics.revocation_alarms[error.code] += 1
        if rest:
            last = rest[-1]
            detail = f"{len(rest)} more lists from there {what}, the last one as: {last.detail}"
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
