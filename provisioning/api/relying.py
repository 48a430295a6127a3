"""What relying parties fetch over plain HTTP: CRLs and CA certificates (RFC 5280 §4.2.1.13, §4.2.2.1).

Plain HTTP is right here: everything served is signed, and a client that must check a CRL to trust HTTPS could not
fetch the CRL over it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from provisioning.api.conditional import is_current
from provisioning.errors import Code, Refused
from provisioning.pki.pem import armoured, pem_of
from provisioning.revocation.publisher import CrlPublisher
from provisioning.store.crls import PublishedCrl

_CACHE_SECONDS: Final = 60
"""A cache may keep a list so long at most, so that a revocation is seen soon.

It may not keep one past its end, nor longer than half of its life, after which the next one is there.
"""


@dataclass(frozen=True, slots=True)
class _Document:
    content: bytes
    media_type: str
    last_modified: datetime | None
    """None where nobody has noted when it became what it is: then only its tag tells whether a client has it."""
    expires: datetime | None = None
    etag: str = field(init=False)

    def __post_init__(self) -> None:
        """Make the tag once, of what may be megabytes."""
        object.__setattr__(self, "etag", f'"{hashlib.sha256(self.content).hexdigest()}"')

    def kept_seconds(self, now: datetime) -> int:
        """Return how long a cache may keep it; 0 for a list that has lapsed, as when its CA's key is away."""
        if self.last_modified is None or self.expires is None:
            return _CACHE_SECONDS
        life, left = self.expires - self.last_modified, self.expires - now
        return max(0, min(_CACHE_SECONDS, int(life.total_seconds() / 2), int(left.total_seconds())))

    def answer(self, request: Request, now: datetime) -> Response:
        """Return the document, or 304 if the client has it (RFC 9110 §13)."""
        headers = {
            "ETag": self.etag,
            "Cache-Control": f"public, max-age={self.kept_seconds(now)}, no-transform, must-revalidate",
        }
        if self.last_modified is not None:
            headers["Last-Modified"] = format_datetime(self.last_modified, usegmt=True)
        if self.expires is not None:
            headers["Expires"] = format_datetime(self.expires, usegmt=True)
        known, since = request.headers.getlist("if-none-match"), request.headers.getlist("if-modified-since")
        if is_current(known, since, self.etag, self.last_modified):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


class _Lists:
    """CRLs as documents, each made once: one of 100,000 entries takes 30 ms as PEM, in which nobody else is served."""

    def __init__(self, publishers: Mapping[str, CrlPublisher]) -> None:
        self._publishers = publishers
        self._made: Final[dict[tuple[str, bool], tuple[PublishedCrl, _Document]]] = {}

    def document(self, name: str, *, pem: bool) -> _Document:
        """Return the present list or delta called *name*; raise `Refused` if there is none."""
        crl = self._present(name)
        crl_made, made = self._made.get((name, pem), (None, None))
        if made is None or crl_made is not crl:
            kind = "application/x-pem-file" if pem else "application/pkix-crl"
            made = _Document(armoured("X509 CRL", crl.der) if pem else crl.der, kind, crl.this_update, crl.next_update)
            self._forget_gone()
            self._made[name, pem] = crl, made
        return made

    def _forget_gone(self) -> None:
        """Forget the lists that are served no more: of CAs that were retired, and of their shards."""
        for gone in [each for each in self._made if each[0].partition(".")[0] not in self._publishers]:
            del self._made[gone]

    def _present(self, name: str) -> PublishedCrl:
        whole, _, delta = name.partition(".")
        publisher = self._publishers.get(whole)
        if publisher is not None and delta == "delta" and publisher.delta is not None:
            return publisher.delta
        if publisher is None or publisher.current is None or delta:
            raise Refused(Code.NOT_FOUND, f"there is no CA {name[:64]!r}; there are {', '.join(self._publishers)}")
        return publisher.current


def relying_party_routes(
    publishers: Mapping[str, CrlPublisher], authorities: Mapping[str, x509.Certificate], clock: Callable[[], datetime]
) -> list[Route]:
    """Return the routes of the plain HTTP port, for CAs by name."""
    lists = _Lists(publishers)

    async def crl_der(request: Request) -> Response:
        return lists.document(request.path_params["name"], pem=False).answer(request, clock())

    async def crl_pem(request: Request) -> Response:
        return lists.document(request.path_params["name"], pem=True).answer(request, clock())

    async def bundle(request: Request) -> Response:
        pem = pem_of(*authorities.values())
        # No date: it changes when a CA goes, too, and a client that asked by date would go on trusting it.
        return _Document(pem, "application/x-pem-file", None).answer(request, clock())

    async def ca_certificate(request: Request) -> Response:
        name = request.path_params["name"]
        certificate = authorities.get(name)
        if certificate is None:
            raise Refused(Code.NOT_FOUND, f"there is no CA {name[:64]!r}; there are {', '.join(authorities)}")
        der = certificate.public_bytes(Encoding.DER)
        return _Document(der, "application/pkix-cert", certificate.not_valid_before_utc).answer(request, clock())

    return [
        Route("/crl/{name}.crl", crl_der),
        Route("/crl/{name}.pem", crl_pem),
        Route("/ca/bundle.pem", bundle),
        Route("/ca/{name}.crt", ca_certificate),
    ]
