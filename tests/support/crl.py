"""CRLs of a throw-away CA: complete, delta, shard, late, expired, badly signed; genuine except as requested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.pki.keys import generate_key
from tests.support.pki import Held

Reasons = Mapping[int, x509.ReasonFlags | None]


def crl(
    issuer: Held,
    revoked: Reasons | Iterable[Held] = (),
    *,
    number: int | None = 1,
    life: timedelta = timedelta(hours=1),
    age: timedelta = timedelta(minutes=1),
    base: int | None = None,
    point: x509.IssuingDistributionPoint | None = None,
    freshest: str | None = None,
    signed_by: Held | None = None,
    now: datetime | None = None,
    more: x509.ExtensionType | None = None,
    more_of_entries: x509.ExtensionType | None = None,
) -> bytes:
    """Return a list of *issuer* in DER.

    *revoked*: certificates, or serial numbers with their reason. *base* makes it a delta. *signed_by* is a different
    signer. It was made *age* before *now*.
    *more* is a critical extension of the list, *more_of_entries* one of each entry.
    """
    entries: Reasons
    if isinstance(revoked, Mapping):
        entries = revoked
    else:
        entries = {held.certificate.serial_number: x509.ReasonFlags.key_compromise for held in revoked}
    now = now or datetime.now(UTC)
    key = (signed_by or issuer).key
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now - age)
        .next_update(now - age + life)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    if base is not None:
        builder = builder.add_extension(x509.DeltaCRLIndicator(base), critical=True)
    if point is not None:
        builder = builder.add_extension(point, critical=True)
    if freshest is not None:
        builder = builder.add_extension(x509.FreshestCRL(at(freshest)), critical=False)
    if more is not None:
        builder = builder.add_extension(more, critical=True)
    for serial, reason in entries.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - age)
        if reason is not None:
            entry = entry.add_extension(x509.CRLReason(reason), critical=False)
        if more_of_entries is not None:
            entry = entry.add_extension(more_of_entries, critical=True)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def pem(*lists: bytes) -> bytes:
    """Return lists as PEM, one after the other."""
    return b"".join(x509.load_der_x509_crl(der).public_bytes(Encoding.PEM) for der in lists)


def at(url: str) -> list[x509.DistributionPoint]:
    """Return the distribution point of a certificate, or of a complete list."""
    return [x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)]


def scope(
    url: str | None = None,
    *,
    users_only: bool = False,
    authorities_only: bool = False,
    indirect: bool = False,
    reasons: frozenset[x509.ReasonFlags] | None = None,
    attributes_only: bool = False,
) -> x509.IssuingDistributionPoint:
    """Return the scope that a list declares."""
    return x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier(url)] if url else None,
        relative_name=None,
        only_contains_user_certs=users_only,
        only_contains_ca_certs=authorities_only,
        only_some_reasons=reasons,
        indirect_crl=indirect,
        only_contains_attribute_certs=attributes_only,
    )


def impostor_of(issuer: Held) -> Held:
    """Return an entity with the CA's certificate and a different key."""
    return Held(issuer.certificate, generate_key())
