"""Which CAs stand above a client's certificate and when they end, where `cafile` alone says who is believed.

Theory
------
A full handshake verifies the dates of every certificate of a path; a resumed one verifies nothing, and a connection
lasts as long as it is let. So what the path of a full handshake says is remembered by CA: a device that comes back to
its TLS session is judged by the dates of the CA that issued its certificate, and nothing is read again for that. Which
CA that is, its certificate says (the authority key identifier). Where two CAs that were seen share what it says, the
signature decides. When other anchors begin to count, who came back so is judged by that path (`broker.reload`).

Rules
-----
1. Only CAs of paths that OpenSSL has verified are learned: so many paths, the one learned first goes first. Of a CA
   that is not known nothing is said: its clients end with their own certificates.
2. The certificate of a path that ends first ends it; of several paths above one CA, a renewed certificate of it say,
   the one that lasts longest counts for those who come back.
3. Belongs to one generation of trust: what anchors of before vouched for counts no more. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography import x509

from broker.admission.issuers import authorities_of
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import key_identifier

_MOST_PATHS: Final = 1024


class VerifiedPath:
    """The CAs of one verified path."""

    __slots__ = ("above", "authorities", "authority", "authority_key_id", "ends")

    def __init__(self, ders: Sequence[bytes]) -> None:
        """Take the CA certificates in *ders*, the one that issues to clients first."""
        self.above = tuple(ders)
        path = [x509.load_der_x509_certificate(der) for der in ders]
        self.authority = path[0]
        self.authorities = authorities_of(path)
        self.authority_key_id = key_identifier(path[0].public_key())
        self.ends = min(each.not_valid_after_utc for each in path)


class PathEnds:
    """The paths that were verified, by what clients' certificates say of their issuer."""

    __slots__ = ("_ends", "_paths")

    def __init__(self) -> None:
        self._paths: dict[tuple[bytes, ...], VerifiedPath] = {}
        self._ends: dict[bytes, dict[bytes, VerifiedPath]] = {}
        """By the identifier in certificates, and the CA's own key: the path that lasts longest."""

    def __len__(self) -> int:
        """Return how many paths are remembered."""
        return len(self._paths)

    def verified(self, issuer_key_id: bytes, path: Sequence[bytes]) -> VerifiedPath | None:
        """Return the CAs of *path* (DER, the client's own first; just verified); None: there is none."""
        above = path[1:]
        if not above:
            return None
        key = (issuer_key_id, *above)
        known = self._paths.get(key)
        if known is None:
            if len(self._paths) >= _MOST_PATHS:
                self._forget(next(iter(self._paths)))
            known = self._paths[key] = VerifiedPath(above)
            self._count(issuer_key_id, known)
        return known

    def known(self, issuer_key_id: bytes, certificate: bytes) -> VerifiedPath | None:
        """Return the CAs above *certificate* (DER), which was verified before; None: they are not known."""
        paths = self._ends.get(issuer_key_id)
        if paths is None:
            return None
        if len(paths) == 1:
            return next(iter(paths.values()))
        parsed = x509.load_der_x509_certificate(certificate)
        return next((each for each in paths.values() if is_issued_by(parsed, each.authority)), None)

    def _count(self, issuer_key_id: bytes, path: VerifiedPath) -> None:
        paths = self._ends.setdefault(issuer_key_id, {})
        before = paths.get(path.authority_key_id)
        if before is None or before.ends < path.ends:
            paths[path.authority_key_id] = path

    def _forget(self, key: tuple[bytes, ...]) -> None:
        del self._paths[key]
        self._ends.pop(key[0], None)
        for (issuer_key_id, *_), path in self._paths.items():
            if issuer_key_id == key[0]:
                self._count(issuer_key_id, path)
