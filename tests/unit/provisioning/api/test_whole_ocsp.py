"""An OCSP request that has come whole is answered as one that went through the interface, to the byte."""

from __future__ import annotations

import base64
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.x509 import ocsp
from starlette.types import Scope

from provisioning.api.application import ocsp_rates
from provisioning.api.metrics import Metrics
from provisioning.api.ocsp import MAXIMUM_PATH, MAXIMUM_REQUEST, OcspEndpoint, OcspQuestions
from provisioning.api.whole_ocsp import WholeOcsp
from provisioning.ca.ocsp import OcspRefused
from provisioning.config import Settings
from provisioning.connections.written_answer import ReadyAnswer
from provisioning.errors import Code, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation import ocsp as ocsp_module
from tests.support.asgi import through
from tests.support.fleet import Fleet
from tests.support.ocsp import SHA1, SHA256, request_der
from tests.support.responding import DAY, Responding

TYPE = (b"content-type", b"application/ocsp-request")


@pytest.fixture
async def responding(fleet: Fleet) -> Responding:
    return await Responding.on(fleet)


def scope(method: str, path: str, *headers: tuple[bytes, bytes]) -> Scope:
    return {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": list(headers),
            "client": ("192.0.2.1", 1), "extensions": {}}  # fmt: skip


def posted(*headers: tuple[bytes, bytes]) -> Scope:
    return scope("POST", "/ocsp", *headers)


def got(request: bytes, *headers: tuple[bytes, bytes]) -> Scope:
    return scope("GET", f"/ocsp/{quote(base64.b64encode(request), safe='')}", *headers)


async def whole(questions: OcspQuestions, asked: Scope, body: bytes = b"") -> bytes:
    """Return the answer as it is written."""
    taking = WholeOcsp(questions)
    assert taking.takes(asked["method"].encode(), asked["raw_path"], len(body))
    answering = taking.answering(asked, body)
    ready = answering if isinstance(answering, ReadyAnswer) else await answering
    assert isinstance(ready, ReadyAnswer)
    return ready.written(b"", closes=False)


async def through_the_interface(questions: OcspQuestions, asked: Scope, body: bytes = b"") -> bytes:
    answer = await through(OcspEndpoint(nobody, questions=questions, body_seconds=10), asked, body)
    status = HTTPStatus(answer.status_code)
    lines = b"".join(b"%b: %b\r\n" % header for header in answer.raw_headers)
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() + lines + b"\r\n" + bytes(answer.body)


async def nobody(*_: Any) -> None:
    raise AssertionError("nothing is behind it")


async def test_both_ways_give_the_same_answer(responding: Responding, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = OcspQuestions(responding.responder)
    certificate = await responding.fleet.enrol()
    other = await responding.fleet.enrol("meter-18")
    await responding.revocation.revoke_device("meter-18", RevocationReason.KEY_COMPROMISE, by="admin")
    issuer, root = responding.issuer, responding.fleet.authority.root_ca.certificate
    good, old, revoked = (
        request_der(certificate, issuer),
        request_der(certificate, issuer, SHA1),
        request_der(other, issuer),
    )
    (etag,) = (
        line[6:] for line in (await whole(questions, posted(TYPE), good)).split(b"\r\n") if line.startswith(b"etag: ")
    )
    longest = "M" * (MAXIMUM_PATH - 6)
    asked = [
        *((posted(TYPE), body, 200) for body in (good, old, revoked)),
        *((got(body), b"", 200) for body in (good, old, revoked)),
        (posted((b"content-type", b"Application/OCSP-Request; x=y")), good, 200),
        (posted((b"content-type", b"text/plain")), good, 415),
        (posted(), good, 415),
        *((posted(TYPE), body, 200) for body in (b"", b"nonsense", bytes(MAXIMUM_REQUEST))),
        (posted(TYPE), request_der(certificate, root), 200),
        (posted(TYPE), request_der(certificate, issuer, nonce=bytes(129)), 200),
        *((scope("GET", path), b"", 200) for path in ("/ocsp/", "/ocsp//", "/ocsp/***", f"/ocsp/{longest}")),
        (got(good, (b"if-none-match", etag)), b"", 304),
        (got(good, (b"if-none-match", b'"another"')), b"", 200),
        (got(good, (b"if-modified-since", b"Sun, 01 Mar 2026 12:00:00 GMT")), b"", 200),
        (got(good, (b"if-modified-since", b"Sun, 01 Mar 2015 12:00:00 GMT")), b"", 200),
    ]  # fmt: skip
    for each, body, status in asked:
        first, second = await whole(questions, each, body), await through_the_interface(questions, each, body)
        assert first == second, (each, body)
        assert int(first.split()[1]) == status, (each, body)

    # A signature is another each time, so where nothing is remembered what is around it is compared.
    for request in (request_der(certificate, issuer, nonce=b"n" * 32), request_der(root, issuer)):
        first, second = (
            await whole(questions, posted(TYPE), request),
            await through_the_interface(questions, got(request)),
        )
        heads, bodies = zip(*(each.split(b"\r\n\r\n", 1) for each in (first, second)), strict=True)
        signed = [ocsp.load_der_ocsp_response(each) for each in bodies]
        assert signed[0].tbs_response_bytes == signed[1].tbs_response_bytes
        own = (b"content-length", b"etag")  # Of a signature that is a byte longer.
        kept = [[line for line in head.split(b"\r\n") if not line.startswith(own)] for head in heads]
        assert kept[0] == kept[1]

    async def unavailable(*_: object) -> None:
        raise Refused(Code.UNAVAILABLE, "the store is away")

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(responding.fleet.database, "read", unavailable)
    responding.fleet.clock.advance(DAY)
    for failure in (b"\x0a\x01\x03", b"\x0a\x01\x02"):  # tryLater, then internalError
        first = await whole(questions, posted(TYPE), good)
        assert first == await through_the_interface(questions, posted(TYPE), good)
        assert first.endswith(failure)
        monkeypatch.setattr(responding.responder, "_asked", broken)
    assert questions.answered_so_far["try_later"] == questions.answered_so_far["internal_error"] == 2
    assert questions.answered_so_far["nonce"] == 2
    assert questions.answered_so_far["unauthorized"] == 2


@pytest.mark.parametrize("ask", [whole, through_the_interface])
async def test_who_goes_by_the_date_of_his_answer_hears_of_a_revocation_in_the_same_second(
    responding: Responding, ask: Any
) -> None:
    questions = OcspQuestions(responding.responder)
    request = request_der(await responding.fleet.enrol(), responding.issuer)
    (date,) = (
        line[15:] for line in (await ask(questions, got(request))).split(b"\r\n") if line.startswith(b"last-modified: ")
    )
    await responding.revocation.revoke_device("meter-17", RevocationReason.KEY_COMPROMISE, by="admin")
    answer = await ask(questions, got(request, (b"if-modified-since", date)))
    assert answer.startswith(b"HTTP/1.1 200 ")
    told = ocsp.load_der_ocsp_response(answer.partition(b"\r\n\r\n")[2])
    assert told.certificate_status is ocsp.OCSPCertStatus.REVOKED


@pytest.mark.parametrize(
    ("method", "target", "size"),
    [
        (b"POST", b"/ocsp/", 1), (b"POST", b"/ocsp?x", 1), (b"POST", b"/ocspx", 1), (b"POST", b"//ocsp", 1),
        (b"POST", b"/ocsp", MAXIMUM_REQUEST + 1), (b"PUT", b"/ocsp", 1), (b"HEAD", b"/ocsp/MAA=", 0),
        (b"GET", b"/ocsp", 0), (b"GET", b"/ocsp/MAA=", 1), (b"GET", b"/ocsp/MAA=?x", 0), (b"GET", b"/ocsp/MAA=#x", 0),
        (b"GET", b"/ocsp/MA\xc3\xa4=", 0), (b"GET", b"/ocsp/" + b"M" * MAXIMUM_PATH, 0), (b"GET", b"/crl/a.crl", 0),
        (b"GET", b"http://localhost/ocsp/MAA=", 0),
    ],
)  # fmt: skip
def test_what_is_odd_is_left_to_the_interface(method: bytes, target: bytes, size: int) -> None:
    unused: Any = None
    assert not WholeOcsp(OcspQuestions(unused)).takes(method, target, size)


async def test_a_caller_has_one_bucket_whichever_way_his_requests_take(responding: Responding) -> None:
    settings = Settings().model_copy(update={"ocsp_requests_per_second": 0.001, "request_burst": 3})
    questions = OcspQuestions(responding.responder, ocsp_rates(settings, Metrics()))
    request = request_der(await responding.fleet.enrol(), responding.issuer)
    ways = [whole, through_the_interface, whole, whole, through_the_interface]
    statuses = [(await way(questions, posted(TYPE), request)).split()[1] for way in ways]
    assert statuses == [b"200", b"200", b"200", b"429", b"429"]
    assert b"retry-after: " in await whole(questions, got(request))


async def test_what_is_remembered_of_a_question_outlives_no_change(
    responding: Responding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ocsp_module, "_QUESTIONS", 2)
    responder = responding.responder
    names = ("meter-1", "meter-2", "meter-3")
    requests = {name: request_der(await responding.fleet.enrol(name), responding.issuer, SHA256) for name in names}

    def status(name: str) -> ocsp.OCSPCertStatus | None:
        answer = responder.answer_at_once(requests[name])
        return None if answer is None else ocsp.load_der_ocsp_response(answer.der).certificate_status

    for name in names:
        assert status(name) is None, "it was not looked up yet"
        await responder.answer(requests[name])
        assert status(name) is ocsp.OCSPCertStatus.GOOD
        assert len(responder._questions) <= 2
    await responding.revocation.revoke_device("meter-3", RevocationReason.KEY_COMPROMISE, by="admin")
    assert status("meter-3") is None
    await responder.answer(requests["meter-3"])
    assert status("meter-3") is ocsp.OCSPCertStatus.REVOKED
    responding.fleet.clock.advance(responder.remembered)
    assert status("meter-3") is None
    responder.answer_for([])
    with pytest.raises(OcspRefused):
        status("meter-3")
