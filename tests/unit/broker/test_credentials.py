"""When the broker renews its certificate, and in which order it asks for what it needs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from broker.credentials import credentials
from broker.credentials.credentials import BrokerCredential, Enrolment, renewal_due
from broker.credentials.own_certificate import CredentialError
from broker.revocation.revoked_services import RevokedServices
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable
from provisioning.pki.identity import AUTHORITY_PREFIX, PROVISIONING, Identity
from provisioning.pki.keys import generate_key
from provisioning.pki.path_to_send import path_to_send
from provisioning.pki.role import Role
from tests.support.impostor import impostor
from tests.support.pki import DOMAIN, SERVER, Held, Pki, pem_of, shared_pki, shared_service
from tests.support.planted import Planted
from tests.support.responder import Responder, delegate, question_about

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
        self.validity: dict[str, Any] = {}
        self.shown: list[str] = []
        """The tokens that were shown to it."""
        self.answer: Exception | x509.Certificate | None = None
        """What it answers to a request for a certificate, if that is none of its own."""
        self.obstacle: Path | None = None
        """What is in the way of the draft as soon as the certificate is there."""

    def __call__(self, *_: object, trust_domain: str | None = None, **_named: object) -> Service:
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

    async def enrol(self, _csr: object, **shown: Any) -> x509.Certificate:
        assert shown == {"user": "broker-1", "token": shown["token"]}
        self.shown.append(shown["token"])
        return self._issue("enrol")

    async def reenrol(self, *_: object) -> x509.Certificate:
        return self._issue("reenrol")

    def _issue(self, asked: str) -> x509.Certificate:
        self.asked.append(asked)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        if self.obstacle is not None:
            self.obstacle.mkdir()
        self.given = self.issuers[-1].broker(**self.validity)
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
    with pytest.raises(CredentialError, match=r"file/broker\.pem cannot be read: .*; run the broker as the user who"):
        await credential_at(service, tmp_path / "file", monkeypatch).ensure()
    assert service.asked == []
    without = BrokerCredential(tmp_path, Enrolment("https://localhost:1", tmp_path / "anchors.pem", "broker-1", None))
    with pytest.raises(CredentialError, match=r"broker\.pem does not exist: give --token"):
        await without.ensure()
    (tmp_path / "broker.pem").write_text("no certificate")
    with pytest.raises(CredentialError, match=r"broker\.pem is not a readable certificate: give --token"):
        await without.ensure()
    (tmp_path / "broker.pem").unlink()
    (tmp_path / "broker.pem").mkdir()  # As root, who may read any file, finds one that cannot be read.
    with pytest.raises(
        CredentialError, match=r"broker\.pem cannot be read: .*; run the broker as the user who owns it,"
    ):
        await without.ensure()
    (tmp_path / "broker.pem").rmdir()
    (tmp_path / "broker.pem").write_bytes(certificate(HOUR, -MINUTE).public_bytes(Encoding.PEM))
    with pytest.raises(CredentialError, match=r"has expired on 2026-11-27 \(the clock here says 20.* UTC\): give"):
        await without.ensure()


async def test_no_token_is_spent_where_the_cas_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service([Pki()], 0)
    with pytest.raises(CredentialError, match=r"it is away$"):
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
    await credential.ensure()
    assert service.shown == ["fgt_token"], "with a valid one none is spent"
    waiting = asyncio.create_task(credential.until_renewed())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    assert service.asked.count("reenrol") == 0, "it is not due"
    waiting.cancel()


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


async def test_a_certificate_that_names_nobody_is_no_brokers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service([Pki()], answers=9)
    service.answer = certificate(MINUTE, 9999 * HOUR)
    with pytest.raises(CredentialError, match=r"^the broker could not enrol at https://localhost:1: "):
        await credential_at(service, tmp_path, monkeypatch).ensure()
    assert not (tmp_path / "broker.pem").exists()


async def test_a_broker_that_cannot_enrol_anew_says_what_its_certificate_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A month after its enrolment it stopped with "this enrolment token was used already"."""
    service = Service([Pki()], answers=9)
    service.answer = EnrolmentRefused(401, "TOKEN_USED", "this enrolment token was used already")
    (tmp_path / "broker.pem").write_bytes(certificate(HOUR, -MINUTE).public_bytes(Encoding.PEM))
    said = r"broker\.pem has expired on .*; the broker could not enrol at https://localhost:1: TOKEN_USED: this"
    with pytest.raises(CredentialError, match=said):
        await credential_at(service, tmp_path, monkeypatch).ensure()


async def test_the_token_that_is_asked_for_is_for_the_names_of_the_last_certificate(tmp_path: Path) -> None:
    """Once for localhost alone, then without addresses: who came by another trusted the broker no more."""
    addresses = r"--ip-address 192\.0\.2\.7 --ip-address 2001:db8::7"
    (host, names) = ("mqtt.example.org", [x509.DNSName("mqtt.example.org"), x509.DNSName("localhost")])
    ended = Pki().certify(
        Identity("plant-7.example", Role.BROKER, "broker-1"),
        purposes=SERVER,
        names=[*names, *(x509.IPAddress(ip_address(each)) for each in ("192.0.2.7", "2001:db8::7"))],
        not_before=GOT - HOUR,
        not_after=GOT,
    )
    (tmp_path / "broker.pem").write_bytes(ended.credential.pem)
    without = BrokerCredential(tmp_path, Enrolment("https://localhost:1", tmp_path / "anchors.pem", "broker-1", None))
    with pytest.raises(
        CredentialError, match=rf"--device broker-1 --dns-name {host} --dns-name localhost {addresses}\)$"
    ):
        await without.ensure()
    (tmp_path / "broker.pem").unlink()
    with pytest.raises(CredentialError, match=r"--device broker-1 --dns-name localhost\)$"):
        await without.ensure()


async def test_a_short_certificate_that_was_dated_back_is_not_due_as_soon_as_it_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, now = Service([Pki()], answers=9), datetime.now(UTC)
    service.validity = {"not_before": now - HOUR, "not_after": now + MINUTE}
    credential = credential_at(service, tmp_path, monkeypatch)
    await credential.ensure()
    assert now + MINUTE / 3 < credential._due() < now + MINUTE


async def test_a_renewal_replaces_key_certificate_and_chain_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service([Pki()], answers=9)
    credential = credential_at(service, tmp_path, monkeypatch)
    with pytest.raises(EnrolmentUnavailable, match=r"broker\.pem cannot be read$"):
        await credential.renew()
    assert service.asked == []
    await credential.ensure()
    first = credential.files.certificate.read_bytes()
    service.answer = EnrolmentRefused(403, "DEVICE_BLOCKED", "no")
    with pytest.raises(EnrolmentRefused):
        await credential.renew()
    assert credential.files.certificate.read_bytes() == first
    service.answer = Pki().broker().certificate
    with pytest.raises(EnrolmentUnavailable, match=r"^none of the CAs of which https://localhost:1 sends"):
        await credential.renew()
    assert credential.files.certificate.read_bytes() == first
    service.answer, draft = None, tmp_path / "broker.new"
    draft.mkdir()
    with pytest.raises(CredentialError, match=r"no certificate was asked for$"):
        await credential.renew()
    draft.rmdir()
    service.obstacle = draft
    with pytest.raises(CredentialError, match=r"the new certificate is lost$"):
        await credential.renew()
    draft.rmdir()
    service.obstacle = None
    assert credential.files.certificate.read_bytes() == first
    await credential.renew()
    assert service.given is not None
    chain = x509.load_pem_x509_certificates(credential.files.certificate.read_bytes())
    assert chain == [service.given.certificate, service.issuers[0].issuing.certificate]
    assert credential.files.key.read_bytes().partition(b"-----END")[0] != first.partition(b"-----END")[0]
    other = ["cacerts", "reenrol", "cacerts"]  # Of another CA: theirs are asked for again.
    renewed = ["cacerts", "reenrol"]
    assert service.asked == ["cacerts", "enrol", *renewed, *other, *renewed, *renewed]


async def test_a_renewal_that_fails_is_tried_again_and_an_end_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, now = Service([Pki()], answers=9), datetime.now(UTC)
    ended = shared_pki().broker(not_before=now - HOUR, not_after=now - MINUTE)
    (tmp_path / "broker.pem").write_bytes(ended.certificate.public_bytes(Encoding.PEM))
    credential, waited = credential_at(service, tmp_path, monkeypatch), []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            service.answer = None

    monkeypatch.setattr(asyncio, "sleep", sleep)
    service.answer = EnrolmentUnavailable("it is away")
    with capture_logs() as logs:
        await credential.until_renewed()
    assert credential.certificate() == (service.given and service.given.certificate)
    assert [each["code"] for each in logs] == ["OWN_CERTIFICATE_DATES", *["RENEWAL_FAILED"] * 3, "RENEWED"]
    assert [1 <= waited[0] <= 2, 2 <= waited[1] <= 4, 4 <= waited[2] <= 8] == [True] * 3
    with capture_logs() as logs:
        credential._tell_end()
    assert logs == [], "what is valid has not ended"


@pytest.mark.parametrize(
    "answer", [EnrolmentRefused(403, "TOKEN_SPENT", "no"), certificate(MINUTE, HOUR), shared_service("s").certificate]
)
async def test_a_token_that_was_refused_or_spent_in_vain_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Exception | x509.Certificate
) -> None:
    service = Service([Pki()], answers=9)
    credential = credential_at(service, tmp_path, monkeypatch)
    service.answer = answer
    with capture_logs() as logs:
        for token in (None, "first", "first"):
            assert await credential.replace("CERTIFICATE_REVOKED", token) is False
    assert service.asked.count("enrol") == 1
    assert [each["code"] for each in logs] == ["OWN_CERTIFICATE_REVOKED"]
    assert str(logs[0]["remedy"]).startswith("put another token into token_file")
    service.answer = None
    assert credential.is_replaced("unknown ca"), "its root was retired"
    assert await credential.replace("unknown ca", "second") is True
    assert await credential.replace("CERTIFICATE_REVOKED", "second") is False, "it is spent"
    assert service.asked.count("enrol") == 2


async def test_a_token_that_was_spent_as_the_service_went_away_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its certificate comes from a CA that has just begun to issue, and whose own certificate cannot be had."""
    service = Service([Pki(), Pki()], answers=1)
    credential = credential_at(service, tmp_path, monkeypatch)
    with capture_logs() as logs:
        for _ in range(2):
            assert await credential.replace("CERTIFICATE_EXPIRED", "spent") is False
    assert service.asked == ["cacerts", "enrol", "cacerts"]
    assert [(each["code"], each["detail"]) for each in logs] == [("OWN_CERTIFICATE_DATES", "it is away")]


async def test_a_token_that_was_not_used_yet_is_used_when_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service([Pki()], answers=9)
    credential = credential_at(service, tmp_path, monkeypatch)
    (tmp_path / "broker.new").mkdir()
    with capture_logs() as logs:
        for _ in range(2):
            assert await credential.replace("CERTIFICATE_REVOKED", "unspent") is False
    assert service.asked == []
    assert [(each["code"], each["remedy"]) for each in logs] == [
        ("OWN_CERTIFICATE_REVOKED", "make it writable: the token is unspent, and is used then")
    ]
    (tmp_path / "broker.new").rmdir()
    service.answer = EnrolmentUnavailable("it is away")
    assert await credential.replace("CERTIFICATE_REVOKED", "unspent") is False
    service.answer = None
    assert await credential.replace("CERTIFICATE_REVOKED", "unspent") is True


async def test_a_server_below_a_ca_that_is_known_to_be_revoked_is_sent_no_token(tmp_path: Path) -> None:
    """Whoever has that CA's key makes a service's certificate, and the proof that it is not revoked."""
    pki, names = Pki(), [x509.DNSName("localhost")]
    made = pki.certify(Identity(DOMAIN, Role.SERVICE, PROVISIONING), purposes=SERVER, names=names)
    proof = Responder(pki.issuing, delegate(pki), [made], nonce=False)(question_about(made)) or b""
    anchors = tmp_path / "anchors.pem"
    anchors.write_bytes(pem_of(pki.root.certificate))
    async with impostor(made.credential, pki.anchors, response=proof) as (url, heard):
        asked = Enrolment(url, anchors, "broker-1", "fgt_token")
        with pytest.raises(CredentialError, match="is no EST service"):  # As the one of this test is none.
            await BrokerCredential(tmp_path, asked).ensure()
        assert any(heard)
        heard.clear()
        await RevokedServices(tmp_path).note(pki.issuing.revocation, f"{AUTHORITY_PREFIX}issuing-ca")
        kept = RevokedServices(tmp_path)  # As it is known from the start.
        with pytest.raises(CredentialError, match=r"\(keyCompromise; kept in .*revoked-services\.json"):
            await BrokerCredential(tmp_path, asked, kept.refuse).ensure()
        held = pki.broker(not_after=pki.now + timedelta(minutes=5))
        (tmp_path / "broker.pem").write_bytes(held.pem)
        with pytest.raises(EnrolmentUnavailable, match="keyCompromise"):
            await BrokerCredential(tmp_path, asked, kept.refuse).renew()
        assert not any(heard), "no token is told, and no other word"


def test_cas_that_have_certified_each_other_are_named_once_each() -> None:
    keys = {name: generate_key() for name in ("leaf", "one", "other")}

    def issued(subject: str, issuer: str) -> x509.Certificate:
        above, below = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (issuer, subject))
        builder = x509.CertificateBuilder(above, below, keys[subject].public_key(), 1, GOT, GOT + HOUR)
        return builder.sign(keys[issuer], hashes.SHA256())

    cas = [issued("one", "other"), issued("other", "one")]
    assert path_to_send(issued("leaf", "one"), cas, GOT) == cas
