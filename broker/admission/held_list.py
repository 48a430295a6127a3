"""A CRL that is held, with the delta that continues it; and what takes its place when another is found.

Theory
------
For each issuer and scope there is one complete list, and perhaps a delta that continues it; together they are as good
as a complete list with the delta's number and nextUpdate (RFC 5280 §5.2.4).

Rules
-----
1. A list is replaced only by a newer one: by its number, then by thisUpdate. Replaying an old, still valid list
   releases nobody. Where nobody can tell which of two is newer, who is in either of them is revoked, until the next:
   * They have one number and one second, as a CA issues that numbers none and revokes twice at once.
   * By its number one is newer, and by minutes the other: the CA has begun to number its lists, or numbers them anew
     because its data was restored. What it revokes by a new list counts, and an old one that is played back releases
     nobody. Place and dates stay those of the one in use, so it is told, and that one lapses (decision 0362).
   * The one in use is from the future by the clock: either the clock is behind, or the CA's was ahead when it made
     that one, and what it has revoked since is on the other. A delta from the future releases nobody who is on a list
     that comes after it. Nor does a list that takes the place of a later one, by its number: it may be an old one that
     is played back to a broker whose clock is behind.
   Such entries count until the list in use was made no earlier than any of those lists (`made`).
2. An expired list replaces only an expired one.
3. No I/O, no clock: *now* is the clock's time, also where another is proven. One of a time when all clocks were ahead
   has to give way.
4. Entries are compared in a thread beside the event loop: with a `pause` now and then, so that this goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from provisioning.pki.crl import CertificateList, CrlProblem, CrlRefused, Scope, read_entries
from provisioning.pki.ocsp import CLOCK_TOLERANCE
from provisioning.pki.revocation import Entries
from provisioning.program.moments import shown_time

_LATE_FRACTION = 1 / 4
"""A list is late when less than this part of its lifetime is left: its issuer should have published the next one."""
_LOOKS: Final = 4096
"""Entries compared between two pauses: some tenths of a millisecond."""


@dataclass(frozen=True, slots=True)
class HeldList:
    """A complete list, with the delta that continues it, if any."""

    issuer_key_id: bytes
    issuer: str
    source: str
    complete: CertificateList
    complete_entries: Entries
    delta: CertificateList | None
    entries: Entries
    """What is revoked, the delta included."""
    later: datetime | None = None
    """When the latest of other lists was made whose entries count, too; None: there are none, or they are earlier."""
    ends: datetime | None = None
    """When the CA expires that has signed it; None: that is not known."""
    since: Entries | None = None
    """The entries in use when it was prepared, …"""
    added: AbstractSet[int] = frozenset()
    """… and which serial numbers are not among those."""

    def added_to(self, before: Entries) -> AbstractSet[int]:
        """Return the serial numbers that are not in *before*, the entries in use.

        They were found out when it was prepared: of a million it takes 0.1 s and more. If others are in use by now they
        are found out here.
        """
        is_same = self.since is not None and (before is self.since or not (before or self.since))
        return self.added if is_same else self.entries.keys() - before.keys()

    def has_in_use(self, listed: CertificateList) -> bool:
        """Whether *listed* is the complete list, or the delta: it is read again at each poll."""
        return listed.signed == self.complete.signed or (self.delta is not None and listed.signed == self.delta.signed)

    @property
    def key(self) -> tuple[bytes, Scope]:
        """The key under which it is held."""
        return self.issuer_key_id, self.complete.scope

    @property
    def number(self) -> int:
        """The CRL number; that of the delta, if there is one."""
        return self.complete.number if self.delta is None else self.delta.number

    @property
    def this_update(self) -> datetime:
        """When it was issued; when the delta was, if there is one."""
        return self.complete.this_update if self.delta is None else self.delta.this_update

    @property
    def made(self) -> datetime:
        """When the latest list was made whose entries are among those of the complete one."""
        return max(self.complete.this_update, self.later or self.complete.this_update)

    @property
    def fresh_until(self) -> datetime:
        """The time by which the next one should be available."""
        if self.delta is None:
            return self.complete.next_update
        return max(self.complete.next_update, self.delta.next_update)

    @property
    def late_from(self) -> datetime:
        """The time from which it is reported that the next one is late."""
        return self.fresh_until - (self.fresh_until - self.this_update) * _LATE_FRACTION


def replaced(current: HeldList | None, newcomer: HeldList, now: datetime, pause: Callable[[], None]) -> HeldList | None:
    """Return *newcomer*, a complete list whose entries have yet to be read, with what it has to keep of *current*.

    None: nothing of it is new. Raises `CrlRefused`.
    """
    listed = newcomer.complete
    if current is not None:
        if listed.signed == current.complete.signed:
            return None
        if _contradicts(listed, current.complete, now) or _place(listed) < _place(current.complete):
            return _with_doubtful(current, listed, now, pause)
        if listed.next_update < now <= current.fresh_until:
            raise _expired(listed)
    entries = read_entries(listed, pause)
    if current is not None and _place(listed) == _place(current.complete):
        if _are_among(entries, current.complete_entries, pause):
            return None
        entries = _united(current.complete_entries, entries, pause)
    held = replace(newcomer, complete_entries=entries, entries=entries)
    return held if current is None else _with_later(_with_its_delta(held, current, now, pause), current, listed, pause)


def continued(
    current: HeldList | None, delta: CertificateList, base_number: int, now: datetime, pause: Callable[[], None]
) -> HeldList | None:
    """Return *current* as *delta*, for a list with *base_number*, continues it; None: nothing of that is new.

    Raises `CrlRefused`.
    """
    if current is None or current.complete.number < base_number:
        raise CrlRefused(CrlProblem.CRL_NO_BASE, f"a delta for base CRL {base_number}, which the broker does not have")
    known = current.complete if current.delta is None else current.delta
    contradicts = _contradicts(delta, known, now)
    if not contradicts and _place(delta) <= _place(known):
        is_older = _place(delta) < _place(known) and known.this_update <= now
        return None if is_older or delta.next_update < now else _with_more(current, delta, pause)
    if delta.next_update < now:
        raise _expired(delta)
    if contradicts:
        return _with_more(current, delta, pause)
    held = replace(current, delta=delta, entries=read_entries(delta, pause, current.complete_entries))
    return _with_later(held, current, delta, pause)


def contradiction(current: HeldList, listed: CertificateList, now: datetime) -> CrlRefused | None:
    """Return what to tell of *listed* if its number and its date contradict those of *current*, in use (rule 1)."""
    if listed.next_update < now or current.has_in_use(listed):
        return None
    known = current.complete if listed.base_number is None or current.delta is None else current.delta
    if not _contradicts(listed, known, now):
        later = _latest(current, listed)
        is_within = listed.base_number is not None and known is current.complete and listed.number == known.number
        if listed.number < known.number or is_within or later - listed.this_update <= CLOCK_TOLERANCE:
            return None
        detail = (
            f"number {listed.number}, though made earlier than another that was in use: it releases nobody, nor do "
            f"others that were made before {shown_time(later)}; if a clock was ahead then, restart the broker"
        )
        return CrlRefused(CrlProblem.CRL_OLDER, detail)
    made = "later" if listed.this_update > known.this_update else "earlier"
    detail = (
        f"number {listed.number}, though made {made} than number {known.number}, which is in use: whom it revokes "
        "is revoked, and it releases nobody; if the CA numbers its lists anew, restart the broker"
    )
    return CrlRefused(CrlProblem.CRL_OLDER, detail)


def _with_its_delta(held: HeldList, current: HeldList, now: datetime, pause: Callable[[], None]) -> HeldList:
    """Return *held* with the delta of *current*, if it continues that: its base is no later than the replaced list."""
    delta = current.delta
    if delta is None or held.complete.number >= delta.number:
        return held
    entries = read_entries(delta, pause, held.entries)
    if delta.this_update > now:
        entries = _united(_united(current.entries, held.entries, pause), entries, pause)
    return replace(held, delta=delta, entries=entries)


def _with_later(held: HeldList, current: HeldList, listed: CertificateList, pause: Callable[[], None]) -> HeldList:
    """Return *held*, which has the place of *current* by *listed*: with whom that revokes, if it was made later."""
    later = _latest(current, listed)
    if later - listed.this_update <= CLOCK_TOLERANCE:
        return held
    before = current.complete_entries if held.delta is current.delta else current.entries
    complete = _united(before, held.complete_entries, pause)
    entries = complete
    if before is not current.entries or held.entries is not held.complete_entries:
        entries = _united(current.entries, held.entries, pause)
    return replace(held, complete_entries=complete, entries=entries, later=later)


def _latest(current: HeldList, listed: CertificateList) -> datetime:
    """Return when the latest of what *listed* replaces in *current* was made."""
    stays = listed.base_number is None and current.delta is not None and listed.number < current.delta.number
    return current.made if stays else max(current.made, current.this_update)


def _with_doubtful(
    current: HeldList, listed: CertificateList, now: datetime, pause: Callable[[], None]
) -> HeldList | None:
    """Return *current* with those revoked by *listed*, which is older in some respect; None: they are.

    Raises `CrlRefused` where it is simply older. Place and dates stay those of *current*, which prove more.
    """
    known = current.complete
    contradicts = _contradicts(listed, known, now)
    if contradicts and listed.next_update < now:
        raise _expired(listed)
    if listed.next_update < now or not (contradicts or known.this_update > now):
        raise CrlRefused(CrlProblem.CRL_OLDER, f"number {listed.number}; number {known.number} is known")
    return _with_more(current, listed, pause)


def _with_more(current: HeldList, listed: CertificateList, pause: Callable[[], None]) -> HeldList | None:
    entries = read_entries(listed, pause)
    later = max(current.made, listed.this_update)
    if later <= max(current.made, current.this_update) and _are_among(entries, current.entries, pause):
        return None
    complete = _united(entries, current.complete_entries, pause)
    if current.entries is current.complete_entries:
        return replace(current, later=later, complete_entries=complete, entries=complete)
    return replace(current, later=later, complete_entries=complete, entries=_united(entries, current.entries, pause))


def _place(listed: CertificateList) -> tuple[int, datetime]:
    return listed.number, listed.this_update


def _contradicts(listed: CertificateList, known: CertificateList, now: datetime) -> bool:
    """Whether by its number *listed* is newer than *known* and by its date older, or the other way round.

    By some minutes the clocks of one CA's machines may differ. Where *known* is from the future by the clock here a
    higher number counts: a clock that was ahead has been set right.
    """
    later = listed.this_update - known.this_update
    if listed.number < known.number:
        return later > CLOCK_TOLERANCE
    return listed.number > known.number and later < -CLOCK_TOLERANCE and known.this_update <= now


def _expired(listed: CertificateList) -> CrlRefused:
    return CrlRefused(CrlProblem.CRL_EXPIRED, f"nextUpdate was {shown_time(listed.next_update)}")


def newly_listed(entries: Entries, before: Entries, pause: Callable[[], None]) -> AbstractSet[int]:
    """Return the serial numbers in *entries* that are not in *before*, with a *pause* now and then."""
    found: set[int] = set()
    for number, serial in enumerate(entries):
        if serial not in before:
            found.add(serial)
        if not number % _LOOKS:
            pause()
    return found


def _are_among(entries: Entries, others: Entries, pause: Callable[[], None]) -> bool:
    """Whether all serial numbers of *entries* are in *others*, with a *pause* now and then."""
    for number, serial in enumerate(entries):
        if serial not in others:
            return False
        if not number % _LOOKS:
            pause()
    return True


def _united(entries: Entries, others: Entries, pause: Callable[[], None]) -> Entries:
    """Return *entries* and *others*, whose reasons count, with a *pause* now and then.

    One expression that merges two of a million takes 0.4 s, in which nobody else in the process runs. Here the longest
    step is a copy, of 40 ms; or 100, where a million are new and the table of all grows.
    """
    united = dict(entries)
    left = iter(others.items())
    while some := list(itertools.islice(left, _LOOKS)):
        united.update([each for each in some if united.get(each[0]) != each[1]])
        pause()
    return united
