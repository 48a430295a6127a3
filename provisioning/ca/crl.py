"""A CA's certificate revocation lists, in the same two steps as a certificate: prepare, then issue once.

Theory
------
A CRL is complete or a delta, and covers everything the CA has issued or one shard of it. The library makes an empty
CRL with the right names, times and extensions, signed with a throw-away key; the entries, encoded once when they were
revoked, are inserted, and the whole is signed with the CA's key. The cost is copying and hashing: 5 MB for 100,000
entries.

Rules
-----
1. v2, with CRL number and authority key identifier, thisUpdate and nextUpdate (RFC 5280 §5).
2. The reason code is omitted if it is unspecified (RFC 5280 §5.3.1); removeFromCRL occurs only in deltas. The
   invalidity date is included if known (§5.3.2), as GeneralizedTime whatever its year.
3. A shard's CRL has a critical issuing distribution point that repeats the certificates' distribution point byte for
   byte, onlyContainsUserCerts, and no boolean that has its default (RFC 5280 §5.2.5).
4. A delta CRL indicator is critical and names its base, and the delta has the base's scope (RFC 5280 §5.2.4); the
   complete CRL points to its delta (§5.2.6), a delta to none.
5. No I/O and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from provisioning.ca import der
from provisioning.ca.issuing_ca_findings import identifier_of
from provisioning.ca.signing import hash_for, signed, throw_away_twin
from provisioning.pki.keys import PrivateKey
from provisioning.pki.revocation_reason import RevocationReason

_MAXIMUM_NUMBER: Final = (1 << 159) - 1  # RFC 5280 §5.2.3: 20 octets at most, and not negative.
_ALGORITHM: Final = 1  # After the version (RFC 5280 §5.1.2).
_CRL_REASON: Final = bytes.fromhex("0603551d15")  # OBJECT IDENTIFIER 2.5.29.21
_INVALIDITY_DATE: Final = bytes.fromhex("0603551d18")  # OBJECT IDENTIFIER 2.5.29.24
_REMOVE_FROM_CRL: Final = 8
REASON_CODES: Final[Mapping[RevocationReason, int]] = {
    RevocationReason.KEY_COMPROMISE: 1,
    RevocationReason.CA_COMPROMISE: 2,
    RevocationReason.AFFILIATION_CHANGED: 3,
    RevocationReason.SUPERSEDED: 4,
    RevocationReason.CESSATION_OF_OPERATION: 5,
    RevocationReason.CERTIFICATE_HOLD: 6,
    RevocationReason.PRIVILEGE_WITHDRAWN: 9,
    RevocationReason.AA_COMPROMISE: 10,
}
"""Reason codes (RFC 5280 §5.3.1); "unspecified" is expressed by omitting the code."""
_REASON_EXTENSIONS: Final = {
    code: der.element(der.SEQUENCE, _CRL_REASON + der.element(b"\x04", der.element(b"\x0a", bytes((code,)))))
    for code in (*REASON_CODES.values(), _REMOVE_FROM_CRL)
}


class CrlRefused(Exception):
    """The list must not be signed, or was signed before; a bug in Fleetgate."""


def entry_of(
    serial: int, revoked_at: datetime, reason: RevocationReason, invalidity_date: datetime | None = None
) -> bytes:
    """Return the entry of a revoked certificate, in DER."""
    code = REASON_CODES.get(reason)
    extensions = b"" if code is None else _REASON_EXTENSIONS[code]
    if invalidity_date is not None:
        value = der.element(b"\x04", der.generalized_time(invalidity_date))
        extensions += der.element(der.SEQUENCE, _INVALIDITY_DATE + value)
    if extensions:
        extensions = der.element(der.SEQUENCE, extensions)
    return der.element(der.SEQUENCE, der.integer(serial) + der.time(revoked_at) + extensions)


def removal_of(serial: int, released_at: datetime) -> bytes:
    """Return a delta's entry for a certificate that is no longer on hold."""
    extensions = der.element(der.SEQUENCE, _REASON_EXTENSIONS[_REMOVE_FROM_CRL])
    return der.element(der.SEQUENCE, der.integer(serial) + der.time(released_at) + extensions)


@dataclass(frozen=True, slots=True)
class CrlRequest:
    """The contents of the list; *entries* by serial number, as `entry_of` and `removal_of` make them."""

    number: int
    this_update: datetime
    next_update: datetime
    entries: Mapping[int, bytes]
    encoded: Sequence[bytes] | None = None
    """All of *entries*, concatenated, in as few pieces as they are already joined into."""
    distribution_point: str | None = None
    """For a shard: the URL in its certificates."""
    base_number: int | None = None
    """For a delta: the number of its base CRL."""
    delta_url: str | None = None
    """For a complete CRL: the URL of its delta."""


class PreparedCrl:
    """A checked list waiting for its signature. Made by `CrlIssuer.prepare` only."""

    __slots__ = ("_fields", "_issuer", "_redeemed")

    def __init__(self, issuer: CrlIssuer, fields: Sequence[bytes]) -> None:
        self._issuer = issuer
        self._fields = fields
        self._redeemed = False

    def redeem(self, issuer: CrlIssuer) -> Sequence[bytes]:
        """Return the fields to sign, some of them in pieces, to the *issuer* that prepared them, once."""
        if issuer is not self._issuer:
            raise CrlRefused("another issuer prepared this CRL")
        if self._redeemed:
            raise CrlRefused("this prepared CRL was signed already")
        self._redeemed = True
        return self._fields


class CrlIssuer:
    """What a CA, root or issuing, needs to sign its CRLs."""

    def __init__(self, certificate: x509.Certificate, key: PrivateKey) -> None:
        """Raise ValueError if *key* is not the key of *certificate*."""
        if key.public_key() != certificate.public_key():
            raise ValueError("the private key does not belong to the CA's certificate")
        self.certificate: Final = certificate
        self.key_id: Final = identifier_of(certificate)
        """By which the certificates that the CA has issued, and the list, name its key."""
        self._key = key
        self._draft_key = throw_away_twin(key)

    def prepare(self, request: CrlRequest) -> PreparedCrl:
        """Check and build the list; raise `CrlRefused` naming what is wrong."""
        if not 0 < request.number <= _MAXIMUM_NUMBER:
            raise CrlRefused(f"CRL number {request.number} is not in 1 to 2^159-1")
        if request.next_update <= request.this_update:
            raise CrlRefused("nextUpdate is not after thisUpdate")
        if request.base_number is not None and not 0 < request.base_number <= request.number:
            raise CrlRefused(f"delta {request.number} cannot continue CRL {request.base_number}")
        draft = self._draft(request).tbs_certlist_bytes
        fields = list(der.children(draft))
        if request.entries:
            encoded = [b"".join(request.entries.values())] if request.encoded is None else request.encoded
            # Before the extensions, which are last and always present.
            fields[-1:-1] = [der.head(der.SEQUENCE, sum(map(len, encoded))), *encoded]
        return PreparedCrl(self, fields)

    def issue(self, prepared: PreparedCrl) -> bytes:
        """Sign what was prepared and return the list in DER; raise `CrlRefused` if it was signed before."""
        return signed(self._key, prepared.redeem(self), _ALGORITHM)

    def _draft(self, request: CrlRequest) -> x509.CertificateRevocationList:
        authority = x509.AuthorityKeyIdentifier(self.key_id, None, None)
        builder = (
            x509.CertificateRevocationListBuilder(self.certificate.subject, request.this_update, request.next_update)
            .add_extension(authority, critical=False)
            .add_extension(x509.CRLNumber(request.number), critical=False)
        )
        if request.base_number is not None:
            builder = builder.add_extension(x509.DeltaCRLIndicator(request.base_number), critical=True)
        elif request.delta_url is not None:
            builder = builder.add_extension(x509.FreshestCRL([_point(request.delta_url)]), critical=False)
        if request.distribution_point is not None:
            scope = x509.IssuingDistributionPoint(
                full_name=[x509.UniformResourceIdentifier(request.distribution_point)],
                relative_name=None,
                only_contains_user_certs=True,
                only_contains_ca_certs=False,
                only_some_reasons=None,
                indirect_crl=False,
                only_contains_attribute_certs=False,
            )
            builder = builder.add_extension(scope, critical=True)
        return builder.sign(self._draft_key, hash_for(self._draft_key))


def _point(url: str) -> x509.DistributionPoint:
    return x509.DistributionPoint(
        full_name=[x509.UniformResourceIdentifier(url)], relative_name=None, reasons=None, crl_issuer=None
    )
