"""Who is one caller: whom a certificate names, through all of his renewals."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from provisioning.api.rate_limit import RequestRates
from tests.support.pki import shared_pki


def scope(der: bytes | None, address: str = "192.0.2.1") -> dict[str, Any]:
    return {"path": "/", "client": (address, 1), "extensions": {"tls": {"client_cert_der": der}}}


def test_a_successor_has_no_bucket_of_its_own() -> None:
    rates = RequestRates(rate=0.001, burst=3, clock=lambda: 0.0, answer=lambda *_: Response(status_code=429))

    def refused(der: bytes | None, address: str = "192.0.2.1") -> bool:
        return rates.refuse(scope(der, address)) is not None

    pki = shared_pki()
    first, *successors = (pki.device("meter-1").der for _ in range(4))
    assert [refused(first), refused(first)] == [False, False]
    assert [refused(each) for each in successors] == [False, True, True]
    assert not refused(pki.device("meter-2").der)
    namesakes = [pki.authority("A name").der, pki.authority("A name", pki.root).der]
    assert [refused(each) for each in namesakes * 3] == [False] * 6, "of two issuers"
    assert not refused(b"what OpenSSL reads and the library does not")
    assert [refused(None) for _ in range(4)] == [False, False, False, True]
    assert not refused(None, "192.0.2.2")
