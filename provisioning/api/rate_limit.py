"""How many requests one caller may make: a bucket for each, filled at a steady rate.

Theory
------
A caller is identified by the name in its client certificate, or, without one, by its address; for IPv6 by the /64,
whose owner has more addresses than there could be buckets. It is not the certificate itself, as a device gets a new one
with each renewal, and would have a full bucket with each. That one of our CAs has signed it is
verified, once per certificate: a manufacturer's CA, which TLS accepts, may certify any name, and could otherwise empty
our devices' buckets. For certificates of other CAs, the certificate is the caller. Ours that have ended
(`provisioning.api.former_callers`) have one bucket for each name, too, or three by what they are still good for: a
device's key may have had a hundred.

The buckets are those of `provisioning.enrolment.pace`, which also has the groups' buckets: a group is known only when a
request has been read and authorised.

Rules
-----
1. It comes before the body is read, before routing and before the store.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Final

from cryptography import x509
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from provisioning.api.former_callers import FormerCallers
from provisioning.enrolment.authentication import Standing
from provisioning.enrolment.pace import Buckets
from provisioning.errors import Code, Refused
from provisioning.pki.address_key import address_key
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import spki_fingerprint
from provisioning.pki.panic import NoPanic

_REMEMBERED: Final = 4096
"""Certificates whose names are remembered, about 1 KB each."""
_LONGEST: Final = 8192
"""Bytes of such a certificate. TLS lets longer ones through, with which others could fill our memory."""


class RateLimit:
    """Answers 429 to a caller whose bucket is empty; an ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        refuse: Callable[[Scope], Response | None],
    ) -> None:
        """*refuse* is `RequestRates.refuse`."""
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        refusal = self._refuse(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)


class Callers:
    """Tells who asks."""

    def __init__(
        self, authorities: Callable[[], Iterable[x509.Certificate]], former: FormerCallers | None = None
    ) -> None:
        """Tell those apart whom the CAs name that *authorities* returns, ours as they are now.

        What *former* callers show, certificates of ours that have ended, is distinguished from what is good.
        """
        self._authorities = authorities
        self._former = former
        self._named = functools.lru_cache(_REMEMBERED)(self._name)

    def caller(self, scope: Scope) -> Hashable:
        """Return whose request it is."""
        certificate = _shown(scope)
        if certificate is not None:
            if len(certificate) > _LONGEST:
                return _itself(certificate)
            named = self._named(certificate)
            standing = Standing.GOOD if self._former is None else self._former.standing(certificate)
            return named if standing is Standing.GOOD else (standing, named)
        client = scope.get("client")
        return address_key(client[0]) if client else ""

    def doubt(self, scope: Scope, caller: Hashable) -> None:
        """Have it found out whether the certificate shown still speaks for its *caller*, who has asked too much."""
        certificate = _shown(scope)
        if self._former is None or certificate is None or isinstance(caller, tuple):
            return
        if caller != _itself(certificate):
            self._former.doubt(certificate)

    def _name(self, der: bytes) -> Hashable:
        """Return whom a certificate names, and by whose key: the same for its successors."""
        try:
            with NoPanic():  # Otherwise who makes it panic would have no bucket.
                certificate = x509.load_der_x509_certificate(der)
                for authority in self._authorities():
                    if is_issued_by(certificate, authority):
                        return spki_fingerprint(authority.public_key()) + certificate.subject.public_bytes()
        except UNREADABLE:
            pass
        return _itself(der)


def _shown(scope: Scope) -> bytes | None:
    certificate: bytes | None = scope.get("extensions", {}).get("tls", {}).get("client_cert_der")
    return certificate


def _itself(der: bytes) -> bytes:
    return hashlib.sha256(der).digest()


class RequestRates:
    """Every caller's bucket."""

    def __init__(
        self,
        *,
        rate: float,
        burst: int,
        clock: Callable[[], float],
        answer: Callable[[str, Refused, Mapping[str, str]], Response],
        authorities: Callable[[], Iterable[x509.Certificate]] = tuple,
        former: FormerCallers | None = None,
    ) -> None:
        """*clock* is monotonic; *answer* makes the response for a path, a refusal and headers.

        *authorities* returns our CAs as they are now, *former* tells which of their certificates have ended.
        """
        self._callers = Callers(authorities, former)
        self._buckets = Buckets(rate, burst)
        self._clock = clock
        self._answer = answer

    def refuse(self, scope: Scope) -> Response | None:
        """Take one from the caller's bucket; return the answer if there is none."""
        caller = self._callers.caller(scope)
        wait = self._buckets.take(caller, self._clock())
        if not wait:
            return None
        self._callers.doubt(scope, caller)
        seconds = math.ceil(wait)
        refusal = Refused(Code.RATE_LIMITED, f"too many requests from you: wait {seconds} s")
        return self._answer(scope["path"], refusal, {"Retry-After": str(seconds)})
