"""EST's CSR attributes: tell a client what its request should look like.

Theory
------
Two forms in one answer (RFC 9908 §3.4 allows both; a client that knows the newer one reads only that)::

    CsrAttrs ::= SEQUENCE OF AttrOrOID                     RFC 7030 §4.5.2 as RFC 8951 §4 encodes it
        challengePassword                                  where the group wants requests linked to their TLS connection
        ecPublicKey { secp256r1 }, ecdsa-with-SHA256       the kind of key to make
        certificationRequestInfoTemplate { template }      RFC 9908 §3.4

    template ::= SEQUENCE { version 0, subject { CN }, [0] { the kind of key }, [1] { attributes } }

Rules
-----
1. One key type is named, the profile's first in the order of `provisioning.ca.profile.KeyType`, for devices that can
   choose. The profile's other key types are certified as well.
2. Of the subject, only the Common Name is requested, without a value; no extension is: the server builds them.
3. A template cannot name an attribute without a value for it, so where a challengePassword is needed there is no
   template: such clients, on TLS 1.2, know the older form.
4. No I/O and no clock.
"""

from __future__ import annotations

from typing import Final

from provisioning.ca.der import BIT_STRING, NULL, SEQUENCE, SET, element, integer, object_identifier
from provisioning.ca.profile import KeyType, Profile

_COMMON_NAME: Final = "2.5.4.3"
_CHALLENGE_PASSWORD: Final = "1.2.840.113549.1.9.7"  # noqa: S105 - an object identifier
_REQUEST_TEMPLATE: Final = "1.2.840.113549.1.9.16.2.61"
_EC_PUBLIC_KEY: Final = "1.2.840.10045.2.1"
_RSA_ENCRYPTION: Final = "1.2.840.113549.1.1.1"
_ED25519: Final = "1.3.101.112"
_CURVES: Final = {
    # The curve, and the signature algorithm of its strength.
    KeyType.P256: ("1.2.840.10045.3.1.7", "1.2.840.10045.4.3.2"),
    KeyType.P384: ("1.3.132.0.34", "1.2.840.10045.4.3.3"),
}
_SUBJECT_KEY: Final = b"\xa0"
_ATTRIBUTES: Final = b"\xa1"
_EXPONENT: Final = 65537


def csr_attributes(profile: Profile, *, linked: bool = False) -> bytes:
    """Return the CsrAttrs of a profile, as DER; *linked*: a challengePassword is needed."""
    kind = preferred_key(profile)
    items = _key_hints(kind, profile.minimum_rsa_bits)
    if linked:
        return element(SEQUENCE, object_identifier(_CHALLENGE_PASSWORD) + b"".join(items))
    template = element(
        SEQUENCE,
        integer(0)
        + element(SEQUENCE, element(SET, element(SEQUENCE, object_identifier(_COMMON_NAME))))
        + element(_SUBJECT_KEY, _key_template(kind, profile.minimum_rsa_bits))
        + element(_ATTRIBUTES, b""),
    )
    items.append(_attribute(_REQUEST_TEMPLATE, template))
    return element(SEQUENCE, b"".join(items))


def preferred_key(profile: Profile) -> KeyType:
    """Return the key type that a device should use if it can choose."""
    return next(kind for kind in KeyType if kind in profile.key_types)


def _attribute(oid: str, value: bytes) -> bytes:
    return element(SEQUENCE, object_identifier(oid) + element(SET, value))


def _key_hints(kind: KeyType, rsa_bits: int) -> list[bytes]:
    if kind in _CURVES:
        curve, signature = _CURVES[kind]
        return [_attribute(_EC_PUBLIC_KEY, object_identifier(curve)), object_identifier(signature)]
    if kind is KeyType.ED25519:
        return [object_identifier(_ED25519)]
    return [_attribute(_RSA_ENCRYPTION, integer(rsa_bits))]


def _key_template(kind: KeyType, rsa_bits: int) -> bytes:
    if kind in _CURVES:
        return element(SEQUENCE, object_identifier(_EC_PUBLIC_KEY) + object_identifier(_CURVES[kind][0]))
    if kind is KeyType.ED25519:
        return element(SEQUENCE, object_identifier(_ED25519))
    # RFC 9908 §3.4: the modulus stands for its size.
    placeholder = element(SEQUENCE, integer((1 << rsa_bits) - 1) + integer(_EXPONENT))
    return element(SEQUENCE, object_identifier(_RSA_ENCRYPTION) + NULL) + element(BIT_STRING, b"\x00" + placeholder)
