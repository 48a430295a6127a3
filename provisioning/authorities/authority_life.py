"""The life cycle of a fleet's issuing CAs after their announcement: activation and retirement.

Theory
------
Every step is a decision in the store, in one transaction with its audit log entry; running services apply it
(`provisioning.authorities.live_authorities`). The new CA is in place before the old one goes::

    begin      the new CA is in the bundle, in /cacerts, has CRL and OCSP: relying parties learn of it
    activate   it issues; the previous one still publishes its CRL and OCSP status
    retire     when its last certificate has expired, the previous one is removed

Each line of CAs (`provisioning.authorities.issuing_lines`) is succeeded on its own; beginning a line is beginning its
first CA.

Rules
-----
1. Each step begins its transcript when it is checked and before it is done: what cannot be shown is not done.
2. No step that would have a device refused is taken without an explicit option. So no CA is activated while a
   broker that follows the feed reports that it would not trust it (`provisioning.store.known_authorities`), nor while a
   service says that it lacks the key, nor before every service can have said so (`provisioning.store.lacked_keys`),
   nor where its key is not in the directory; nor one that may not certify the service and the brokers
   (`provisioning.authorities.permitted_service`).

How a CA begins: `provisioning.authorities.next_authority`; how one is revoked:
`provisioning.authorities.authority_revocation`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.authorities.ceremony_transcript import Transcript, operator_name
from provisioning.authorities.issuing_lines import known_roots
from provisioning.authorities.own_credentials import SERVER_NAME, replace_file
from provisioning.authorities.permitted_service import check_servers_permitted, names_of_others, own_names
from provisioning.config import Settings
from provisioning.directory.files import AuthorityFiles
from provisioning.errors import ConfigurationError, Refused
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import PrivateKey
from provisioning.pki.pem import pem_of
from provisioning.program.moments import shown_minute
from provisioning.signers.places import SignerPlaces
from provisioning.signers.signer import Signer
from provisioning.store import audit, authorities, certificates, groups, known_authorities, lacked_keys
from provisioning.store.audit import Action
from provisioning.store.authorities import DEFAULT_LINE, AuthorityKind, AuthorityState, StoredAuthority, described
from provisioning.store.certificates import NewestCertificate
from provisioning.store.database import Database
from provisioning.store.known_authorities import BrokersWord

CheckedT = TypeVar("CheckedT")

WAITING: Final = timedelta(days=1)
"""How long an announced CA waits for activation, so that relying parties can fetch the bundle."""

_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Activated:
    """A CA that issues from now on, although some may refuse what it issues, or have devices refused."""

    name: str
    doubts: Sequence[BrokersWord]
    """The reports of brokers that are not known to trust it."""
    lacking: Sequence[str]
    """Where services are that cannot use its key."""
    said_in: float
    """How many seconds later the others have surely said so."""


@dataclass(frozen=True, slots=True)
class EndedLine:
    """The CAs of a line that has ended."""

    active: str | None
    """The one that issued until then; None: the line had announced ones only."""
    announced: Sequence[str]
    """Those that had not issued yet: they are retired."""


@dataclass(frozen=True, slots=True)
class AuthorityLife:
    """The ceremonies with one service's directory and store."""

    settings: Settings
    database: Database
    clock: Callable[[], datetime]
    transcript: Transcript

    @property
    def files(self) -> AuthorityFiles:
        """The directory's files."""
        return AuthorityFiles(self.settings.directory)

    @property
    def places(self) -> SignerPlaces:
        """Where the CAs' keys are."""
        return SignerPlaces(self.files, self.settings)

    async def activate(
        self,
        name: str | None = None,
        *,
        waiting: bool = True,
        despite_brokers: bool = False,
        despite_services: bool = False,
    ) -> Activated:
        """Let an announced CA issue from now on; the active one of its line retires.

        *despite_brokers*: even if some brokers have reported that they would not trust it, or would get certificates
        that no client accepts; *despite_services*: even if a service says that it cannot use its key, and without
        waiting until all have had their turn to say so.
        """
        ours = own_names(self.settings)

        def checked(connection: Connection, found: list[StoredAuthority]) -> Activated:
            now = self.clock()
            chosen = only_one(found, name, AuthorityState.ANNOUNCED, "announced")
            ready = chosen.created_at + WAITING
            if waiting and now < ready:
                raise ConfigurationError(
                    f"{chosen.name} was announced {shown_minute(chosen.created_at)}: give relying parties until "
                    f"{shown_minute(ready)} to fetch the bundle, or say --without-waiting"
                )
            path = _path_of(chosen, found)
            ours.check_permitted(chosen.line, path)
            doubts = [each for each in known_authorities.of_authority(connection, chosen.name) if not each.known]
            if not despite_brokers:
                others = names_of_others(connection, now)
                check_servers_permitted(others, chosen.line, path, "; or say --despite-brokers")
                _check_believed(chosen.name, doubts, now)
            lacking = lacked_keys.lacking(connection, chosen.key_id) or self._lacking_here(chosen.name)
            if lacking and not despite_services:
                raise ConfigurationError(
                    f"a service at {' and at '.join(lacking)} cannot use the key of {chosen.name}, and would refuse "
                    f"every device: copy {self.places.path(chosen.name).name} into its directory, from where it was "
                    "made, and try again within seconds of CA_USABLE in its log (doctor there says more); or say "
                    "--despite-services"
                )
            said_in = lacked_keys.said_in(connection, self.settings.feed_heartbeat_seconds)
            return Activated(chosen.name, doubts, lacking, said_in)

        def transaction(connection: Connection) -> Activated:
            found, now = authorities.every(connection, for_update=True), self.clock()
            activated = checked(connection, found)
            (chosen,) = (each for each in found if each.name == activated.name)
            for each in found:
                if (each.kind, each.state, each.line) == (
                    AuthorityKind.ISSUING, AuthorityState.ACTIVE, chosen.line
                ):  # fmt: skip
                    authorities.set_state(connection, each.name, AuthorityState.RETIRING, now)
                    self.note(connection, Action.CA_CHANGED, each.name, {"state": AuthorityState.RETIRING})
            authorities.set_state(connection, chosen.name, AuthorityState.ACTIVE, now)
            without = {"services_without_key": activated.lacking} if activated.lacking else {}
            self.note(connection, Action.CA_CHANGED, chosen.name, {"state": AuthorityState.ACTIVE, **without})
            return activated

        begun = await self._begin(checked)
        if not despite_services:
            await self._wait_for_services(begun)
        return await self.database.write(transaction)

    def _lacking_here(self, name: str) -> Sequence[str]:
        """Return this machine if the CA's key is not in its directory: on SQLite no service says so."""
        return [] if self.places.holds(name) else [platform.node()]

    async def _wait_for_services(self, begun: Activated) -> None:
        """Wait until all services have had their turn to say whether they lack the key."""
        if begun.said_in:
            self.transcript.say(
                f"Waiting {math.ceil(begun.said_in)} s: services on other machines say by then whether they lack the "
                f"key of {begun.name}."
            )
            await asyncio.sleep(begun.said_in)

    async def retire(self, name: str | None = None) -> str:
        """End a retiring CA whose last certificate has expired; return its name."""
        now = self.clock()

        def check(connection: Connection, chosen: str, ends: Mapping[str | None, datetime]) -> None:
            last, renewable = _last_use(connection, ends)
            if last is not None and now < last:
                raise ConfigurationError(
                    f"certificates of {chosen} are good until {shown_minute(last)}: retire it then, or "
                    f"revoke it to end them now; certificate list --issuer {chosen} --state active names them"
                )
            if renewable is not None and now < renewable:
                raise ConfigurationError(
                    f"certificates of {chosen} have expired and can still be renewed until "
                    f"{shown_minute(renewable)} by their groups' renewal_grace: retire it then, or shorten that"
                )

        def look(connection: Connection) -> tuple[str, NewestCertificate | None, dict[str | None, datetime]]:
            chosen = only_one(authorities.every(connection), name, AuthorityState.RETIRING, "retiring")
            newest, ends = certificates.newest(connection), _ends(connection, chosen)
            check(connection, chosen.name, ends)
            return chosen.name, newest, ends

        looked_at, newest, ends = await self.database.survey(look)  # It may take seconds, for which nobody waits.
        self.transcript.begin()

        def transaction(connection: Connection) -> str:
            found = authorities.every(connection, for_update=True)
            chosen = only_one(found, looked_at, AuthorityState.RETIRING, "retiring")
            if not certificates.holds(connection, newest):
                raise ConfigurationError(
                    "the store has lost certificates while they were looked at, as in a fail-over: nothing was "
                    "changed; try again"
                )
            behind = 0 if newest is None else newest.id
            for group, end in _ends(connection, chosen, behind).items():  # A service may not have noticed yet.
                ends[group] = max(end, ends.get(group, end))
            check(connection, chosen.name, ends)
            authorities.set_state(connection, chosen.name, AuthorityState.RETIRED, now)
            self.note(connection, Action.CA_CHANGED, chosen.name, {"state": AuthorityState.RETIRED})
            return chosen.name

        retired = await self.database.write(transaction)
        await self.write_files()
        return retired

    async def end_line(self, line: str) -> EndedLine:
        """Stop the CA of a line that no group is bound to from issuing; it is retired like others.

        CAs of the line that were announced are retired at once: they have issued nothing, and nobody will need them.
        """
        if line == DEFAULT_LINE:
            raise ConfigurationError("the default line cannot be ended: the service's own certificates belong to it")
        now = self.clock()

        def checked(connection: Connection, found: list[StoredAuthority]) -> EndedLine:
            of_line = [each for each in found if (each.kind, each.line) == (AuthorityKind.ISSUING, line)]
            if not of_line:
                lines = sorted({each.line for each in found if each.issues} - {DEFAULT_LINE})
                raise ConfigurationError(
                    f"there is no line {line!r}; besides the default: {', '.join(lines) or 'none'}"
                )
            announced = [each.name for each in of_line if each.state is AuthorityState.ANNOUNCED]
            has_active = any(each.state is AuthorityState.ACTIVE for each in of_line)
            active = None
            if has_active or not announced:
                active = only_one(of_line, None, AuthorityState.ACTIVE, f"active in line {line!r}").name
            if bound := groups.bound_to(connection, line):
                raise ConfigurationError(
                    f"line {line} certifies the devices of {', '.join(bound)}: give them another one first, "
                    "group set NAME --issuing-line LINE"
                )
            return EndedLine(active, announced)

        def transaction(connection: Connection) -> EndedLine:
            ended = checked(connection, authorities.every(connection, for_update=True))
            active = [] if ended.active is None else [(ended.active, AuthorityState.RETIRING)]
            for name, state in [*active, *((each, AuthorityState.RETIRED) for each in ended.announced)]:
                authorities.set_state(connection, name, state, now)
                self.note(connection, Action.CA_CHANGED, name, {"state": state})
            return ended

        await self._begin(checked)
        ended = await self.database.write(transaction)
        if ended.announced:
            await self.write_files()
        return ended

    async def _begin(self, check: Callable[[Connection, list[StoredAuthority]], CheckedT]) -> CheckedT:
        """Begin the transcript if *check*, which the step's transaction repeats, raises nothing; return its result."""
        checked = await self.database.read(lambda connection: check(connection, authorities.every(connection)))
        self.transcript.begin()
        return checked

    def check_passphrase(self, found: Sequence[StoredAuthority], or_else: str = "") -> None:
        """Raise `ConfigurationError` if a new key would have a passphrase that opens none of those in files here.

        The newest are tried first, and only issuing CAs', if one is here: a root's may have come with its own.
        *or_else* is what the error proposes besides.
        """
        names = {
            kind: [each.name for each in reversed(found) if each.kind is kind and each.state.trusted]
            for kind in (AuthorityKind.ISSUING, AuthorityKind.ROOT)
        }
        issuing = [name for name in names[AuthorityKind.ISSUING] if self.places.in_file(name)]
        self.places.check_passphrase(issuing or names[AuthorityKind.ROOT], or_else)

    async def write_files(self, new: str | None = None) -> None:
        """Write the trust anchors as they are now, and certificates of CAs with a key here: of *new*, and missing ones.

        Raises `ConfigurationError` if something cannot be written. The change itself is in the store by then.
        """
        written, trusted = None, await self._trusted()
        while written != trusted:  # Who has written what was found before another change is not the last one to write.
            self._write_files(trusted, new)
            written, trusted = trusted, await self._trusted()

    async def _trusted(self) -> list[StoredAuthority]:
        return [each for each in await self.every() if each.state.trusted]

    def _write_files(self, trusted: Sequence[StoredAuthority], new: str | None) -> None:
        contents: dict[Path, bytes] = {}
        for each in trusted:
            path = self.files.certificate(each.name)
            if each.name == new or (self.places.holds(each.name) and not path.exists()):
                contents[path] = pem_of(each.certificate)
        contents[self.files.bundle] = pem_of(
            *(
                each.certificate
                for kind in (AuthorityKind.ROOT, AuthorityKind.ISSUING)
                for each in trusted
                if each.kind is kind
            )
        )
        failed: list[ConfigurationError] = []
        for path, content in contents.items():
            try:
                replace_file(path, content)
            except ConfigurationError as error:
                failed.append(error)
        if failed:
            what = "file" if len(failed) == 1 else "files"
            raise ConfigurationError(
                f"{'; '.join(map(str, failed))}. What was done to the CA is done all the same; look at the disk, and "
                f"at who owns the directory. The next step of a CA's life here writes the {what}; the service writes "
                "the bundle as soon as it can, or when it starts"
            ) from failed[0]

    async def newest_root(self) -> StoredAuthority:
        """Return the newest root, whose key must be here; raise `ConfigurationError`."""
        return self.with_key(known_roots(await self.every())[-1])

    def with_key(self, root: StoredAuthority) -> StoredAuthority:
        """Return *root*; raise `ConfigurationError` unless its key is here."""
        if not self.places.holds(root.name):
            raise ConfigurationError(
                f"the key of {root.name} is not here: bring it here, or use ca export-csr, root sign "
                "and ca import, or name "
                "another root with --root"
            )
        return root

    async def every(self) -> list[StoredAuthority]:
        """Return all CAs."""
        return await self.database.read(authorities.every)

    async def discard(self, name: str, signer: Signer, key: PrivateKey) -> None:
        """Delete the *key* that was made here and is no CA's, unless another is in its place by now.

        Only told if it fails: the caller has to say why the key is no CA's.
        """
        try:
            is_deleted = self.places.discard_if_own(name, signer, key)
        except ConfigurationError as error:
            self.transcript.say(f"{error}: delete it, or move it away")
            return
        if is_deleted:
            with contextlib.suppress(Refused):  # The store may be why it is no CA's.
                await self.log_step(Action.CA_KEY_DELETED, name, {})

    async def log_step(self, action: Action, name: str, facts: dict[str, object]) -> None:
        """Write an entry to the audit log, before something is signed."""
        await self.database.write(lambda connection: self.note(connection, action, name, facts))

    def note(self, connection: Connection, action: Action, name: str, facts: dict[str, object]) -> None:
        """Write an entry to the audit log, in the transaction of the change that it records."""
        audit.append(connection, self.clock(), operator_name(), action, name, facts)


def _path_of(chosen: StoredAuthority, found: Sequence[StoredAuthority]) -> Mapping[str, x509.Certificate]:
    """Return a CA's certificate and its root's, by whose they are; without a root that was retired since."""
    signers = (each.certificate for each in authorities.trusted_roots(found))
    root = next((each for each in signers if is_issued_by(chosen.certificate, each)), None)
    return {"its": chosen.certificate} | ({} if root is None else {"its root's": root})


def _check_believed(name: str, doubts: Sequence[BrokersWord], now: datetime) -> None:
    """Raise `ConfigurationError` if a recently seen broker would refuse certificates of the CA *name*."""
    refusing = [each for each in doubts if each.known is False and each.is_recent(now)]
    if refusing:
        shown = ", ".join(f"{each.broker} ({shown_minute(each.said_at)})" for each in refusing[:_SHOWN])
        more = f" and {len(refusing) - _SHOWN} more" if len(refusing) > _SHOWN else ""
        raise ConfigurationError(
            f"devices that come under {name} would be refused by {shown}{more}, which said so then: put the present "
            "ca-bundle.crt where each has its cafile, and it says otherwise within seconds; decommission a broker that "
            "is no more; or say --despite-brokers"
        )


def _ends(connection: Connection, ca: StoredAuthority, behind: int = 0) -> dict[str | None, datetime]:
    """Return when the last certificate of *ca* expires in each group, except the service's own."""
    return authorities.last_expiries(connection, ca.key_id, SERVER_NAME, behind)


def _last_use(connection: Connection, ends: Mapping[str | None, datetime]) -> tuple[datetime | None, datetime | None]:
    """Return when the last certificate expires, and when it can no longer be used, by the *ends* of each group."""
    uses = [
        end + (groups.rules_of(connection, group).renewal_grace if group is not None else timedelta())
        for group, end in ends.items()
    ]
    return max(ends.values(), default=None), max(uses, default=None)


def only_one(found: list[StoredAuthority], name: str | None, state: AuthorityState, word: str) -> StoredAuthority:
    """Return the issuing CA in *state*, called *name* if given; raise `ConfigurationError` unless there is just one."""
    issuing = [each for each in found if each.kind is AuthorityKind.ISSUING]
    fit = [each for each in issuing if each.state is state]
    if name is not None:
        fit = [each for each in fit if each.name == name]
    match fit:
        case [one]:
            return one
        case []:
            raise ConfigurationError(
                f"no issuing CA {name or ''} is {word}, only {described(issuing)}".replace("  ", " ")
            )
        case _:
            raise ConfigurationError(f"{described(fit)}: name one of them")
