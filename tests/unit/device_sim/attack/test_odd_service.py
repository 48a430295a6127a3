"""Whatever a service answers that is attacked, it is told as its answer, and ends no run."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtensionOID

from device_sim.attack.asking import calls, open_client, posts
from device_sim.attack.desk import EnrolmentDesk
from device_sim.attack.published_cases import _list, _responder_says
from device_sim.attack.target import BrokenPromise
from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.est import EstClient, WrongCertificate
from provisioning.pki.identity import PROVISIONING, Identity
from provisioning.pki.role import Role
from tests.support.crl import crl
from tests.support.impostor import impostor
from tests.support.pki import DOMAIN, SERVER, Pki
from tests.support.responder import Responder
from tests.support.web import WebServer

PKI = Pki()
SERVICE = PKI.certify(Identity(DOMAIN, Role.SERVICE, PROVISIONING), purposes=SERVER, names=[x509.DNSName("localhost")])
OPERATOR = PKI.certify(Identity(DOMAIN, Role.OPERATOR, "admin")).credential


@pytest.mark.parametrize(
    ("status", "headers", "body", "text"),
    [
        (302, b"Location: mailto:x\r\n", b"", "http 302"),
        (302, b"Location: http://xn--/\r\n", b"", "http 302"),
        (403, b"Content-Type: application/json; charset=hex\r\n", b'{"code": "OTHER"}', "http 403 OTHER"),
        (403, b"Content-Type: application/problem+json\r\n", b'{"code":', "http 403"),
        (403, b"Content-Type: application/problem+json\r\n", b"[1]", "http 403"),
        (403, b"Content-Type: application/json\r\n", b"[" * 100_000, "http 403"),
    ],
)
async def test_what_the_operators_api_answers_is_told(
    status: int, headers: bytes, body: bytes, text: str, tmp_path: Path
) -> None:
    anchors = tmp_path / "ca-bundle.crt"
    anchors.write_text(PKI.anchors)
    answer = b"HTTP/1.1 %d Said\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body)
    async with (
        impostor(SERVICE.credential, PKI.anchors, answer=answer) as (url, _),
        EnrolmentOperatorClient(url, PKI.anchors, OPERATOR) as operator,
    ):
        assert (await calls(EnrolmentDesk(url, anchors, operator), None, "/v1/tokens", {})).text == text


CERTIFICATE = PKI.device("meter-1").certificate
GRANTED = base64.b64encode(pkcs7.serialize_certificates([CERTIFICATE], Encoding.DER))


@pytest.mark.parametrize(
    ("status", "body", "text", "reason"),
    [
        (200, GRANTED, "http issued", f"serial {CERTIFICATE.serial_number:x}"),
        (200, b"MII" * 5000, "http 200", "MII" * 66 + "MI"),
        (200, b"\xff\xff", "http 200", "\ufffd\ufffd"),
        (400, b"CSR_SIGNATURE: it does not verify", "http 400 CSR_SIGNATURE", "CSR_SIGNATURE: it does not verify"),
        (400, b"no" * 5000, "http 400", "no" * 100),
        (400, b"NO" * 5000, "http 400", "NO" * 100),
    ],
)
async def test_what_the_service_answers_to_a_request_is_told_in_a_line(
    tmp_path: Path, status: int, body: bytes, text: str, reason: str
) -> None:
    """The certificate that it grants is thousands of letters."""
    (anchors := tmp_path / "ca-bundle.crt").write_text(PKI.anchors)
    answer = b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
    async with (
        impostor(SERVICE.credential, PKI.anchors, answer=answer) as (url, _),
        EnrolmentOperatorClient(url, PKI.anchors, OPERATOR) as operator,
    ):
        scene: Any = SimpleNamespace(target=SimpleNamespace(desk=EnrolmentDesk(url, anchors, operator)))
        seen = await posts(scene, b"a request", "meter-1", "a token")
    assert (seen.text, seen.reason.casefold(), seen.got_in) == (text, reason.casefold(), status == 200)


@pytest.mark.parametrize("soon_over", [True, False])
async def test_a_certificate_that_is_over_when_it_comes_is_taken_where_it_is_to_be_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, soon_over: bool
) -> None:
    """A case waits for that, and on a busy machine it is then that the answer comes."""
    (tmp_path / "ca-bundle.crt").write_text(PKI.anchors)
    over = PKI.device("meter-1", not_after=datetime.now(UTC) - timedelta(seconds=1)).certificate

    async def enrol(*_arguments: object, **_named: object) -> x509.Certificate:
        raise WrongCertificate("it has ended", over)

    monkeypatch.setattr(EstClient, "enrol", enrol)
    async with EnrolmentOperatorClient("https://localhost:1", PKI.anchors, OPERATOR) as operator:
        desk = EnrolmentDesk("https://localhost:1", tmp_path / "ca-bundle.crt", operator)
        with contextlib.nullcontext() if soon_over else pytest.raises(WrongCertificate):
            assert (await desk.enrolled("meter-1", "a token", soon_over=soon_over)).certificate == over


async def test_all_are_enrolled_by_the_same_connections_which_end_with_the_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca-bundle.crt").write_text(PKI.anchors)
    by: list[EstClient] = []

    async def enrol(self: EstClient, *_arguments: object, **_named: object) -> x509.Certificate:
        by.append(self)
        return PKI.device("meter-1").certificate

    monkeypatch.setattr(EstClient, "enrol", enrol)
    async with EnrolmentOperatorClient("https://localhost:1", PKI.anchors, OPERATOR) as operator:
        desk = EnrolmentDesk("https://localhost:1", tmp_path / "ca-bundle.crt", operator)
        for _ in range(2):
            await desk.enrolled("meter-1", "a token")
        assert by[0] is by[1]
        await desk.close()
    assert by[0]._pool.is_closed


async def test_no_proxy_of_the_environment_is_asked_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server, open_client() as client:
        assert (await client.get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")).content == b"ok"


def relying(web: WebServer) -> tuple[Any, Any, Any]:
    """Return a desk, a scene and a paper, as far as they tell where a device's revocation is published."""
    return (
        SimpleNamespace(relying_url=web.url),
        SimpleNamespace(target=SimpleNamespace(ca_certificate=PKI.issuing.certificate)),
        PKI.device("meter-1"),
    )


UNREADABLE = x509.UnrecognizedExtension(ExtensionOID.CRL_NUMBER, b"\x05")
VERSION_2, VERSION_9 = b"\x02\x01\x01\x30\x0a", b"\x02\x01\x08\x30\x0a"


@pytest.mark.parametrize(
    "published",
    [
        b"",
        crl(PKI.issuing).replace(VERSION_2, VERSION_9, 1),
        crl(PKI.issuing, number=None, more=UNREADABLE),
        crl(PKI.issuing, signed_by=PKI.root),
        crl(PKI.root),
    ],
    ids=["nothing", "unknown version", "unreadable number", "another's signature", "another's list"],
)
async def test_what_is_published_as_a_crl_and_is_none_is_told(published: bytes) -> None:
    with WebServer() as web:
        web.pages["/crl/issuing-ca.crl"] = published
        with pytest.raises(BrokenPromise, match="gives no CRL of the CA: "):
            await _list(*relying(web))


async def test_a_crl_is_told_from_what_is_none() -> None:
    with WebServer() as web:
        web.pages["/crl/issuing-ca.crl"] = published = crl(PKI.issuing)
        assert await _list(*relying(web)) == x509.load_der_x509_crl(published)


async def test_what_is_published_by_ocsp_and_no_answer_is_told() -> None:
    with WebServer() as web:
        web.pages["/ocsp"] = b"no answer"
        with pytest.raises(BrokenPromise, match="gives no OCSP response: "):
            await _responder_says(*relying(web), nonce=True)
        desk, scene, paper = relying(web)
        web.pages["/ocsp"] = Responder(PKI.issuing, PKI.issuing, [paper])
        assert await _responder_says(desk, scene, paper, nonce=True) == "good"
