"""Who is sent a token has proved that its certificate is not revoked: who has copied the service's key gets none."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509

from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentUnavailable, EstClient
from provisioning.client.genuine_server import unproven
from provisioning.pki.identity import PROVISIONING, Identity, Role
from provisioning.pki.keys import generate_key
from tests.support.impostor import impostor
from tests.support.pki import DOMAIN, SERVER, Held, Pki
from tests.support.responder import Responder, delegate, question_about

PKI = Pki()
SERVERS = [
    PKI.certify(Identity(DOMAIN, Role.SERVICE, PROVISIONING), purposes=SERVER, names=[x509.DNSName("localhost")])
    for _ in range(2)
]
OURS, ANOTHER = SERVERS
TOKEN = "fgt_" + "A" * 43


def response(about: Held = OURS, *, pki: Pki = PKI, **different: Any) -> bytes:
    """Return what the CA's responder says of *about*."""
    made = Responder(pki.issuing, delegate(pki), SERVERS, nonce=False, **different)(question_about(about))
    assert made is not None
    return made


async def told(shown: bytes) -> tuple[str, list[bytes]]:
    """Return why a server that shows the response *shown* is sent no token, and what it has heard."""
    async with (
        impostor(OURS.credential, PKI.anchors, response=shown) as (url, heard),
        EstClient(url, PKI.anchors) as est,
    ):
        with pytest.raises(EnrolmentUnavailable) as refused:
            await est.enrol(build_csr(generate_key(), "meter-1"), user="meter-1", token=TOKEN)
    return str(refused.value), heard


REVOKED = {OURS.certificate.serial_number: x509.ReasonFlags.key_compromise}


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (lambda: b"", "it does not prove that its certificate is not revoked"),
        (lambda: b"\x30\x03\x0a\x01\x00", "cannot be believed"),
        (lambda: b"something else", "cannot be believed: not an OCSP response"),
        (lambda: response(revoked=REVOKED), "its certificate is revoked (keyCompromise)"),
        (lambda: response(unknown=True), "its CA does not know its certificate"),
        (lambda: response(ANOTHER), "cannot be believed: the answer is about another certificate"),
        (lambda: response(forged=True), "cannot be believed"),
        (lambda: response(pki=Pki()), "cannot be believed"),
        (
            lambda: response(age=timedelta(minutes=61), life=timedelta(days=1)),
            "what it shows about its certificate is of",
        ),
        (
            lambda: response(age=timedelta(minutes=10), life=timedelta(minutes=5)),
            "cannot be believed: the answer ended",
        ),
        (lambda: response(age=timedelta(minutes=-10)), "cannot be believed: the answer is of"),
    ],
    ids=[
        "none",
        "failure",
        "garbage",
        "revoked",
        "unknown",
        "another's",
        "forged",
        "stranger's",
        "old",
        "ended",
        "to-come",
    ],
)
async def test_who_does_not_prove_it_is_told_no_token(shown: Callable[[], bytes], why: str) -> None:
    said, heard = await told(shown())
    assert "is not the provisioning service that the trust anchors vouch for" in said
    assert why in said
    assert not any(heard), "no token is told, and no other word"


async def test_who_proves_it_is_told_the_token() -> None:
    said, heard = await told(response(age=timedelta(minutes=59), life=timedelta(days=1)))
    assert "is no EST service" in said, "as the one of this test is none"
    assert any(b"authorization: basic" in each.lower() for each in heard)


def test_of_an_anchor_nobody_says_whether_it_is_revoked() -> None:
    assert "is an anchor itself" in str(unproven([OURS.der], response(), PKI.now))
