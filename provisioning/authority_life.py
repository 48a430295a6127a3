"""The life of a fleet's issuing CAs: successors announced, activated, retired.

Theory
------
Everything here is a decision in the store, in one transaction with its entry in the audit log; running services take it
over (`provisioning.live_authorities`). A change is made before it is broken::

    begin      the new CA is in the bundle, in /cacerts, has CRL and OCSP: relying parties learn of it
    activate   it issues; the one before goes on saying what is revoked
    retire     when its last certificate has ended, the one before is gone

Each line of CAs (`provisioning.issuing_lines`) is succeeded on its own; beginning a line is beginning its first CA.

The root's key may be here, in a token, or in a safe. If it is elsewhere, `export_csr` makes the new CA's key and
request, the root signs it (`root sign`, openssl, anybody's CA), and `announce` takes the certificate over.

Rules
-----
1. No step that would have a device refused is taken without being told so in words.
2. A certificate of a root's is checked before it is signed here and before it is believed from there.

One that is not to end by itself is revoked: `provisioning.authority_revocation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.authority import urls_of
from provisioning.ca.ceremony import (
    CeremonyRefused,
    CertificateAuthority,
    IssuingCaRequest,
    check_issuing_ca,
    issuing_ca_csr,
    issuing_ca_name,
    sign_issuing_ca,
)
from provisioning.ca.issuer import IssuerUrls
from provisioning.ceremony_transcript import Transcript, operator_name
from provisioning.config import Settings
from provisioning.errors import ConfigurationError
from provisioning.files import AuthorityFiles, pem_of
from provisioning.issuing_lines import check_line, line_of, next_name, root_for, shown_line
from provisioning.own_credentials import SERVER_NAME, replace_file
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import PrivateKey
from provisioning.signers.places import SignerPlaces
from provisioning.store import audit, authorities, groups, serials
from provisioning.store.audit import Action
from provisioning.store.authorities import DEFAULT_LINE, AuthorityKind, AuthorityState, StoredAuthority, described
from provisioning.store.database import Database

WAITING: Final = timedelta(days=1)
"""How long an announced CA waits until it is activated: relying parties fetch the bundle when they do."""


@dataclass(frozen=True, slots=True)
class AuthorityLife:
    """The ceremonies on one service's directory and store."""

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

    async def export_csr(self, line: str = DEFAULT_LINE, *, another: bool = False) -> bytes:
        """Make the key of a line's next CA, unless it waits for its certificate already; return its request, PEM.

        *another*: also where one is announced.
        """
        await self._check_none_waits(check_line(line), another=another)
        name, subject, key = await self._next_key(line)
        csr = issuing_ca_csr(subject, key)
        self.transcript.say(f"Request of {name}: {csr.subject.rfc4514_string()}")
        return csr.public_bytes(Encoding.PEM)

    async def announce(self, pem: bytes, root_pem: bytes | None = None) -> str:
        """Take over the certificate of the CA whose key waits for it, and announce it; return its name.

        *root_pem* is the root that has signed, if the fleet does not know it yet; it is announced with it.
        """
        certificate, root = _read(pem, "certificate"), None if root_pem is None else _read(root_pem, "root")
        found = await self.every()
        name = self._waiting_for(certificate, found)
        known = [each.certificate for each in found if each.kind is AuthorityKind.ROOT and each.state.trusted]
        signer = next((each for each in [*known, *([root] if root else [])] if is_issued_by(certificate, each)), None)
        if signer is None:
            raise ConfigurationError(
                f"no root of this fleet has issued it (its issuer is {certificate.issuer.rfc4514_string()}): "
                "give the root's certificate with --root"
            )
        try:
            check_issuing_ca(certificate, signer, self.clock())
        except CeremonyRefused as error:
            raise ConfigurationError(str(error)) from error
        new_root = signer if signer not in known else None
        await self._announce(name, certificate, new_root, sum(each.kind is AuthorityKind.ROOT for each in found) + 1)
        return name

    async def begin(self, line: str = DEFAULT_LINE, root_name: str | None = None, *, another: bool = False) -> str:
        """Make a line's next CA, have its root sign it, and announce it; return its name.

        The root is the one called *root_name*, or what `root_for` chooses. *another*: also where one is announced.
        """
        await self._check_none_waits(check_line(line), another=another)
        root = self._with_key(root_for(line, await self.every(), root_name))
        name, subject, key = await self._next_key(line)
        now = self.clock()
        serial = serials.new_serial()
        await self.log_step(Action.SIGNING_CA, name, {"root": root.name, "serial": serials.serial_text(serial)})
        try:
            certificate = sign_issuing_ca(
                CertificateAuthority(root.certificate, self.places.open_for(root.name, root.certificate)),
                IssuingCaRequest(subject, key.public_key()),
                serial,
                now,
                self._urls(root.name),
            )
        except CeremonyRefused as error:
            raise ConfigurationError(str(error)) from error
        await self._announce(name, certificate, None, 0)
        return name

    async def activate(self, name: str | None = None, *, waiting: bool = True) -> str:
        """Let an announced CA issue from now on; the active one of its line retires. Return its name."""
        now = self.clock()

        def transaction(connection: Connection) -> str:
            found = authorities.every(connection, for_update=True)
            chosen = only_one(found, name, AuthorityState.ANNOUNCED, "announced")
            ready = chosen.created_at + WAITING
            if waiting and now < ready:
                raise ConfigurationError(
                    f"{chosen.name} was announced {chosen.created_at:%Y-%m-%d %H:%M} UTC: give relying parties until "
                    f"{ready:%Y-%m-%d %H:%M} UTC to fetch the bundle, or say --without-waiting"
                )
            for each in found:
                if (each.kind, each.state, each.line) == (
                    AuthorityKind.ISSUING, AuthorityState.ACTIVE, chosen.line
                ):  # fmt: skip
                    authorities.set_state(connection, each.name, AuthorityState.RETIRING, now)
                    self.note(connection, Action.CA_CHANGED, each.name, {"state": AuthorityState.RETIRING})
            authorities.set_state(connection, chosen.name, AuthorityState.ACTIVE, now)
            self.note(connection, Action.CA_CHANGED, chosen.name, {"state": AuthorityState.ACTIVE})
            return chosen.name

        return await self.database.write(transaction)

    async def retire(self, name: str | None = None) -> str:
        """End a retiring CA whose last certificate has ended; return its name."""
        now = self.clock()

        def transaction(connection: Connection) -> str:
            chosen = only_one(authorities.every(connection, for_update=True), name, AuthorityState.RETIRING, "retiring")
            last, renewable = _last_use(connection, chosen)
            if last is not None and now < last:
                raise ConfigurationError(
                    f"certificates of {chosen.name} are good until {last:%Y-%m-%d %H:%M} UTC: retire it then, or "
                    f"revoke it to end them now; certificate list --issuer {chosen.name} --state active names them"
                )
            if renewable is not None and now < renewable:
                raise ConfigurationError(
                    f"certificates of {chosen.name} have ended and buy their successors until "
                    f"{renewable:%Y-%m-%d %H:%M} UTC by their groups' renewal_grace: retire it then, or shorten that"
                )
            authorities.set_state(connection, chosen.name, AuthorityState.RETIRED, now)
            self.note(connection, Action.CA_CHANGED, chosen.name, {"state": AuthorityState.RETIRED})
            return chosen.name

        retired = await self.database.write(transaction)
        await self.write_bundle()
        return retired

    async def end_line(self, line: str) -> str:
        """Let the CA of a line that no group is bound to issue no more; return its name. It is retired like others."""
        if line == DEFAULT_LINE:
            raise ConfigurationError("the default line has no end: the service's own certificates are of it")
        now = self.clock()

        def transaction(connection: Connection) -> str:
            found = [each for each in authorities.every(connection, for_update=True) if each.line == line]
            chosen = only_one(found, None, AuthorityState.ACTIVE, f"active in line {line!r}")
            if bound := groups.bound_to(connection, line):
                raise ConfigurationError(
                    f"line {line} certifies the devices of {', '.join(bound)}: give them another one first, "
                    "group set NAME --issuing-line LINE"
                )
            authorities.set_state(connection, chosen.name, AuthorityState.RETIRING, now)
            self.note(connection, Action.CA_CHANGED, chosen.name, {"state": AuthorityState.RETIRING})
            return chosen.name

        return await self.database.write(transaction)

    async def write_bundle(self) -> None:
        """Write the trust anchors as they are now; a running service does so too."""
        trusted = [each for each in await self.every() if each.state.trusted]
        anchors = [
            each.certificate
            for kind in (AuthorityKind.ROOT, AuthorityKind.ISSUING)
            for each in trusted
            if each.kind is kind
        ]
        replace_file(self.files.bundle, pem_of(*anchors))

    async def _announce(
        self, name: str, certificate: x509.Certificate, new_root: x509.Certificate | None, root_number: int
    ) -> None:
        now = self.clock()

        def transaction(connection: Connection) -> None:
            if new_root is not None:
                authorities.add(
                    connection, f"root-{root_number}", AuthorityKind.ROOT, AuthorityState.ACTIVE, new_root, now
                )
                self.note(connection, Action.CA_CHANGED, f"root-{root_number}", facts_of(new_root))
            line = line_of(name)
            authorities.add(connection, name, AuthorityKind.ISSUING, AuthorityState.ANNOUNCED, certificate, now, line)
            self.note(connection, Action.CA_SIGNED, name, facts_of(certificate) | {"line": line})

        try:
            await self.database.write(transaction)
        except IntegrityError as error:
            raise ConfigurationError(
                f"{name} was announced by somebody else at the same moment: look at ca list, and begin again"
            ) from error
        if new_root is not None:
            self.transcript.certificate("New root", new_root)
        self.transcript.certificate(f"Issuing CA {name}", certificate)
        replace_file(self.files.certificate(name), pem_of(certificate))
        await self.write_bundle()

    async def _check_none_waits(self, line: str, *, another: bool) -> None:
        """Raise `ConfigurationError` where a CA of *line* is announced already, unless *another* is wanted."""
        waiting = [
            each.name
            for each in await self.every()
            if (each.kind, each.state, each.line) == (AuthorityKind.ISSUING, AuthorityState.ANNOUNCED, line)
        ]
        if waiting and not another:
            raise ConfigurationError(
                f"line {line} has its next CA already, {' and '.join(waiting)}: ca rollover activate {waiting[-1]} has "
                f"it issue, ca revoke {waiting[-1]} --reason superseded ends it, --another makes one more beside it"
            )

    async def _next_key(self, line: str) -> tuple[str, x509.Name, PrivateKey]:
        name, number = next_name(line, {each.name for each in await self.every()})
        if self.places.holds(name):
            key = self.places.open(name)
        else:
            await self.log_step(Action.CA_KEY_MADE, name, {})
            key, _ = self.places.create(name)
        self.transcript.say(f"Key of {name}: {self.places.place(name)}")
        return name, issuing_ca_name(self.settings.trust_domain, number, shown_line(line)), key

    def _waiting_for(self, certificate: x509.Certificate, found: list[StoredAuthority]) -> str:
        taken = {each.name for each in found}
        for path in sorted(self.files.directory.glob("issuing-*")):
            name = path.name.removesuffix(".key").removesuffix(".pkcs11")
            if path.suffix not in {".key", ".pkcs11"} or name in taken:
                continue
            if self.places.open(name).public_key() == certificate.public_key():
                return name
        raise ConfigurationError("no key waits for this certificate: make the request with ca export-csr first")

    async def newest_root(self) -> StoredAuthority:
        """Return the newest root, whose key must be here; raise `ConfigurationError`."""
        roots = [each for each in await self.every() if each.kind is AuthorityKind.ROOT and each.state.trusted]
        if not roots:
            raise ConfigurationError("the store knows no root: start the service once, so that it records its CAs")
        return self._with_key(roots[-1])

    def _with_key(self, root: StoredAuthority) -> StoredAuthority:
        if not self.places.holds(root.name):
            raise ConfigurationError(
                f"the key of {root.name} is not here: bring it, or use ca export-csr, root sign, ca import, or name "
                "another root with --root"
            )
        return root

    async def every(self) -> list[StoredAuthority]:
        """Return all CAs."""
        return await self.database.read(authorities.every)

    def _urls(self, root: str) -> IssuerUrls | None:
        url = self.settings.public_http_url
        return None if url is None else urls_of(str(url), root)

    async def log_step(self, action: Action, name: str, facts: dict[str, object]) -> None:
        """Put an entry into the audit log: before something is signed."""
        await self.database.write(lambda connection: self.note(connection, action, name, facts))

    def note(self, connection: Connection, action: Action, name: str, facts: dict[str, object]) -> None:
        """Put an entry into the audit log, in the transaction of what it tells."""
        audit.append(connection, self.clock(), operator_name(), action, name, facts)


def _last_use(connection: Connection, ca: StoredAuthority) -> tuple[datetime | None, datetime | None]:
    """Return when the last certificate of *ca* ends, the service's own not counted, and when it is good for nothing."""
    ends = authorities.last_expiries(connection, ca.key_id, SERVER_NAME)
    uses = [
        end + (groups.rules_of(connection, group).renewal_grace if group is not None else timedelta())
        for group, end in ends.items()
    ]
    return max(ends.values(), default=None), max(uses, default=None)


def only_one(found: list[StoredAuthority], name: str | None, state: AuthorityState, word: str) -> StoredAuthority:
    """Return the issuing CA in *state*, called *name* if that is said; raise `ConfigurationError` unless it is one."""
    fit = [each for each in found if each.kind is AuthorityKind.ISSUING and each.state is state]
    if name is not None:
        fit = [each for each in fit if each.name == name]
    match fit:
        case [one]:
            return one
        case []:
            raise ConfigurationError(
                f"no issuing CA {name or ''} is {word}; there are {described(found)}".replace("  ", " ")
            )
        case _:
            raise ConfigurationError(f"{described(fit)}: name the one that is meant")


def _read(pem: bytes, what: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigurationError(f"the {what} is no PEM certificate") from error


def facts_of(certificate: x509.Certificate) -> dict[str, object]:
    """Return what the audit log says of a CA's certificate."""
    return {
        "subject": certificate.subject.rfc4514_string(),
        "serial": serials.serial_text(certificate.serial_number),
        "not_after": str(certificate.not_valid_after_utc),
    }
