"""strongSwan's pki, which brings EST, a TLS stack and a reader of OCSP and CRLs of its own: what it makes of ours."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.broker_process import wait_until
from tests.support.curl import Curl
from tests.support.openssl import certificate_facts
from tests.support.provisioning import ProvisioningService

WITHOUT_HTTP = "random x509 revocation constraints pubkey pkcs1 pkcs7 pem openssl pkcs8 drbg"


@dataclass(frozen=True)
class Answered:
    """What pki did."""

    code: int
    output: bytes
    said: str


@dataclass(frozen=True)
class Pki:
    """strongSwan's pki, in a directory of its own, before one service."""

    directory: Path
    service: ProvisioningService
    configuration: Path | None = None

    def run(self, *words: str | Path, given: bytes = b"") -> Answered:
        """Run ``pki`` with *words*, and *given* as its input."""
        done = subprocess.run(
            ["pki", *map(str, words)],
            input=given, capture_output=True, check=False, timeout=60, cwd=self.directory,
            env={**os.environ, "STRONGSWAN_CONF": str(self.configuration)} if self.configuration else None,
        )  # fmt: skip
        return Answered(done.returncode, done.stdout, done.stderr.decode())

    def file(self, name: str, answered: Answered) -> Path:
        """Keep what pki has printed as *name*."""
        assert answered.code == 0, answered.said
        path = self.directory / name
        path.write_bytes(answered.output)
        return path

    def key(self, name: str) -> Path:
        return self.file(f"{name}.key", self.run("--gen", "--type", "ecdsa", "--size", "256", "--outform", "pem"))

    def request(self, key: Path, device: str, names: Iterable[str] = ()) -> Path:
        """Ask for a certificate of *key*, with *names* as Subject Alternative Name."""
        wishes = [word for each in names for word in ("--san", each)]
        asked = self.run("--req", "--in", key, "--type", "priv", "--dn", f"CN={device}", *wishes, "--outform", "pem")
        return self.file(f"{key.stem}.csr", asked)

    def est(self, request: Path, *shown: str | Path) -> Answered:
        """Ask for a certificate by EST; with ``--cert``, pki asks for that one's successor."""
        server = ("--url", f"https://localhost:{self.service.port}", "--cacert", self.service.bundle)
        return self.run("--est", *server, "--in", request, *shown, "--outform", "pem")

    def verify(self, certificate: Path, *more: str | Path) -> Answered:
        """Have pki verify *certificate* under both of our CAs."""
        anchors = [self.service.dir / f"{each}-ca.crt" for each in ("root", "issuing")]
        return self.run("--verify", "--in", certificate, *[w for each in anchors for w in ("--cacert", each)], *more)


def holds(crl: Path, certificate: Path) -> bool:
    """Whether *certificate* is on *crl* already: it follows a revocation by a moment."""
    serial = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
    listed = x509.load_der_x509_crl(crl.read_bytes())
    return listed.get_revoked_certificate_by_serial_number(serial) is not None


@pytest.fixture
def pki(service: ProvisioningService, tmp_path: Path) -> Pki:
    return Pki(tmp_path, service)


def test_strongswan_fetches_our_cas_enrols_by_token_and_renews(service: ProvisioningService, pki: Pki) -> None:
    url = f"https://localhost:{service.port}"
    told = pki.run("--estca", "--url", url, "--cacert", service.bundle, "--caout", "ca.pem", "--outform", "pem")
    assert told.code == 0, told.said
    assert "Root CA cert is trusted" in told.said
    assert "Sub CA cert is trusted" in told.said

    token = service.token(device="swan-1", group="meters")
    key = pki.key("first")
    request = pki.request(key, "swan-1")
    certificate = pki.file("first.crt", pki.est(request, "--userpass", f"swan-1:{token}"))
    assert certificate_facts(certificate, "-subject").strip() == "subject=CN=swan-1"

    # pki tells its user the status and no more; the service's log has the rest.
    another = pki.key("another")
    refused = pki.est(pki.request(another, "swan-1"), "--userpass", f"swan-1:{token}")
    assert refused.code == 1
    assert "EST request failed: HTTP 401" in refused.said
    assert "TOKEN_USED" in service.log

    # Renewing by its own certificate, it has to copy the names, as everybody (RFC 7030 §4.2.2).
    shown = ("--cert", certificate, "--key", key)
    nameless = pki.est(pki.request(another, "swan-1"), *shown)
    assert nameless.code == 1
    assert "EST request failed: HTTP 400" in nameless.said
    named = pki.request(another, "swan-1", ["uri:spiffe://fleet.internal/device/meters/swan-1"])
    successor = pki.file("another.crt", pki.est(named, *shown))
    assert certificate_facts(successor, "-serial") != certificate_facts(certificate, "-serial")
    assert certificate_facts(successor, "-ext", "subjectAltName") == certificate_facts(
        certificate, "-ext", "subjectAltName"
    )


def test_strongswan_learns_of_a_revocation_by_ocsp_and_by_crl(service: ProvisioningService, pki: Pki) -> None:
    token = service.token(device="swan-2", group="meters")
    request = pki.request(pki.key("revoked"), "swan-2")
    certificate = pki.file("revoked.crt", pki.est(request, "--userpass", f"swan-2:{token}"))
    good = pki.verify(certificate, "--online")
    assert good.code == 0, good.said
    assert "ocsp response correctly signed" in good.said
    assert "certificate status is good" in good.said

    service.revoke(device="swan-2", reason="keyCompromise")
    revoked = pki.verify(certificate, "--online")
    assert revoked.code == 1
    assert "reason: key compromise" in revoked.said
    assert "ocsp response correctly signed" in revoked.said

    # Where it can ask nobody, it reads the CRL that it is given.
    configuration = pki.directory / "strongswan.conf"
    configuration.write_text(f"pki {{\n  load = {WITHOUT_HTTP}\n}}\n")
    offline = replace(pki, configuration=configuration)
    crl = pki.directory / "issuing-ca.crl"
    plain = Curl(service.http)
    assert wait_until(lambda: crl.write_bytes(plain.run("/crl/issuing-ca.crl").body) and holds(crl, certificate), "CRL")
    listed = offline.verify(certificate, "--crl", crl)
    assert listed.code == 1
    assert "crl correctly signed" in listed.said
    assert "reason: key compromise" in listed.said
