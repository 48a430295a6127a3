"""What the broker sends with its certificate: the CAs below the anchor, and who vouches for a newer anchor.

A device has the next root when it has renewed since that was made. The broker may have renewed before, and then its
path ends at a root that such a device does not know. So the certificate by which an older root vouches for that one's
key is sent, too (RFC 7030 §4.1.3), as provisioning does; who knows the newer root does without.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509

from provisioning.pki.issued_by import is_issued_by


def path_to_send(end_entity: x509.Certificate, candidates: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """Return what of *candidates* is above *end_entity*, without self-signed anchors."""
    path: list[x509.Certificate] = []
    current = end_entity
    while True:
        issuer = next((c for c in candidates if c.subject == current.issuer and c.subject != c.issuer), None)
        if issuer is None or issuer in path:
            return [*path, *_vouching(current, candidates)]
        path.append(issuer)
        current = issuer


def _vouching(below: x509.Certificate, candidates: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """Return the certificates by which older anchors vouch for the one that has issued *below*, the newest first."""
    anchors = [each for each in candidates if each.subject == each.issuer and is_issued_by(each, each)]
    between = [each for each in candidates if each.subject == each.issuer and each not in anchors]
    found: list[x509.Certificate] = []
    anchor = next((each for each in anchors if is_issued_by(below, each)), None)
    while anchor is not None:
        newer, anchor = anchor, None
        for each in between:
            by = next((old for old in anchors if is_issued_by(each, old)), None)
            if (
                by is not None
                and each not in found
                and each.public_key() == newer.public_key()
                and by.not_valid_before_utc <= newer.not_valid_before_utc
            ):
                found.append(each)
                anchor = by
                break
    return found
