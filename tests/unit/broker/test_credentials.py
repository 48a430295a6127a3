"""When the broker renews its certificate, and in which order it asks for what it needs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from broker import credentials
from broker.credentials import BrokerCredential, Enrolment, renewal_due
from broker.own_certificate import CredentialError
from provisioning.client.est import EnrolmentUnavailable
from provisioning.pki.keys import generate_key
from tests.support.pki import Held, Pki, shared_pki
from tests.support.planted import Planted

GOT = datetime(2026, 11, 27, 12, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
NOBODY = x509.Name([])


def certificate(backdate: timedelta, life: timedelta) -> x509.Certificate:
    key = generate_key()
    return x509.CertificateBuilder(NOBODY, NOBODY, key.public_key(), 1, GOT - backdate, GOT + life).sign(
        key, hashes.SHA256()
    )


@pytest.mark.parametrize(
    ("backdate", "life", "due"),
    [
        (MINUTE, 30 * 24 * HOUR, 20 * 24 * HOUR - MINUTE / 3),
        (MINUTE, 8 * HOUR, 8 * HOUR * 2 / 3 - MINUTE / 3),
        (HOUR, 3 * HOUR, HOUR * 5 / 3),
        (MINUTE, MINUTE / 2, MINUTE / 3),
        (HOUR, MINUTE, MINUTE * 2 / 3),
    ],
    ids=["a month", "a shift", "dated back by an hour", "half a minute", "a minute, dated back by an hour"],
)
def test_it_is_due_at_two_thirds_of_its_life_or_of_what_was_left_when_it_came(
    backdate: timedelta, life: timedelta, due: timedelta
) -> None:
    assert renewal_due(certificate(backdate, life), GOT) - GOT == pytest.approx(due, abs=timedelta(milliseconds=1))


def test_what_was_there_before_the_process_is_due_when_it_was() -> None:
    assert renewal_due(certificate(HOUR, MINUTE), None) < GOT


class Service:
    """An EST service that has a CA, then another one, and answers so many requests for their certificates."""

    def __init__(self, issuers: list[Pki], answers: int) -> None:
        self.issuers = issuers
        self.answers = answers
        self.asked: list[str] = []
        self.given: Held | None = None
        self.trust_domain: str | None = None

    def __call__(self, *_: object, trust_domain: str | None = None) -> Service:
        self.trust_domain = trust_domain
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def ca_certificates(self) -> list[x509.Certificate]:
        self.asked.append("cacerts")
        if self.asked.count("cacerts") > self.answers:
            raise EnrolmentUnavailable("it is away")
        pki = self.issuers.pop(0) if len(self.issuers) > 1 else self.issuers[0]
        return [pki.root.certificate, pki.issuing.certificate]

    async def enrol(self, *_: object, **__: Any) -> x509.Certificate:
        self.asked.append("enrol")
        self.given = self.issuers[-1].broker()
        return self.given.certificate


def credential_at(service: Service, directory: Path, monkeypatch: pytest.MonkeyPatch) -> BrokerCredential:
    monkeypatch.setattr(credentials, "EstClient", service)
    enrolment = Enrolment("https://localhost:1", directory / "anchors.pem", "broker-1", "fgt_token", "plant-7.example")
    return BrokerCredential(directory, enrolment)


@pytest.mark.parametrize("linked", [False, True], ids=["a file", "a link"])
async def test_the_key_goes_into_no_file_that_somebody_has_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, linked: bool
) -> None:
    credential = credential_at(Service([Pki()], answers=9), tmp_path, monkeypatch)
    planted = Planted.at(tmp_path / "broker.new", linked=linked)
    await credential.ensure()
    assert planted.read() == b""
    written = tmp_path / "broker.pem"
    assert b"PRIVATE KEY" in written.read_bytes()
    assert written.stat().st_mode & 0o777 == 0o600


async def test_what_is_wrong_with_the_file_is_said_and_no_token_is_spent_where_none_can_be_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    service = Service([Pki()], answers=9)
    with pytest.raises(CredentialError, match=r"file/broker\.pem cannot be read: .*; run the broker as the user whose"):
        await credential_at(service, tmp_path / "file", monkeypatch).ensure()
    assert service.asked == []
    without = BrokerCredential(tmp_path, Enrolment("https://localhost:1", tmp_path / "anchors.pem", "broker-1", None))
    with pytest.raises(CredentialError, match=r"broker\.pem does not exist: give --token"):
        await without.ensure()
    (tmp_path / "broker.pem").write_text("no certificate")
    with pytest.raises(CredentialError, match=r"broker\.pem is not one that can be read: give --token"):
        await without.ensure()
    (tmp_path / "broker.pem").write_bytes(certificate(HOUR, -MINUTE).public_bytes(Encoding.PEM))
    with pytest.raises(CredentialError, match=r"has expired on 2026-11-27 \(the clock here says 20.* UTC\): give"):
        await without.ensure()


async def test_no_token_is_spent_where_the_cas_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service([Pki()], 0)
    with pytest.raises(CredentialError, match="it is away"):
        await credential_at(service, tmp_path, monkeypatch).ensure()
    assert service.asked == ["cacerts"]


@pytest.mark.parametrize("changes", [False, True])
async def test_the_chain_is_that_of_the_ca_that_has_issued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, changes: bool
) -> None:
    cas = [Pki(), Pki()] if changes else [Pki()]
    service = Service(list(cas), 2)
    credential = credential_at(service, tmp_path, monkeypatch)
    await credential.ensure()
    assert service.asked == ["cacerts", "enrol", *["cacerts"] * changes]
    assert service.trust_domain == "plant-7.example", "whose service it may be told by"
    assert service.given is not None
    chain = x509.load_pem_x509_certificates(credential.files.certificate.read_bytes())
    assert chain == [service.given.certificate, cas[-1].issuing.certificate]


@pytest.mark.parametrize(
    ("left", "longest"),
    [(20 * 24 * HOUR, 172_800), (10 * MINUTE, 60), (MINUTE / 6, 2), (-MINUTE, 300)],
    ids=["for weeks", "for minutes", "for seconds", "ended"],
)
def test_the_nearer_the_end_the_shorter_the_pauses_until_it_has_come(
    tmp_path: Path, left: timedelta, longest: int
) -> None:
    now = datetime.now(UTC)
    held = shared_pki().broker(not_before=now - HOUR, not_after=now + left)
    (tmp_path / "broker.pem").write_bytes(held.certificate.public_bytes(Encoding.PEM))
    asked = Enrolment("https://localhost:1", tmp_path / "anchors.pem", "broker-1", None)
    credential = BrokerCredential(tmp_path, asked)
    assert credential._longest_pause() == pytest.approx(longest, rel=0.05)
