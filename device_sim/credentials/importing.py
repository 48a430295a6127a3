"""Takes a user's own certificates and keys into a fleet: all are examined first, and then they are copied.

Theory
------
A device's name is in its topics, and is the one in its certificate (`provisioning.pki.identity`, or the Common Name),
or the one that a list gives it. Its client identifier is that name too, unless the list has another: some brokers,
such as AWS IoT, know the client by a third name.

Rules
-----
1. One certificate that cannot be used, and nothing is copied; every such one is told, up to `_MOST_TOLD`.
2. Keys are copied, decrypted, into files of mode 0600 in the fleet's directory, and go nowhere else. The user's files
   are read only, also when the fleet is removed (docs/decisions/0278-existing-certificates-are-copied.md).
3. The fleet's service is copied first, and each device is whole when it is in the index: an interrupted import is
   continued by the same command, which also replaces what has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from device_sim.credentials.client_identifier import ALLOWED, may_be_client_id
from device_sim.credentials.client_list import Client, ClientList
from device_sim.credentials.credential import HeldCredential
from device_sim.credentials.credential_file import CredentialFile, UnusableCredential
from device_sim.credentials.fleet_directory import FleetDirectory
from device_sim.credentials.foreign_pair import ForeignPair, Issuers, Search, files_in, pair_of
from provisioning.pki.extension import extension
from provisioning.pki.identity import Identity, InvalidIdentity, check_name, identity_of
from provisioning.pki.keys import key_to_pem
from provisioning.pki.pem import pem_of
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialPem, TlsConfigurationError, client_context
from provisioning.program.moments import shown_minute

GROUP = "meters"
_TRUST_DOMAIN = "imported"
"""That of certificates which name none; it is in no topic, and shown to nobody."""
_BACKEND = "backend"
_MOST_TOLD = 10
_MOST_NAMES = 3
_NAME_IT = "say in a CSV file, in a column `name`, what it is called in topics"


@dataclass(frozen=True, slots=True)
class Import:
    """What is taken into a fleet about one party; *where* its certificate was found."""

    held: HeldCredential
    client_id: str
    where: str


class Examination:
    """What is found in a user's files, for a fleet that will trust *anchors* (PEM): `add_backend` comes first."""

    def __init__(self, anchors: str, passphrase: bytes | None, group: str | None) -> None:
        self._anchors = x509.load_pem_x509_certificates(anchors.encode())
        self._passphrase = passphrase
        self._group = group
        self._context = client_context(anchors)
        self._now = datetime.now(UTC)
        self._problems: list[UnusableCredential] = []
        self._names: dict[str, str] = {}
        self._client_ids: dict[str, str] = {}
        self._of_backend: x509.Certificate | None = None
        self.parties: list[Import] = []
        """The fleet's service, and its devices."""
        self.left_out: list[str] = []
        """What was in a directory and is no device's certificate, or was not looked at, and why."""
        self.unused: list[str] = []
        """Columns of a list that say nothing here."""
        self.there = self.seen = 0
        """How many files, certificates or rows there are to look at, as far as known, and how many were looked at."""

    def add_backend(self, certificate: Path, key: Path | None, client_id: str | None) -> None:
        """Examine the fleet's service. Raises `UnusableCredential`."""
        try:
            pair = pair_of(Client(0, certificate, key), Issuers(self._anchors), self._passphrase)
        except UnusableCredential as error:
            raise UnusableCredential(f"--backend-cert and --backend-key: {error}") from error
        named = _identity_in(pair.certificate)
        try:
            name = check_name("name", _common_name(pair) if named is None else named.name)
        except (UnusableCredential, InvalidIdentity):
            if client_id is None:
                raise UnusableCredential(
                    f"{pair.where} has no Common Name that could be a client identifier: give --backend-id"
                ) from None
            name = _BACKEND
        identity = Identity(_TRUST_DOMAIN if named is None else named.trust_domain, Role.SERVICE, name)
        self._of_backend = pair.certificate
        self._take_up(self._import(pair, identity, client_id or name))

    def _complete_backend(self, issuers: Issuers) -> None:
        """Let the backend's chain be of *issuers*, unless its own file, or the trust anchors, have one."""
        backend, certificate = self.parties[0], self._of_backend
        if certificate is not None and backend.held.certificate_pem == certificate.public_bytes(Encoding.PEM):
            held = replace(backend.held, certificate_pem=pem_of(certificate, *issuers.chain_of(certificate)))
            self.parties[0] = replace(backend, held=held)

    async def search(self, directory: Path, fleet: Path, skip: Sequence[str] = ()) -> None:
        """Examine what is in *directory*, and neither in the *fleet* nor called as a pattern in *skip*.

        Raises `UnusableCredential`, or a group of them.
        """
        search = Search(directory, self._anchors)
        paths = list(files_in(directory, fleet, skip, search.left_out))
        self.there = len(paths)
        for path in paths:
            with self._noted():
                search.add(CredentialFile.read(path, self._passphrase))
            await self._looked()
        for pair in search.pairs():
            self.there += 1
            named = _identity_in(pair.certificate)
            if named is not None and named.role is not Role.DEVICE:
                self.left_out.append(f"{pair.where}: of a {named.role}")
            elif pair.certificate != self._of_backend:
                with self._noted():
                    self._add(pair)
            await self._looked()
        self._complete_backend(search.issuers)
        self._problems += search.unusable
        self.left_out += search.left_out
        others = f" ({self.left_out[0]})" if self.left_out else ""
        self._end(
            f"{directory} holds no device's certificate{others}: name the directory that does, or a CSV file",
            "to import the others without a file, add --skip with its name, or a pattern: --skip 'README*'",
        )

    async def read(self, path: Path) -> None:
        """Examine what the list *path* names. Raises `UnusableCredential`, or a group of them."""
        clients, issuers = ClientList.read(path), Issuers(self._anchors)
        self.unused, self.there = clients.unused, len(clients.clients)
        for client in clients.clients:
            with self._noted(f"{path} line {client.line}: "):
                self._add(pair_of(client, issuers, self._passphrase))
            await self._looked()
        self._end("", "")

    def _end(self, nothing: str, hint: str) -> None:
        """Raise all that is wrong, or as much of it as a person reads, and *hint*; *nothing*, if nothing was found."""
        if not self._problems and len(self.parties) == 1:
            raise UnusableCredential(nothing)
        if self._problems:
            told, more = self._problems[:_MOST_TOLD], len(self._problems) - _MOST_TOLD
            if more > 0:
                told.append(UnusableCredential(f"and {more} more"))
            if hint:
                told.append(UnusableCredential(hint))
            raise ExceptionGroup("what cannot be imported", told)

    @contextmanager
    def _noted(self, where: str = "") -> Iterator[None]:
        try:
            yield
        except UnusableCredential as error:
            self._problems.append(UnusableCredential(f"{where}{error}") if where else error)

    async def _looked(self) -> None:
        self.seen += 1
        await asyncio.sleep(0)  # Let Ctrl-C through.

    def _add(self, pair: ForeignPair) -> None:
        if pair.certificate == self._of_backend:
            raise UnusableCredential(f"{pair.where} is the backend's own certificate: give the device another")
        self._take_up(self._device(pair))

    def _take_up(self, party: Import) -> None:
        name = party.held.identity.name
        for what, value, others in (
            ("name", name, self._names),
            ("client identifier", party.client_id, self._client_ids),
        ):
            if value in others:
                raise UnusableCredential(
                    f"{party.where} and {others[value]} have the same {what}, {value}: leave one out, or give each its "
                    "own in a CSV file"
                )
        self._names[name] = self._client_ids[party.client_id] = party.where
        self.parties.append(party)

    def _device(self, pair: ForeignPair) -> Import:
        named, row = _identity_in(pair.certificate), pair.client
        if named is not None and named.role is not Role.DEVICE:
            raise UnusableCredential(f"{pair.where} is the certificate of a {named.role}: give a device's")
        name = (row and row.name) or (_common_name(pair) if named is None else named.name)
        group = (row and row.group) or self._group or (named and named.group) or GROUP
        try:
            identity = Identity(_TRUST_DOMAIN if named is None else named.trust_domain, Role.DEVICE, name, group)
        except InvalidIdentity as error:
            remedy = "" if row is not None and row.name is not None else f"; {_NAME_IT}"
            raise UnusableCredential(f"{pair.where}: {error}{remedy}") from error
        return self._import(pair, identity, (row and row.client_id) or name)

    def _import(self, pair: ForeignPair, identity: Identity, client_id: str) -> Import:
        certificate = pair.certificate
        if certificate.not_valid_after_utc <= self._now:
            raise UnusableCredential(
                f"{pair.where} has expired on {shown_minute(certificate.not_valid_after_utc)}: renew it, or leave it "
                "out"
            )
        if certificate.not_valid_before_utc > self._now:
            raise UnusableCredential(
                f"{pair.where} is not valid before {shown_minute(certificate.not_valid_before_utc)}: wait, or have it "
                "made anew by a CA whose clock is right"
            )
        if not may_be_client_id(client_id):
            raise UnusableCredential(f"{pair.where}: {client_id[:80]!r} cannot be a client identifier: use {ALLOWED}")
        content = pem_of(certificate, *pair.chain)
        key = key_to_pem(pair.key)
        unfit = f"{pair.where} cannot be presented in TLS with its key: give the device another"
        try:
            CredentialPem(content, key, unfit, pair.where, f"the key of {pair.where}").load_into(self._context)
        except TlsConfigurationError as error:
            raise UnusableCredential(str(error)) from error
        held = HeldCredential(identity, certificate.serial_number, certificate.not_valid_after_utc, content, key)
        return Import(held, client_id, pair.where)


def check_apart(fleet: FleetDirectory, parties: Sequence[Import]) -> None:
    """Raise `UnusableCredential` if a device in *fleet* would be known to the broker as one of *parties* is."""
    new = {party.client_id: party for party in parties}
    known = {party.held.identity.name for party in parties}
    for name in fleet.devices:
        same = None if name in known else new.get(fleet.client_id(name))
        if same is not None:
            raise UnusableCredential(
                f"{same.where} and {name}, which is in {fleet.path} already, have the same client identifier, "
                f"{same.client_id}: give one of them its own in a CSV file, or import into another directory"
            )


async def take(fleet: FleetDirectory, parties: Sequence[Import], anchors: str, kept: Callable[[bool], None]) -> None:
    """Copy *parties*, the service first, into *fleet*, which is to trust *anchors*.

    *kept* is called for each, with whether it was new or has changed. Raises `UnusableCredential`, and `FleetUnusable`.
    """
    service = parties[0].held.identity.name
    with fleet.changing():
        check_apart(fleet, parties)  # Here: another import may have added devices a moment ago.
        if (service, anchors) != (fleet.service, fleet.anchors.read_text()):
            fleet.move(fleet.origin, anchors, service)
        for party in parties:
            name = party.held.identity.name
            entry = fleet.entries.get(name)
            as_before = (
                entry is not None
                and entry.identity == party.held.identity
                and fleet.client_id(name) == party.client_id
                and fleet.credential(name) == party.held
            )
            if not as_before:
                fleet.keep(party.held, party.client_id)
            kept(not as_before)
            await asyncio.sleep(0)  # Let Ctrl-C through.


def _identity_in(certificate: x509.Certificate) -> Identity | None:
    """Return the identity of ours that *certificate* has; None: it is of a CA that knows nothing of such."""
    try:
        return identity_of(certificate)
    except InvalidIdentity:
        return None


def _common_name(pair: ForeignPair) -> str:
    found = pair.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(found) == 1:
        return str(found[0].value)
    if found:
        raise UnusableCredential(f"{pair.where} has {len(found)} Common Names: {_NAME_IT}")
    names = extension(pair.certificate, x509.SubjectAlternativeName) or ()
    others = ", ".join(str(name.value) for name in list(names)[:_MOST_NAMES])
    why = f"no Common Name, but other names ({others})" if others else "no Common Name"
    raise UnusableCredential(f"{pair.where} has {why}: {_NAME_IT}")
