"""Certificates that a thief can make without any key of ours: everything right except the signature.

Each names a real party, with the same identity URI and extensions as the genuine one, so that what refuses it is the
chain check and nothing easier.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from device_sim.credential import HeldCredential
from provisioning.pki.identity import Identity
from provisioning.pki.keys import generate_key

_LIFE = timedelta(days=30)


def self_signed(identity: Identity) -> HeldCredential:
    """Return a certificate for *identity* signed by its own key."""
    key = generate_key()
    return HeldCredential.of(_end_entity(identity, key, issuer=_name(identity.name), issuer_key=key), key)


def foreign(identity: Identity) -> HeldCredential:
    """Return a certificate for *identity* from a CA that nobody trusts but that bears a likely name."""
    ca_key, key = generate_key(), generate_key()
    ca_name = _name("Fleet Issuing CA")
    return HeldCredential.of(_end_entity(identity, key, issuer=ca_name, issuer_key=ca_key), key)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _end_entity(
    identity: Identity,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(_name(identity.name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
