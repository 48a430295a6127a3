"""The CAs above a client's certificate and when they expire, where `cafile` alone says who is trusted.

Theory
------
A full handshake verifies the dates of every certificate in a path; a resumed one verifies nothing, and a connection
may last indefinitely. So the path of a full handshake is remembered by CA: a device that resumes its TLS session is
judged by the dates of the CA that issued its certificate, without reading anything again. The certificate tells which
CA that is (the authority key identifier); if several known CAs share that identifier, the signature decides. When the
anchors change, clients admitted in this way are judged by that path (`broker.reload`).

The feed may report that a CA in the path is revoked. With its stolen key, certificates can be issued that were never
recorded, so that no list names them; presented with the CA's own certificate, they verify up to a root that is still
trusted.

Whoever has a CA's key can make as many paths as he likes: a path length of zero still lets a CA certify itself again
(RFC 5280 §6.1.4 (l)). So a path can be forgotten on purpose, and then nothing would be known against a client below a
revoked CA that resumes its TLS session.

Rules
-----
1. Only CAs of paths that OpenSSL has verified are learned. Their number is limited; the one learned first is dropped
   first. As long as none was dropped, an unknown CA imposes nothing: its clients end with their own certificates, which
   are anchors themselves. Afterwards what a certificate says about its issuer is confirmed by the signature, and of a
   client whose CA is unknown everything may be wrong: it has to show the path again (`Forgotten`), unless its
   certificate is one of the anchors.
2. A path ends with the first of its certificates to expire. Of several paths above one CA (it was renewed, say), the
   one that lasts longest counts for resumed sessions.
3. It belongs to one generation of trust: what earlier anchors vouched for no longer counts. No I/O, no clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from cryptography import x509

from broker.admission.issuers import UnreadableAuthority, authorities_of, cas_of, revoked_as
from provisioning.pki.extension import UNUSABLE
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import key_identifier
from provisioning.pki.panic import NoPanic
from provisioning.pki.revocation import CertificateKey, Revocation, RevocationIndex

# Not final: tests set them, in compiled code as well.
MOST_PATHS = 1024
_MOST_TRIED = 32
"""CAs that one identifier may mean: the signature is tried against each of their keys, at 0.1 ms."""


class Forgotten(Exception):
    """The CAs above a certificate may have been known once, and are not now."""


class VerifiedPath:
    """The CAs of one verified path."""

    __slots__ = ("_cas", "_revocable", "above", "authorities", "authority", "authority_key_id", "ends")

    def __init__(self, ders: Sequence[bytes]) -> None:
        """Take the CA certificates in *ders*, the one that issues to clients first. Raises `UnreadableAuthority`."""
        self.above = tuple(ders)
        self._cas: Sequence[bytes] = ()
        try:
            with NoPanic():
                self._read([x509.load_der_x509_certificate(der) for der in ders])
        except UNUSABLE as error:
            raise UnreadableAuthority(str(error)) from error

    def _read(self, path: Sequence[x509.Certificate]) -> None:
        self.authority = path[0]
        self.authorities = authorities_of(path)
        self.authority_key_id = key_identifier(path[0].public_key())
        self.ends = min(each.not_valid_after_utc for each in path)
        keys_above = [*(key_identifier(each.public_key()) for each in path[1:]), None]
        self._revocable = [
            (key, each) for each, above in zip(path, keys_above, strict=True) for key in revoked_as(each, above)
        ]

    @property
    def issuing(self) -> x509.Certificate:
        """The CA that issues to clients."""
        return self.authority

    def verified(self) -> list[x509.Certificate]:
        """Return the CAs themselves, the one that issues to clients first."""
        return [x509.load_der_x509_certificate(der) for der in self.above]

    @property
    def cas(self) -> Sequence[bytes]:
        """Its CAs by their names and keys, and who has certified the last one, if that is known."""
        if not self._cas:
            self._cas = cas_of(self.verified())
        return self._cas

    @property
    def path_revoked_as(self) -> list[CertificateKey]:
        """How the revocation index identifies its CAs."""
        return [key for key, _ in self._revocable]

    def find_revoked(self, index: RevocationIndex) -> tuple[str, Revocation] | None:
        """Return the name of the first CA that is revoked, with its revocation."""
        for key, authority in self._revocable:
            if (revocation := index.find(key)) is not None:
                return authority.subject.rfc4514_string(), revocation
        return None


class PathEnds:
    """The verified paths, by what clients' certificates say about their issuer."""

    __slots__ = ("_ends", "_has_forgotten", "_paths", "revoked_as")

    def __init__(self) -> None:
        self._paths: dict[tuple[bytes, ...], VerifiedPath] = {}
        self._ends: dict[bytes, dict[bytes, VerifiedPath]] = {}
        """By the identifier in certificates, then by the CA's own key: the path that lasts longest."""
        self.revoked_as: set[CertificateKey] = set()
        """How the revocation index identifies the CAs of all paths."""
        self._has_forgotten = False

    def __len__(self) -> int:
        """Return the number of remembered paths."""
        return len(self._paths)

    def verified(self, issuer_key_id: bytes, path: Sequence[bytes]) -> VerifiedPath | None:
        """Return the CAs of *path* (DER, the client's own first; just verified), and remember them; None: no path.

        Raises `UnreadableAuthority`.
        """
        above = path[1:]
        if not above:
            return None
        key = (issuer_key_id, *above)
        known = self._paths.get(key)
        if known is None:
            if len(self._paths) >= MOST_PATHS:
                self._forget(next(iter(self._paths)))
            known = self._paths[key] = VerifiedPath(above)
            self.revoked_as.update(known.path_revoked_as)
            self._count(issuer_key_id, known)
        return known

    def known(self, issuer_key_id: bytes, certificate: bytes) -> VerifiedPath | None:
        """Return the CAs above *certificate* (DER), verified earlier; None: nobody has vouched for it.

        Raises `Forgotten`.
        """
        paths = self._ends.get(issuer_key_id, {})
        if not self._has_forgotten:
            if not paths:
                return None
            if len(paths) == 1:
                return next(iter(paths.values()))
        parsed = x509.load_der_x509_certificate(certificate)
        usual = paths.get(issuer_key_id)  # Most certificates identify their issuer as is usual.
        others = (each for each in paths.values() if each is not usual)
        for each in itertools.islice(filter(None, itertools.chain([usual], others)), _MOST_TRIED):
            if is_issued_by(parsed, each.authority):
                return each
        raise Forgotten

    def is_doubtful(self, issuer_key_id: bytes, authorities: Sequence[bytes], index: RevocationIndex) -> bool:
        """Whether a CA is revoked, or forgotten, above a certificate of which only its stated issuer is known.

        *authorities* are those above it, upwards, as far as they are known.
        """
        paths = self._ends.get(issuer_key_id, {})
        if self._has_forgotten and (not authorities or authorities[0] not in paths):
            return True
        return any(each.find_revoked(index) is not None for each in paths.values())

    def _count(self, issuer_key_id: bytes, path: VerifiedPath) -> None:
        paths = self._ends.setdefault(issuer_key_id, {})
        before = paths.get(path.authority_key_id)
        if before is None or before.ends < path.ends:
            paths[path.authority_key_id] = path

    def _forget(self, key: tuple[bytes, ...]) -> None:
        del self._paths[key]
        self._has_forgotten = True
        self.revoked_as = {each for path in self._paths.values() for each in path.path_revoked_as}
        self._ends.pop(key[0], None)
        for (issuer_key_id, *_), path in self._paths.items():
            if issuer_key_id == key[0]:
                self._count(issuer_key_id, path)
