"""All accepted CRLs, by issuer and scope. Their entries are in the revocation index; their freshness is tracked here.

Theory
------
What is held for an issuer and scope, and which list may take its place, is `broker.admission.held_list`. A new list (of
a hundred thousand entries, say) is prepared outside the event loop (`prepare`) and installed inside it (`put`: two
assignments).

Rules
-----
1. Entries of an expired list still count as revoked. `overdue` reports that nothing newer is known, and the bundle's
   policy decides what follows.
2. No I/O, no clock. The time is the clock's, or what is proven to be later (`broker.admission.proven_time`): otherwise
   lists would stay fresh, and newer ones be refused as not yet valid, when the clock is set back. But whether a list
   that comes has expired is judged by the clock: one of a time when all clocks were ahead has to give way.
3. Of CAs that have expired, and that no bundle knows any more, `_MOST_ENDED` lists are kept, the first to expire are
   forgotten (`forget_ended`): nobody below them gets in. Otherwise a CA that is replaced every hour would leave a list
   each time, for ever. Their sources are told, so that they are read again should such a CA be renewed, and come back.
4. Of one CA there are lists of `_MOST_SCOPES` scopes: each is asked about each of its certificates, and looked at twice
   a second. One of a further scope is refused; those that there are stay, as they are all that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime
from typing import Final

from broker.admission.held_list import HeldList, continued, contradiction, newly_listed, replaced
from broker.admission.proven_time import ProvenTime
from provisioning.pki.crl import CertificateList, CrlProblem, CrlRefused, Scope
from provisioning.pki.ocsp import CLOCK_TOLERANCE
from provisioning.pki.revocation import CertificateKey, RevocationIndex
from provisioning.program.moments import shown_time

_MOST_SCOPES: Final = 1024
"""Lists of one CA: four for each shard of a CA that has 256."""
_MOST_ENDED: Final = 256
"""Lists of CAs that have expired and that no bundle knows."""


class CrlShelf:
    """The lists. *index* gets their entries, *proven* when they were issued."""

    def __init__(self, index: RevocationIndex, proven: ProvenTime) -> None:
        self._index = index
        self._proven = proven
        self._held: dict[bytes, dict[Scope, HeldList]] = {}
        self._said: dict[tuple[bytes, Scope], CrlProblem] = {}

    def trial(self) -> CrlShelf:
        """Return a shelf with the same lists for trials: lists put on it revoke nobody."""
        other = CrlShelf(self._index, self._proven)
        other._held = {issuer: dict(lists) for issuer, lists in self._held.items()}
        return other

    def set_aside(self, held: HeldList) -> None:
        """Hold *held* for later calls of `prepare` without updating the index. For a `trial` shelf."""
        self._held.setdefault(held.issuer_key_id, {})[held.complete.scope] = held

    @property
    def held(self) -> list[HeldList]:
        """Every list."""
        return [held for lists in self._held.values() for held in lists.values()]

    def sources_of(self, certificate: CertificateKey) -> set[str]:
        """Return where the lists come from that *certificate* is on."""
        issuer_key_id, serial = certificate
        return {held.source for held in self._held.get(issuer_key_id, {}).values() if serial in held.entries}

    def prepare(
        self,
        listed: CertificateList,
        issuer: tuple[bytes, str],
        source: str,
        now: datetime,
        pause: Callable[[], None],
        ends: datetime | None = None,
    ) -> HeldList | None:
        """Return what to hold for *listed*, signed by *issuer* (key identifier, name); None: it is held already.

        *ends*: when the issuer expires, if that is known. Raises `CrlRefused`. May run in a thread, as long as nothing
        is `put` or forgotten meanwhile.
        """
        key_id, name = issuer
        if listed.this_update > self._proven.at(now, (key_id,)) + CLOCK_TOLERANCE:
            raise CrlRefused(
                CrlProblem.CRL_NOT_YET_VALID,
                f"thisUpdate is {shown_time(listed.this_update)}; the broker's clock says {now:%H:%M:%S}",
            )
        lists = self._held.get(key_id, {})
        current = lists.get(listed.scope)
        if current is None and len(lists) >= _MOST_SCOPES:
            detail = (
                f"of {name[:200]} there are lists of {_MOST_SCOPES} scopes (issuing distribution points) already; if "
                "the CA has given up some of them, restart the broker: it then has only those that are still published"
            )
            raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, detail)
        if listed.base_number is None:
            held = replaced(current, HeldList(key_id, name, source, listed, {}, None, {}, ends=ends), now, pause)
        else:
            held = continued(current, listed, listed.base_number, now, pause)
        if held is None:
            return None
        since = self._index.listed(key_id, held.complete.scope)
        return replace(held, since=since, added=newly_listed(held.entries, since, pause))

    def contradiction(self, issuer_key_id: bytes, listed: CertificateList, now: datetime) -> CrlRefused | None:
        """Return what to tell of *listed* if its number and its date contradict those of the list in use."""
        current = self._held.get(issuer_key_id, {}).get(listed.scope)
        return None if current is None else contradiction(current, listed, now)

    def put(self, held: HeldList) -> tuple[AbstractSet[int], int]:
        """Hold *held*; return the newly revoked serial numbers, and how many are no longer revoked."""
        before = self._index.listed(held.issuer_key_id, held.complete.scope)
        self._index.publish(held.issuer_key_id, held.complete.scope, held.entries)
        added = held.added_to(before)
        held = replace(held, since=None, added=frozenset())  # What it replaces is not kept for it.
        self._held.setdefault(held.issuer_key_id, {})[held.complete.scope] = held
        self._said.pop(held.key, None)
        self._proven.hear_list(held.issuer_key_id, held.complete.scope, held.this_update, held.issuer)
        return added, len(before) + len(added) - len(held.entries)

    def forget_ended(self, known: Collection[bytes], now: datetime) -> list[HeldList]:
        """Forget lists for which there is no room (rule 3), and return them. *known*: the keys of CAs in a bundle."""
        if len(self.held) <= _MOST_ENDED:
            return []
        ended = [
            (each.ends, each)
            for each in self.held
            if each.ends is not None
            and each.issuer_key_id not in known
            and each.ends < self._proven.at(now, (each.issuer_key_id,))
        ]
        ended.sort(key=lambda each: each[0], reverse=True)
        forgotten = [each for _, each in ended[_MOST_ENDED:]]
        for each in forgotten:
            self._forget(each)
        return forgotten

    def _forget(self, held: HeldList) -> None:
        issuer, scope = held.issuer_key_id, held.complete.scope
        lists = self._held[issuer]
        del lists[scope]
        if not lists:
            del self._held[issuer]
        self._said.pop(held.key, None)
        self._index.withdraw(issuer, scope)
        self._proven.forget_list(issuer, scope)

    def overdue(
        self, issuer_key_id: bytes, now: datetime, *, is_authority: bool, names: frozenset[str]
    ) -> float | None:
        """Return for how many seconds a certificate's status has been out of date (0: it is current); None: no list."""
        least: float | None = None
        now = self._proven.at(now, (issuer_key_id,))
        for scope, held in self._held.get(issuer_key_id, {}).items():
            if scope.covers(is_authority=is_authority, names=names):
                if now <= held.fresh_until:
                    return 0.0
                seconds = (now - held.fresh_until).total_seconds()
                least = seconds if least is None else min(least, seconds)
        return least

    def overdue_by_list(self, issuer_key_id: bytes, now: datetime) -> list[float]:
        """Return for how many seconds each client CRL of the issuer has been out of date; 0: it is current."""
        now = self._proven.at(now, (issuer_key_id,))
        return [
            max(0.0, (now - held.fresh_until).total_seconds())
            for scope, held in self._held.get(issuer_key_id, {}).items()
            if not scope.authorities_only
        ]

    def alarms(self, clock: datetime) -> list[tuple[HeldList, CrlProblem]]:
        """Return the lists that have become late or expired since the last call."""
        found = []
        for held in self.held:
            key, now = held.key, self._proven.at(clock, (held.issuer_key_id,))
            if now < held.late_from:
                self._said.pop(key, None)  # The clock was set back: report it again when it becomes late.
                continue
            problem = CrlProblem.CRL_LATE if now <= held.fresh_until else CrlProblem.CRL_EXPIRED
            if self._said.get(key) is not problem:
                self._said[key] = problem
                found.append((held, problem))
        return found
