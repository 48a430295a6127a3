"""CA certificates by their names, each with what is asked of it for every certificate that it may have issued.

A walk asks all that are called like an issuer whether they are meant, and one who replaces his CA and lets the old ones
end has many of one name. Read anew for each, and looked for in lists, 200 of them took 5 ms of each walk, and 500 took
22 ms; here a certificate is read once, when its name is first asked for, and each walk after that takes 0.1 to 0.2 ms.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import SignatureAlgorithmOID

from provisioning.pki.extension import UNREADABLE, UNUSABLE, extension
from provisioning.pki.issued_by import as_compared

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


class KeyKind(Enum):
    """What signatures tell of the key that has made them."""

    EC = "EC"
    ED25519 = "Ed25519"
    ED448 = "Ed448"
    RSA = "RSA"
    OTHER = "other"
    UNKNOWN = "unknown"
    """It cannot be read, or the library does not know it."""


_KINDS: Final[dict[type[object], KeyKind]] = {
    ec.EllipticCurvePublicKey: KeyKind.EC,
    ed25519.Ed25519PublicKey: KeyKind.ED25519,
    ed448.Ed448PublicKey: KeyKind.ED448,
    rsa.RSAPublicKey: KeyKind.RSA,
}
_WITHOUT_PARAMETERS: Final = {
    SignatureAlgorithmOID.ED25519: KeyKind.ED25519,
    SignatureAlgorithmOID.ED448: KeyKind.ED448,
}


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
        self._kind = KeyKind.UNKNOWN
        try:
            self._kind = _kind_that_signs(certificate)
            self.name = as_compared(certificate.issuer)
        except UNUSABLE:
            return
        self._stated = extension_of(certificate, x509.AuthorityKeyIdentifier)

    def means(self, ca: Ca) -> bool:
        """Whether *ca*, which has the issuer's name, has the kind of key, and whatever else is said about it."""
        if ca.kind is not self._kind or ca.kind is KeyKind.UNKNOWN:
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
    return next((kind for of, kind in _KINDS.items() if isinstance(key, of)), KeyKind.OTHER)


def _kind_that_signs(certificate: x509.Certificate) -> KeyKind:
    """Return the kind of key that the signature of *certificate* is by, as OpenSSL sees it, which tries no other."""
    try:
        parameters = certificate.signature_algorithm_parameters
    except UnsupportedAlgorithm:
        return KeyKind.UNKNOWN
    if parameters is None:
        return _WITHOUT_PARAMETERS.get(certificate.signature_algorithm_oid, KeyKind.OTHER)
    return KeyKind.EC if isinstance(parameters, ec.ECDSA) else KeyKind.RSA
