"""Certification requests (PKCS #10): what a device sends to get or renew its certificate.

Rules
-----
1. A first request contains only the Common Name: the service builds subject, identity and SANs itself.
2. A renewal repeats subject and SAN of the certificate that it renews, byte for byte (RFC 7030 §4.2.2).
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

from provisioning.pki.identity import Identity, InvalidIdentity, check_name
from provisioning.pki.keys import PrivateKey


def build_csr(
    key: PrivateKey, who: Identity | str, like: x509.Certificate | None = None
) -> x509.CertificateSigningRequest:
    """Return a request for *who*, signed by *key*; *like* is the certificate to renew, if this is a renewal.

    Raises `InvalidIdentity` when *who* is no valid name, or not the one in *like*.
    """
    name = who.name if isinstance(who, Identity) else check_name("name", who)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder()
    if like is None:
        builder = builder.subject_name(subject)
    else:
        if [attribute.value for attribute in like.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] != [name]:
            raise InvalidIdentity(f"name {name!r} is not the Common Name of the certificate to renew")
        builder = builder.subject_name(like.subject)
        try:
            san = like.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            pass
        else:
            builder = builder.add_extension(san.value, critical=san.critical)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm)
