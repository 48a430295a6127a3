"""The head of an audit log: a file that names its last entry, authenticated by the log's key."""

from __future__ import annotations

import hmac
from pathlib import Path

from provisioning.directory.audit_chain import AuditHead, read_key, seal
from provisioning.errors import ConfigurationError


class AuditError(Exception):
    """The audit log is unusable; the text names the file and the remedy."""


def head_of(path: Path) -> Path:
    """Return the path of the head of the log at *path*."""
    return path.with_name(f"{path.name}.head")


def read_head(path: Path, key: bytes) -> AuditHead | None:
    """Return the head of the log at *path*, None if there is none. Raises `AuditError` if it is not authentic."""
    try:
        text = head_of(path).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"{head_of(path)} cannot be read: {error}") from error
    shown, _, sealed = text.rpartition(":")
    try:
        head = AuditHead.parse(shown)
        genuine = hmac.compare_digest(bytes.fromhex(sealed), seal(key, head))
    except ValueError:
        genuine = False
    if not genuine:
        raise AuditError(f"{head_of(path)} was changed, or was written with another key")
    return head


def check_key(path: Path, keyfile: Path) -> None:
    """Raise `AuditError` if *keyfile* holds no key, or not that of the log at *path*, as far as its head tells."""
    try:
        key = read_key(keyfile)
    except ConfigurationError as error:
        raise AuditError(f"audit_keyfile: {error}") from error
    read_head(path, key)
