"""The founding of a fleet's authority: a root CA and the issuing CA under it.

Theory
------
The root signs one thing, the issuing CA, and then rests: its key may leave the machine. The issuing CA signs everything
else. New keys are ECDSA P-256; path length 1 and 0 leave room for exactly one CA under the root and none under that.

Rules
-----
1. A CA certificate carries no more than RFC 5280 asks of it: basic constraints and key usage (critical), key
   identifiers, and where the parent's CRL is found if a public address is known.
2. No I/O and no clock: serial numbers and "now" are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from provisioning.ca.issuer import IssuerUrls, hash_for, url_extensions
from provisioning.pki.keys import PrivateKey, generate_key, key_identifier

ROOT_LIFE: Final = timedelta(days=3652)
ISSUING_LIFE: Final = timedelta(days=1826)
"""Half the root's, so that a successor can be signed while the root has years left."""

_BACKDATE: Final = timedelta(minutes=1)

_CA_KEY_USAGE: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """A CA's certificate and key."""

    certificate: x509.Certificate
    key: PrivateKey


@dataclass(frozen=True, slots=True)
class Authority:
    """A fleet's two CAs."""

    root_ca: CertificateAuthority
    issuing_ca: CertificateAuthority


def found_authority(
    trust_domain: str,
    now: datetime,
    serials: tuple[int, int],
    root_urls: IssuerUrls | None = None,
    keys: tuple[PrivateKey, PrivateKey] | None = None,
) -> Authority:
    """Return a new root and issuing CA for *trust_domain*, for *keys* or for new ones in memory.

    *root_urls* go into the issuing CA's certificate: where the root's CRL and certificate are found.
    """
    now = now.replace(microsecond=0)
    root_key, issuing_key = keys or (generate_key(), generate_key())
    root_name = _name(trust_domain, "Fleetgate root CA")
    root = (
        _builder(root_name, root_name, root_key, serials[0], now, ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .sign(root_key, hash_for(root_key))
    )
    builder = (
        _builder(
            _name(trust_domain, f"Fleetgate issuing CA {now:%Y}"), root_name, issuing_key, serials[1], now, ISSUING_LIFE
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier(key_identifier(root_key.public_key()), None, None), critical=False)
    )
    for extension in url_extensions(root_urls):
        builder = builder.add_extension(extension, critical=False)
    issuing = builder.sign(root_key, hash_for(root_key))
    return Authority(CertificateAuthority(root, root_key), CertificateAuthority(issuing, issuing_key))


def _name(trust_domain: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),  # RFC 5280 appendix A.1: at most 64.
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PrivateKey,
    serial: int,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + life)
        .add_extension(_CA_KEY_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier(key_identifier(key.public_key())), critical=False)
    )
