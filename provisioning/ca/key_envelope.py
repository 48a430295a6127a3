"""Encrypts a private key for its recipient: the answer of EST's /serverkeygen if encryption was requested.

Theory
------
RFC 7030 §4.4.2 wraps the key three times, each time in CMS (RFC 5652)::

    EnvelopedData            for the recipient: AES-256-CBC under a fresh key, which is
      KeyTransRecipientInfo    RSA: encrypted by RSAES-OAEP with SHA-256 (RFC 3560), or
      KeyAgreeRecipientInfo    EC: wrapped by AES-256 under what ECDH with a fresh key gives (RFC 5753 §3.1)
      SignedData             by the service that made the key
        AsymmetricKeyPackage   of one PrivateKeyInfo (RFC 5958)

The recipient is a public key whose possession the service has verified, and that the request names by its key
identifier: the request's own, whose signature is then checked, or that of the certificate in the TLS connection.

Rules
-----
1. A recipient is never guessed: an identifier that leads to no key, or to one that is weak, cannot decrypt, or may
   not by its certificate's key usage, is refused. The key is never sent in plain instead.
2. Content key, initialisation vector and ephemeral key are fresh for every envelope.
3. No I/O and no clock.

Does not handle: pre-shared secret keys (DecryptKeyIdentifier), of which this service has none, and the algorithms in
SMIMECapabilities: those above are the strongest that OpenSSL 1.1.1 and all later versions read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from provisioning.ca.der import BIT_STRING, OCTET_STRING, SEQUENCE, SET, element, integer, object_identifier
from provisioning.pki.extension import extension
from provisioning.pki.keys import PrivateKey, key_identifier

RecipientKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_CONTEXT_0: Final = b"\xa0"
_CONTEXT_0_PRIMITIVE: Final = b"\x80"
_CONTEXT_1: Final = b"\xa1"
_CONTEXT_2: Final = b"\xa2"

_SIGNED_DATA: Final = object_identifier("1.2.840.113549.1.7.2")
_ENVELOPED_DATA: Final = object_identifier("1.2.840.113549.1.7.3")
_KEY_PACKAGE: Final = object_identifier("2.16.840.1.101.2.1.2.78.5")
_CONTENT_TYPE: Final = object_identifier("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST: Final = object_identifier("1.2.840.113549.1.9.4")
_SHA256: Final = element(SEQUENCE, object_identifier("2.16.840.1.101.3.4.2.1"))
_ECDSA_SHA256: Final = element(SEQUENCE, object_identifier("1.2.840.10045.4.3.2"))
_AES256_CBC: Final = object_identifier("2.16.840.1.101.3.4.1.42")
_AES256_WRAP: Final = element(SEQUENCE, object_identifier("2.16.840.1.101.3.4.1.45"))
_EC_PUBLIC_KEY: Final = object_identifier("1.2.840.10045.2.1")
_RSA_OAEP: Final = object_identifier("1.2.840.113549.1.1.7")
_MGF1: Final = object_identifier("1.2.840.113549.1.1.8")
_OAEP_SHA256: Final = element(
    # RSAES-OAEP-params (RFC 4055 §4.1); both hashes SHA-256.
    SEQUENCE,
    _RSA_OAEP
    + element(SEQUENCE, element(_CONTEXT_0, _SHA256) + element(_CONTEXT_1, element(SEQUENCE, _MGF1 + _SHA256))),
)
_AGREEMENTS: Final[dict[str, tuple[str, hashes.HashAlgorithm]]] = {
    # dhSinglePass-stdDH-…kdf-scheme of the curve's strength (RFC 5753 §7.1.4).
    "secp256r1": ("1.3.132.1.11.1", hashes.SHA256()),
    "secp384r1": ("1.3.132.1.11.2", hashes.SHA384()),
}
_KEY_BYTES: Final = 32


class NoRecipient(Exception):
    """The key cannot be encrypted as asked; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """The key that an envelope is encrypted for, and the identifier that the request gave for it."""

    public_key: RecipientKey
    identifier: bytes


@dataclass(frozen=True, slots=True)
class EnvelopeSigner:
    """The signer of the key in an envelope: the service, with its own certificate and those of its issuers."""

    key: ec.EllipticCurvePrivateKey
    certificates: Sequence[x509.Certificate]


def find_recipient(
    identifier: bytes, own_key: CertificatePublicKeyTypes | None, certificate: x509.Certificate | None
) -> Recipient:
    """Return the key that *identifier* names: the request's *own_key* or that of *certificate*.

    Possession must have been proved: by the request's signature or the TLS handshake. Raise `NoRecipient` otherwise.
    """
    if own_key is not None and identifier == key_identifier(own_key):
        return Recipient(_able(own_key), identifier)
    if certificate is not None and identifier in _identifiers(certificate):
        public_key = _able(certificate.public_key())
        if not _may_decrypt(certificate, public_key):
            raise NoRecipient(
                "the key usage of the certificate that you present does not allow its key to decrypt: ask for the "
                "encryption to the request's own key"
            )
        return Recipient(public_key, identifier)
    raise NoRecipient(
        f"no key is known by the AsymmetricDecryptKeyIdentifier {identifier[:32].hex()}: name the key of this request, "
        "or of the certificate that you present, by its SHA-1 key identifier (RFC 5280 §4.2.1.2)"
    )


def seal_key(key: PrivateKey, recipient: Recipient, signer: EnvelopeSigner) -> bytes:
    """Return *key*, signed by *signer*, in an envelope for *recipient*, as the DER of a CMS ContentInfo."""
    content_key, vector = os.urandom(_KEY_BYTES), os.urandom(AES256.block_size // 8)
    encryptor = Cipher(AES256(content_key), CBC(vector)).encryptor()
    padder = padding.PKCS7(AES256.block_size).padder()
    signed = padder.update(_signed_key(key, signer)) + padder.finalize()
    sealed = encryptor.update(signed) + encryptor.finalize()
    encrypted_content = element(
        SEQUENCE,
        _SIGNED_DATA
        + element(SEQUENCE, _AES256_CBC + element(OCTET_STRING, vector))
        + element(_CONTEXT_0_PRIMITIVE, sealed),
    )
    enveloped = element(
        SEQUENCE, integer(2) + element(SET, _recipient_info(recipient, content_key)) + encrypted_content
    )
    return element(SEQUENCE, _ENVELOPED_DATA + element(_CONTEXT_0, enveloped))


def _identifiers(certificate: x509.Certificate) -> set[bytes]:
    names = {key_identifier(certificate.public_key())}
    with contextlib.suppress(x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        names.add(certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest)
    return names


def _able(public_key: CertificatePublicKeyTypes) -> RecipientKey:
    if isinstance(public_key, rsa.RSAPublicKey):
        return public_key
    if isinstance(public_key, ec.EllipticCurvePublicKey) and public_key.curve.name in _AGREEMENTS:
        return public_key
    raise NoRecipient("the named key cannot decrypt: take an RSA key, or an EC key on P-256 or P-384")


def _may_decrypt(certificate: x509.Certificate, public_key: RecipientKey) -> bool:
    try:
        usage = extension(certificate, x509.KeyUsage)
    except (x509.DuplicateExtension, ValueError):
        return False
    if usage is None:
        return True
    return usage.key_encipherment if isinstance(public_key, rsa.RSAPublicKey) else usage.key_agreement


def _recipient_info(recipient: Recipient, content_key: bytes) -> bytes:
    identifier = element(OCTET_STRING, recipient.identifier)
    match recipient.public_key:
        case rsa.RSAPublicKey() as public_key:
            wrapped = public_key.encrypt(content_key, OAEP(MGF1(hashes.SHA256()), hashes.SHA256(), None))
            return element(
                SEQUENCE,
                integer(2)
                + element(_CONTEXT_0_PRIMITIVE, recipient.identifier)
                + _OAEP_SHA256
                + element(OCTET_STRING, wrapped),
            )
        case public_key:
            scheme, hash_algorithm = _AGREEMENTS[public_key.curve.name]
            ephemeral = ec.generate_private_key(public_key.curve)
            wrapping_key = X963KDF(hash_algorithm, _KEY_BYTES, _shared_info()).derive(
                ephemeral.exchange(ec.ECDH(), public_key)
            )
            point = ephemeral.public_key().public_bytes(Encoding.X962, serialization.PublicFormat.UncompressedPoint)
            originator = element(SEQUENCE, _EC_PUBLIC_KEY) + element(BIT_STRING, b"\x00" + point)
            encrypted_key = element(
                SEQUENCE,
                element(_CONTEXT_0, identifier) + element(OCTET_STRING, aes_key_wrap(wrapping_key, content_key)),
            )
            return element(
                _CONTEXT_1,
                integer(3)
                + element(_CONTEXT_0, element(_CONTEXT_1, originator))
                + element(SEQUENCE, object_identifier(scheme) + _AES256_WRAP)
                + element(SEQUENCE, encrypted_key),
            )


def _shared_info() -> bytes:
    """Return ECC-CMS-SharedInfo (RFC 5753 §7.2): the algorithm of the agreed key, and its length in bits."""
    length = (_KEY_BYTES * 8).to_bytes(4)
    return element(SEQUENCE, _AES256_WRAP + element(_CONTEXT_2, element(OCTET_STRING, length)))


def _signed_key(key: PrivateKey, signer: EnvelopeSigner) -> bytes:
    package = element(SEQUENCE, key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    digest = hashes.Hash(hashes.SHA256())
    digest.update(package)
    attributes = _attribute(_CONTENT_TYPE, _KEY_PACKAGE) + _attribute(
        _MESSAGE_DIGEST, element(OCTET_STRING, digest.finalize())
    )
    # What is signed is tagged as a SET OF, what is sent as [0] (RFC 5652 §5.4).
    signature = signer.key.sign(element(SET, attributes), ec.ECDSA(hashes.SHA256()))
    own = signer.certificates[0]
    issuer_and_serial = element(SEQUENCE, own.issuer.public_bytes() + integer(own.serial_number))
    signer_info = element(
        SEQUENCE,
        integer(1)
        + issuer_and_serial
        + _SHA256
        + element(_CONTEXT_0, attributes)
        + _ECDSA_SHA256
        + element(OCTET_STRING, signature),
    )
    certificates = sorted(each.public_bytes(Encoding.DER) for each in signer.certificates)  # DER's order of a SET OF.
    return element(
        SEQUENCE,
        integer(3)
        + element(SET, _SHA256)
        + element(SEQUENCE, _KEY_PACKAGE + element(_CONTEXT_0, element(OCTET_STRING, package)))
        + element(_CONTEXT_0, b"".join(certificates))
        + element(SET, signer_info),
    )


def _attribute(oid: bytes, value: bytes) -> bytes:
    return element(SEQUENCE, oid + element(SET, value))
