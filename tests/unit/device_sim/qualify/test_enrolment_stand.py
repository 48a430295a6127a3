"""The enrolment service to which a device comes: what it notes, answers and puts off."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_sim.qualify.enrolment_stand import EnrolmentStand
from device_sim.qualify.papers import Papers, ServerPaper, ServerStaple
from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentUnavailable, EstClient
from provisioning.pki.keys import generate_key
from tests.support.curl import HOW_IT_IS_SENT, Curl
from tests.support.requests import OF_A_TPM

PAPERS = Papers("meter-1", ["localhost", "127.0.0.1"])
EST = "/.well-known/est"


def request() -> x509.CertificateSigningRequest:
    return build_csr(generate_key(), "meter-1")


def enrolment(path: str = "simpleenroll") -> bytes:
    body = base64.b64encode(request().public_bytes(Encoding.DER))
    return b"POST %s/%s HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (EST.encode(), path.encode(), len(body), body)


async def said(stand: EnrolmentStand, data: bytes, *, to_the_end: bool = True) -> bytes:
    """Return the answer to *data*; if not *to_the_end*, leave when it is sent."""
    context = ssl.create_default_context(cadata=PAPERS.anchors)
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port, ssl=context, server_hostname="localhost")
    try:
        writer.write(data)
        await writer.drain()
        return await reader.read() if to_the_end else b""
    finally:
        writer.close()
        await writer.wait_closed()


async def noted(stand: EnrolmentStand) -> None:
    while not any(each.sent_data for each in stand.arrivals):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "data", [b"P", b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nAuthorization: Basic bTp0", b"\x10\x0c\x00\x04MQTT"]
)
async def test_whatever_a_device_sends_is_sent_whether_it_is_a_request_or_not(data: bytes) -> None:
    async with EnrolmentStand(PAPERS, "127.0.0.1", paper=ServerPaper.GOOD) as stand:
        await said(stand, data, to_the_end=False)
        await asyncio.wait_for(noted(stand), 30.0)
        assert stand.asked == []


async def test_who_refuses_the_service_or_says_nothing_has_come_and_sent_nothing() -> None:
    async with EnrolmentStand(PAPERS, "127.0.0.1", paper=ServerPaper.OTHER_CA) as stand:
        with pytest.raises(ssl.SSLCertVerificationError):
            await said(stand, enrolment())
        await said_nothing(stand)
        assert [(each.hello is None, each.sent_data) for each in stand.arrivals] == [(False, False), (True, False)]


async def test_a_token_that_is_sent_without_tls_is_sent() -> None:
    """A device that falls back to http:// has told everybody on the way."""
    async with EnrolmentStand(PAPERS, "127.0.0.1", paper=ServerPaper.OTHER_CA) as stand:
        reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
        writer.write(enrolment())
        with contextlib.suppress(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 30.0)
        writer.close()
        assert [(each.in_clear, each.sent_data) for each in stand.arrivals] == [(True, True)]


async def said_nothing(stand: EnrolmentStand) -> None:
    """Connect below TLS, and leave."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    writer.write_eof()
    await asyncio.wait_for(reader.read(), 30.0)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("status", [HTTPStatus.ACCEPTED, HTTPStatus.SERVICE_UNAVAILABLE])
async def test_the_first_enrolment_is_put_off_whatever_was_asked_before(status: HTTPStatus) -> None:
    """A device may ask for the CA's certificates first (RFC 7030 §4.1.1), or when to renew (RFC 9773)."""
    async with EnrolmentStand(PAPERS, "127.0.0.1", status=status, retry_after=7) as stand:
        async with EstClient(f"https://127.0.0.1:{stand.port}", PAPERS.anchors) as est:
            (ca,) = await est.ca_certificates()
            with pytest.raises(EnrolmentUnavailable) as put_off:
                await est.enrol(request())
            issued = await est.enrol(request())
        assert put_off.value.retry_after == 7
        assert [(each.path.rpartition("/")[2], each.status, each.enrols) for each in stand.asked] == [
            ("cacerts", HTTPStatus.OK, False),
            ("simpleenroll", status, True),
            ("simpleenroll", HTTPStatus.OK, True),
        ]
        issued.verify_directly_issued_by(ca)
        assert [each.serial for each in stand.asked] == [None, None, issued.serial_number]


@pytest.mark.parametrize("stapled", [each for each in ServerStaple if each is not ServerStaple.GOOD])
async def test_a_service_with_a_wrong_staple_is_told_nothing_by_our_own_client(stapled: ServerStaple) -> None:
    async with EnrolmentStand(PAPERS, "127.0.0.1", paper=ServerPaper.MUST_STAPLE, stapled=stapled) as stand:
        async with EstClient(f"https://127.0.0.1:{stand.port}", PAPERS.anchors) as est:
            with pytest.raises(EnrolmentUnavailable):
                await est.enrol(request())
        (arrival,) = stand.arrivals
        assert (arrival.hello is not None and arrival.hello.asks_for_staple, arrival.sent_data) == (True, False)


async def test_with_a_good_staple_it_is() -> None:
    async with (
        EnrolmentStand(PAPERS, "127.0.0.1", paper=ServerPaper.MUST_STAPLE) as stand,
        EstClient(f"https://127.0.0.1:{stand.port}", PAPERS.anchors) as est,
    ):
        await est.enrol(request())


@pytest.mark.parametrize("options", HOW_IT_IS_SENT.values(), ids=list(HOW_IT_IS_SENT))
async def test_a_request_is_read_however_http_lets_it_be_sent(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "ca.crt").write_text(PAPERS.anchors)
    body = base64.encodebytes(request().public_bytes(Encoding.DER))
    async with EnrolmentStand(PAPERS, "127.0.0.1") as stand:
        curl = Curl(f"https://127.0.0.1:{stand.port}", tmp_path / "ca.crt")
        answer = await asyncio.wait_for(asyncio.to_thread(curl.est, "simplereenroll", body, *options), 30.0)
    assert (answer.status, answer.headers["Content-Type"].partition(";")[0]) == (200, "application/pkcs7-mime")
    assert [(each.path, each.status, each.serial is not None) for each in stand.asked] == [
        (f"{EST}/simplereenroll", HTTPStatus.OK, True)
    ]


@pytest.mark.parametrize(
    ("query", "encoded"),
    [
        pytest.param("?device=meter-1", lambda csr: base64.b64encode(csr.public_bytes(Encoding.DER)), id="query"),
        pytest.param("", lambda csr: csr.public_bytes(Encoding.PEM), id="PEM"),
        pytest.param("", lambda csr: b"Certificate Request:\n" + csr.public_bytes(Encoding.PEM), id="openssl -text"),
        pytest.param("", lambda _: base64.b64encode(OF_A_TPM), id="TPM"),
    ],
)
async def test_what_our_service_takes_in_excess_of_est_is_taken(
    tmp_path: Path, query: str, encoded: Callable[[x509.CertificateSigningRequest], bytes]
) -> None:
    (tmp_path / "ca.crt").write_text(PAPERS.anchors)
    async with EnrolmentStand(PAPERS, "127.0.0.1") as stand:
        curl = Curl(f"https://127.0.0.1:{stand.port}", tmp_path / "ca.crt")
        answer = await asyncio.to_thread(curl.est, f"simplereenroll{query}", encoded(request()))
    assert answer.status == 200, answer.text
    assert [each.enrols for each in stand.asked] == [True]


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param(b"8000\r\n" + b"A" * 0x8000 + b"\r\n", id="chunks"),
        pytest.param(b"8000;" + b"a" * 0x8000, id="a chunk's extension"),
        pytest.param(b"0\r\nX: " + b"a" * 0x8000, id="a trailer"),
    ],
)
async def test_what_has_no_end_is_no_request(endless: bytes) -> None:
    async with EnrolmentStand(PAPERS, "127.0.0.1") as stand:
        head = f"POST {EST}/simpleenroll HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        tail = endless if endless.startswith(b"8000\r\n") else b"a" * 0x8000
        with contextlib.suppress(OSError):  # It is closed while more is on its way.
            assert await asyncio.wait_for(said(stand, head + endless + tail * 8), 10.0) == b""
        assert [(each.sent_data, stand.asked) for each in stand.arrivals] == [(True, [])]
