"""The chain that audit logs are made of: each entry is authenticated together with the one before it.

    code(n) = HMAC-SHA-256(key, code(n-1) || content(n))        code(0) = 32 bytes of zero
    seal    = HMAC-SHA-256(key, "head" || n || code(n))

An entry cannot be changed, removed or inserted without the key, nor the last ones truncated without forging the seal.
The caller stores entries and head: in a database here (`provisioning.store.audit`), in files at the broker
(`broker.audit`). Comparing with a head noted elsewhere also detects an older state that was restored completely.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from provisioning.errors import ConfigurationError
from provisioning.pki.keys import KeyFileError, write_private
from provisioning.program.given_file import SECRET_BYTES, text_of
from provisioning.quick_values import quickly_made

BEGINNING: Final = bytes(32)
"""The code before the first entry."""
_OCTETS: Final = 32
_KEYS: Final = 4


@quickly_made
@dataclass(frozen=True, slots=True)
class AuditHead:
    """The end of a log: its last entry's number and code."""

    number: int
    mac: bytes

    def __str__(self) -> str:
        return f"{self.number}:{self.mac.hex()}"

    @classmethod
    def parse(cls, text: str) -> AuditHead:
        """Return the head written in *text*. Raises ValueError."""
        number, _, mac = text.partition(":")
        return cls(int(number), bytes.fromhex(mac))


def link(key: bytes, previous: bytes, content: bytes) -> bytes:
    """Return the code of the entry *content* that follows the one with the code *previous*."""
    return _code(key, previous + content)


def seal(key: bytes, end: AuditHead) -> bytes:
    """Return the proof that *end* was the log's end."""
    return _code(key, f"head {end}".encode())


def _code(key: bytes, content: bytes) -> bytes:
    begun = _begun(key).copy()
    begun.update(content)
    return begun.digest()


@functools.lru_cache(_KEYS)
def _begun(key: bytes) -> hmac.HMAC:
    """Return an HMAC keyed with *key*, to be copied and never changed: keying is four fifths of a code's cost."""
    return hmac.new(key, digestmod=hashlib.sha256)


def make_key(path: Path) -> None:
    """Create the key file unless it exists.

    Raises `ConfigurationError` if it cannot be written, and OSError if its place cannot be reached.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.stat()  # From Python 3.14 on `Path.exists` says no of what cannot be reached.
        return
    try:
        write_private(path, f"{secrets.token_hex(_OCTETS)}\n".encode())
    except KeyFileError as error:
        raise ConfigurationError(str(error)) from error


def read_key(path: Path) -> bytes:
    """Return the key; raise `ConfigurationError` naming the file and the remedy."""
    try:
        key = bytes.fromhex(text_of(path, SECRET_BYTES).strip())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        key = b""
    if len(key) != _OCTETS:
        raise ConfigurationError(f"{path} does not hold 64 hexadecimal digits: restore it from the backup")
    return key
