"""An operator's certificate and key, two files of the user's: they may have been moved since they were named."""

from __future__ import annotations

from provisioning.pki.tls import CredentialFiles, TlsConfigurationError


def expect_operator(files: CredentialFiles, remedy: str) -> None:
    """Raise `TlsConfigurationError`, with the *remedy*, if one of *files* is not there.

    They are not opened: a pipe, as of a shell's ``<(…)``, can be read once.
    """
    for what, path in (("certificate", files.certificate), ("key", files.key)):
        try:
            path.stat()
        except OSError as error:
            told = f"the operator's {what} {path} cannot be read: {error.strerror}"
            raise TlsConfigurationError(f"{told}; {remedy}") from error
