"""A line's next issuing CA: makes its key, has its certificate signed here or elsewhere, and announces it.

Theory
------
The root's key may be here, in a token, or in a safe. If it is elsewhere, `NextAuthority.export_csr` makes the new CA's
key and request, the root signs it (`root sign`, openssl, any CA), and `NextAuthority.announce` imports the
certificate. Once announced, it is in the bundle and in /cacerts; it issues after it is activated
(`provisioning.authorities.authority_life`).

Rules
-----
1. The certificate is checked before it is signed here, or before one from an external root is accepted.
2. A key that waits for its certificate is used, and no second one made. One whose certificate is here does not wait:
   the store has lost the CA (`provisioning.authorities.last_ceremony`), and perhaps its revocation for a compromise.
3. Under a root that was retired no CA is announced, nor is such a root announced again as another's. The root is looked
   at once more in the transaction, as another host may retire it meanwhile.
4. No key is made by a passphrase that does not open the CAs' key files that are here: the next command could not use
   it, nor the service. What is in tokens, or lost, does not matter: the next CA may be the way out.
5. A key file that was made here while another host announced a CA of its name is deleted: nobody uses it, and that CA's
   key has to be copied to its place. It stays if it is that CA's key by then. A key in a token stays, too: two hosts
   may share the token, where keys are found by that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.authorities.authority import urls_of_root
from provisioning.authorities.authority_life import AuthorityLife
from provisioning.authorities.ceremony_transcript import facts_of
from provisioning.authorities.issuing_lines import check_line, line_of, next_name, root_for, shown_line
from provisioning.authorities.named_lists import named_lists
from provisioning.authorities.permitted_service import check_servers_permitted, names_of_others, own_names
from provisioning.ca.ceremony import (
    CeremonyRefused,
    CertificateAuthority,
    IssuingCaRequest,
    check_issuing_ca,
    issuing_ca_csr,
    issuing_ca_name,
    sign_issuing_ca,
)
from provisioning.directory.files import read_certificate
from provisioning.errors import ConfigurationError
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import PrivateKey
from provisioning.pki.serial_number import serial_text
from provisioning.signers.signer import Signer
from provisioning.store import authorities, serials
from provisioning.store.audit import Action
from provisioning.store.authorities import DEFAULT_LINE, AuthorityKind, AuthorityState, StoredAuthority

_TWO_PASSPHRASES: Final = "; if it is another than the root's: ca export-csr, ca root sign and ca import take one each"


class _AnnouncedMeanwhile(ConfigurationError):
    """Another command, at another host, has announced a CA of this name."""


@dataclass(frozen=True, slots=True)
class NextAuthority:
    """Makes and announces CAs, on the same directory, store and transcript as their other ceremonies."""

    life: AuthorityLife

    async def export_csr(self, line: str = DEFAULT_LINE, *, another: bool = False) -> bytes:
        """Make the key of a line's next CA, unless it waits for its certificate already; return its request, PEM.

        *another*: also where one is announced.
        """
        await self._check_none_waits(check_line(line), another=another)
        name, subject, key, _ = await self._next_key(line)
        csr = issuing_ca_csr(subject, key)
        self.life.transcript.say(f"Request of {name}: {csr.subject.rfc4514_string()}")
        return csr.public_bytes(Encoding.PEM)

    async def announce(self, pem: bytes, root_pem: bytes | None = None) -> str:
        """Import the certificate of the CA whose key waits for it, and announce it; return its name.

        *root_pem* is the root that signed it, if the fleet does not know it yet; it is announced with it.
        """
        certificate, root = _read(pem, "certificate"), None if root_pem is None else _read(root_pem, "root")
        found = await self.life.every()
        self._check_name_is_free(certificate, found)
        _check_new(certificate, found)
        name = self._waiting_for(certificate, found)
        known = [each.certificate for each in authorities.trusted_roots(found)]
        # If it is not even the given root's, that is said with all else that is wrong.
        signer = next((each for each in known if is_issued_by(certificate, each)), root)
        if signer is None:
            raise ConfigurationError(
                f"no root of this fleet has issued it (its issuer is {certificate.issuer.rfc4514_string()}): "
                "give the root's certificate with --root"
            )
        try:
            check_issuing_ca(certificate, signer, self.life.clock())
        except CeremonyRefused as error:
            raise ConfigurationError(str(error)) from error
        if signer not in known:
            _check_no_former_root(signer, found)
        await self._check_permitted(line_of(name), {"its": certificate, "its root's": signer})
        known_cas = {each.name: each.certificate for each in found} | {name: certificate}
        _check_lists(named_lists(certificate, self.life.settings, known_cas))
        new_root = signer if signer not in known else None
        await self._announce(name, certificate, new_root, sum(each.kind is AuthorityKind.ROOT for each in found) + 1)
        return name

    async def begin(self, line: str = DEFAULT_LINE, root_name: str | None = None, *, another: bool = False) -> str:
        """Make a line's next CA, have its root sign it, and announce it; return its name.

        The root is the one called *root_name*, or what `root_for` chooses. *another*: also where one is announced.
        """
        await self._check_none_waits(check_line(line), another=another)
        root = self.life.with_key(root_for(line, await self.life.every(), root_name))
        await self._check_permitted(line, {"its root's": root.certificate})
        root_key = self.life.places.open_for(root.name, root.certificate)  # Before a key is made.
        or_else = _TWO_PASSPHRASES if self.life.places.in_file(root.name) else ""
        name, subject, key, signer = await self._next_key(line, or_else)
        now = self.life.clock()
        serial = serials.new_serial()
        await self.life.log_step(Action.SIGNING_CA, name, {"root": root.name, "serial": serial_text(serial)})
        try:
            certificate = sign_issuing_ca(
                CertificateAuthority(root.certificate, root_key),
                IssuingCaRequest(subject, key.public_key()),
                serial,
                now,
                urls_of_root(self.life.settings, root.name),
            )
        except CeremonyRefused as error:
            raise ConfigurationError(str(error)) from error
        try:
            await self._announce(name, certificate, None, 0)
        except _AnnouncedMeanwhile:
            if signer is not None and self.life.places.in_file(name) and await self._is_anothers(name, key):  # Rule 5.
                await self.life.discard(name, signer, key)
            raise
        return name

    async def _announce(
        self, name: str, certificate: x509.Certificate, new_root: x509.Certificate | None, root_number: int
    ) -> None:
        now = self.life.clock()
        self.life.transcript.begin()

        def transaction(connection: Connection) -> None:
            found = authorities.every(connection, for_update=True)
            if new_root is None:
                _check_root_stays(name, certificate, found)
            else:
                _check_no_former_root(new_root, found)
                authorities.add(
                    connection, f"root-{root_number}", AuthorityKind.ROOT, AuthorityState.ACTIVE, new_root, now
                )
                self.life.note(connection, Action.CA_CHANGED, f"root-{root_number}", facts_of(new_root))
            line = line_of(name)
            authorities.add(connection, name, AuthorityKind.ISSUING, AuthorityState.ANNOUNCED, certificate, now, line)
            self.life.note(connection, Action.CA_SIGNED, name, facts_of(certificate) | {"line": line})

        try:
            await self.life.database.write(transaction)
        except IntegrityError as error:
            raise _AnnouncedMeanwhile(
                f"{name} was announced by another command at the same time: see ca list, and start again"
            ) from error
        if new_root is not None:
            self.life.transcript.certificate("New root", new_root)
        self.life.transcript.certificate(f"Issuing CA {name}", certificate)
        await self.life.write_files(name)

    async def _check_permitted(self, line: str, path: Mapping[str, x509.Certificate]) -> None:
        """Raise `ConfigurationError` if name constraints in a CA's *path* forbid names of ours, or of brokers."""
        own_names(self.life.settings).check_permitted(line, path)
        now = self.life.clock()
        others = await self.life.database.read(lambda connection: names_of_others(connection, now))
        check_servers_permitted(others, line, path)

    async def _check_none_waits(self, line: str, *, another: bool) -> None:
        """Raise `ConfigurationError` where a CA of *line* is announced already, unless *another* is wanted."""
        waiting = [
            each.name
            for each in await self.life.every()
            if (each.kind, each.state, each.line) == (AuthorityKind.ISSUING, AuthorityState.ANNOUNCED, line)
        ]
        if waiting and not another:
            raise ConfigurationError(
                f"line {line} has its next CA already, {' and '.join(waiting)}: ca rollover activate {waiting[-1]} has "
                f"it issue, ca revoke {waiting[-1]} --reason superseded ends it, --another makes one more beside it"
            )

    async def _next_key(self, line: str, or_else: str = "") -> tuple[str, x509.Name, PrivateKey, Signer | None]:
        """Return a line's next CA's name, subject and key, and its signer if it was made just now."""
        found = await self.life.every()
        name, number = next_name(line, {each.name for each in found})
        waiting = self.life.places.open_waiting(name) if self.life.places.holds(name) else None
        if waiting is not None:
            self._check_waits(name, waiting)
        key, signer = await self._made_key(name, found, or_else) if waiting is None else (waiting, None)
        self.life.transcript.begin()
        self.life.transcript.say(f"Key of {name}: {self.life.places.place(name)}")
        return name, issuing_ca_name(self.life.settings.trust_domain, number, shown_line(line)), key, signer

    async def _is_anothers(self, name: str, key: PrivateKey) -> bool:
        """Whether the CA called *name* has another key."""
        return any(
            each.name == name and each.certificate.public_key() != key.public_key() for each in await self.life.every()
        )

    def _check_waits(self, name: str, key: PrivateKey) -> None:
        """Raise `ConfigurationError` if the store has lost the CA of that *key*, and perhaps its revocation."""
        path = self.life.files.certificate(name)
        if path.exists() and read_certificate(path).public_key() == key.public_key():
            raise ConfigurationError(
                f"the key of {name} has a certificate here, {path}, which the store does not know: it is a copy from "
                f"before that was announced. To announce it again: ca import {path}; if that CA was revoked since, "
                "move its certificate and its key away first"
            )

    async def _made_key(self, name: str, found: list[StoredAuthority], or_else: str) -> tuple[PrivateKey, Signer]:
        self.life.check_passphrase(found, or_else)
        self.life.transcript.begin()
        await self.life.log_step(Action.MAKING_CA_KEY, name, {})
        made = self.life.places.create(name)
        await self.life.log_step(Action.CA_KEY_MADE, name, {})
        return made

    def _waiting_for(self, certificate: x509.Certificate, found: list[StoredAuthority]) -> str:
        taken = {each.name for each in found}
        for path in sorted(self.life.files.directory.glob("issuing-*")):
            name = path.name.removesuffix(".key").removesuffix(".pkcs11")
            if path.suffix not in {".key", ".pkcs11"} or name in taken:
                continue
            if self.life.places.open(name).public_key() == certificate.public_key():
                return name
        raise ConfigurationError("no key waits for this certificate: make the request with ca export-csr first")

    def _check_name_is_free(self, certificate: x509.Certificate, found: list[StoredAuthority]) -> None:
        """Raise `ConfigurationError` if another host has announced a CA of the name that was requested here."""
        for each in found:
            names = each.certificate.subject, each.certificate.issuer
            if each.kind is not AuthorityKind.ISSUING or names != (certificate.subject, certificate.issuer):
                continue
            if each.certificate.public_key() == certificate.public_key() or not self.life.places.holds(each.name):
                continue
            if self.life.places.open(each.name).public_key() != certificate.public_key():
                continue
            raise ConfigurationError(
                f"{each.name} was announced from another machine, with another key, since this was requested here: "
                f"move {self.life.places.path(each.name).name} away, copy the key of that CA from there, and make the "
                "request for the next one with ca export-csr"
            )


def _check_new(certificate: x509.Certificate, found: list[StoredAuthority]) -> None:
    """Raise `ConfigurationError` if a CA has *certificate* already, or one with its key or identifying fields."""
    for each in found:
        if each.certificate.public_key() != certificate.public_key():
            continue
        if each.certificate != certificate:
            raise ConfigurationError(
                f"{each.name} ({each.state}) has another certificate of the same key, and a CA keeps the one that it "
                "has: make the next CA with ca export-csr"
            )
        then = f": ca rollover activate {each.name} has it issue" if each.state is AuthorityState.ANNOUNCED else ""
        raise ConfigurationError(f"this is the certificate of {each.name}, which is {each.state} already{then}")
    for each in found:
        if each.certificate.issuer != certificate.issuer:
            continue
        if each.certificate.serial_number == certificate.serial_number:
            raise ConfigurationError(
                f"it has the serial number of {each.name}, under the same issuer: revoking one would revoke "
                "the other; have it signed with a serial number of its own"
            )
        if each.certificate.subject == certificate.subject and each.kind is AuthorityKind.ISSUING:
            raise ConfigurationError(
                f"it has the name of {each.name}, by which relying parties look for a CA's lists: have it signed "
                "under the name that the request says"
            )


def _check_no_former_root(root: x509.Certificate, found: list[StoredAuthority]) -> None:
    """Raise `ConfigurationError` if *root*, which is not trusted, has the key of one of *found* that was."""
    former = [each for each in found if each.certificate.public_key() == root.public_key()]
    if former:
        raise ConfigurationError(
            f"the root that has issued it is {former[0].name}, which is {former[0].state}: whoever has its key would "
            "be believed again; have the request signed by a root that is in use"
        )


def _check_root_stays(name: str, certificate: x509.Certificate, found: list[StoredAuthority]) -> None:
    """Raise `ConfigurationError` if no root that is trusted has issued *certificate*: it was retired meanwhile."""
    if not any(is_issued_by(certificate, each.certificate) for each in authorities.trusted_roots(found)):
        raise ConfigurationError(
            f"the root that has issued the certificate of {name} was retired meanwhile, by another command: nothing is "
            "announced; start again, under a root that is in use"
        )


def _check_lists(named: Mapping[str, tuple[str, bool]]) -> None:
    """Raise `ConfigurationError` if one of the lists *named* by a CA's certificate is not of its issuer."""
    for url, (ca, is_issuer) in named.items():
        if not is_issuer:
            raise ConfigurationError(
                f"it names {url} as the CRL to look in, which is that of {ca} and not of its issuer: clients that "
                "check the whole path would refuse what is below it; have it signed with the address of its root's "
                "CRL, or with none"
            )


def _read(pem: bytes, what: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except UNREADABLE as error:
        raise ConfigurationError(
            f"the {what} is no PEM certificate: give the file that holds it (openssl x509 -inform DER makes PEM of DER)"
        ) from error
