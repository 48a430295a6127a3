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
2. Clients whose certificates say the same of their issuer share what was found: its key has signed them all.
3. An anchor that constrains names as nothing in its place, or above, did before is for a handshake to judge.
4. For one look at all clients, which takes seconds: dates are those of the first client below a CA.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker.admission.bundle import constrains_no_more
from broker.admission.trust import Trust
from broker.admission.walked_path import walk
from provisioning.pki.extension import UNUSABLE, extension
from provisioning.pki.issued_by import as_compared

_MOST_PATHS: Final = 1024
"""Found, that are remembered."""


class PathsAgain:
    """The paths that handshakes would verify below the anchors of one generation of trust."""

    def __init__(self, trust: Trust, own: str | None) -> None:
        """*own* is the broker's trust domain, if it has one."""
        self._called: dict[Hashable, list[x509.Certificate]] = {}
        """The anchors by their names, as OpenSSL is given them."""
        for each in trust.given(own):
            self._called.setdefault(as_compared(each.subject), []).append(each)
        self._found: dict[Hashable, Sequence[bytes]] = {}

    def followed(self, certificate: bytes, above: Sequence[bytes], now: datetime) -> Sequence[bytes]:
        """Return the CAs above a client's *certificate*, upwards; all in DER. *above*: those verified before.

        Empty: a handshake would fail, or nobody can tell.
        """
        try:
            client = x509.load_der_x509_certificate(certificate)
            by = extension(client, x509.AuthorityKeyIdentifier)
            key = client.issuer.public_bytes(), None if by is None else by.public_bytes(), tuple(above)
            if key not in self._found:
                if len(self._found) >= _MOST_PATHS:
                    self._found.clear()
                self._found[key] = self._walked(client, [x509.load_der_x509_certificate(each) for each in above], now)
            return self._found[key]
        except UNUSABLE:
            return ()

    def _walked(self, client: x509.Certificate, above: Sequence[x509.Certificate], now: datetime) -> Sequence[bytes]:
        chain = [client, *above]
        names = dict.fromkeys(as_compared(each.issuer) for each in chain)
        # The first anchor ends the path, so no other name is looked for.
        anchors = [each for name in names for each in self._called.get(name, ())]
        _, path = walk(chain, anchors, now)
        if not path or not constrains_no_more(path[-1], above[len(path) - 2 :]):
            return ()
        return [each.public_bytes(Encoding.DER) for each in path[1:]]
