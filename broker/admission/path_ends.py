"""Which CAs stand above a client's certificate and when they end, where `cafile` alone says who is believed.

Theory
------
A full handshake verifies the dates of every certificate of a path; a resumed one verifies nothing, and a connection
lasts as long as it is let. So what the path of a full handshake says is remembered by CA: a device that comes back to
its TLS session is judged by the dates of the CA that issued its certificate, and nothing is read again for that. Which
CA that is, its certificate says (the authority key identifier). Where two CAs that were seen share what it says, the
signature decides. When other anchors begin to count, who came back so is judged by that path (`broker.reload`).

A CA in the path may be revoked, of which the feed tells: whoever has its stolen key certifies what nobody has recorded,
so that no list names it, and shows the CA's own certificate with it; a root that is trusted still vouches for that.

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

from broker.admission.issuers import authorities_of, revoked_as
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation import CertificateKey, Revocation, RevocationIndex

_MOST_PATHS: Final = 1024


class VerifiedPath:
    """The CAs of one verified path."""

    __slots__ = ("_revocable", "above", "authorities", "authority", "authority_key_id", "ends")

    def __init__(self, ders: Sequence[bytes]) -> None:
        """Take the CA certificates in *ders*, the one that issues to clients first."""
        self.above = tuple(ders)
        path = [x509.load_der_x509_certificate(der) for der in ders]
        self.authority = path[0]
        self.authorities = authorities_of(path)
        self.authority_key_id = key_identifier(path[0].public_key())
        self.ends = min(each.not_valid_after_utc for each in path)
        keys_above = [*(key_identifier(each.public_key()) for each in path[1:]), None]
        self._revocable = [
            (key, each) for each, above in zip(path, keys_above, strict=True) for key in revoked_as(each, above)
        ]

    @property
    def revoked_as(self) -> list[CertificateKey]:
        """How the index of revocations names its CAs."""
        return [key for key, _ in self._revocable]

    def find_revoked(self, index: RevocationIndex) -> tuple[str, Revocation] | None:
        """Return the name of the first CA that is revoked, with its revocation."""
        for key, authority in self._revocable:
            if (revocation := index.find(key)) is not None:
                return authority.subject.rfc4514_string(), revocation
        return None


class PathEnds:
    """The paths that were verified, by what clients' certificates say of their issuer."""

    __slots__ = ("_ends", "_paths", "revoked_as")

    def __init__(self) -> None:
        self._paths: dict[tuple[bytes, ...], VerifiedPath] = {}
        self._ends: dict[bytes, dict[bytes, VerifiedPath]] = {}
        """By the identifier in certificates, and the CA's own key: the path that lasts longest."""
        self.revoked_as: set[CertificateKey] = set()
        """How the index of revocations names the CAs of all paths."""

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
            self.revoked_as.update(known.revoked_as)
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

    def find_revoked(self, issuer_key_id: bytes, index: RevocationIndex) -> Revocation | None:
        """Return the revocation of a CA above a certificate of which only that is known: what it says of its issuer."""
        paths = self._ends.get(issuer_key_id, {}).values()
        return next((found[1] for each in paths if (found := each.find_revoked(index)) is not None), None)

    def _count(self, issuer_key_id: bytes, path: VerifiedPath) -> None:
        paths = self._ends.setdefault(issuer_key_id, {})
        before = paths.get(path.authority_key_id)
        if before is None or before.ends < path.ends:
            paths[path.authority_key_id] = path

    def _forget(self, key: tuple[bytes, ...]) -> None:
        del self._paths[key]
        self.revoked_as = {each for path in self._paths.values() for each in path.revoked_as}
        self._ends.pop(key[0], None)
        for (issuer_key_id, *_), path in self._paths.items():
            if issuer_key_id == key[0]:
                self._count(issuer_key_id, path)
