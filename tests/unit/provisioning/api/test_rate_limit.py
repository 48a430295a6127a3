"""Requests are counted by who asks: his certificate if he shows one, else the host that he asks from."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from provisioning.api.former_callers import PAUSE, FormerCallers
from provisioning.api.peer import peer_certificate, peer_certificate_der, tls_connection
from provisioning.api.rate_limit import Callers, RateLimit, RequestRates
from provisioning.enrolment.attempt import TlsConnection
from provisioning.enrolment.authentication import Standing
from provisioning.errors import Code, Refused
from tests.support.manufacturer import Manufacturer
from tests.support.panic import panic
from tests.support.pki import Pki, shared_device, shared_pki

ECDSA_WITH_SHA256 = bytes.fromhex("06082a8648ce3d040302")
METER, OTHER = shared_device("meter-1"), shared_device("meter-2")


class Asked:
    """A service behind the limit, and its clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.authorities = [shared_pki().root.certificate, shared_pki().issuing.certificate]
        self.reached = 0
        self.ended: set[x509.Certificate] = set()
        self.standing: dict[x509.Certificate, Standing] = {}
        self.asked: list[x509.Certificate] = []
        self.app = RateLimit(self._serve, refuse=RequestRates(
            rate=0.5, burst=2, clock=lambda: self.now, answer=self._answer, authorities=lambda: self.authorities,
            former=FormerCallers(self._standing_of, lambda: self.now),
        ).refuse)  # fmt: skip

    async def _standing_of(self, certificate: x509.Certificate) -> Standing:
        self.asked.append(certificate)
        return Standing.ENDED if certificate in self.ended else self.standing.get(certificate, Standing.GOOD)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.reached += 1
        if scope["type"] == "http":
            await Response(status_code=204)(scope, receive, send)

    @staticmethod
    def _answer(path: str, refusal: Refused, headers: Any) -> Response:
        return JSONResponse({"path": path, "code": refusal.code}, 429, headers)

    async def ask(self, host: str | None = "192.0.2.1", der: bytes | None = None, kind: str = "http") -> list[Message]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            raise AssertionError("nobody reads")

        scope: dict[str, Any] = {"type": kind, "path": "/x", "method": "GET", "headers": []}
        scope["client"] = None if host is None else (host, 1)
        scope["extensions"] = {"tls": {"client_cert_der": der}}
        await self.app(scope, receive, send)
        return sent

    async def status(self, host: str | None = "192.0.2.1", der: bytes | None = None) -> int:
        return int((await self.ask(host, der))[0]["status"])


async def test_who_asks_too_often_waits_and_is_told_how_long() -> None:
    asked = Asked()
    assert [await asked.status() for _ in range(3)] == [204, 204, 429]
    start, body = await asked.ask()
    assert (b"retry-after", b"2") in start["headers"]
    assert json.loads(body["body"]) == {"path": "/x", "code": Code.RATE_LIMITED}
    assert asked.reached == 2
    asked.now = 2.0
    assert [await asked.status() for _ in range(2)] == [204, 429]


async def test_each_host_and_each_certificate_has_its_own_count() -> None:
    asked = Asked()
    for host, der in (
        ("192.0.2.1", None),
        ("192.0.2.2", None),
        (None, None),
        ("192.0.2.1", METER.der),
        ("192.0.2.1", OTHER.der),
    ):
        assert [await asked.status(host, der) for _ in range(3)] == [204, 204, 429]
    assert await asked.status("192.0.2.9", METER.der) == 429, "from wherever it is shown"
    pki = shared_pki()
    assert await asked.status("192.0.2.9", pki.device("meter-1").der) == 429, "a successor is nobody else"
    elsewhere = pki.device("meter-1", issuer=pki.authority("Another CA", pki.root))
    assert await asked.status("192.0.2.9", elsewhere.der) == 204
    strange = Manufacturer().unreadable().public_bytes(Encoding.DER)
    signed_oddly = METER.der.replace(ECDSA_WITH_SHA256, ECDSA_WITH_SHA256[:-1] + b"\x7f")
    for der in (METER.der[:-1], strange, signed_oddly, METER.der + bytes(90_000)):
        assert [await asked.status("192.0.2.9", der) for _ in range(3)] == [204, 204, 429], "unreadable"


async def test_who_has_an_ipv6_network_has_one_bucket() -> None:
    asked = Asked()
    assert [await asked.status(f"2001:db8:0:1::{number:x}") for number in range(9)] == [204, 204] + [429] * 7
    assert await asked.status("2001:db8:0:2::1") == 204, "another /64"
    assert [await asked.status(host) for host in ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1")] == [204, 204, 429]


async def test_who_is_named_by_another_s_ca_of_our_ca_s_name_empties_nobody_s_bucket() -> None:
    asked = Asked()
    impostors = [Pki().device("meter-1") for _ in range(3)]
    assert {each.certificate.issuer for each in impostors} == {METER.certificate.issuer}
    assert [await asked.status(der=each.der) for each in impostors] == [204] * 3, "each is a caller"
    assert [await asked.status(der=METER.der) for _ in range(2)] == [204, 204]


async def test_a_revoked_certificate_empties_nobodys_bucket_for_longer_than_a_question_takes() -> None:
    asked, good = Asked(), shared_pki().device("meter-1")
    asked.ended.add(METER.certificate)
    assert [await asked.status(der=METER.der) for _ in range(3)] == [204, 204, 429]
    assert await asked.status(der=good.der) == 429, "nobody knows yet"
    await asyncio.sleep(0)
    assert asked.asked == [METER.certificate, good.certificate]
    assert [await asked.status(der=METER.der) for _ in range(3)] == [204, 204, 429], "a bucket of its own"
    for _ in range(9):
        asked.now += 1.0
        await asked.status(der=METER.der)
    assert [await asked.status(der=good.der) for _ in range(3)] == [204, 204, 429]
    await asyncio.sleep(0)
    assert asked.asked.count(METER.certificate) == 2, "not with each request"
    asked.ended.clear()
    asked.now += PAUSE
    await asked.status(der=METER.der)
    await asyncio.sleep(0)
    assert [await asked.status(der=each.der) for each in (METER, good, METER)] == [204, 204, 429], "resumed: one name"


async def test_all_certificates_of_a_name_that_have_ended_have_one_bucket() -> None:
    """Else whoever has stolen twenty of a device's asks twenty times as much as with a good one."""
    asked, stolen = Asked(), [shared_pki().device("meter-1") for _ in range(3)]
    asked.ended.update(each.certificate for each in stolen)
    assert [await asked.status(der=stolen[0].der) for _ in range(2)] == [204, 204]
    for each in stolen:
        assert await asked.status(der=each.der) == 429
    await asyncio.sleep(0)
    assert [await asked.status(der=each.der) for each in stolen] == [204, 204, 429]
    asked.now += PAUSE + 1
    asked.ended.add(OTHER.certificate)
    assert [await asked.status(der=OTHER.der) for _ in range(3)] == [204, 204, 429]
    await asyncio.sleep(0)
    assert await asked.status(der=OTHER.der) == 204, "another name's"


@pytest.mark.parametrize("good_for", [Standing.RENEWABLE, Standing.ON_TRIAL])
async def test_a_revoked_certificate_keeps_none_that_is_good_for_its_successor_from_renewing(
    good_for: Standing,
) -> None:
    """The device has no other: it was answered 429 for as long as the thief went on."""
    asked, own = Asked(), shared_pki().device("meter-1")
    asked.ended.add(METER.certificate)
    asked.standing[own.certificate] = good_for
    for _ in range(3):
        await asked.status(der=METER.der)
    assert await asked.status(der=own.der) == 429, "nobody knows yet"
    await asyncio.sleep(0)
    answers = []
    for _ in range(12):
        asked.now += PAUSE
        assert 429 in [await asked.status(der=METER.der) for _ in range(4)]
        answers.append(await asked.status(der=own.der))
        await asyncio.sleep(0)
    assert answers == [204] * 12
    assert 429 in [await asked.status(der=own.der) for _ in range(3)], "it is limited as well"
    assert await asked.status(der=METER.der) == 429, "and each by itself"


@pytest.mark.parametrize("failure", [Refused(Code.UNAVAILABLE, "away"), ValueError("a fault of ours")])
async def test_a_question_that_fails_changes_no_bucket(failure: Exception) -> None:
    now, fails = 0.0, False

    async def standing(_: x509.Certificate) -> Standing:
        if fails:
            raise failure
        return Standing.ENDED

    former = FormerCallers(standing, lambda: now)
    with structlog.testing.capture_logs() as logged:
        for ended in (False, True):
            fails = not ended
            former.doubt(METER.der)
            await asyncio.sleep(0)
            assert former.standing(METER.der) is (Standing.ENDED if ended else Standing.GOOD)
            now += PAUSE
        fails = True
        assert former.standing(METER.der) is Standing.ENDED
        await asyncio.sleep(0)
        assert former.standing(METER.der) is Standing.ENDED, "as it was"
    lines = [] if isinstance(failure, Refused) else ["INTERNAL"]
    assert [line["code"] for line in logged] == lines, "once a minute"


@pytest.mark.parametrize("more", [0, 90_000])
def test_of_a_certificate_that_others_have_signed_little_is_kept(more: int) -> None:
    scope: Scope = {"extensions": {"tls": {"client_cert_der": METER.der + bytes(more)}}}
    caller = Callers(tuple).caller(scope)
    assert isinstance(caller, bytes)
    assert len(caller) == 32
    assert Callers(panic).caller(scope) == caller, "who makes the parser panic has a bucket, too"


async def test_what_is_no_request_is_not_counted() -> None:
    asked = Asked()
    for _ in range(5):
        assert await asked.ask(kind="lifespan") == []
    assert asked.reached == 5


def test_the_peer_is_whom_the_server_has_put_into_the_scope() -> None:
    plain: Scope = {"type": "http"}
    tls: dict[str, Any] = {"client_cert_der": METER.der, "tls_version": "TLSv1.2"}
    shown: Scope = {"type": "http", "extensions": {"tls": tls}}
    assert (peer_certificate(plain), peer_certificate_der(plain), tls_connection(plain)) == (None, None, None)
    assert peer_certificate(shown) == METER.certificate
    assert peer_certificate_der(shown) == METER.der
    assert tls_connection(shown) == TlsConnection("TLSv1.2", None)
    tls |= {"client_cert_der": METER.der[:-1], "tls_unique": b"unique"}
    assert tls_connection(shown) == TlsConnection("TLSv1.2", b"unique")
    assert tls_connection({**shown, "client": ("::1", 9)}) == TlsConnection("TLSv1.2", b"unique", address="::1")
    with pytest.raises(Refused) as caught:
        peer_certificate(shown)
    assert caught.value.code is Code.CERTIFICATE_UNKNOWN
