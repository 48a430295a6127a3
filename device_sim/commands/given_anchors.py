"""The trust anchors that a command of `fleet-sim` is given for a fleet: looked at before the fleet is made."""

from __future__ import annotations

from pathlib import Path

import typer
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.pki.extension import UNREADABLE
from provisioning.pki.tls import certificates_in
from provisioning.program.given_file import PEM_BYTES, contents_of


def given_anchors(cafile: Path, hint: str) -> str:
    """Return the certificates in *cafile* as PEM. Raises `typer.BadParameter`, which says *hint*, or `OSError`."""
    try:
        return "".join(
            certificate.public_bytes(Encoding.PEM).decode()
            for certificate in certificates_in(contents_of(cafile, PEM_BYTES))
        )
    except UNREADABLE:  # Its text is about parsers.
        raise typer.BadParameter(f"--cafile {cafile} holds no whole PEM certificate: {hint}") from None
