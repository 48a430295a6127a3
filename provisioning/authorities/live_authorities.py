"""The CAs of a running service: follows changes in the store while it runs, unnoticed by requests.

Theory
------
Every few seconds the names and states of the CAs in the store are compared, which the commands change
(`provisioning.commands.ca_commands`). After a change, everything that depends on them is updated in
this order, so that nothing is refused meanwhile::

    trust       /cacerts, bundle, TLS: certificates of a new CA are trusted before there is one
    status      OCSP signer and CRLs of the new CA: queries about its first certificate get an answer
    issuing     only then it issues new certificates; the service's own is renewed under it
    end         a retired CA's CRLs and signer go last

Each CA that is not retired has an OCSP signer and its CRLs, with tasks of their own; a revoked one too, so that relying
parties still learn that everything under it is revoked.

Rules
-----
1. Requests see either the old or the new state: what they use is replaced between two awaits.
2. A CA whose key is not in this directory is trusted and not used. The log says so, and whoever is about to activate
   it, perhaps at another machine, is told (`provisioning.store.lacked_keys`).
3. A failed update is logged and retried; the service continues as before.
4. A CA that the store no longer knows, because it went back to a time before the announcement, ends like a retired one.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import structlog
from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.authorities.authority import (
    STRANGER_REMEDY,
    OpenAuthority,
    issuing_crl_plans,
    root_crl_plan,
    strangers,
    urls_of,
)
from provisioning.authorities.last_ceremony import REMEDY
from provisioning.authorities.own_credentials import SERVER_NAME
from provisioning.authorities.told_authorities import ToldAuthorities
from provisioning.ca.issuer import IssuanceRefused, Issuer
from provisioning.ca.issuing_ca_findings import identifier_of
from provisioning.config import Settings
from provisioning.directory.files import ROOT_CA
from provisioning.enrolment.issuing import Issuing
from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.pki.keys import KeyFileError
from provisioning.revocation.feed_event import FeedEvent
from provisioning.revocation.ocsp import OcspResponder
from provisioning.revocation.ocsp_signer import RenewedOcspSigner
from provisioning.revocation.publisher import CrlPublisher
from provisioning.revocation.shared_contents import SharedContents
from provisioning.store import authorities, crl_shards, crls, lacked_keys
from provisioning.store.authorities import DEFAULT_LINE, AuthorityKind, AuthorityState, StoredAuthority
from provisioning.store.crl_shards import CrlShard
from provisioning.store.database import Database
from provisioning.store.failure_lines import FailureLines
from provisioning.store.serials import SerialNumbers

log = structlog.get_logger(__name__)

_Run = Callable[[], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class _Working:
    """One issuing CA at work in this process."""

    issuing: Issuing
    signer: RenewedOcspSigner
    publishers: dict[str, CrlPublisher]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def runs(self) -> list[_Run]:
        return [self.signer.run, *(publisher.run for publisher in self.publishers.values())]


class LiveAuthorities:
    """The CAs for the rest of the service; its lists and mappings are the same objects for ever."""

    def __init__(
        self,
        *,
        authority: OpenAuthority,
        settings: Settings,
        public_url: str,
        database: Database,
        serial_numbers: SerialNumbers,
        responder: OcspResponder,
        clock: Callable[[], datetime],
        on_trust: Callable[[Sequence[x509.Certificate]], None],
        on_active: Callable[[Issuer], Coroutine[Any, Any, None]],
    ) -> None:
        """*on_trust* is called with the trust anchors when they change.

        *on_active* is called with the active CA of the default line.
        """
        self._authority = authority
        self._settings = settings
        self._public_url = public_url
        self._database = database
        self._serial_numbers = serial_numbers
        self._responder = responder
        self._clock = clock
        self._contents = SharedContents(database, clock)
        self._on_trust = on_trust
        self._on_active = on_active
        self._failures: Final = FailureLines()
        self._states: Sequence[tuple[str, str]] = ()
        self._trusted: Sequence[x509.Certificate] = ()
        self._working: dict[str, _Working] = {}
        self._unusable: dict[str, tuple[str, bytes]] = {}
        """CAs whose key is not available here: why, and which key it is."""
        self._active: dict[str, Issuing | None] = {}
        self._roots: dict[str, CrlPublisher] = {}
        self._unlisted: set[str] = set()
        """Roots without a list to serve: their key is not here, and no other process has made one."""
        self._root_key_ids: dict[str, str] = {}
        self._root_tasks: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self.told: Final = ToldAuthorities()
        """What relying parties are told to trust."""
        self.publishers: Final[dict[str, CrlPublisher]] = {}
        """The publisher of every CRL that is served, by name."""

    def issuing(self, line: str) -> Issuing:
        """Return the CA of *line* that issues now; raise `Refused` if none does here."""
        active = self._active.get(line)
        if active is None:
            raise Refused(
                Code.UNAVAILABLE,
                f"the issuing CA of line {line} cannot be used here now, the log says why; try again"
                if line in self._active
                else f"no issuing CA of line {line} is active here: an operator has to activate one",
            )
        return active

    def active(self) -> Mapping[str, Issuing | None]:
        """Return the CA that issues now, of every line that has one; None where its key is not here."""
        return self._active

    def lacked(self) -> frozenset[int]:
        """Return the numbers of the keys that cannot be used here now (`provisioning.store.lacked_keys`)."""
        return frozenset(lacked_keys.number_of(key_id) for _, key_id in self._unusable.values())

    def keys_in_memory(self) -> bool:
        """Whether no CA that issues here has its key in a token."""
        return all(each is None or each.issuer.key_in_memory for each in self._active.values())

    def ocsp_signers(self) -> list[RenewedOcspSigner]:
        """Return the OCSP signer of every CA that is at work here."""
        return [each.signer for each in self._working.values()]

    def changed(self, events: Sequence[FeedEvent]) -> None:
        """Let the lists know that something was revoked or released."""
        for working in self._working.values():
            for publisher in working.publishers.values():
                publisher.changed()
        issuers = {event.issuer_key_id for event in events}
        for name, publisher in self._roots.items():
            if self._root_key_ids[name] in issuers:  # A root's key is offline, and not loaded without need.
                publisher.changed()

    def read_lists_again(self) -> None:
        """Have every list compared with the store, which has lost its last events."""
        for publisher in self.publishers.values():
            publisher.read_again()

    async def start(self) -> None:
        """Record the CAs that the fleet was founded with, and apply the store's state; raise if it fails.

        It refuses a directory and a store of two different fleets, or backups of different times.
        """
        now, authority = self._clock(), self._authority
        await self._database.write(
            lambda connection: authorities.adopt(
                connection, authority.root_certificate, authority.issuing_certificate, now
            )
        )
        known = await self._database.read(authorities.every)
        if wrong := strangers(authority.files, known):
            raise ConfigurationError(
                f"{wrong[0]} is not the certificate that the database {self._database.shown_url} knows by this name: "
                f"{STRANGER_REMEDY}"
            )
        await self._take_over()
        if self._active.get(DEFAULT_LINE) is None:
            log.warning("no issuing CA is active here: nothing is issued", code="NO_ACTIVE_CA")

    async def run(self) -> None:
        """Look for changes every few seconds, and run what the CAs need, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for name in self._roots:
                self._run_root(name)
            for working in self._working.values():
                self._begin(working)
            while True:
                await asyncio.sleep(self._settings.feed_heartbeat_seconds)
                try:
                    await self._take_over()
                except (Refused, ConfigurationError, KeyFileError, OSError) as error:
                    detail = str(error)
                    if times := self._failures.failed(detail, asyncio.get_running_loop().time()):
                        words = "CAs not taken over from the store"
                        log.error(words, code="CAS_NOT_TAKEN_OVER", detail=detail, times=times)

    async def _take_over(self) -> None:
        states = await self._database.read(authorities.states)
        if states == self._states:
            if self._unusable or await self._may_be_listed():
                await self._try_again()
            return
        found = await self._database.read(authorities.every)
        self._end_lost(found)
        self.told.take(found)
        trusted = list(self.told.certificates.values())
        if trusted != self._trusted:
            self._on_trust(trusted)
            self._trusted = trusted  # Not before: what fails is repeated.
        for root in found:
            if root.kind is AuthorityKind.ROOT and root.state.trusted and root.name not in self._roots:
                await self._begin_root(root)
        for each in found:
            if each.kind is AuthorityKind.ISSUING and each.state is not AuthorityState.RETIRED:
                await self._begin_issuing(each)
        await self._activate(found)
        for each in found:
            if each.state is AuthorityState.RETIRED:
                self._end(each.name)
        self._states = states
        log.info("CAs taken over from the store", **{name.replace("-", "_"): state for name, state in states})

    async def _may_be_listed(self) -> bool:
        """Whether a root that has had no list can have one now: its key is here, or another process has made it."""
        if not self._unlisted or any(map(self._authority.signers.holds, self._unlisted)):
            return bool(self._unlisted)
        names = sorted(self._unlisted)
        return await self._database.look(lambda connection: any(crls.newest(connection, each) for each in names))

    async def _try_again(self) -> None:
        """Retry CAs whose key was unavailable, as that of a token that was away, and roots without a list."""
        unusable = set(self._unusable)
        found = await self._database.read(authorities.every)
        for each in found:
            if each.name in self._unlisted:
                await self._begin_root(each)
            elif each.name in unusable:
                await self._begin_issuing(each)
        if usable := unusable - set(self._unusable):
            await self._activate(found)
            log.info("CAs can be used here now", code="CA_USABLE", cas=sorted(usable))

    async def _begin_root(self, root: StoredAuthority) -> None:
        plan = root_crl_plan(self._settings, self._authority.signers, root.name, root.certificate)
        publisher = CrlPublisher(self._database, plan, self._clock)
        try:
            await publisher.start()
        except ConfigurationError as error:
            if root.name == ROOT_CA:
                raise
            if root.name not in self._unlisted:
                log.error("root CA's list not published", code="CRL_NOT_PUBLISHED", ca=root.name, detail=str(error))
            self._unlisted.add(root.name)
            return
        self._roots[root.name] = self.publishers[root.name] = publisher
        key_id = identifier_of(root.certificate)
        self._root_key_ids[root.name] = key_id.hex()
        # What was revoked while no service ran is in no list yet. The list may hold others that have ended meanwhile.
        try:
            listed = await self._contents.take(key_id, None, self._clock())
        except Refused:  # It is begun again when the store can be read, as if nothing had been.
            del self._roots[root.name], self.publishers[root.name], self._root_key_ids[root.name]
            raise
        self._unlisted.discard(root.name)
        if publisher.lacks(listed):
            publisher.changed()
        self._run_root(root.name)

    def _run_root(self, name: str) -> None:
        if self._tasks is not None:
            self._root_tasks[name] = self._tasks.create_task(self._roots[name].run())

    async def _begin_issuing(self, ca: StoredAuthority) -> None:
        if ca.name in self._working:
            return
        try:
            key = await asyncio.to_thread(self._authority.signers.open_for, ca.name, ca.certificate)
        except ConfigurationError as error:
            if ca.state is AuthorityState.ACTIVE and not self._working:
                raise
            lacked = str(error), ca.key_id
            if self._unusable.get(ca.name) != lacked:
                log.error("CA cannot be used here", code="CA_UNUSABLE", ca=ca.name, detail=str(error))
            self._unusable[ca.name] = lacked
            return
        issuer = Issuer(ca.certificate, key, urls_of(self._public_url, ca.name))
        signer = RenewedOcspSigner(
            issuer=issuer,
            database=self._database,
            serial_numbers=self._serial_numbers,
            owner=SERVER_NAME,
            life=self._settings.ocsp_signer_life,
            clock=self._clock,
            replaced=self._responder.forget_all,
        )
        try:
            await signer.renew()
        except IssuanceRefused as refusal:  # The CA has expired, as has all that it issued; its CRLs go on.
            log.error("OCSP signer not made", code="OCSP_SIGNER_FAILED", ca=ca.name, detail=str(refusal))
        in_use, listed = await self._database.write(functools.partial(self._shards, ca.name))
        plans = issuing_crl_plans(self._settings, ca, key, self._public_url, listed)
        publishers = {
            plan.name: CrlPublisher(self._database, plan, self._clock, shared=self._contents) for plan in plans
        }
        for publisher in publishers.values():
            await publisher.start()
        working = self._working[ca.name] = _Working(Issuing(issuer, in_use), signer, publishers)
        self._unusable.pop(ca.name, None)  # Not before: what fails is repeated.
        self.publishers.update(publishers)
        for publisher in publishers.values():
            publisher.changed()  # Of what was revoked since it was made, nobody could tell it.
        self._responder.answer_for(self.ocsp_signers())
        self._begin(working)

    def _begin(self, working: _Working) -> None:
        if self._tasks is not None and not working.tasks:
            working.tasks.extend(self._tasks.create_task(run()) for run in working.runs)

    async def _activate(self, found: Sequence[StoredAuthority]) -> None:
        before = self._active.get(DEFAULT_LINE)
        self._active = {
            each.line: self._working[each.name].issuing if each.name in self._working else None
            for each in found
            if each.issues
        }
        own = self._active.get(DEFAULT_LINE)
        if own is not None and own is not before:
            await self._on_active(own.issuer)

    def _end_lost(self, found: Sequence[StoredAuthority]) -> None:
        """End those at work here that are not among the *found*, or not with their certificates."""
        known = {each.name: each.certificate for each in found}
        lost = {name for name in (*self._roots, *self._unusable) if name not in known}
        lost |= {name for name, each in self._working.items() if each.issuing.issuer.certificate != known.get(name)}
        if lost:
            words = "the database has lost CAs that are at work here"
            log.error(words, code="STORE_WENT_BACK", cas=sorted(lost), detail=REMEDY)
        for name in lost:
            self._end(name)

    def _end(self, name: str) -> None:
        self._unusable.pop(name, None)
        self._unlisted.discard(name)
        if self._roots.pop(name, None) is not None:
            self.publishers.pop(name, None)
            if (task := self._root_tasks.pop(name, None)) is not None:
                task.cancel()
        working = self._working.pop(name, None)
        if working is None:
            return
        for task in working.tasks:
            task.cancel()
        for listed in working.publishers:
            self.publishers.pop(listed, None)
        self._responder.answer_for(self.ocsp_signers())

    def _shards(self, ca: str, connection: Connection) -> tuple[list[CrlShard], list[CrlShard]]:
        """Return the shards that new certificates belong to, and all whose lists must be published."""
        settings = self._settings
        in_use = crl_shards.ensure(connection, ca, self._public_url.rstrip("/"), settings.crl_shards)
        # It is not asked again: by a clock that is ahead now, as before it is first set, all might have expired.
        now = self._clock()
        known = min(now, crls.last_made(connection, ca) or now)
        return in_use, crl_shards.needed(connection, ca, in_use, known - settings.crl_life)
