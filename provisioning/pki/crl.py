"""A certificate revocation list as a relying party reads it: parsed, its scope determined, its signature verified.

Theory
------
A CRL is *complete* or a *delta*, and covers every certificate of its issuer or a shard of them (RFC 5280 §5.2.5,
issuing distribution point). What a relying party may conclude depends on all of this: a certificate that is not on a
CRL is good only if the CRL covers that certificate, comes from its issuer, is signed by it, and is still valid. This
module answers those questions one by one, and its callers, which keep the CRLs, combine the answers.

Whoever answers at a URL of plain HTTP decides what comes from there, 64 MB of it. The library parses a whole list in
one call, in which nobody else in the process runs: half a second for what is not even signed. So `parse` gives it the
list without its entries, which are cut out, and `read_entries`, to be called when the signature is verified, gives it
some hundred entries at a time (docs/decisions/0338).

Rules
-----
1. What is not understood is refused, never skipped: indirect CRLs, CRLs for some reasons only, unknown critical
   extensions, CRLs without nextUpdate, numbers of more than 20 octets, and anything larger than what any CA uses.
2. The signature is verified over the bytes received, not over an encoding of our own.
3. No I/O and no clock. What walks a CRL of any length calls *pause* often, as it runs beside an event loop.
4. The library is given bounded pieces: a list without its entries, and each entry, have a largest size.
5. One text has `MOST_LISTS` lists at most: each costs a look, and perhaps a line in a log, however short it is.

Does not handle: fetching, storage, freshness, which CA certificate may sign (the caller names it).
"""

from __future__ import annotations

import binascii
import hashlib
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.x509.oid import ExtensionOID

from provisioning.pki.crl_frame import cut_out, portions
from provisioning.pki.extension import UNREADABLE, extension
from provisioning.pki.issued_by import as_compared
from provisioning.pki.null_parameters import null_in
from provisioning.pki.panic import GaveUp, NoPanic, without_panic
from provisioning.pki.revocation import Entries, pack
from provisioning.pki.revocation_reason import RevocationReason

MOST_LISTS: Final = 1024
"""In one text. Whoever answers at a URL could send a hundred thousand; a CA has a few, or a list for each shard."""
_BEGINS, _ENDS = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"
_NO_BASE64 = bytes(set(range(256)) - set(string.ascii_letters.encode() + b"0123456789+/="))
_PIECE = 256 * 1024
"""Bytes of text between two calls of *pause*: half a millisecond."""
_PAUSE_EVERY = 500
"""Entries between two calls of *pause*: about half a millisecond."""
_LARGEST_PORTION = 64 * 1024
"""Bytes of entries between two calls of *pause*; one entry alone may have as many."""
_UNDERSTOOD = frozenset({ExtensionOID.ISSUING_DISTRIBUTION_POINT, ExtensionOID.DELTA_CRL_INDICATOR})
_REMOVE = -1
_NUMBER_BITS = 8 * 20
"""Of a CRL number (RFC 5280 §5.2.3). One of thousands of digits could not even be written into the log."""
_HASHES = frozenset({"sha256", "sha384", "sha512"})


class CrlProblem(StrEnum):
    """Why a list is not used, or needs an operator's attention. Stable codes, in log and metrics."""

    CRL_UNREADABLE = "CRL_UNREADABLE"
    CRL_MALFORMED = "CRL_MALFORMED"
    CRL_UNSUPPORTED = "CRL_UNSUPPORTED"
    CRL_WRONG_ISSUER = "CRL_WRONG_ISSUER"
    CRL_BAD_SIGNATURE = "CRL_BAD_SIGNATURE"
    CRL_NOT_YET_VALID = "CRL_NOT_YET_VALID"
    CRL_NO_BASE = "CRL_NO_BASE"
    CRL_OLDER = "CRL_OLDER"
    CRL_LATE = "CRL_LATE"
    CRL_EXPIRED = "CRL_EXPIRED"


class CrlRefused(Exception):
    """The list cannot be used: a stable code, and a sentence that says why."""

    def __init__(self, code: CrlProblem, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Scope:
    """Which certificates of its issuer a list covers."""

    names: frozenset[str] = frozenset()
    """URIs of the distribution point; a covered certificate names one of them. Empty: not a shard."""
    users_only: bool = False
    authorities_only: bool = False

    def covers(self, *, is_authority: bool, names: frozenset[str]) -> bool:
        """Whether the list covers a certificate with these distribution points."""
        if self.users_only if is_authority else self.authorities_only:
            return False
        return not self.names or not self.names.isdisjoint(names)


@dataclass(frozen=True, slots=True)
class CertificateList:
    """A parsed list, its signature not yet verified. Made by `parse`."""

    crl: x509.CertificateRevocationList
    """Without its entries."""
    signed: bytes
    """The bytes under the signature."""
    entries: tuple[int, int]
    """Where in these the entries are."""
    issuer: x509.Name
    number: int
    """The CRL number; if there is none, as in a version 1 CRL, thisUpdate takes its place."""
    base_number: int | None
    """For a delta: the lowest number of a complete CRL that it can be applied to."""
    this_update: datetime
    next_update: datetime
    scope: Scope
    delta_urls: tuple[str, ...]
    """For a complete CRL: the URLs of its deltas."""


def split(content: bytes, pause: Callable[[], None] = lambda: None) -> list[bytes]:
    """Return the lists in *content*, in DER: one list in DER, or any number in PEM.

    Raises `CrlRefused` if there is none, or more than `MOST_LISTS`. *pause* is called often (rule 3).
    """
    if content[:1] == b"\x30":
        return [content]
    lists: list[bytes] = []
    end = 0
    try:
        while (begin := _found(content, _BEGINS, end, pause)) and (end := _found(content, _ENDS, begin, pause)):
            if len(lists) == MOST_LISTS:
                raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, f"more than {MOST_LISTS} lists in one text")
            lists.append(_decoded(content, begin, end - len(_ENDS), pause))
    except binascii.Error as error:
        raise CrlRefused(CrlProblem.CRL_MALFORMED, f"the PEM text is not base64 ({error})") from error
    if not lists:
        what = "is empty" if not content.strip() else "holds no CRL, neither DER nor PEM (BEGIN X509 CRL)"
        raise CrlRefused(CrlProblem.CRL_MALFORMED, what)
    return lists


def _found(content: bytes, line: bytes, start: int, pause: Callable[[], None]) -> int:
    """Return where *content* goes on behind *line*, which is searched from *start*; 0: it is not there."""
    for place in range(start, len(content), _PIECE):
        if (found := content.find(line, place, place + _PIECE + len(line))) >= 0:
            return found + len(line)
        pause()
    return 0


def _decoded(content: bytes, begin: int, end: int, pause: Callable[[], None]) -> bytes:
    """Return what the base64 in *content* from *begin* to *end* encodes. Raises `binascii.Error`."""
    pieces: list[bytes] = []
    left = b""
    for place in range(begin, end, _PIECE):
        text = left + content[place : min(place + _PIECE, end)].translate(None, _NO_BASE64)
        whole = len(text) - len(text) % 4
        pieces.append(binascii.a2b_base64(text[:whole]))
        left = text[whole:]
        pause()
    return b"".join([*pieces, binascii.a2b_base64(left)])


def parse(der: bytes) -> CertificateList:
    """Return the list in *der*; raise `CrlRefused` if it cannot be parsed, or uses what is not supported here.

    Its entries are not looked at.
    """
    try:
        signed, entries, frame = cut_out(der)
        with NoPanic():  # Who fetches lists expects them to be refused.
            crl = x509.load_der_x509_crl(frame)
            extensions = list(crl.extensions)
            next_update = crl.next_update_utc
            this_update = crl.last_update_utc
            issuer = crl.issuer
    except UNREADABLE as error:
        why = null_in(der[:_LARGEST_PORTION])  # The algorithm is said at the begin.
        raise CrlRefused(CrlProblem.CRL_MALFORMED, why or f"not a CRL: {error}") from error
    if next_update is None:
        raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, "no nextUpdate: how long the list holds cannot be known")
    number, base_number = int(this_update.timestamp()), None
    scope = Scope()
    delta_urls: tuple[str, ...] = ()
    for each in extensions:
        match each.value:
            case x509.CRLNumber() as value:
                number = value.crl_number
            case x509.DeltaCRLIndicator() as value:
                base_number = value.crl_number
            case x509.IssuingDistributionPoint() as value:
                scope = _scope_of(value)
            case x509.FreshestCRL() as value:
                delta_urls = urls_of(value)
            case _:
                pass
        if each.critical and each.oid not in _UNDERSTOOD:
            raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, f"the critical extension {each.oid.dotted_string}")
    if max(abs(number), abs(base_number or 0)).bit_length() > _NUMBER_BITS:
        raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, "a CRL number of more than 20 octets")
    return CertificateList(
        crl, signed, entries, issuer, number, base_number, this_update, next_update, scope, delta_urls
    )


def _scope_of(point: x509.IssuingDistributionPoint) -> Scope:
    if point.indirect_crl:
        raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, "an indirect CRL: it speaks for other issuers")
    if point.only_some_reasons:
        raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, "a CRL for some reasons only")
    if point.only_contains_attribute_certs:
        raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, "a CRL of attribute certificates")
    names = frozenset(each.value for each in point.full_name or () if isinstance(each, x509.UniformResourceIdentifier))
    if (point.full_name or point.relative_name) and not names:
        raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, "a distribution point that is not a URI")
    return Scope(names, point.only_contains_user_certs, point.only_contains_ca_certs)


def urls_of(points: x509.CRLDistributionPoints | x509.FreshestCRL) -> tuple[str, ...]:
    """Return the URIs in distribution points of the certificate's own issuer and for all reasons, once each."""
    named = (
        name.value
        for point in points
        if point.crl_issuer is None and point.reasons is None
        for name in point.full_name or ()
        if isinstance(name, x509.UniformResourceIdentifier)
    )
    return tuple(dict.fromkeys(named))


def distribution_points(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the URIs of the CRLs that *certificate* names."""
    points = extension(certificate, x509.CRLDistributionPoints)
    return () if points is None else urls_of(points)


def may_sign_lists(certificate: x509.Certificate) -> bool:
    """Whether *certificate* is a CA's, and its key usage, if it has one, includes signing CRLs."""
    constraints = extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        return False
    usage = extension(certificate, x509.KeyUsage)
    return usage is None or usage.crl_sign


def verify(listed: CertificateList, authority: x509.Certificate) -> None:
    """Raise `CrlRefused` unless *authority*, which may sign lists, has signed *listed*, without a weak hash."""
    key = authority.public_key()
    if as_compared(listed.issuer) != as_compared(authority.subject) or not may_sign_lists(authority):
        raise CrlRefused(CrlProblem.CRL_WRONG_ISSUER, f"{authority.subject.rfc4514_string()} may not sign this list")
    try:
        without_panic(_check_signature, listed, key)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, GaveUp) as error:
        raise CrlRefused(CrlProblem.CRL_BAD_SIGNATURE, "the signature is not that of its issuer") from error


def _check_signature(listed: CertificateList, key: CertificatePublicKeyTypes) -> None:
    crl, algorithm = listed.crl, listed.crl.signature_hash_algorithm
    if algorithm is None:
        if not isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            raise CrlRefused(CrlProblem.CRL_BAD_SIGNATURE, "the signature is not one of the issuer's kind of key")
        key.verify(crl.signature, listed.signed)
        return
    if algorithm.name not in _HASHES:
        raise CrlRefused(CrlProblem.CRL_BAD_SIGNATURE, f"signed with the weak hash {algorithm.name}")
    # hashlib releases the GIL, so that a list of 50 MB does not stop the broker.
    digest = hashlib.new(algorithm.name, listed.signed).digest()
    parameters = crl.signature_algorithm_parameters
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
        key.verify(crl.signature, digest, ec.ECDSA(Prehashed(algorithm)))
    elif isinstance(key, rsa.RSAPublicKey) and isinstance(parameters, padding.PKCS1v15 | padding.PSS):
        key.verify(crl.signature, digest, parameters, Prehashed(algorithm))
    else:
        raise CrlRefused(CrlProblem.CRL_BAD_SIGNATURE, "the signature is not one of the issuer's kind of key")


def read_entries(listed: CertificateList, pause: Callable[[], None], base: Entries | None = None) -> Entries:
    """Return what is revoked by *listed*: the entries of a complete list, or *base* with the delta applied.

    Raises `CrlRefused`.
    """
    entries: dict[int, int] = dict(base or {})
    seen = 0
    try:
        with NoPanic():
            for revoked in _each_revoked(listed, pause):
                seen += 1
                code = _entry(revoked)
                if code == _REMOVE:
                    entries.pop(revoked.serial_number, None)
                else:
                    entries[revoked.serial_number] = code
    except UNREADABLE as error:
        raise CrlRefused(CrlProblem.CRL_MALFORMED, f"entry {seen} or one behind it cannot be read: {error}") from error
    return entries


def _each_revoked(listed: CertificateList, pause: Callable[[], None]) -> Iterator[x509.RevokedCertificate]:
    for portion in portions(listed.signed, *listed.entries, _PAUSE_EVERY, _LARGEST_PORTION):
        yield from x509.load_der_x509_crl(portion)
        pause()


def _entry(revoked: x509.RevokedCertificate) -> int:
    reason = RevocationReason.UNSPECIFIED
    for each in revoked.extensions:
        value = each.value
        if isinstance(value, x509.CRLReason):
            if value.reason is x509.ReasonFlags.remove_from_crl:
                return _REMOVE
            reason = RevocationReason(value.reason.value)
        elif each.critical:
            raise CrlRefused(CrlProblem.CRL_UNSUPPORTED, f"the critical entry extension {each.oid.dotted_string}")
    return pack(reason, revoked.revocation_date_utc)
