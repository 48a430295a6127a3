"""A CA's key in a file of mode 0600, encrypted with the passphrase; it is in memory while it is open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from provisioning.pki.keys import KeyFileError, PrivateKey, generate_key, key_to_pem, load_key, write_private
from provisioning.signers.signer import SignerError

LONGEST = 1023
"""Bytes of a passphrase that openssl takes (PEM_BUFSIZE, without its end)."""


@dataclass(frozen=True, slots=True)
class FileSigner:
    """An ECDSA P-256 key in an encrypted PKCS #8 file. Any kind of key in such a file is opened."""

    path: Path
    passphrase: Callable[[], bytes] = field(repr=False)
    """Called when it is needed."""

    @property
    def place(self) -> str:
        """The file."""
        return str(self.path)

    def create(self) -> PrivateKey:
        """Create a key and its file; raise `SignerError` if the file exists or cannot be written."""
        passphrase = self.passphrase()
        if len(passphrase) > LONGEST:
            raise SignerError(f"the passphrase is longer than {LONGEST} bytes: give a shorter one")
        key = generate_key()
        try:
            write_private(self.path, key_to_pem(key, passphrase))
        except KeyFileError as error:
            raise SignerError(str(error)) from error
        return key

    def open(self) -> PrivateKey:
        """Decrypt the file; raise `SignerError`."""
        try:
            return load_key(self.path, self.passphrase())
        except KeyFileError as error:
            raise SignerError(str(error)) from error

    def discard(self) -> None:
        """Remove the file; raise `SignerError` if that fails."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise SignerError(f"{self.path}: {error.strerror}") from error
