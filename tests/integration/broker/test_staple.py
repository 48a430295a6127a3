"""The staple: a client that asks is handed what the responder says of the broker's certificate, or nothing at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID
from typer.testing import CliRunner

from broker.cli import app
from provisioning.pki.tls import CredentialFiles
from tests.support.broker_process import PATIENCE, BrokerProcess, wait_until
from tests.support.crl import crl
from tests.support.enrolled import Enrolled, enrol
from tests.support.faketime import FakeClock
from tests.support.openssl import openssl
from tests.support.pki import Held, Pki, pem_of
from tests.support.provisioning import ProvisioningService
from tests.support.responder import Responder, delegate
from tests.support.stapled import Stapled, stapled
from tests.support.web import WebServer

ABOUT = {"stapled", "staple lost", "own certificate revoked"}
SOON = timedelta(seconds=3)
"""What is left of an answer's life where a test waits for its renewal, or its end."""


@dataclass
class Scene:
    """A broker whose certificate names a responder that is the test's to change, and a device that asks."""

    broker: BrokerProcess
    pki: Pki
    web: WebServer
    responder: Responder
    own: Held
    credential: CredentialFiles

    @property
    def anchors(self) -> Path:
        return self.broker.dir / "anchors.pem"

    def stapled(self, *options: str | Path) -> Stapled:
        return stapled(self.broker.port, self.anchors, self.credential, *options)

    def next_certificate(self) -> Held:
        """Put another certificate into the broker's files, which the responder knows."""
        self.own = naming(self.pki, f"{self.web.url}/ocsp")
        self.own.write(self.broker.dir)
        self.responder.certificates.append(self.own)
        return self.own

    def status(self) -> tuple[int, dict[str, Any]]:
        """Return the exit code of ``fleet-broker crl status``, and what it says of the staple."""
        done = CliRunner().invoke(
            app, ["crl", "status", "--json", "--state-dir", str(self.broker.dir / "state")], catch_exceptions=False
        )
        staple: dict[str, Any] = json.loads(done.stdout)["staple"]
        return done.exit_code, staple


def naming(pki: Pki, url: str) -> Held:
    """Return a broker's certificate that names the responder at *url*."""
    access = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(url))
    return pki.broker(extensions=[x509.AuthorityInformationAccess([access])])


def serial_of(held: Held | Enrolled) -> str:
    return f"{held.certificate.serial_number:x}"


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as running:
        yield running


@pytest.fixture
def scene(tmp_path: Path, pki: Pki, web: WebServer) -> Scene:
    """The broker does not run yet."""
    directory = tmp_path / "b"
    responder = Responder(pki.issuing, delegate(pki), [])
    web.pages["/ocsp"] = responder
    broker = BrokerProcess.with_files(
        directory, pki, "--allow-tls12", "--no-watch-files", ocsp_refresh_seconds=0.5, metrics_port=0
    )
    credential = pki.device("meter-staple").write(tmp_path, "meter")
    made = Scene(broker, pki, web, responder, pki.broker(), credential)
    made.next_certificate()
    return made


@pytest.fixture
def enrolled(tmp_path: Path, service: ProvisioningService) -> tuple[BrokerProcess, CredentialFiles]:
    """A broker with a certificate of the real service, whose responder it names, and a device's credential."""
    (device,) = enrol(service, f"meter-{os.urandom(4).hex()}")
    broker = BrokerProcess.enrolled(
        tmp_path / f"staple-{os.urandom(4).hex()}",
        service,
        "--websocket-port",
        "0",
        "--admin-port",
        "0",
        ocsp_refresh_seconds=0.5,
    )
    return broker, device.write(tmp_path)


def test_every_door_staples_what_provisioning_answers(
    enrolled: tuple[BrokerProcess, CredentialFiles], service: ProvisioningService, tmp_path: Path
) -> None:
    running, credential = enrolled
    with running as broker:
        own = (broker.dir / "state" / "broker.pem").read_bytes()
        certificate, issuer = x509.load_pem_x509_certificates(own)[:2]
        assert [url.partition(":")[0] for url in broker.urls] == ["mqtts", "wss", "https"]
        for url in broker.urls:
            got = stapled(int(url.rpartition(":")[2]), service.bundle, credential)
            assert (got.status, got.serial) == ("good", f"{certificate.serial_number:x}")
        # By somebody else's verifier: GnuTLS takes it, openssl verifies it.
        written = tmp_path / "staple.der"
        subprocess.run(
            [
                *("gnutls-cli", "--x509cafile", service.bundle, "--x509certfile", credential.certificate),
                *("--x509keyfile", credential.key, "--ocsp", "--save-ocsp", written),
                *("-p", str(broker.port), "localhost"),
            ],
            input=b"", capture_output=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        (tmp_path / "own.pem").write_bytes(pem_of(certificate))
        (tmp_path / "issuer.pem").write_bytes(pem_of(issuer))
        verified = openssl(
            *("ocsp", "-respin", written, "-issuer", tmp_path / "issuer.pem", "-cert", tmp_path / "own.pem"),
            *("-CAfile", service.bundle, "-no_nonce"),
        )
        assert b"own.pem: good" in verified


def test_a_client_that_insists_is_served(enrolled: tuple[BrokerProcess, CredentialFiles], service: Any) -> None:
    """curl verifies the staple itself, with --cert-status, and goes no further without one."""
    running, credential = enrolled
    with running as broker:
        url = next(each for each in broker.urls if each.startswith("wss")).replace("wss", "https")
        asked = [
            *("curl", "--silent", "--show-error", "--max-time", "30", "--cert-status", "--cacert", service.bundle),
            *("--cert", credential.certificate, "--key", credential.key, url.replace("127.0.0.1", "localhost")),
        ]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert (done.returncode, done.stderr) == (0, "")
    running.environment["FLEET_BROKER_OCSP_STAPLING"] = "false"
    with running as broker:
        url = next(each for each in broker.urls if each.startswith("wss")).replace("wss", "https")
        asked[-1] = url.replace("127.0.0.1", "localhost")
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert done.returncode == 91, "CURLE_SSL_INVALIDCERTSTATUS"


def test_a_certificate_that_names_no_responder_has_no_staple_and_that_is_no_trouble(
    broker: BrokerProcess, anchors: Path, pki: Pki, tmp_path: Path
) -> None:
    credential = pki.device("meter-none").write(tmp_path)
    assert stapled(broker.port, anchors, credential).status == ""
    done = CliRunner().invoke(app, ["crl", "status", "--json", "--state-dir", str(broker.dir / "state")])
    assert json.loads(done.stdout)["staple"] == {"state": "no responder"}
    assert done.exit_code == 0
    assert not broker.events("STAPLE_FAILED")


def test_a_staple_is_renewed_before_it_ends(scene: Scene) -> None:
    scene.broker.environment["FLEET_BROKER_OCSP_REFRESH_SECONDS"] = "600"
    scene.responder.life = scene.responder.age + SOON
    with scene.broker:
        first = scene.stapled()
        assert (first.status, first.serial) == ("good", serial_of(scene.own))
        wait_until(lambda: scene.stapled().this_update != first.this_update, "a fresh one")
        assert not scene.broker.events("STAPLE_FAILED")


def test_a_staple_of_a_clock_that_was_ahead_is_dropped_when_it_is_set_back(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of CA and broker on one machine. Its answer is newer than any that follows, and no client takes it."""
    clock, ahead = FakeClock.new(tmp_path), timedelta(minutes=20)
    clock.set(ahead)
    with monkeypatch.context() as during:
        clock.enter(during)
        scene.broker.environment |= os.environ
    scene.responder.age = -ahead
    with scene.broker as broker:
        wait_until(lambda: broker.events("STAPLED"), "it believes the answer")
        scene.responder.age = timedelta(minutes=1)
        clock.set(timedelta())
        assert wait_until(lambda: broker.events("STAPLED")[1:], "another is taken for it")
        assert scene.stapled().status == "good"
        assert scene.status()[1]["age_seconds"] >= 0


def test_the_next_certificate_comes_with_its_own_staple(scene: Scene) -> None:
    with scene.broker as broker:
        before = serial_of(scene.own)
        assert scene.stapled().serial == before
        after = serial_of(scene.next_certificate())
        scene.responder.delay = 1.0  # For so long the old certificate is presented, with its staple.
        broker.send_signal(signal.SIGHUP)
        wait_until(lambda: broker.events("RELOADED", part="certificate"), "the new certificate")
        assert scene.stapled().serial == after
        scene.responder.delay = 0.0
        # Another generation of trust is another context: the staple stays.
        scene.responder.silent = True
        scene.anchors.write_text(scene.pki.anchors + Pki().anchors)
        broker.send_signal(signal.SIGHUP)
        wait_until(lambda: broker.events("RELOADED", part="trust"), "the new trust")
        assert scene.stapled().serial == after


def test_while_the_responder_is_away_there_is_none_and_clients_are_served(scene: Scene) -> None:
    scene.responder.silent = True
    with scene.broker as broker:
        assert scene.stapled().status == ""
        (failed,) = broker.events("STAPLE_FAILED")
        assert failed["detail"].startswith(f"{scene.web.url}/ocsp: cannot be asked: ")
        code, staple = scene.status()
        assert (code, staple["state"], staple["problem"]) == (1, "missing", failed["detail"])
        scene.responder.silent = False
        wait_until(lambda: scene.stapled().status == "good", "it is asked again")
        assert broker.events("STAPLED", serial=serial_of(scene.own))
        assert len(broker.events("STAPLE_FAILED")) == 1, "told once, until it answers"


def test_an_answer_that_has_ended_is_not_stapled(scene: Scene) -> None:
    scene.responder.life = scene.responder.age + SOON
    with scene.broker as broker:
        assert scene.stapled().status == "good"
        scene.responder.silent = True
        wait_until(lambda: scene.stapled().status == "", "it ends")
        wait_until(lambda: broker.events("the stapled response has expired"), "and that is told")
        assert scene.status()[1]["state"] == "missing"
        assert figures(broker)["staple_next_update_timestamp_seconds"] == 0


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("forged", "the signature is not that of the responder"),
        ("another", "the answer is about another certificate"),
        ("unknown", "the responder does not know the certificate"),
        ("old", "the answer ended on "),
        ("signer", "neither the issuer nor one that it certified for OCSP signing"),
    ],
)
def test_what_cannot_be_believed_is_not_stapled(scene: Scene, case: str, words: str) -> None:
    scene.responder.certificates.append(scene.pki.device("another"))
    scene.responder.forged = case == "forged"
    scene.responder.another = case == "another"
    scene.responder.unknown = case == "unknown"
    if case == "old":
        scene.responder.age, scene.responder.life = timedelta(hours=2), timedelta(hours=1)
    elif case == "signer":
        scene.responder.signer = scene.pki.device("another")
    with scene.broker as broker:
        assert scene.stapled().status == ""
        assert words in broker.events("STAPLE_FAILED")[0]["detail"]


def test_a_bad_answer_does_not_take_a_good_ones_place(scene: Scene) -> None:
    with scene.broker as broker:
        assert scene.stapled().status == "good"
        scene.responder.forged = True
        wait_until(lambda: broker.events("STAPLE_FAILED"), "the next one cannot be believed")
        assert scene.stapled().status == "good"
        assert scene.status()[1]["state"] == "current", "it is good for an hour yet"


def test_that_the_brokers_own_certificate_is_revoked_is_an_alarm_and_is_stapled(scene: Scene) -> None:
    audit = scene.broker.dir / "audit.jsonl"
    scene.broker.environment["FLEET_BROKER_AUDIT_LOG"] = str(audit)
    with scene.broker as broker:
        assert scene.stapled().status == "good"
        number = scene.own.certificate.serial_number
        scene.responder.revoked[number] = x509.ReasonFlags.certificate_hold
        wait_until(lambda: scene.stapled().status == "revoked", "whoever asks is told")
        (alarm,) = broker.events("OWN_CERTIFICATE_REVOKED")
        assert (alarm["level"], alarm["reason"]) == ("error", "certificateHold")
        assert scene.status()[0] == 1
        assert scene.status()[1]["state"] == "revoked"
        scene.responder.revoked.clear()
        wait_until(lambda: scene.stapled().status == "good", "the hold has ended")
        assert scene.status()[1]["state"] == "current"
        assert len(broker.events("OWN_CERTIFICATE_REVOKED")) == 1, "told once"
    entries = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [each["code"] for each in entries if each["event"] in ABOUT] == [
        "STAPLED",
        "OWN_CERTIFICATE_REVOKED",
        "STAPLED",
    ]


def test_a_good_answer_is_not_stapled_when_another_source_knows_better(scene: Scene) -> None:
    """A responder that lags, or whose answer of yesterday somebody plays back."""
    listed = scene.broker.dir / "issuing.crl"
    listed.write_bytes(crl(scene.pki.issuing))
    scene.broker.environment |= {"FLEET_BROKER_CRLFILE": str(listed), "FLEET_BROKER_CRL_CHECK_SECONDS": "0.05"}
    with scene.broker as broker:
        assert scene.stapled().status == "good"
        listed.write_bytes(crl(scene.pki.issuing, [scene.own], number=2))
        wait_until(lambda: broker.events("OWN_CERTIFICATE_REVOKED"), "the list is believed")
        assert scene.stapled().status == ""
        assert broker.events("STAPLE_FAILED")[0]["detail"].endswith("good, and another source that it is revoked")
        assert scene.status()[1]["state"] == "revoked"
        scene.responder.revoked[scene.own.certificate.serial_number] = x509.ReasonFlags.key_compromise
        wait_until(lambda: scene.stapled().status == "revoked", "the responder says so too")


def test_what_provisioning_revokes_is_stapled_as_revoked(
    enrolled: tuple[BrokerProcess, CredentialFiles], service: ProvisioningService
) -> None:
    running, credential = enrolled
    with running as broker:
        assert stapled(broker.port, service.bundle, credential).status == "good"
        service.revoke(device=f"broker-{broker.dir.name}", reason="keyCompromise")
        wait_until(
            lambda: stapled(broker.port, service.bundle, credential).status == "revoked", "the responder says so"
        )
        assert broker.events("OWN_CERTIFICATE_REVOKED", reason="keyCompromise")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_who_resumes_its_session_gets_no_certificate_and_no_staple(scene: Scene, tmp_path: Path, version: str) -> None:
    session = tmp_path / "session.pem"
    with scene.broker:
        first = scene.stapled(version, "-sess_out", session)
        assert (first.status, first.reused) == ("good", False)
        second = scene.stapled(version, "-sess_in", session)
        assert (second.status, second.reused) == ("", True)


def test_the_staple_is_in_the_metrics_and_in_crl_status(scene: Scene) -> None:
    with scene.broker as broker:
        code, staple = scene.status()
        assert (code, staple["state"], staple["serial"]) == (0, "current", serial_of(scene.own))
        assert staple["responder"] == f"{scene.web.url}/ocsp"
        assert 59 <= staple["age_seconds"] <= 120
        assert 3400 <= staple["seconds_left"] <= 3540
        seen = figures(broker)
        life = seen["staple_next_update_timestamp_seconds"] - seen["staple_this_update_timestamp_seconds"]
        assert life == 3600
        scene.responder.silent = True
        wait_until(lambda: figures(broker).get('revocation_alarms_total{code="STAPLE_FAILED"}'), "failures are counted")


def figures(broker: BrokerProcess) -> dict[str, float]:
    page = httpx.get(next(url for url in broker.urls if url.endswith("/metrics")), trust_env=False).text
    lines = [line.rpartition(" ") for line in page.splitlines() if line.startswith("fleet_broker_")]
    return {name.removeprefix("fleet_broker_"): float(value) for name, _, value in lines}
