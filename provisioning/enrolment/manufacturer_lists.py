"""Manufacturers' CRLs, as operators provide them: read, verified, and kept until the next.

Theory
------
An operator provides a CRL as the manufacturer publishes it. `provisioning.pki.crl` reads it, as it does for the broker;
this module decides whether it is accepted. Its entries go to the store, where enrolments look them up
(`provisioning.enrolment.manufacturer_status`): a restart forgets nothing, and every process sees them at once.

Rules
-----
1. The registered CA itself must have signed it: the CRL of another CA, the one above for instance, says nothing about
   its certificates.
2. Neither CRL number nor thisUpdate goes backwards: replaying an old, still valid CRL releases no certificate. If a
   manufacturer's numbers start again, an operator must say so, and thisUpdate must be later even so.
3. A CRL that has already lapsed is accepted only where lapsed lists are: otherwise it would stop enrolment.
4. A CRL about CA certificates only may come from a CA above others: no device waits for its next one.
5. A delta CRL is refused: the complete CRL says the same, and needs nothing beside it.
6. It is read in a thread that yields often: a CRL may have as many entries as a request's size permits.
7. A CRL with far fewer entries than the one before is signed all the same, and would admit what was revoked: releasing
   more than a given share of the entries needs an operator's word.
8. A CRL that the manufacturer no longer publishes is removed, with its entries, on an operator's word only. It is named
   by its SHA-256, as the next CRL, accepted meanwhile, is another.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog
from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused, invalid
from provisioning.pki.crl import CertificateList, CrlProblem, CrlRefused, parse, read_entries, split, verify
from provisioning.pki.revocation import Entries
from provisioning.program.moments import shown_time
from provisioning.store import audit, manufacturer_list_urls, manufacturer_lists, manufacturers
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.manufacturer_list_urls import StoredUrl
from provisioning.store.manufacturer_lists import MAXIMUM_SCOPE, StoredList
from provisioning.store.manufacturers import LapsedLists, StoredManufacturer
from provisioning.store.server_parameters import rest_longer

MAXIMUM_LISTS: Final = 256
"""Parts into which a manufacturer may divide its list."""
_MAXIMUM_OCTETS: Final = 20
"""Of a serial number, and of a CRL number (RFC 5280 §4.1.2.2, §5.2.3)."""
RELEASED_SHARE: Final = 0.5
"""The share of the previous list's entries that the next list may release, unless the settings say otherwise."""
_RELEASED_ANYWAY: Final = 10
"""It may release this many whatever their share: most entries of a short list may have expired, or come off hold."""
_CLOCK_TOLERANCE: Final = timedelta(minutes=5)
_PAUSE: Final = 0.0002
"""Seconds for which the thread that reads a list yields, each time."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """An accepted list, and what it has changed: nothing if it was in use before."""

    stored: StoredList
    changed: bool
    revoked: int = 0
    released: int = 0


@dataclass(frozen=True, slots=True)
class _Offered:
    """A list that was read and verified, for the manufacturer called *name*; the rest as for `take`."""

    name: str
    listed: CertificateList
    digest: bytes
    entries: Entries
    by: str
    renumbered: bool
    fewer: bool
    source: str | None


@dataclass(frozen=True, slots=True)
class Removed:
    """A list no longer in use, and how many of the certificates it named are on no other list of its CA."""

    stored: StoredList
    released: int


class ManufacturerListService:
    """Accepts manufacturers' CRLs, and removes those that are no longer published."""

    def __init__(
        self, database: Database, clock: Callable[[], datetime], released_share: float = RELEASED_SHARE
    ) -> None:
        """*released_share*: the share of the previous list's entries that a list may release; 1 means all."""
        self._database = database
        self._clock = clock
        self._released_share = released_share

    async def take(
        self,
        name: str,
        content: bytes,
        *,
        by: str,
        renumbered: bool = False,
        fewer: bool = False,
        source: str | None = None,
    ) -> Taken:
        """Use the list in *content*, DER or PEM, for the manufacturer called *name*; raise `Refused`.

        *renumbered*: its number may be lower than that of the one before. *fewer*: it may release any number.
        *source*: the URL that it comes from.
        """
        known = await self._database.read(lambda connection: _find(connection, name))
        try:
            read = await asyncio.to_thread(_read, content, x509.load_der_x509_certificate(known.der))
        except CrlRefused as error:
            raise _refused(error) from error
        offered = _Offered(name, *read, by=by, renumbered=renumbered, fewer=fewer, source=source)
        taken = await self._database.write(partial(self._record, offered))
        if taken.changed:
            log.info(
                "manufacturer's list taken",
                manufacturer=name,
                number=taken.stored.number,
                entries=taken.stored.entries,
                revoked=taken.revoked,
                released=taken.released,
                next_update=taken.stored.next_update,
                by=by,
            )
        return taken

    def _record(self, offered: _Offered, connection: Connection) -> Taken:
        """Put what is *offered* in place of the list for the same certificates, or raise `Refused`."""
        now, listed, name = self._clock(), offered.listed, offered.name
        manufacturer = _find(connection, name, for_update=True)  # If two lists come at once, the newer one stays.
        lists = manufacturer_lists.of_manufacturer(connection, manufacturer.id)
        before = next((each for each in lists if each.scope == listed.scope), None)
        if before is not None and before.sha256 == offered.digest:
            return Taken(before, changed=False)
        try:
            _check_dates(listed, now, accepted=manufacturer.lapsed_lists is LapsedLists.ACCEPT)
            _check_newer(listed, before, renumbered=offered.renumbered)
        except CrlRefused as error:
            raise _refused(error) from error
        if before is None and len(lists) >= MAXIMUM_LISTS:
            raise invalid(f"{name} has {MAXIMUM_LISTS} lists for different distribution points already")
        facts = {
            "number": listed.number,
            "this_update": listed.this_update,
            "next_update": listed.next_update,
            "sha256": offered.digest,
            "taken_at": now,
            "taken_by": offered.by,
        }
        rest_longer(connection)  # Hundreds of thousands of entries are compared with the previous ones.
        revoked, released = manufacturer_lists.put(connection, manufacturer.id, facts, listed.scope, offered.entries)
        if before is not None and not offered.fewer:
            self._check_released(before, released)
        lists = manufacturer_lists.of_manufacturer(connection, manufacturer.id)
        stored = next(each for each in lists if each.scope == listed.scope)
        taken = Taken(stored, changed=True, revoked=revoked, released=released)
        told = _facts_of(taken, offered.source)
        audit.append(connection, now, offered.by, Action.MANUFACTURER_LIST_TAKEN, name, told)
        return taken

    def _check_released(self, before: StoredList, released: int) -> None:
        """Raise `Refused`, and undo the transaction, if a list has released too many of the entries of *before*."""
        if released > max(_RELEASED_ANYWAY, before.entries * self._released_share):
            raise invalid(
                f"the list names {released} of the {before.entries} certificates no more that number {before.number} "
                "says are revoked: they could enrol again. Ask the manufacturer; if it is meant so, say so (--fewer)"
            )

    async def remove(self, name: str, sha256: bytes, *, by: str) -> Removed:
        """Forget the list with this SHA-256 of the manufacturer called *name*, and what it says; raise `Refused`."""

        def record(connection: Connection) -> Removed:
            manufacturer = _find(connection, name, for_update=True)
            lists = manufacturer_lists.of_manufacturer(connection, manufacturer.id)
            stored = next((each for each in lists if each.sha256 == sha256), None)
            if stored is None:
                raise Refused(
                    Code.MANUFACTURER_LIST_UNKNOWN,
                    f"no list of {name} has the SHA-256 {sha256.hex()}: it was removed, or another has taken its place",
                )
            manufacturer_list_urls.forget_answers(connection, manufacturer.id)  # What is still there is fetched again.
            others = [each for each in lists if each is not stored]
            removed = Removed(stored, manufacturer_lists.remove(connection, stored, others))
            told = {
                "crl_number": str(stored.number),
                "about": sorted(stored.scope.names),
                "entries": stored.entries,
                "released": removed.released,
                "sha256": sha256.hex(),
            }
            audit.append(connection, self._clock(), by, Action.MANUFACTURER_LIST_REMOVED, name, told)
            return removed

        removed = await self._database.write(record)
        log.info(
            "manufacturer's list removed",
            manufacturer=name,
            number=removed.stored.number,
            released=removed.released,
            by=by,
        )
        return removed

    async def of(
        self, those: Iterable[StoredManufacturer]
    ) -> tuple[Mapping[int, Sequence[StoredList]], Mapping[int, Sequence[StoredUrl]]]:
        """Return the lists of each of *those* that has any, by its id, and the URLs that they are fetched from."""
        ids = [each.id for each in those]
        return await self._database.read(
            lambda connection: (
                manufacturer_lists.of_manufacturers(connection, ids),
                manufacturer_list_urls.of_manufacturers(connection, ids),
            )
        )


def _facts_of(taken: Taken, source: str | None) -> dict[str, object]:
    """Return what the audit log says of a list that was taken, from the URL *source* if that is known."""
    stored = taken.stored
    facts: dict[str, object] = {
        "crl_number": str(stored.number),
        "this_update": stored.this_update,
        "next_update": stored.next_update,
        "about": sorted(stored.scope.names),
        "entries": stored.entries,
        "revoked": taken.revoked,
        "released": taken.released,
        "sha256": stored.sha256.hex(),
    }
    return facts if source is None else {**facts, "url": source}


def _find(connection: Connection, name: str, *, for_update: bool = False) -> StoredManufacturer:
    found = manufacturers.find_named(connection, name, for_update=for_update)
    if found is None:
        raise Refused(Code.MANUFACTURER_UNKNOWN, f"no manufacturer is called {name[:80]!r}")
    return found


def _read(content: bytes, authority: x509.Certificate) -> tuple[CertificateList, bytes, Entries]:
    """Return the one list in *content*, which *authority* has signed, its SHA-256 and entries; raise `CrlRefused`."""
    lists = split(content, lambda: time.sleep(_PAUSE))
    if len(lists) != 1:
        raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, f"{len(lists)} lists: give them one by one")
    (der,) = lists
    listed = parse(der)
    verify(listed, authority)
    if listed.base_number is not None:
        raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, "a delta: give the complete list")
    if len(manufacturer_lists.scope_text(listed.scope)) > MAXIMUM_SCOPE:
        raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, f"its distribution point has more than {MAXIMUM_SCOPE} characters")
    entries = read_entries(listed, lambda: time.sleep(_PAUSE))
    for what, numbers in (("its number", [listed.number]), ("a serial number", entries or [0])):
        if min(numbers) < 0 or max(numbers) >= 1 << 8 * _MAXIMUM_OCTETS:
            raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, f"{what} is negative, or has more than 20 octets")
    return listed, hashlib.sha256(der).digest(), entries


def _check_dates(listed: CertificateList, now: datetime, *, accepted: bool) -> None:
    if listed.this_update > now + _CLOCK_TOLERANCE:
        raise CrlRefused(
            CrlProblem.CRL_NOT_YET_VALID,
            f"thisUpdate is {shown_time(listed.this_update)}, and it is {now:%Y-%m-%d %H:%M:%S}: compare the clocks",
        )
    if listed.next_update < now and not accepted:
        raise CrlRefused(
            CrlProblem.CRL_EXPIRED,
            f"nextUpdate was {shown_time(listed.next_update)}: get the manufacturer's "
            "newest, or set it to accept expired lists",
        )


def _check_newer(listed: CertificateList, before: StoredList | None, *, renumbered: bool) -> None:
    if before is None:
        return
    number, this_update = before.place
    if listed.this_update < this_update or (listed.this_update == this_update and listed.number <= number):
        raise CrlRefused(
            CrlProblem.CRL_OLDER,
            f"number {listed.number} of {shown_time(listed.this_update)}; number {number} of "
            f"{this_update:%Y-%m-%d %H:%M:%S} is in use",
        )
    if listed.number < number and not renumbered:
        raise CrlRefused(
            CrlProblem.CRL_OLDER,
            f"number {listed.number}, though made later than number {number}, which is in use: if the manufacturer "
            "numbers its lists anew, say so (--renumbered)",
        )


def _refused(error: CrlRefused) -> Refused:
    return invalid(f"the list cannot be used: {error}")
