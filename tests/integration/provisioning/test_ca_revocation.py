"""A CA that is revoked while the service runs: what ends with it, and what does not stand in the way."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509

from provisioning.pki.keys import key_identifier
from tests.integration.provisioning.test_feed import following
from tests.support.broker_process import wait_until
from tests.support.ca_life import (
    ca,
    ca_attempt,
    enrol,
    issuer_of,
    ocsp_status,
    renewed,
    roll_over,
    states,
    told,
    wait_for_state,
)
from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice, openssl
from tests.support.pki import pem_of
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import ProvisioningService

_TLS_ERRORS = (35, 55, 56)
"""curl's, for an alert in the handshake or, with TLS 1.3, when it sends or receives after it."""

FAST = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 0.2}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ProvisioningService]:
    with ProvisioningService.copied(tmp_path / "fleet", FAST) as running:
        yield running


def refused_by_tls(service: ProvisioningService, device: OpensslDevice, bundle: Path | None = None) -> bool:
    line = Curl(service.https, bundle or service.bundle, device.credential).arguments("/.well-known/est/cacerts")
    return subprocess.run(line, capture_output=True, check=False, timeout=60).returncode in _TLS_ERRORS


def root_list(service: ProvisioningService) -> str:
    return openssl("crl", "-noout", "-text", data=Curl(service.http).run("/crl/root-ca.pem").body).decode()


def test_a_revoked_ca_takes_everything_with_it(service: ProvisioningService, tmp_path: Path) -> None:
    victim = enrol(service, tmp_path, "meter-1")
    for name, words in (
        ("nosuch", "there is no issuing CA 'nosuch', only issuing-ca (active)"),
        ("issuing-ca", "begin a successor and activate"),
    ):
        done = ca_attempt(service, "revoke", name)  # Nobody is there to answer a question.
        assert (done.returncode, done.stdout, words in done.stderr) == (1, "", True)
    roll_over(service, "issuing-2")
    bystander = enrol(service, tmp_path, "meter-2")

    shown = ca(service, "revoke", "issuing-ca", "--yes", "--reason", "cACompromise")
    assert "device   north meter-1" in shown
    assert "meter-2" not in shown
    wait_for_state(service, "issuing-ca", "revoked")
    issuing = x509.load_pem_x509_certificate((service.dir / "issuing-ca.crt").read_bytes())
    root = x509.load_pem_x509_certificate((service.dir / "root-ca.crt").read_bytes())
    assert issuing not in told(service)
    # The root's CRL says it, the feed too, in the order CA, certificates.
    serial = f"{issuing.serial_number:X}"
    wait_until(lambda: serial in root_list(service), "the root's CRL lists the CA")
    operator = Curl(service.https, service.bundle, service.operator)
    ((newest,),) = service.stored("SELECT max(sequence) FROM revocation_events")
    with following(operator, "?after=0") as feed:
        events = feed.revoked(newest)
    first = events[0]
    assert (first["serial"], first["issuer_key_id"]) == (serial.lower(), key_identifier(root.public_key()).hex())
    assert (first["reason"], first["device"]) == ("cACompromise", "ca:issuing-ca")
    assert {"meter-1", "admin"} <= {each.get("device") for each in events}
    assert "meter-2" not in {each.get("device") for each in events}
    assert {each["reason"] for each in events[1:] if "reason" in each} == {"unspecified"}

    assert ocsp_status(service, victim, "issuing-ca") == "revoked"
    # Nobody is let in by the revoked CA's word: TLS refuses already.
    assert refused_by_tls(service, victim)
    assert not refused_by_tls(service, bystander)
    assert renewed(service, bystander) == "Fleetgate issuing CA 2"
    # The operator has a new certificate, and the device comes back with a token.
    assert issuer_of(enrol(service, tmp_path, "meter-3")) == "Fleetgate issuing CA 2"
    done = ca_attempt(service, "revoke", "issuing-ca", "--yes")
    assert "issuing-ca is revoked already" in done.stderr
    # To whoever still has the old bundle, root and CRLs are enough.
    (tmp_path / "old.pem").write_bytes(pem_of(root, issuing))
    lists = [Curl(service.http).run(f"/crl/{name}.pem").body for name in ("root-ca", "issuing-ca")]
    (tmp_path / "crls.pem").write_bytes(b"".join(lists))
    verdict = subprocess.run(
        ["openssl", "verify", "-crl_check_all", "-CAfile", str(tmp_path / "old.pem"), "-CRLfile",
         str(tmp_path / "crls.pem"), str(victim.certificate)], capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert b"certificate revoked" in verdict.stderr


@pytest.mark.parametrize("stolen", [False, True], ids=["out of reach", "stolen, too"])
def test_a_stolen_ca_is_replaced_though_its_successor_was_announced(service: ProvisioningService, stolen: bool) -> None:
    """As docs/ca-life.md says."""
    ca(service, "rollover", "begin")
    refused = ca_attempt(service, "rollover", "begin")
    assert (refused.returncode, "line default has its next CA already, issuing-2" in refused.stderr) == (1, True)
    if stolen:
        ca(service, "revoke", "issuing-2", "--yes", "--reason", "cACompromise")
        ca(service, "rollover", "begin")
    ca(service, "rollover", "activate", "--without-waiting", "--despite-brokers", "--despite-services")
    ca(service, "revoke", "issuing-ca", "--yes", "--reason", "cACompromise")
    after = {"issuing-2": "revoked", "issuing-3": "active"} if stolen else {"issuing-2": "active"}
    assert states(service) == {"root-ca": "active", "issuing-ca": "revoked"} | after


def test_a_ca_that_is_revoked_is_trusted_no_longer_though_the_disk_is_full(
    tmp_path: Path, postgresql: PostgresqlServer
) -> None:
    with ExitStack() as stack:
        idle = stack.enter_context(ProvisioningService.copied_on(postgresql, tmp_path / "first", FAST))
        shutil.copytree(idle.dir, tmp_path / "second")
        first = stack.enter_context(idle)
        victim = enrol(first, tmp_path, "meter-1")
        roll_over(first, "issuing-2")
        shutil.copy(first.dir / "issuing-2.key", tmp_path / "second")
        settings = FAST | {"database_url": idle.database_url}
        second = stack.enter_context(ProvisioningService(tmp_path / "second", settings))
        full = second.dir / f".{second.bundle.name}.{second.pid}.new"
        full.mkdir()  # What the service would write there before it takes the bundle's place.
        ca(first, "revoke", "issuing-ca", "--yes")
        wait_until(lambda: "bundle of the CAs not written" in second.log, "the second cannot write its bundle")
        wait_for_state(second, "issuing-ca", "revoked")
        assert refused_by_tls(second, victim, first.bundle)  # By its own, curl would send the CA's certificate, too.
        assert second.bundle.read_bytes() != first.bundle.read_bytes()
        full.rmdir()
        wait_until(lambda: second.bundle.read_bytes() == first.bundle.read_bytes(), "it is written when there is room")


def test_a_ca_is_revoked_though_nothing_else_can_be_written_in_the_directory(
    service: ProvisioningService, tmp_path: Path
) -> None:
    """What went wrong is said, and that the CA is revoked; the exit code is not 0."""
    device = enrol(service, tmp_path, "meter-1")
    serial = f"{x509.load_pem_x509_certificate(device.certificate.read_bytes()).serial_number:x}"
    roll_over(service, "issuing-2")
    service.stop()
    before = service.bundle.read_bytes()
    service.bundle.unlink()
    service.bundle.mkdir()  # Nothing takes its place.
    (service.dir / "operator.crt").unlink()
    (service.dir / "operator.crt").mkdir()
    done = ca_attempt(service, "revoke", "issuing-ca", "--yes")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        "issuing-ca is revoked (cACompromise): no certificate that it has issued is valid from now on." in done.stdout
    )
    assert f"device   north meter-1 {serial}" in done.stdout
    assert f"Not done: {service.bundle} cannot be written: Is a directory" in done.stdout
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"fleet-provisioning: issuing-ca is revoked, but: {service.bundle} cannot be written: Is a")
    assert "the service writes the bundle as soon as it can, or when it starts" in said
    assert "fix that, then run ca restore-operator" in said
    assert states(service)["issuing-ca"] == "revoked"
    for name in (service.bundle, service.dir / "operator.crt"):
        name.rmdir()
    ca(service, "restore-operator")
    with service:
        issuing = x509.load_pem_x509_certificate((service.dir / "issuing-ca.crt").read_bytes())
        assert issuing in x509.load_pem_x509_certificates(before)
        assert issuing not in x509.load_pem_x509_certificates(service.bundle.read_bytes())
        with service.api() as api:
            assert api.get("/v1/devices").status_code == 200
