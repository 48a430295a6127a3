"""The trust anchors that a command of `fleet-sim` is given for a fleet: looked at before the fleet is made."""

from __future__ import annotations

from pathlib import Path

import typer
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.pki.extension import UNREADABLE
from provisioning.pki.tls import TlsConfigurationError, certificates_in
from provisioning.program.given_file import PEM_BYTES, contents_of, unread


def given_anchors(cafile: Path, hint: str) -> str:
    """Return the certificates in *cafile* as PEM.

    Raises `TlsConfigurationError` if it cannot be read, and `typer.BadParameter`, which says *hint*, if it has none.
    """
    try:
        return "".join(
            certificate.public_bytes(Encoding.PEM).decode()
            for certificate in certificates_in(contents_of(cafile, PEM_BYTES))
        )
    except OSError as error:
        raise TlsConfigurationError(f"--cafile {unread(cafile, error)}") from error
    except UNREADABLE:  # Its text is about parsers.
        raise typer.BadParameter(f"--cafile {cafile} holds no whole PEM certificate: {hint}") from None
