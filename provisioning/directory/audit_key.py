"""The key that authenticates the audit log: 32 random bytes in a file of mode 0600 beside the CA keys."""

from __future__ import annotations

from provisioning.directory.audit_chain import make_key, read_key
from provisioning.directory.files import AuthorityFiles


def make_audit_key(files: AuthorityFiles) -> None:
    """Create the key unless it exists; raise `ConfigurationError` if it cannot be written."""
    make_key(files.audit_key)


def read_audit_key(files: AuthorityFiles) -> bytes:
    """Return the key; raise `ConfigurationError` naming the file and the remedy."""
    return read_key(files.audit_key)
