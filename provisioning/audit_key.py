"""The key that authenticates the audit log: 32 random bytes in a file of mode 0600 beside the CA keys."""

from __future__ import annotations

import secrets
from typing import Final

from provisioning.errors import ConfigurationError
from provisioning.files import AuthorityFiles
from provisioning.pki.keys import KeyFileError, write_private

_OCTETS: Final = 32


def make_audit_key(files: AuthorityFiles) -> None:
    """Make the key unless it exists; raise `ConfigurationError` if it cannot be written."""
    if files.audit_key.exists():
        return
    try:
        write_private(files.audit_key, f"{secrets.token_hex(_OCTETS)}\n".encode())
    except KeyFileError as error:
        raise ConfigurationError(str(error)) from error


def read_audit_key(files: AuthorityFiles) -> bytes:
    """Return the key; raise `ConfigurationError` naming the file and the remedy."""
    path = files.audit_key
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        key = b""
    if len(key) != _OCTETS:
        raise ConfigurationError(f"{path} does not hold 64 hexadecimal digits: restore it from the backup")
    return key
