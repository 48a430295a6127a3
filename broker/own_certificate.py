"""The broker's own certificate as a file: read, and what it says. How it is got is in `broker.credentials`."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from provisioning.pki.identity import InvalidIdentity, identity_of


class CredentialError(Exception):
    """The broker has no usable certificate and cannot get one; the text says why and what to do."""


def read_certificate(path: Path) -> x509.Certificate | None:
    """Return the first certificate in the PEM file *path*, or None."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def own_trust_domain(path: Path) -> str | None:
    """Return the trust domain of the broker's own certificate; None for one of a foreign CA, which names none."""
    own = read_certificate(path)
    try:
        return identity_of(own).trust_domain if own is not None else None
    except InvalidIdentity:
        return None
