"""What a server sends with its certificate: the CAs below the anchor, and who vouches for a newer anchor.

Theory
------
A device has the next root when it has renewed since that was made. The service and the broker may have renewed before,
and then their path ends at a root that such a device does not know. So the certificate by which an older root vouches
for that one's key is sent, too (RFC 7030 §4.1.3); who knows the newer root does without.

Several may vouch for one root. OpenSSL follows the first that fits and tries no other, Mbed TLS only one that is behind
what it vouches for, and a small device has little room for all. So one is sent for each root, and then what vouches for
the root that has made it.

Rules
-----
1. None that has expired is sent: who has the newer root has no use for it.
2. Of several the newest root's is taken, as from there older ones vouch on: who knows one in between is served, too.
   One that is valid already comes before others; the clock here may be behind, so these are not left out.
3. `_MOST_VOUCHING` at most. No root vouches for one on the way to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Final

from cryptography import x509

from provisioning.pki.issued_by import is_issued_by

_MOST_VOUCHING: Final = 3
"""Two kilobytes. Who has missed three roots has to be given one."""


def path_to_send(
    end_entity: x509.Certificate, candidates: Sequence[x509.Certificate], now: datetime
) -> list[x509.Certificate]:
    """Return what of *candidates* is above *end_entity*, without self-signed anchors, to be sent from *now* on."""
    path: list[x509.Certificate] = []
    current = end_entity
    while True:
        issuer = next((c for c in candidates if c.subject == current.issuer and c.subject != c.issuer), None)
        if issuer is None or issuer in path:
            return [*path, *islice(_vouching(current, candidates, now), _MOST_VOUCHING)]
        path.append(issuer)
        current = issuer


def _vouching(
    below: x509.Certificate, candidates: Sequence[x509.Certificate], now: datetime
) -> Iterator[x509.Certificate]:
    """Yield the certificates by which older anchors vouch for the one that has issued *below*, the newest first."""
    of_roots = [each for each in candidates if each.subject == each.issuer]
    anchors = [each for each in of_roots if is_issued_by(each, each)]
    between = [
        (each, by)
        for each in of_roots
        if each not in anchors and now < each.not_valid_after_utc
        for by in anchors
        if is_issued_by(each, by)
    ]
    between.sort(
        key=lambda pair: (
            now >= pair[0].not_valid_before_utc,
            pair[1].not_valid_before_utc,
            pair[0].not_valid_after_utc,
        ),
        reverse=True,
    )
    passed: list[x509.Certificate] = []
    anchor = next((each for each in anchors if is_issued_by(below, each)), None)
    while anchor is not None:
        newer, anchor = anchor, None
        passed.append(newer)
        for each, by in between:
            older = by not in passed and by.not_valid_before_utc <= newer.not_valid_before_utc
            if older and is_issued_by(newer, each):  # It is for the key by which that one has signed itself.
                yield each
                anchor = by
                break
