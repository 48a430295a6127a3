"""Warns of a passphrase that can be guessed: whoever has a copy of a CA's key file can try them one after the other.

It is used all the same, as a private file that others may read is (`provisioning.pki.open_to_all`): a start that fails
would not make a key that has been copied any safer.
"""

from __future__ import annotations

from typing import Final

SHORTEST: Final = 15
"""Characters of a password that protects something alone (NIST SP 800-63B-4 §3.1.1.2)."""
REMEDY: Final = (
    "make one with openssl rand -hex 24, and encrypt the keys with it (docs/operations.md, Changing the passphrase)"
)


def told_of(passphrase: bytes) -> str | None:
    """Return the warning that *passphrase* is too short, without its length or text; None if it is long enough."""
    if len(passphrase.decode(errors="replace")) >= SHORTEST:
        return None
    return f"the passphrase has fewer than {SHORTEST} characters: whoever copies a CA's key file can guess it"
