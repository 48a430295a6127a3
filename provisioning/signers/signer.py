"""The place of a CA's private key: the interface for the rest of the service.

Theory
------
A signing key is an object of the library's own key classes, wherever it is, so that certificates, CRLs and
OCSP responses are built in the same way with a key in memory and with one that never leaves a token. A `Signer` is the
place of one CA's key: it creates the key there, opens it, and deletes it if the ceremony that needed it has failed.

Rules
-----
1. `create` never overwrites a key.
2. An error names the place and the remedy, never a passphrase or PIN.
"""

from __future__ import annotations

from typing import Protocol

from provisioning.pki.keys import PrivateKey


class SignerError(Exception):
    """The key cannot be created or opened; the text names its place and the remedy."""


class Signer(Protocol):
    """The place of one CA's private key."""

    @property
    def place(self) -> str:
        """Where the key is, for people: a file, or a token and a label."""
        ...

    def create(self) -> PrivateKey:
        """Create a key there and return it, ready to sign; raise `SignerError` if there is one already."""
        ...

    def open(self) -> PrivateKey:
        """Return the key, ready to sign; raise `SignerError`."""
        ...

    def discard(self) -> None:
        """Delete the unused key that `create` has made; do nothing if it is gone; raise `SignerError` if that fails."""
        ...
