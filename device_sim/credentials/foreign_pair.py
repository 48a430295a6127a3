"""Certificates with their private keys that the user has from elsewhere: in a directory, or named by a list.

Theory
------
In a directory no file name says for sure what is in it: every CA's tools have names of their own. So a key belongs to
the certificate that has its public key, and a chain is what has really signed one another. Whatever else is there, such
as requests, keys without a certificate and the CA's own, is left where it is. A list (`client_list`) names files, and
what they hold instead is an error.

Rules
-----
1. A CA's key is never taken: a CA's certificate is no device's. One is a CA's if it says so (basicConstraints), has
   signed another one here, or is to verify the broker: CAs made by hand often do not say so.
2. A root is in no chain: who trusts it has it.
3. The same certificate in several files is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from device_sim.credentials.client_list import Client
from device_sim.credentials.credential_file import CredentialFile, UnusableCredential
from provisioning.pki.extension import extension
from provisioning.pki.keys import PrivateKey, spki_of
from provisioning.program.given_file import PEM_BYTES, unread

_LONGEST_CHAIN = 8
_CLIENTS = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}


@dataclass(frozen=True, slots=True)
class ForeignPair:
    """A certificate, its key and chain. *where* is what errors call it; *client* is its row, if a list names it."""

    where: str
    certificate: x509.Certificate
    key: PrivateKey
    chain: tuple[x509.Certificate, ...] = ()
    client: Client | None = None


class Issuers:
    """The CA certificates of which chains are made."""

    def __init__(self, certificates: Iterable[x509.Certificate] = (), beyond: Issuers | None = None) -> None:
        self._beyond = beyond
        self._by_subject: dict[x509.Name, list[x509.Certificate]] = {}
        for certificate in certificates:
            self.add(certificate)

    def add(self, certificate: x509.Certificate) -> None:
        """Use *certificate* in chains from now on."""
        self._by_subject.setdefault(certificate.subject, []).append(certificate)

    def chain_of(self, certificate: x509.Certificate) -> tuple[x509.Certificate, ...]:
        """Return the issuers of *certificate* that are here, in order, without a root."""
        chain: list[x509.Certificate] = []
        while len(chain) < _LONGEST_CHAIN:
            issuer = self.issuer_of(chain[-1] if chain else certificate)
            if issuer is None or issuer.subject == issuer.issuer:
                break
            chain.append(issuer)
        return tuple(chain)

    def issuer_of(self, certificate: x509.Certificate) -> x509.Certificate | None:
        """Return who has signed *certificate*, if it is here."""
        for issuer in self._by_subject.get(certificate.issuer, ()):
            try:
                certificate.verify_directly_issued_by(issuer)
            except (InvalidSignature, TypeError, UnsupportedAlgorithm, ValueError):
                continue  # An older or newer CA of the same name.
            return issuer
        return None if self._beyond is None else self._beyond.issuer_of(certificate)


def files_in(directory: Path, apart: Path, skip: Sequence[str], left_out: list[str]) -> Iterator[Path]:
    """Yield the files below *directory*, and not below *apart*, that may hold a certificate or a key, in order.

    What a pattern in *skip* names, by itself, from *directory* on or with it, is not. Told in *left_out* are patterns
    that name nothing, and links to other directories, which might lead anywhere. Raises `UnusableCredential`.
    """
    unused = dict.fromkeys(skip)

    def skipped(path: Path) -> bool:
        names = path.name, path.relative_to(directory).as_posix(), str(path), str(path.absolute())
        fitting = [each for each in skip if any(fnmatchcase(name, os.path.normpath(each)) for name in names)]
        for pattern in fitting:
            unused.pop(pattern, None)
        return bool(fitting)

    def unreadable(error: OSError) -> None:
        raise UnusableCredential(unread(Path(error.filename), error)) from error

    apart = apart.resolve()
    for folder, folders, names in os.walk(directory, onerror=unreadable):
        folders[:] = sorted(each for each in folders if Path(folder, each).resolve() != apart)
        folders[:] = [each for each in folders if not skipped(Path(folder, each))]
        left_out += [f"{link}: a link to a directory" for each in folders if (link := Path(folder, each)).is_symlink()]
        for name in sorted(names):
            path = Path(folder, name)
            if not skipped(path) and path.is_file() and 0 < path.stat().st_size <= PEM_BYTES:
                yield path
    left_out += [f"--skip {pattern}: nothing there has such a name" for pattern in unused]


class Search:
    """What was found in the files of a *directory*; `pairs` says what belongs together."""

    def __init__(self, directory: Path, anchors: Iterable[x509.Certificate]) -> None:
        self._directory = directory
        self._anchors = frozenset(anchors)
        self.issuers = Issuers(self._anchors)
        """The CA certificates found, and the anchors."""
        self._keys: dict[bytes, tuple[PrivateKey, Path]] = {}
        self._certificates: dict[bytes, tuple[x509.Certificate, Path]] = {}
        self._authorities: list[tuple[x509.Certificate, Path]] = []
        self._locked: dict[str, str] = {}
        self.unusable: list[UnusableCredential] = []
        self.left_out: list[str] = []
        """What is there and was not looked at, or is no client's, and why."""

    def add(self, file: CredentialFile) -> None:
        """Look at *file*."""
        if file.unread is not None:
            self.left_out.append(f"{file.path}: {file.unread}")
        for certificate in file.certificates:
            if is_authority(certificate):
                self.issuers.add(certificate)
                self._authorities.append((certificate, file.path))
                continue
            self._certificates.setdefault(certificate.fingerprint(hashes.SHA256()), (certificate, file.path))
        for key in file.keys:
            self._keys.setdefault(spki_of(key.public_key()), (key, file.path))
        if file.unusable is not None:
            self._locked[_stem(file.path)] = f"{file.path} {file.unusable}"

    def pairs(self) -> Iterator[ForeignPair]:
        """Yield each client's certificate with its key; what has none is in `unusable` afterwards."""
        signers, alone = self._anchors | self._signers(), dict(self._keys)
        for certificate, path in self._certificates.values():
            wanted = spki_of(certificate.public_key())
            alone.pop(wanted, None)
            if certificate in signers:
                self._authorities.append((certificate, path))
                continue
            if not is_clients(certificate):
                self.left_out.append(f"{path}: for servers only")
                continue
            if wanted in self._keys:
                key, _ = self._keys[wanted]
                yield ForeignPair(str(path), certificate, key, self.issuers.chain_of(certificate))
                continue
            self.unusable.append(
                UnusableCredential(f"{path} has no private key in {self._directory}{self._why_none(path)}")
            )
        for certificate, path in self._authorities:
            wanted = spki_of(certificate.public_key())
            alone.pop(wanted, None)
            if wanted in self._keys:  # Not each certificate of a chain: it was to be a pair.
                self.left_out.append(f"{path}: of a CA")
        # Its certificate may be in a form that is not read, such as a Java key store: the fleet would have a gap.
        self.left_out += [f"{path}: a key without its certificate" for _, path in alone.values()]

    def _signers(self) -> set[x509.Certificate]:
        """Return the certificates that do not say that they are a CA's, and have signed another one."""
        found = [certificate for certificate, _ in self._certificates.values()]
        issuers = Issuers(found)
        return {issuer for each in found if (issuer := issuers.issuer_of(each)) is not None and issuer != each}

    def _why_none(self, certificate: Path) -> str:
        """Return what may have become of the key of *certificate*: of those that are locked, that of the same name."""
        if not self._locked:
            return ": put it there, or list the others in a CSV file"
        return f"; {self._locked.get(_stem(certificate)) or next(iter(self._locked.values()))}"


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def pair_of(client: Client, anchors: Issuers, passphrase: bytes | None) -> ForeignPair:
    """Return the pair that a row of a list names. Raises `UnusableCredential`."""
    file = CredentialFile.read(client.certificate, passphrase)
    key_file = file if client.key is None else CredentialFile.read(client.key, passphrase)
    certificates = list(file.certificates)
    if client.chain is not None:
        certificates += CredentialFile.read(client.chain, passphrase).certificates
    return _pair(file, key_file, Issuers(filter(is_authority, certificates), beyond=anchors), client)


def _pair(file: CredentialFile, key_file: CredentialFile, issuers: Issuers, client: Client) -> ForeignPair:
    path = file.path
    own = [certificate for certificate in file.certificates if not is_authority(certificate)]
    for each in (file, key_file):
        if each.unread is not None:
            raise UnusableCredential(f"{each.path} is {each.unread}")
    if not file.certificates:
        raise UnusableCredential(f"{path} holds no certificate in PEM, DER, PKCS #7 or #12: name the file that does")
    if not own:
        raise UnusableCredential(f"{path} is a CA's certificate: name a client's")
    if len(own) > 1:
        raise UnusableCredential(f"{path} holds the certificates of {len(own)} clients: give each its own file")
    certificate = own[0]
    if not is_clients(certificate):
        raise UnusableCredential(f"{path} is for servers only (extended key usage): name one that has clientAuth")
    if not key_file.keys:
        why = key_file.unusable or "holds no private key: name the file that does"
        raise UnusableCredential(f"{key_file.path} {why}")
    wanted = spki_of(certificate.public_key())
    for key in key_file.keys:
        if spki_of(key.public_key()) == wanted:
            return ForeignPair(str(path), certificate, key, issuers.chain_of(certificate), client)
    raise UnusableCredential(f"{key_file.path} is not the key of {path}: name the pair that belongs together")


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether *certificate* is a CA's."""
    constraints = extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def is_clients(certificate: x509.Certificate) -> bool:
    """Whether a client may present *certificate*: it says so, or says nothing of what it is for."""
    usage = extension(certificate, x509.ExtendedKeyUsage)
    return usage is None or not _CLIENTS.isdisjoint(usage)
