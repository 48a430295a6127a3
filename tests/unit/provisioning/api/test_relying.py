"""What relying parties fetch: who has it already, and who only believes so."""

from __future__ import annotations

import httpx
from cryptography import x509
from starlette.applications import Starlette

from provisioning.api.relying import relying_party_routes
from tests.support.pki import shared_pki


async def test_a_client_that_asks_by_date_hears_that_a_ca_is_trusted_no_longer() -> None:
    pki = shared_pki()
    revoked, kept = pki.authority("Issuing CA 1"), pki.authority("Issuing CA 2")
    told: dict[str, x509.Certificate] = {"issuing-ca": revoked.certificate, "issuing-2": kept.certificate}
    app = Starlette(routes=list(relying_party_routes({}, told)))
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
