"""Whatever a server answers, a client raises one of its own errors: its caller knows no others, and would end."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from broker.sources.ocsp_http import OcspHttp
from provisioning.client import whole_answer
from provisioning.client.csr import build_csr
from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.est import EnrolmentPending, EnrolmentRefused, EnrolmentUnavailable, EstClient
from provisioning.client.feed import follow_together, tell_known
from provisioning.client.feed_reader import FeedLost
from provisioning.client.list_download import NotFetched, download
from provisioning.client.operator import Page, RequestRefused, ServiceUnavailable
from provisioning.client.plain_http import PlainHttp
from provisioning.pki.identity import PROVISIONING, Identity
from provisioning.pki.keys import generate_key
from provisioning.pki.ocsp import OcspRefused
from provisioning.pki.role import Role
from tests.support.impostor import impostor
from tests.support.pki import DOMAIN, SERVER, Held, Pki
from tests.support.responder import Responder, delegate, question_about

PKI = Pki()
SERVICE = PKI.certify(Identity(DOMAIN, Role.SERVICE, PROVISIONING), purposes=SERVER, names=[x509.DNSName("localhost")])
BROKER = PKI.broker().credential
PROOF = Responder(PKI.issuing, delegate(PKI), [SERVICE], nonce=False)(question_about(SERVICE)) or b""
ERRORS = (EnrolmentRefused, EnrolmentUnavailable, RequestRefused, ServiceUnavailable, FeedLost)
JSON = "application/json"
NAIVE = b'{"tokens": [{"role": "device", "token": "t", "expires_at": "2027-01-01T00:00:00"}]}'
"""Shown, it would be a time of where the client is."""


def written(status: int, body: bytes = b"", kind: str = JSON, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", f"Content-Type: {kind}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


@asynccontextmanager
async def service(answer: bytes) -> AsyncIterator[str]:
    async with impostor(SERVICE.credential, PKI.anchors, response=PROOF, answer=answer) as (url, _):
        yield url


async def enrol(url: str) -> object:
    async with EstClient(url, PKI.anchors) as est:
        return await est.enrol(build_csr(generate_key(), "meter-1"), user="meter-1", token="t")


async def renewal(url: str) -> Any:
    async with EstClient(url, PKI.anchors) as est:
        return await est.renewal_info(SERVICE.certificate)


async def follow(url: str) -> object:
    async with aclosing(follow_together(url, PKI.anchors, BROKER, 0)) as feed:
        return await anext(feed)


async def tell(url: str) -> None:
    await tell_known(url, PKI.anchors, BROKER, {"issuing-ca": True})


def operator(call: Callable[[EnrolmentOperatorClient], Awaitable[object]]) -> Callable[[str], Awaitable[object]]:
    async def called(url: str) -> object:
        async with EnrolmentOperatorClient(url, PKI.anchors, BROKER) as client:
            return await call(client)

    return called


CALLS: dict[str, Callable[[str], Awaitable[object]]] = {
    "enrol": enrol,
    "renewal": renewal,
    "feed": follow,
    "tell": tell,
    "status": operator(lambda client: client.status()),
    "counts": operator(lambda client: client.count_certificates()),
    "operators": operator(lambda client: client.operators()),
    "names": operator(lambda client: client.names("devices", "meter")),
    "token": operator(lambda client: client.create_tokens(device="meter-1")),
}
PLACES = ["http://xn--/x", "//xn--a.example/", "mailto:x", "https://[::", "https://ca.example:99999/", "/elsewhere"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("place", PLACES)
async def test_where_a_redirect_leads_is_not_read(place: str, call: str) -> None:
    async with service(written(302, b"", JSON, f"Location: {place}")) as url:
        with pytest.raises(ERRORS):
            await CALLS[call](url)


@pytest.mark.parametrize("place", PLACES)
async def test_where_anybody_on_the_way_of_a_crl_or_an_ocsp_response_redirects_to_is_not_read(place: str) -> None:
    """It would end the task that fetches them, and with that the broker: a bug does."""

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(written(302, b"", JSON, f"Location: {place}", "Connection: close"))
        writer.close()

    http, ocsp = PlainHttp(5), OcspHttp()
    async with await asyncio.start_server(redirect, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        with pytest.raises(NotFetched, match=r"^HTTP status 302$"):
            await download(http, url, etag="", modified="", most_bytes=9)
        with pytest.raises(OcspRefused, match=r"^HTTP status 302$"):
            await ocsp.ask(url, 7, PKI.issuing.certificate)
    await http.close()
    await ocsp.close()


@pytest.mark.parametrize("charset", ["hex", "rot13", "idna", "undefined", "no-such"])
@pytest.mark.parametrize("call", ["enrol", "renewal", "feed", "tell"])
async def test_a_refusal_is_text_whatever_it_calls_itself(charset: str, call: str) -> None:
    async with service(written(403, b"NAME_TAKEN: \xc3\xa4", f"text/plain; charset={charset}")) as url:
        with pytest.raises(ERRORS, match="NAME_TAKEN: ä"):
            await CALLS[call](url)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-01-01T00:00:00", "2026-01-02T00:00:00Z"),  # Without a time zone.
        ("0001-01-01T00:00:00+01:00", "2026-01-02T00:00:00Z"),
        ("2026-01-01T00:00:00Z", "9999-12-31T23:59:59-01:00"),
    ],
)
async def test_a_time_that_utc_has_not_is_no_renewal_information(start: str, end: str) -> None:
    async with service(written(200, json.dumps({"suggestedWindow": {"start": start, "end": end}}).encode())) as url:
        with pytest.raises(EnrolmentUnavailable, match="sent no readable renewal information"):
            await renewal(url)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("status", [200, 403])
async def test_json_that_is_nested_without_end_is_none(status: int, call: str) -> None:
    async with service(written(status, b"[" * 100_000)) as url:
        with pytest.raises(ERRORS):
            await CALLS[call](url)


@pytest.mark.parametrize(
    ("call", "document", "said"),
    [
        ("status", b"{}", "without a valid devices, certificates, tokens, feed, crls"),
        ("counts", b'{"active": "many"}', "without a valid counts.active"),
        ("counts", b'{"active": null}', "without a valid counts.active"),
        ("operators", b"{}", "without a valid items"),
        ("operators", b'{"items": [1]}', "without a valid items.0"),
        ("names", b'{"items": [{}], "next": null}', "without a valid name"),
        ("token", b'{"tokens": []}', "sent 0 tokens, and was asked for 1"),
        ("token", NAIVE, "without a valid .*expires_at"),
    ],
)
async def test_what_is_missing_in_an_answer_is_named(call: str, document: bytes, said: str) -> None:
    async with service(written(200, document)) as url:
        with pytest.raises(ServiceUnavailable, match=said):
            await CALLS[call](url)


WHOLE = [each for each in CALLS if each not in {"feed", "tell"}]  # Of the feed: `test_feed_answers`.
CHUNKED = b"HTTP/1.1 403 Said\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("call", WHOLE)
async def test_an_answer_without_an_end_is_given_up(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_answer, "MOST_BYTES", 100_000)
    async with service(CHUNKED + b"4000\r\n%b\r\n" % bytes(0x4000) * 7) as url:
        with pytest.raises(ERRORS, match=r"is given up: more than 100000 bytes$"):
            await CALLS[call](url)


@pytest.mark.parametrize("call", WHOLE)
async def test_an_answer_that_does_not_come_is_given_up(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each drop of it comes within the library's time limit."""
    monkeypatch.setattr(whole_answer, "_SECONDS", 0.5)
    ended = asyncio.Event()
    half = impostor(SERVICE.credential, PKI.anchors, response=PROOF, answer=CHUNKED + b"1\r\n{\r\n", until=ended)
    async with half as (url, _), asyncio.timeout(60):
        with pytest.raises(ERRORS, match=r"is given up: it is not here after 0\.5 s$"):
            await CALLS[call](url)
        ended.set()


@pytest.mark.parametrize("call", WHOLE)
async def test_a_few_bytes_do_not_stand_for_many(call: str) -> None:
    bomb = written(200, gzip.compress(b" " * 1_000_000), JSON, "Content-Encoding: gzip")
    async with service(bomb) as url:
        with pytest.raises(ERRORS, match="is given up: the answer is compressed"):
            await CALLS[call](url)


async def test_a_list_whose_page_follows_itself_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async with EnrolmentOperatorClient("https://ca", PKI.anchors, BROKER) as client:

        async def again(*_arguments: object, **_named: object) -> Any:
            return client._read(Page, {"items": [], "next": "meter-1"})

        monkeypatch.setattr(client, "_call", again)
        with pytest.raises(ServiceUnavailable, match="a page that follows itself"):
            [each async for each in client.devices()]


async def test_a_name_that_no_request_has_room_for_is_refused() -> None:
    async with EnrolmentOperatorClient("https://ca", PKI.anchors, BROKER) as client:
        with pytest.raises(RequestRefused, match=r"^the request is too long \(URL too long\)"):
            await client.device("m" * 70_000)
        with pytest.raises(RequestRefused, match="too long"):
            [each async for each in client.devices(group="m" * 70_000)]


@pytest.mark.parametrize(
    ("asked", "waited"),
    [("40", 40.0), ("0", 0.0), ("86401", 86_400.0), ("9" * 5000, 86_400.0), ("-1", None), ("nan", None), ("1e9", None)],
)
async def test_nobody_waits_for_longer_than_a_day(asked: str, waited: float | None) -> None:
    for status, error in ((503, EnrolmentUnavailable), (202, EnrolmentPending)):
        async with service(written(status, b"later", "text/plain", f"Retry-After: {asked}")) as url:
            with pytest.raises(error) as caught:
                await enrol(url)
            assert caught.value.retry_after == waited


@pytest.mark.parametrize(("asked", "waited"), [("21600", 21_600.0), ("1", 60.0), ("9" * 400, 86_400.0), ("soon", None)])
async def test_renewal_is_asked_about_once_a_minute_at_most_and_once_a_day_at_least(
    asked: str, waited: float | None
) -> None:
    """RFC 9773 §4.3.2."""
    window = b'{"suggestedWindow": {"start": "2027-01-01T00:00:00Z", "end": "2027-01-02T00:00:00Z"}}'
    async with service(written(200, window, JSON, f"Retry-After: {asked}")) as url:
        assert (await renewal(url)).retry_after == waited


METER = PKI.device("meter-1")
LONG_AGO, ENDED = PKI.now - timedelta(days=2), PKI.now - timedelta(days=1)


@pytest.mark.parametrize(
    ("given", "wrong", "renewed"),
    [
        (PKI.device("meter-1"), None, None),
        (PKI.device("meter-2"), "it is that of spiffe://fleet.internal/device/meters/meter-2", ""),
        (PKI.device("meter-1", "north"), None, "it is that of spiffe://fleet.internal/device/north/meter-1, not of "),
        (PKI.service("meter-1"), None, "it is that of spiffe://fleet.internal/service/meter-1, not of "),
        (PKI.device("meter-1", uris=["spiffe://x.example/device/meters/meter-1"]), None, "it is that of spiffe://x.ex"),
        (PKI.device("meter-1", uris=[]), "the certificate has no Subject Alternative Name", ""),
        (PKI.device("meter-1", common_name="meter-2"), r"the Common Name \['meter-2'\] is not the name in spiffe:", ""),
        (PKI.device("meter-1", not_before=LONG_AGO, not_after=ENDED), "it has ended on 20", ""),
    ],
    ids=["its own", "another", "of a group", "of a role", "of a fleet", "nobody's", "of two names", "ended"],
)
async def test_a_certificate_that_is_not_what_was_asked_for_is_not_taken(
    given: Held, wrong: str | None, renewed: str | None
) -> None:
    """It is for the right key: who takes it has replaced a certificate that works by one that does not."""
    content = base64.b64encode(pkcs7.serialize_certificates([given.certificate], Encoding.DER))
    async with service(written(200, content, "application/pkcs7-mime")) as url:
        for held, said in ((None, wrong), (METER, renewed if renewed != "" else wrong)):
            csr = build_csr(given.key, "meter-1", like=held.certificate if held else None)
            async with EstClient(url, PKI.anchors, held.credential if held else None) as est:
                asked = est.enrol(csr, user="meter-1", token="t") if held is None else est.reenrol(csr)
                if said is None:
                    assert await asked == given.certificate
                else:
                    with pytest.raises(EnrolmentUnavailable, match=f"a certificate that nobody asked for: {said}"):
                        await asked
