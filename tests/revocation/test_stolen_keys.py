"""A copied key of the service or of a CA is worth nothing once its certificate is revoked."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from structlog.testing import capture_logs

from broker.admission.path_ends import MOST_PATHS
from broker.mqtt.codes import ReasonCode
from broker.revocation import revocation_feed
from broker.revocation.revocation_feed import RevocationFeed
from broker.revocation.revoked_services import FILE_NAME, RevokedServices
from provisioning.directory.files import read_certificate
from provisioning.pki.identity import identity_of
from provisioning.pki.keys import generate_key, load_key
from provisioning.pki.ocsp import ask
from provisioning.pki.revocation import certificate_key
from provisioning.pki.tls import CredentialPem, client_context
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.ca_life import ca, roll_over
from tests.support.enrolled import Enrolled, enrol
from tests.support.impostor import impostor
from tests.support.pki import SERVER, Held, Pki
from tests.support.prepared_fleet import PASSPHRASE
from tests.support.provisioning import ProvisioningService
from tests.support.responder import Responder, question_about
from tests.support.tls_client import TlsClient
from tests.support.wire import MemoryBroker


def stolen_authority(service: ProvisioningService) -> Held:
    """Return the service's issuing CA, with its key."""
    key = load_key(service.dir / "issuing-ca.key", PASSPHRASE.encode())
    return Held(x509.load_pem_x509_certificate((service.dir / "issuing-ca.crt").read_bytes()), key)  # type: ignore[arg-type]


def stapled(service: ProvisioningService) -> bytes:
    """Return the proof that the service's certificate is not revoked: anybody can keep one for an hour."""
    own, issuer = x509.load_pem_x509_certificates((service.dir / "server.crt").read_bytes())[:2]
    question = ask(own.serial_number, issuer, nonce=False).der
    return httpx.post(
        f"{service.http}/ocsp",
        content=question,
        headers={"Content-Type": "application/ocsp-request"},
        trust_env=False,
    ).content


def forged(service: ProvisioningService, like: Enrolled, **different: Any) -> Held:
    """Return a certificate for whom *like* names that nobody has recorded: whoever has the CA's key makes them."""
    stolen = stolen_authority(service)
    made = Pki().certify(identity_of(like.certificate), issuer=stolen, **different)
    # A root that is trusted vouches for what is shown with it.
    return Held(made.certificate, made.key, (stolen.certificate,))


def certified_again(authority: Held, times: int) -> list[Held]:
    """Return CAs of the name of *authority*, certified by it, all with one key: what one of them signs, all did."""
    key, own = generate_key(), authority.certificate
    named = x509.AuthorityKeyIdentifier.from_issuer_public_key(own.public_key())  # type: ignore[arg-type]
    certified = (
        x509.CertificateBuilder(own.subject, own.subject, key.public_key(), number + 1)
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(named, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
        for number in range(times)
    )
    return [Held(each, key) for each in certified]


@pytest.mark.parametrize("whose", ["the service's stolen key", "the key of a revoked CA"])
def test_a_server_whose_certificate_is_revoked_is_not_believed(tmp_path: Path, whose: str) -> None:
    settings = {"feed_heartbeat_seconds": 0.2, "crl_debounce_seconds": 0.05}
    with contextlib.ExitStack() as stack:
        with ProvisioningService.copied(tmp_path / "fleet", settings) as service:
            server = Enrolled("provisioning", read_certificate(service.dir / "server.crt"), b"")
            if whose == "the key of a revoked CA":
                names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
                held = forged(service, server, purposes=SERVER, names=names)
                stolen = stolen_authority(service)
                proof = Responder(stolen, stolen, [held], nonce=False)(question_about(held)) or b""
                credential = held.credential
                roll_over(service, "issuing-2")
            else:
                files = [(service.dir / f"server.{kind}").read_bytes() for kind in ("key", "crt")]
                credential = CredentialPem(b"".join(files))
                proof = stapled(service)
            broker = stack.enter_context(BrokerProcess.enrolled(tmp_path / "b", service))
            anchors = service.bundle.read_bytes().decode()
            if whose == "the key of a revoked CA":
                ca(service, "revoke", "issuing-ca", "--yes")
            else:
                service.revoke(serial=server.serial, reason="keyCompromise")
            (last,) = enrol(service, "meter")
            service.revoke(device=last.name, reason="keyCompromise")
            wait_until(lambda: broker.events("revoked", serial=last.serial), "the broker learns of the revocation")
            heard = broker.events("revoked")[-1]["sequence"]
            port = service.port

        async def pose() -> None:
            async with impostor(credential, anchors, port=port, sequence=heard, response=proof) as (_, connections):
                await asyncio.to_thread(wait_until, lambda: len(connections) > 1, "the broker comes, and comes again")
                assert await asyncio.to_thread(broker.stop, signal.SIGKILL) == -signal.SIGKILL
                lost = len(broker.events("FEED_LOST"))
                broker.launch()  # It has read nothing, and nobody else is there to be read.
                await asyncio.to_thread(
                    wait_until, lambda: len(broker.events("FEED_LOST")) > lost, "it has heard of it before it ended"
                )
                await asyncio.to_thread(broker.stop)
                (broker.dir / "state" / "broker.pem").unlink()
                (broker.dir / "token").write_text("fgt_" + "A" * 43)
                code, said = await asyncio.to_thread(broker.fail)
                assert (code, "revoked-services.json" in said) == (1, True), said
                assert not any(b"authorization" in each.lower() for each in connections), "it is sent no token"

        asyncio.run(pose())
    assert any("is revoked" in event["detail"] for event in broker.events("FEED_LOST"))
    assert "revoked-services.json" in broker.events("FEED_LOST")[-1]["detail"]
    assert len(broker.events("FEED_CURRENT")) == 1, "nobody but the service is believed"


@pytest.mark.parametrize("broker_is", ["off", "cut off"])
def test_a_broker_that_cannot_have_heard_of_it_believes_only_a_service_that_proves_that_it_is_not_revoked(
    tmp_path: Path, broker_is: str
) -> None:
    """Whoever had copied the service's key, and was in the way, said that nobody is: revoked devices came in."""
    with contextlib.ExitStack() as stack:
        with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 0.2}) as service:
            copied = CredentialPem(b"".join((service.dir / f"server.{kind}").read_bytes() for kind in ("key", "crt")))
            serial = f"{read_certificate(service.dir / 'server.crt').serial_number:x}"
            broker = stack.enter_context(BrokerProcess.enrolled(tmp_path / "b", service))
            anchors, port = service.bundle.read_bytes().decode(), service.port
            if broker_is == "off":
                assert broker.stop() == 0
            service.stop()
            service.start()  # Elsewhere: the broker does not find it.
            service.revoke(serial=serial, reason="keyCompromise")

        async def pose() -> None:
            lost = len(broker.events("FEED_LOST"))
            async with impostor(copied, anchors, port=port) as (_, heard):
                if broker_is == "off":
                    broker.launch()
                await asyncio.to_thread(
                    wait_until, lambda: "not prove" in str(broker.events("FEED_LOST")[lost:]), "it is led there"
                )
                await asyncio.to_thread(broker.stop)  # Before its connections' loop ends.
                assert not any(heard), "it is asked for nothing"

        asyncio.run(pose())
        assert len(broker.events("FEED_CURRENT")) == 1
        assert not (broker.dir / "state" / FILE_NAME).exists(), "it has heard of none"


def subscribed_anew(service: ProvisioningService) -> None:
    before = service.log.count("feed subscribed")
    wait_until(lambda: service.log.count("feed subscribed") > before, "another connection follows")


class Witness:
    """What the audit log would be told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def told(self, event: str, **_facts: object) -> None:
        self.heard.append(event)

    def saw(self, event: object) -> None:
        """Clients are not looked at."""


class Pausing(RevocationFeed):
    """Opens no further connection once it has had enough: one that is cancelled while it is opened stays behind."""

    enough = False

    async def _follow(self) -> None:
        if self.enough:
            self.paused.set()
            await asyncio.Event().wait()
        await super()._follow()

    @functools.cached_property
    def paused(self) -> asyncio.Event:
        return asyncio.Event()


async def test_the_feed_s_connection_is_renewed_and_nothing_is_lost_or_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server's certificate is judged in the handshake: one that was believed once would be for ever."""
    monkeypatch.setattr(revocation_feed, "_LONGEST_SECONDS", 0.0)
    broker, loop = MemoryBroker(), asyncio.get_running_loop()
    broker.engine.history.witness = witness = Witness()

    async def no_other(_code: str) -> bool:
        return False

    with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 0.05}) as service:
        devices = await asyncio.to_thread(enrol, service, "one", "two")
        (held,) = await asyncio.to_thread(enrol, service, "b", role="broker")
        feed = Pausing(
            broker.engine,
            service.https,
            service.bundle,
            held.credential,
            loop.time,
            no_other,
            RevokedServices(tmp_path),
        )
        with capture_logs() as said:
            following = asyncio.create_task(feed.run())
            for device in devices:
                await asyncio.to_thread(service.revoke, device=device.name, reason="keyCompromise")
                key = certificate_key(device.certificate)
                found = functools.partial(broker.engine.admission.status.index.find, key)
                await asyncio.to_thread(wait_until, found, "it is heard of")
                for _ in range(2):
                    await asyncio.to_thread(subscribed_anew, service)
            feed.enough = True
            await feed.paused.wait()
            following.cancel()
    assert not broker.freshness.is_lost
    assert witness.heard.count("feed current") == 1
    assert not {"feed lost", "feed starts again"} & set(witness.heard)
    assert [each["code"] for each in said if "code" in each].count("FEED_LOST") == 0


@pytest.mark.parametrize("judged_by", ["cafile alone", "a bundle"])
def test_rev_45_what_the_key_of_a_revoked_ca_has_certified_is_out_though_nobody_has_recorded_it(
    tmp_path: Path, judged_by: str
) -> None:
    settings = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 0.2}
    with ProvisioningService.copied(tmp_path / "fleet", settings) as service:
        asked: dict[str, Any] = {}
        if judged_by == "a bundle":
            asked = {"ocsp_responder": f"{service.http}/ocsp", "ocsp_policy": "advisory"}
        first, second, gone = enrol(service, "meter-1", "meter-2", "meter-3")
        broker = BrokerProcess.enrolled(tmp_path / "b", service, **asked)
        roll_over(service, "issuing-2")
        anchors = tmp_path / "anchors.pem"  # A copy, as on another machine: nobody takes the CA out of it.
        anchors.write_bytes(service.bundle.read_bytes())
        broker.arguments[broker.arguments.index("--cafile") + 1] = str(anchors)
        (bystander,) = enrol(service, "meter-4")
        connected, late, resumed = (forged(service, each) for each in (first, second, gone))
        context = client_context(service.bundle, resumed.credential)
        with contextlib.ExitStack() as stack:
            stack.enter_context(broker)
            inside = stack.enter_context(TlsClient(broker.port, service.bundle, connected.credential))
            inside.connect(client_id="meter-1")  # At once: `connect_timeout` has begun.
            good = stack.enter_context(TlsClient(broker.port, service.bundle, bystander.credential))
            good.connect(client_id="meter-4")
            with TlsClient(broker.port, "", context=context) as before:
                before.connect(client_id="meter-3")
                session = before.leave()
            ca(service, "revoke", "issuing-ca", "--reason", "cACompromise", "--yes")
            farewell = inside.farewell()
            assert farewell.reason_code is ReasonCode.ADMINISTRATIVE_ACTION
            reason = str(farewell.properties.reason_string)
            assert reason.startswith("ISSUER_REVOKED: the CA "), reason
            assert reason.endswith(" is revoked (cACompromise)"), reason
            with TlsClient(broker.port, service.bundle, late.credential) as client:
                answer = client.connect(client_id="meter-2", expect=ReasonCode.NOT_AUTHORIZED)
                assert answer.properties.reason_string == reason
            with TlsClient(broker.port, "", context=context, session=session) as client:
                assert client.socket.session_reused
                client.connect(client_id="meter-3", expect=ReasonCode.NOT_AUTHORIZED)
            good.check_alive()


def test_rev_45_nor_does_he_come_back_by_showing_more_cas_than_the_broker_remembers(tmp_path: Path) -> None:
    """A CA may certify itself again, whatever its path length (RFC 5280 §6.1.4 l): each time it is another path."""
    settings = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 0.2}
    with ProvisioningService.copied(tmp_path / "fleet", settings) as service:
        (meter,) = enrol(service, "meter-1")
        broker = BrokerProcess.enrolled(tmp_path / "b", service)
        roll_over(service, "issuing-2")
        anchors = tmp_path / "anchors.pem"  # A copy, as on another machine: nobody takes the CA out of it.
        anchors.write_bytes(service.bundle.read_bytes())
        broker.arguments[broker.arguments.index("--cafile") + 1] = str(anchors)
        stolen = stolen_authority(service)
        (first,), others = certified_again(stolen, 1), certified_again(stolen, MOST_PATHS)
        thief, other = (Pki().certify(identity_of(meter.certificate), issuer=each) for each in (first, others[0]))
        shown = Held(thief.certificate, thief.key, (first.certificate, stolen.certificate))
        context = client_context(service.bundle, shown.credential)
        with broker:
            with TlsClient(broker.port, "", context=context) as before:
                before.connect(client_id="meter-1")
                session = before.leave()
            ca(service, "revoke", "issuing-ca", "--reason", "cACompromise", "--yes")
            wait_until(lambda: broker.events("revoked", device="ca:issuing-ca"), "the broker learns of the revocation")
            for each in others:
                shown = Held(other.certificate, other.key, (each.certificate, stolen.certificate))
                with TlsClient(broker.port, service.bundle, shown.credential) as client:
                    client.connect(client_id="meter-1", expect=ReasonCode.NOT_AUTHORIZED)
            with TlsClient(broker.port, "", context=context, session=session) as client:
                assert client.socket.session_reused
                client.connect(client_id="meter-1", expect=ReasonCode.SERVER_UNAVAILABLE)
            with TlsClient(broker.port, "", context=context, session=session) as client:
                assert not client.socket.session_reused, "he is told to show the path again, and has to"
                client.connect(client_id="meter-1", expect=ReasonCode.NOT_AUTHORIZED)
