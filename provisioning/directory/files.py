"""The paths of all files in the service's directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from provisioning.errors import ConfigurationError
from provisioning.pki.extension import UNREADABLE
from provisioning.program.given_file import PEM_BYTES, contents_of

ROOT_CA: Final = "root-ca"
ISSUING_CA: Final = "issuing-ca"
SERVER: Final = "server"
OPERATOR: Final = "operator"


@dataclass(frozen=True, slots=True)
class AuthorityFiles:
    """The files of one authority."""

    directory: Path

    def check_there(self) -> None:
        """Raise `ConfigurationError` if the directory holds no authority."""
        if not self.certificate(ISSUING_CA).exists():
            raise ConfigurationError(
                f"{self.directory} holds no certificate authority: give the right --dir, or run "
                f"fleet-provisioning init --dir {self.directory}"
            )

    def certificate(self, name: str) -> Path:
        """Return a certificate's file; the server's and operator's contain the issuing CA's certificate, too."""
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        """Return the file of the private key that belongs to `certificate`."""
        return self.directory / f"{name}.key"

    def token_key(self, name: str) -> Path:
        """Return the file that names the token, for a CA whose key is in one."""
        return self.directory / f"{name}.pkcs11"

    @contextlib.contextmanager
    def held(self, *, to_change: bool) -> Iterator[None]:
        """Hold the directory while a certificate and its key are read together, or replaced together.

        For moments only, and without an `await` inside: others wait, and block their event loops.
        """
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if to_change else fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    @property
    def audit_key(self) -> Path:
        """The key that authenticates the audit log; without it the log cannot be verified."""
        return self.directory / "audit.key"

    @property
    def bundle(self) -> Path:
        """The certificates that relying parties trust: root and issuing CA."""
        return self.directory / "ca-bundle.crt"


def read_certificate(path: Path) -> x509.Certificate:
    """Return the first certificate in *path*; raise `ConfigurationError` naming the file."""
    try:
        return x509.load_pem_x509_certificate(contents_of(path, PEM_BYTES))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except UNREADABLE as error:
        raise ConfigurationError(f"{path} is not a PEM certificate") from error
