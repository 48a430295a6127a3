"""CA certificates by their names, each with what is asked of it for every certificate that it may have issued.

A walk asks all that are called like an issuer whether they are meant, and one who replaces his CA and lets the old ones
end has many of one name. Read anew for each, and looked for in lists, 200 of them took 5 ms of each walk, and 500 took
22 ms; here a certificate is read once, when its name is first asked for, and each walk after that takes 0.1 to 0.2 ms.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from provisioning.pki.extension import UNREADABLE, UNUSABLE, extension
from provisioning.pki.issued_by import as_compared

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


class KeyKind(Enum):
    """What signatures tell of the key that has made them."""

    EC = "EC"
    RSA = "RSA"
    OTHER = "other"
    UNKNOWN = "unknown"
    """It cannot be read, or the library does not know it."""


@dataclass(frozen=True, slots=True)
class Ca:
    """A certificate, and what is read of it to find out whether it is meant."""

    certificate: x509.Certificate
    kind: KeyKind
    key_id: bytes | None
    serial: int


class NamedCas:
    """The certificates of CAs, in the order in which they were given."""

    def __init__(self, certificates: Iterable[x509.Certificate]) -> None:
        every = list(certificates)
        self._certificates = frozenset(every)
        self._called: dict[Hashable, list[x509.Certificate]] = {}
        self._read: dict[Hashable, Sequence[Ca]] = {}
        for each in every:
            try:
                self._called.setdefault(as_compared(each.subject), []).append(each)
            except UNREADABLE:  # Nobody's issuer, then.
                continue

    def __contains__(self, certificate: object) -> bool:
        return certificate in self._certificates

    def called(self, name: Hashable) -> Sequence[Ca]:
        """Return those that are called so (`as_compared`)."""
        if name not in self._called:
            return ()
        if name not in self._read:
            self._read[name] = [as_ca(each) for each in self._called[name]]
        return self._read[name]


class Sought:
    """What a certificate says about its issuer."""

    def __init__(self, certificate: x509.Certificate) -> None:
        self.name: Hashable = None
        """None: nobody is meant."""
        self._kinds: tuple[KeyKind, ...] = ()
        try:
            self._kinds = _kinds_that_sign(certificate)
            self.name = as_compared(certificate.issuer)
        except UNUSABLE:
            return
        self._stated = extension_of(certificate, x509.AuthorityKeyIdentifier)

    def means(self, ca: Ca) -> bool:
        """Whether *ca*, which has the issuer's name, has the kind of key, and whatever else is said about it."""
        if ca.kind not in self._kinds:
            return False
        stated = self._stated
        if stated is None:
            return True
        if stated.key_identifier is not None and ca.key_id is not None and stated.key_identifier != ca.key_id:
            return False
        if stated.authority_cert_serial_number not in {None, ca.serial}:
            return False
        names = (each.value for each in stated.authority_cert_issuer or () if isinstance(each, x509.DirectoryName))
        by = next(names, None)  # As OpenSSL: the first of several.
        try:
            return by is None or as_compared(by) == as_compared(ca.certificate.issuer)
        except UNREADABLE:
            return False

    def means_itself(self, certificate: x509.Certificate) -> bool:
        """Whether *certificate*, which says this, is its own issuer by that: a root."""
        try:
            named = self.name is not None and self.name == as_compared(certificate.subject)
        except UNREADABLE:
            return False
        return named and self.means(as_ca(certificate))


def as_ca(certificate: x509.Certificate) -> Ca:
    """Read *certificate*."""
    own = extension_of(certificate, x509.SubjectKeyIdentifier)
    return Ca(certificate, _kind(certificate), None if own is None else own.digest, certificate.serial_number)


def extension_of(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    """Return the extension of *kind*; None: there is none, or it cannot be read."""
    try:
        return extension(certificate, kind)
    except UNREADABLE:
        return None


def _kind(certificate: x509.Certificate) -> KeyKind:
    try:
        key = certificate.public_key()
    except UNUSABLE:
        return KeyKind.UNKNOWN
    if isinstance(key, ec.EllipticCurvePublicKey):
        return KeyKind.EC
    return KeyKind.RSA if isinstance(key, rsa.RSAPublicKey) else KeyKind.OTHER


def _kinds_that_sign(certificate: x509.Certificate) -> tuple[KeyKind, ...]:
    """Return the kinds of key that the signature of *certificate* may be by; none: the library does not know it."""
    try:
        parameters = certificate.signature_algorithm_parameters
    except UnsupportedAlgorithm:
        return ()
    if isinstance(parameters, ec.ECDSA):
        return (KeyKind.EC,)
    return (KeyKind.EC, KeyKind.OTHER) if parameters is None else (KeyKind.RSA,)
