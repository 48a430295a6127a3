"""What time it is, said by the fleet's CA: whoever keeps back, or plays back, what was said before is not believed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.client import service_time as asked
from provisioning.client.service_time import TimeUnknown, service_time, told
from provisioning.pki.identity import PROVISIONING, Identity
from provisioning.pki.ocsp import Question, ask
from provisioning.pki.role import Role
from provisioning.pki.tls import TlsConfigurationError
from tests.support.impostor import impostor
from tests.support.pki import DOMAIN, SERVER, Held, Pki
from tests.support.responder import Responder, delegate
from tests.support.unanswered import named, unanswered

PKI = Pki()
LOCALHOST = [x509.DNSName("localhost")]
SERVERS = [
    PKI.certify(Identity(DOMAIN, Role.SERVICE, PROVISIONING), purposes=SERVER, names=LOCALHOST) for _ in range(2)
]
OURS, ANOTHER = SERVERS
DAY = timedelta(days=1)
VERSION_3, VERSION_128 = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x7f"


def question(held: Held = OURS) -> Question:
    return ask(held.certificate.serial_number, PKI.issuing.certificate)


def response(to: Question, *, pki: Pki = PKI, signer: Held | None = None, **different: Any) -> bytes:
    """Return what the CA's responder answers."""
    made = Responder(PKI.issuing, signer or delegate(pki), SERVERS, **different)(to.der)
    assert made is not None
    return made


def path(held: Held = OURS) -> list[x509.Certificate]:
    return [held.certificate, PKI.issuing.certificate, PKI.root.certificate]


def test_what_a_genuine_answer_says_is_the_time() -> None:
    mine = question()
    for signer in (delegate(PKI), PKI.issuing):
        said = told(response(mine, signer=signer), mine, path())
        assert abs(datetime.now(UTC) - said) < timedelta(minutes=5)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda mine: response(mine, nonce=False), "has no nonce: it may be an old one"),
        (lambda _mine: response(question()), "is for another request"),
        (lambda mine: response(mine, forged=True), "cannot be trusted"),
        (lambda mine: response(mine, pki=Pki()), "cannot be trusted"),
        (lambda mine: response(mine, signer=OURS), "cannot be trusted"),
        (lambda mine: response(mine, another=True), "cannot be trusted: the answer is about another certificate"),
        (lambda mine: response(mine, unknown=True), "its CA does not know it"),
        (
            lambda mine: response(mine, revoked={OURS.certificate.serial_number: x509.ReasonFlags.key_compromise}),
            "it is revoked (keyCompromise)",
        ),
        (lambda mine: response(mine, age=2 * DAY, life=DAY), "cannot be trusted: the answer ended"),
        (lambda mine: response(mine, age=-DAY), "cannot be trusted: the answer is of"),
        (lambda _mine: b"", "cannot be trusted"),
        (lambda _mine: b"\x30\x03\x0a\x01\x03", "cannot be trusted"),
        (lambda _mine: bytes(64), "cannot be trusted"),
    ],
    ids=[
        "an old one",
        "another's",
        "forged",
        "a stranger's",
        "the service's own",
        "about another",
        "unknown",
        "revoked",
        "ended",
        "to come",
        "nothing",
        "try later",
        "garbage",
    ],
)
def test_any_other_answer_says_nothing(answer: Callable[[Question], bytes], why: str) -> None:
    mine = question()
    with pytest.raises(TimeUnknown, match=why.replace("(", r"\(").replace(")", r"\)")):
        told(answer(mine), mine, path())


def test_the_path_is_judged_by_what_was_said() -> None:
    """Whoever has the key of a certificate that has ended is shown up by the time that he has to let through."""
    ended = PKI.certify(
        Identity(DOMAIN, Role.SERVICE, PROVISIONING),
        purposes=SERVER,
        names=LOCALHOST,
        not_before=PKI.now - 2 * DAY,
        not_after=PKI.now - DAY,
    )
    mine = question(ended)
    made = Responder(PKI.issuing, delegate(PKI), [ended])(mine.der)
    assert made is not None
    with pytest.raises(TimeUnknown, match=r"the OCSP responder says .* is valid from .* to "):
        told(made, mine, path(ended))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """Have the CA's responder asked in this process."""
    seen: list[Question] = []

    async def answered(to: Question, _urls: Sequence[str], _patience: float) -> bytes:
        seen.append(to)
        return response(to)

    monkeypatch.setattr(asked, "_answer_to", answered)
    return seen


async def test_the_service_is_asked_for_its_certificate_and_told_nothing(answers: list[Question]) -> None:
    async with impostor(OURS.credential, PKI.anchors) as (url, heard):
        said = await service_time(url, PKI.anchors, trust_domain=DOMAIN, at_least=datetime.now(UTC) - DAY)
        assert abs(datetime.now(UTC) - said) < timedelta(minutes=5)
        assert said <= await service_time(url, PKI.anchors), "who knows of no time asks for any"
        with pytest.raises(TimeUnknown, match=r"the OCSP responder says .* has passed"):
            await service_time(url, PKI.anchors, at_least=datetime.now(UTC) + DAY)
        with pytest.raises(TimeUnknown, match=r"it is the service of trust domain .*, not of"):
            await service_time(url, PKI.anchors, trust_domain="another.example")
        with pytest.raises(TimeUnknown, match="cannot be asked"):
            await service_time(url, Pki().anchors)
    assert not any(heard)
    assert len({each.nonce for each in answers}) == 3, "each question is another"


async def test_a_broker_of_the_fleet_is_not_asked(answers: list[Question]) -> None:
    async with impostor(PKI.broker().credential, PKI.anchors) as (url, _):
        with pytest.raises(TimeUnknown, match="its certificate is that of spiffe://"):
            await service_time(url, PKI.anchors)
    assert not answers


async def test_who_cannot_be_asked_says_nothing() -> None:
    identity = Identity(DOMAIN, Role.SERVICE, PROVISIONING)
    by_the_root = PKI.certify(identity, issuer=PKI.root, purposes=SERVER, names=LOCALHOST)
    for service in (OURS, by_the_root):
        async with impostor(service.credential, PKI.anchors) as (url, _):
            with pytest.raises(TimeUnknown, match="names no OCSP responder"):
                await service_time(url, PKI.anchors)
    with pytest.raises(TimeUnknown, match="cannot be asked"):
        await service_time(url, PKI.anchors)
    with pytest.raises(TimeUnknown, match=r"cannot be asked: .*[Ll]abel"):
        await service_time(f"https://{'ü' * 64}.example", PKI.anchors)
    with pytest.raises(TimeUnknown, match=r"cannot be asked: \["):
        await service_time(f"https://{'a' * 64}.example", PKI.anchors)
    with pytest.raises(TlsConfigurationError, match="https://"):
        await service_time("http://localhost", PKI.anchors)


async def test_an_address_that_does_not_answer_is_not_waited_for(
    answers: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with IPv6 that leads nowhere: whoever waited for the first address would never have the time."""
    async with impostor(OURS.credential, PKI.anchors) as (url, _):
        port = int(url.rpartition(":")[2])
        with unanswered(port) as dead:
            monkeypatch.setattr(socket, "getaddrinfo", named({"localhost": [dead, "127.0.0.1"]}))
            await service_time(url, PKI.anchors, patience=5)
            monkeypatch.setattr(socket, "getaddrinfo", named({"localhost": [dead]}))
            with pytest.raises(TimeUnknown, match="cannot be asked: it takes too long"):
                await service_time(url, PKI.anchors, patience=0.5)
    assert len(answers) == 1


async def test_a_path_that_only_openssl_can_read_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = PKI.issuing.certificate.public_bytes(Encoding.DER).replace(VERSION_3, VERSION_128)
    monkeypatch.setattr(asked, "verified_path", lambda _tls: [OURS.der, odd])
    async with impostor(OURS.credential, PKI.anchors) as (url, heard):
        with pytest.raises(TimeUnknown, match=r"or that of its CA, cannot be read: .*127"):
            await service_time(url, PKI.anchors)
    assert not any(heard)
