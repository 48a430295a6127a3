"""The path above a client that is connected, as a handshake would verify it now, below other anchors.

Theory
------
Other anchors may end the path elsewhere: at a certificate of a CA that has the name and the key of one in the path, or
further down. Which bundle judges, and by which terms, depends on that. Judged by the path that was verified under
the anchors of before, a device stayed that a partner's table had taken over, and others were put out that came back at
once.

Rules
-----
1. The path is walked as OpenSSL would (`broker.admission.walked_path`), from the certificate over what was verified
   before. A device that shows other CAs than it did may get another path: that is its next handshake's to find.
2. Clients whose certificates say the same of their issuer share what was found: its key has signed them all. What
   ends at one's own certificate is shared with nobody: it may be of a kind that the library cannot verify.
3. An anchor that constrains names as nothing in its place, or above, did before is for a handshake to judge.
4. A path of which nothing but a date is wrong is a path: its client has expired, and is not untrusted (decision 0143).
5. For one look at all clients, which takes seconds: dates are those of the first client below a CA.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker.admission.bundle import constrains_no_more
from broker.admission.named_cas import NamedCas
from broker.admission.refusal import RefusalCode, Refused, unauthorised
from broker.admission.trust import Trust
from broker.admission.walked_path import walk_below
from provisioning.pki.extension import UNUSABLE, extension

_MOST_PATHS: Final = 1024
"""Found, that are remembered."""


@dataclass(frozen=True, slots=True)
class PathAgain:
    """What a handshake would verify now."""

    above: Sequence[bytes] = ()
    """The CAs above the client, upwards, in DER. Empty: a handshake would fail, or nobody can tell."""
    refusal: Refused | None = None
    """Why it would fail all the same: a CA has expired."""


_NONE: Final = PathAgain()


class PathsAgain:
    """The paths that handshakes would verify below the anchors of one generation of trust."""

    def __init__(self, trust: Trust, own: str | None) -> None:
        """*own* is the broker's trust domain, if it has one."""
        self._anchors = NamedCas(trust.given(own))
        self._found: dict[Hashable, PathAgain] = {}

    def followed(self, certificate: bytes, above: Sequence[bytes], now: datetime) -> PathAgain:
        """Return the path above a client's *certificate* (DER). *above*: the CAs that were verified before, upwards."""
        try:
            client = x509.load_der_x509_certificate(certificate)
            by = extension(client, x509.AuthorityKeyIdentifier)
            key = client.issuer.public_bytes(), None if by is None else by.public_bytes(), tuple(above)
            found = self._found.get(key)
            if found is None:
                found, is_shared = self._walked(client, [x509.load_der_x509_certificate(each) for each in above], now)
                if is_shared:
                    if len(self._found) >= _MOST_PATHS:
                        self._found.clear()
                    self._found[key] = found
        except UNUSABLE:
            return _NONE
        return found

    def _walked(
        self, client: x509.Certificate, above: Sequence[x509.Certificate], now: datetime
    ) -> tuple[PathAgain, bool]:
        """Return the path above *client*, and whether it is that of all who say the same of their issuer."""
        step, path = walk_below(self._anchors, [client, *above], now, explained=False)
        expired = step.code == RefusalCode.EXPIRED
        if not (step.passed or expired) or not constrains_no_more(path[-1], above[len(path) - 2 :]):
            return _NONE, len(path) > 1
        refusal = unauthorised(RefusalCode.EXPIRED, step.detail) if expired else None
        return PathAgain([each.public_bytes(Encoding.DER) for each in path[1:]], refusal), True
