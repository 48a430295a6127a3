"""Encrypts a private key for a file: PKCS #8 by PBES2 (RFC 8018), so that openssl and every library open it.

`cryptography` writes the same form, with 2,048 rounds of PBKDF2 that cannot be changed. With `ROUNDS` each guess of
somebody who has copied the file costs three hundred times as much (docs/decisions/0254-rounds-of-an-encrypted-key.md).
Reading needs nothing of ours: the file says how it was written.
"""

from __future__ import annotations

import base64
import hashlib
import os
import textwrap

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

ROUNDS = 600_000
"""What OWASP recommends for PBKDF2 with HMAC-SHA-256: a tenth of a second for each start, and for each guess."""

_KEY_BYTES = 32
_BLOCK_BYTES = 16
_LONG_FORM = 0x80
"""A length from here on is preceded by the number of its octets, with this bit (X.690 §8.1.3)."""

_INTEGER, _OCTET_STRING, _SEQUENCE = 0x02, 0x04, 0x30
_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_PBKDF2 = bytes.fromhex("06092a864886f70d01050c")
_HMAC_WITH_SHA256 = bytes.fromhex("300c06082a864886f70d02090500")
_AES_256_CBC = bytes.fromhex("060960864801650304012a")


def encrypted(key_info: bytes, passphrase: bytes) -> bytes:
    """Return *key_info*, a PrivateKeyInfo in DER, as an EncryptedPrivateKeyInfo in PEM (RFC 5958 §3)."""
    salt, vector = os.urandom(_BLOCK_BYTES), os.urandom(_BLOCK_BYTES)
    derived = hashlib.pbkdf2_hmac("sha256", passphrase, salt, ROUNDS, _KEY_BYTES)
    padder = PKCS7(8 * _BLOCK_BYTES).padder()
    encryptor = Cipher(algorithms.AES(derived), modes.CBC(vector)).encryptor()
    content = encryptor.update(padder.update(key_info) + padder.finalize()) + encryptor.finalize()

    rounds = _element(_INTEGER, ROUNDS.to_bytes(ROUNDS.bit_length() // 8 + 1))
    derivation = _sequence(_PBKDF2, _sequence(_element(_OCTET_STRING, salt), rounds, _HMAC_WITH_SHA256))
    scheme = _sequence(_AES_256_CBC, _element(_OCTET_STRING, vector))
    algorithm = _sequence(_PBES2, _sequence(derivation, scheme))
    der = _sequence(algorithm, _element(_OCTET_STRING, content))
    lines = textwrap.wrap(base64.b64encode(der).decode(), 64)
    return "\n".join(
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, "-----END ENCRYPTED PRIVATE KEY-----", "")
    ).encode()


def _sequence(*elements: bytes) -> bytes:
    return _element(_SEQUENCE, b"".join(elements))


def _element(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < _LONG_FORM:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, _LONG_FORM | len(octets))) + octets + content
