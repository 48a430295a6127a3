"""The place of a CA's private key: the interface for the rest of the service.

Theory
------
A key that signs is an object of the library's own key classes, whatever is behind it, so that certificates, CRLs and
OCSP answers are built in the same way from a key in memory and from one that never leaves a token. A `Signer` is the
place of one CA's key: it makes the key there, opens it, and deletes it if the ceremony it was made for has failed.

Rules
-----
1. `create` never overwrites a key.
2. An error names the place and the remedy, never a passphrase or PIN.
"""

from __future__ import annotations

from typing import Protocol

from provisioning.pki.keys import PrivateKey


class SignerError(Exception):
    """The key cannot be made or opened; the text names where it should be and says what to do."""


class Signer(Protocol):
    """The place of one CA's private key."""

    @property
    def place(self) -> str:
        """Where the key is, for people: a file, or a token and a label."""
        ...

    def create(self) -> PrivateKey:
        """Make a new key there and return it, ready to sign; raise `SignerError` if there is one already."""
        ...

    def open(self) -> PrivateKey:
        """Return the key, ready to sign; raise `SignerError`."""
        ...

    def discard(self) -> None:
        """Remove the key that `create` has made and nobody needs; does nothing if it is gone."""
        ...
