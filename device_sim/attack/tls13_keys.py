"""The key schedule and the record protection of TLS 1.3 (RFC 8446 §5.2, §7.1), for one suite: TLS_AES_128_GCM_SHA256.

Rules
-----
1. No I/O. The primitives are `cryptography`'s; this module combines them as the standard says.
2. For a single handshake by an attacker: no key update, no resumption.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

APPLICATION_DATA = 23
_VERSION = b"\x03\x03"
_HASH_SIZE = 32
_KEY_SIZE = 16
_NONCE_SIZE = 12
_TAG_SIZE = 16
_NOTHING = hashlib.sha256(b"").digest()


class BadRecord(Exception):
    """A record that the peer's keys did not protect."""


class Protection:
    """One direction's keys: seals what is sent, or opens what arrives."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._aead = AESGCM(expand_label(secret, "key", b"", _KEY_SIZE))
        self._iv = int.from_bytes(expand_label(secret, "iv", b"", _NONCE_SIZE))
        self._records = 0

    def seal(self, kind: int, content: bytes) -> bytes:
        """Return the record that carries *content*, which is of *kind*."""
        inner = content + bytes((kind,))
        header = bytes((APPLICATION_DATA,)) + _VERSION + (len(inner) + _TAG_SIZE).to_bytes(2)
        record = header + self._aead.encrypt(self._nonce(), inner, header)
        self._records += 1
        return record

    def open(self, header: bytes, body: bytes) -> tuple[int, bytes]:
        """Return kind and content of a record; raise `BadRecord`, and still expect the same record."""
        try:
            inner = self._aead.decrypt(self._nonce(), body, header).rstrip(b"\0")
        except InvalidTag as error:
            raise BadRecord("a record does not open with the peer's keys") from error
        self._records += 1
        if not inner:
            raise BadRecord("a record is all padding")
        return inner[-1], inner[:-1]

    def finished(self, transcript_hash: bytes) -> bytes:
        """Return the verify_data of a Finished (RFC 8446 §4.4.4)."""
        return hmac.digest(expand_label(self._secret, "finished", b"", _HASH_SIZE), transcript_hash, "sha256")

    def _nonce(self) -> bytes:
        return (self._iv ^ self._records).to_bytes(_NONCE_SIZE)


class KeySchedule:
    """From the shared secret of a Diffie-Hellman exchange to both sides' keys, without a pre-shared key."""

    def __init__(self, shared_secret: bytes) -> None:
        early = _extract(b"", bytes(_HASH_SIZE))
        self._handshake = _extract(expand_label(early, "derived", _NOTHING, _HASH_SIZE), shared_secret)

    def handshake(self, transcript_hash: bytes) -> tuple[Protection, Protection]:
        """Return the client's and the server's protection; *transcript_hash* is up to ServerHello."""
        return _pair(self._handshake, "hs", transcript_hash)

    def application(self, transcript_hash: bytes) -> tuple[Protection, Protection]:
        """Return the client's and the server's protection; *transcript_hash* is up to the server's Finished."""
        main = _extract(expand_label(self._handshake, "derived", _NOTHING, _HASH_SIZE), bytes(_HASH_SIZE))
        return _pair(main, "ap", transcript_hash)


def expand_label(secret: bytes, label: str, context: bytes, size: int) -> bytes:
    """Return HKDF-Expand-Label (RFC 8446 §7.1)."""
    full = b"tls13 " + label.encode()
    info = size.to_bytes(2) + bytes((len(full),)) + full + bytes((len(context),)) + context
    return HKDFExpand(SHA256(), size, info).derive(secret)


def _pair(secret: bytes, stage: str, transcript_hash: bytes) -> tuple[Protection, Protection]:
    client, server = (
        Protection(expand_label(secret, f"{side} {stage} traffic", transcript_hash, _HASH_SIZE)) for side in "cs"
    )
    return client, server


def _extract(salt: bytes, key_material: bytes) -> bytes:
    return hmac.digest(salt or bytes(_HASH_SIZE), key_material, "sha256")
