"""Requests for an encrypted key, and openssl's decryption of the answer."""

from __future__ import annotations

import base64
from pathlib import Path

from asn1crypto import cms, core, csr, keys
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from provisioning.pki.keys import PrivateKey
from tests.support.openssl import openssl

ASYMMETRIC_DECRYPT_KEY_IDENTIFIER = "1.2.840.113549.1.9.16.2.54"
DECRYPT_KEY_IDENTIFIER = "1.2.840.113549.1.9.16.2.37"


class _Attribute(core.Sequence):  # type: ignore[misc]
    _fields = [("type", core.ObjectIdentifier), ("values", core.SetOf, {"spec": core.OctetString})]  # noqa: RUF012


class _Attributes(core.SetOf):  # type: ignore[misc]
    _child_spec = _Attribute


class _Info(core.Sequence):  # type: ignore[misc]
    _fields = [  # noqa: RUF012
        ("version", core.Integer),
        ("subject", csr.Name),
        ("subject_pk_info", keys.PublicKeyInfo),
        ("attributes", _Attributes, {"implicit": 0}),
    ]


def key_request(
    name: str, key: PrivateKey, identifier: bytes, *, oid: str = ASYMMETRIC_DECRYPT_KEY_IDENTIFIER
) -> bytes:
    """Return a request, base64 of DER, for a key encrypted for *identifier*'s key; signed by *key*."""
    public = key.public_key().public_bytes(Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    info = _Info(
        {
            "version": 0,
            "subject": csr.Name.build({"common_name": name}),
            "subject_pk_info": keys.PublicKeyInfo.load(public),
            "attributes": _Attributes([{"type": oid, "values": [core.OctetString(identifier)]}]),
        }
    ).dump()
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm, signature = "sha256_rsa", key.sign(info, padding.PKCS1v15(), hashes.SHA256())
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm, signature = "sha256_ecdsa", key.sign(info, ec.ECDSA(hashes.SHA256()))
    else:
        algorithm, signature = "ed25519", key.sign(info)
    request = csr.CertificationRequest(
        {
            "certification_request_info": csr.CertificationRequestInfo.load(info),
            "signature_algorithm": {"algorithm": algorithm},
            "signature": signature,
        }
    )
    return base64.encodebytes(request.dump())


def opened(envelope: bytes, key: PrivateKey, anchors: Path, directory: Path) -> PrivateKey:
    """Return the private key in *envelope*, decrypted with *key* and its signature verified, both by openssl."""
    pem = directory / "recipient.pem"
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    inner = openssl("cms", "-decrypt", "-inform", "DER", "-inkey", pem, "-binary", data=envelope)
    # An EnvelopedData contains the bare SignedData; openssl reads it in a ContentInfo.
    signed = cms.ContentInfo({"content_type": "signed_data", "content": cms.SignedData.load(inner)}).dump()
    package = openssl("cms", "-verify", "-inform", "DER", "-CAfile", anchors, "-purpose", "any", "-binary", data=signed)
    assert cms.SignedData.load(inner)["encap_content_info"]["content_type"].dotted == "2.16.840.1.101.2.1.2.78.5"
    (info,) = core.SequenceOf.load(package, spec=keys.PrivateKeyInfo)
    made = serialization.load_der_private_key(info.dump(), None)
    assert isinstance(made, PrivateKey)
    return made
