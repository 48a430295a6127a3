"""What relying parties fetch: who has it already, and who only believes so."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import httpx
import pytest
from cryptography import x509
from starlette.applications import Starlette

from provisioning.api.relying import _Lists, relying_party_routes
from provisioning.store.crls import PublishedCrl
from tests.support.pki import shared_pki
from tests.support.requests import NOON


async def test_a_client_that_asks_by_date_hears_that_a_ca_is_trusted_no_longer() -> None:
    pki = shared_pki()
    revoked, kept = pki.authority("Issuing CA 1"), pki.authority("Issuing CA 2")
    told: dict[str, x509.Certificate] = {"issuing-ca": revoked.certificate, "issuing-2": kept.certificate}
    app = Starlette(routes=list(relying_party_routes({}, told, lambda: NOON)))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ca.example.org")
    before = await client.get("/ca/bundle.pem")
    tag = {"If-None-Match": before.headers["ETag"]}
    assert (await client.get("/ca/bundle.pem", headers=tag)).status_code == 304
    told.pop("issuing-ca")
    by_date = {"If-Modified-Since": before.headers.get("Last-Modified", "Fri, 01 Jan 2100 00:00:00 GMT")}
    for conditions in (by_date, tag, tag | by_date):
        answer = await client.get("/ca/bundle.pem", headers=conditions)
        assert (answer.status_code, answer.content.count(b"BEGIN")) == (200, 1)
    one = await client.get("/ca/issuing-2.crt")
    same = await client.get("/ca/issuing-2.crt", headers={"If-Modified-Since": one.headers["Last-Modified"]})
    assert same.status_code == 304
    await client.aclose()


@dataclass
class _Publisher:
    current: PublishedCrl
    delta: PublishedCrl | None = None


@pytest.mark.parametrize("path", ["/crl/issuing-ca.pem", "/crl/issuing-ca.crl", "/crl/issuing-ca.delta.pem"])
async def test_a_list_is_encoded_once_however_often_it_is_asked_for(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked for the head alone, again and again, kept the service from all others for a few bytes each."""
    pem, delta = path.endswith("pem"), "delta" in path
    first, second = (
        PublishedCrl("issuing-ca", number, NOON, NOON + timedelta(hours=1), 0, bytes([number]) * 100)
        for number in (1, 2)
    )
    publisher = _Publisher(first, first)
    app = Starlette(routes=list(relying_party_routes({"issuing-ca": publisher}, {}, lambda: NOON)))  # type: ignore[dict-item]
    encoded = Counter[str]()
    every: list[tuple[object, str]] = [(base64, "encodebytes"), (hashlib, "sha256")]
    for module, name in every:
        monkeypatch.setattr(module, name, partial(_counted, getattr(module, name), encoded, name))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ca.example.org") as client:
        for crl in (first, second):
            publisher.current = crl
            publisher.delta = crl if delta else None
            answer = await client.get(path)
            for _ in range(3):
                assert (await client.head(path)).headers == answer.headers
                assert (await client.get(path, headers={"If-None-Match": answer.headers["ETag"]})).status_code == 304
            der = base64.b64decode(b"".join(answer.content.splitlines()[1:-1])) if pem else answer.content
            assert der == crl.der
    assert encoded == {"sha256": 2, **({"encodebytes": 2} if pem else {})}


def test_of_cas_that_are_retired_no_list_is_kept() -> None:
    """Some megabytes for each CA that there ever was, in a large fleet."""
    publishers: dict[str, _Publisher] = {}
    lists = _Lists(publishers)  # type: ignore[arg-type]
    kept = []
    for number in range(3):
        name = f"issuing-{number}"
        crl = PublishedCrl(name, number, NOON, NOON + timedelta(hours=1), 0, b"crl")
        publishers.clear()
        publishers[name] = _Publisher(crl, crl)
        for each, pem in ((name, False), (name, True), (f"{name}.delta", False)):
            assert lists.document(each, pem=pem).content
        kept.append(len(lists._made))
    assert kept == [3, 3, 3]


def _counted(function: Callable[[bytes], object], calls: Counter[str], name: str, content: bytes) -> object:
    calls[name] += 1
    return function(content)
