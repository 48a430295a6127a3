"""Two product lines, each with an issuing CA of its own, one of them under a root of its own, and one broker for both.

The broker is started with the bundle that the service tells; openssl and GnuTLS judge the paths and lists.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker.mqtt.codes import ReasonCode
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.ca_life import ca, ca_attempt, states, told, wait_for_state
from tests.support.curl import Curl
from tests.support.enrolled import Enrolled, enrol
from tests.support.openssl import OpensslDevice, openssl
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient

FAST = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 0.2}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ProvisioningService]:
    with ProvisioningService.copied(tmp_path / "fleet", FAST) as running:
        yield running


def group(service: ProvisioningService, *arguments: str) -> subprocess.CompletedProcess[str]:
    return service.command("group", *arguments, "--dir", str(service.dir), "--url", service.https)


def issuer_of(device: Enrolled) -> str:
    return device.certificate.issuer.rfc4514_string().partition(",")[0]


def verified(service: ProvisioningService, folder: Path, device: Enrolled, *lists: str) -> bool:
    """Whether openssl and GnuTLS accept the path and find nothing revoked in the CRLs called *lists*."""
    crls, certificate = folder / "crls.pem", folder / f"{device.name}.crt"
    crls.write_bytes(b"".join(Curl(service.http).run(f"/crl/{name}.pem").body for name in lists))
    certificate.write_bytes(openssl("x509", data=device.pem))
    shown = openssl("verify", "-crl_check", "-x509_strict", "-CAfile", service.bundle, "-CRLfile", crls, certificate,
                    check=False)  # fmt: skip
    gnutls = subprocess.run(
        ["certtool", "--verify", "--load-ca-certificate", service.bundle, "--load-crl", crls, "--infile", certificate],
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert (gnutls.returncode == 0) == shown.endswith(b": OK\n"), (gnutls.stdout, shown)
    return shown.endswith(b": OK\n")


def ocsp_status(service: ProvisioningService, folder: Path, device: Enrolled, issuer: str) -> str:
    certificate = folder / f"{device.name}.crt"
    certificate.write_bytes(openssl("x509", data=device.pem))
    out = openssl("ocsp", "-issuer", service.dir / f"{issuer}.crt", "-cert", certificate, "-url",
                  f"{service.http}/ocsp", "-CAfile", service.bundle, "-no_nonce")  # fmt: skip
    return out.decode().partition(": ")[2].split()[0]


def check_what_labels_are_told(service: ProvisioningService, folder: Path, devices: dict[str, Enrolled]) -> None:
    """A label's ``/cacerts`` are a device's anchors: for its own line's paths and the service's, and for no other's."""
    cas = {
        name: x509.load_der_x509_certificate(Curl(service.http).run(f"/ca/{name}.crt").body) for name in states(service)
    }
    expected = {
        "others": {"root-ca", "issuing-ca"},
        "nobody-has-made-it": {"root-ca", "issuing-ca"},
        "meters": {"root-ca", "issuing-ca", "issuing-meters-1"},
        "pumps": {"root-ca", "issuing-ca", "root-2", "issuing-pumps-1"},
    }
    for label, names in expected.items():
        anchors = told(service, label)
        assert {name for name, certificate in cas.items() if certificate in anchors} == names, label
        assert len(anchors) == len(names)
        (cafile := folder / f"{label}.pem").write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in anchors))
        assert Curl(service.https, cafile).run("/.well-known/est/csrattrs").status == 200, "the service is known"
        for group_name, device in devices.items():
            (certificate := folder / "each.crt").write_bytes(openssl("x509", data=device.pem))
            shown = openssl("verify", "-no-CApath", "-CAfile", cafile, certificate, check=False)
            known = issuer_of(device) in {each.subject.rfc4514_string().partition(",")[0] for each in anchors}
            assert shown.endswith(b": OK\n") == known == (group_name in (label, "others")), (label, group_name)


def begin_under_another_root(service: ProvisioningService, folder: Path, line: str) -> None:
    """Begin *line* with a CA that a root elsewhere signs, by openssl."""
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-subj", "/CN=Pump root",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-days", "3650", "-keyout", folder / "r.key", "-out",
            folder / "r.crt")  # fmt: skip
    csr, certificate = folder / "line.csr", folder / "line.crt"
    ca(service, "export-csr", "--line", line, "--output", str(csr))
    openssl("x509", "-req", "-in", csr, "-CA", folder / "r.crt", "-CAkey", folder / "r.key", "-days", "365",
            "-copy_extensions", "copyall", "-out", certificate)  # fmt: skip
    ca(service, "import", str(certificate), "--root", str(folder / "r.crt"))


def test_two_product_lines_have_an_issuing_ca_each_and_one_broker_admits_both(
    service: ProvisioningService, tmp_path: Path
) -> None:
    refused = group(service, "create", "pumps", "--way", "token", "--issuing-line", "pumps")
    assert (refused.returncode, "issuing_line 'pumps' has no active CA: use default, or" in refused.stderr) == (1, True)
    ca(service, "rollover", "begin", "--line", "meters")
    begin_under_another_root(service, tmp_path, "pumps")
    for name in ("issuing-meters-1", "issuing-pumps-1"):
        wait_for_state(service, name, "announced")
        ca(service, "rollover", "activate", name, "--without-waiting")
        wait_for_state(service, name, "active")
    for name in ("meters", "pumps"):
        done = group(service, "create", name, "--way", "token", "--issuing-line", name)
        assert done.returncode == 0, done.stderr
    assert states(service) == {
        "root-ca": "active", "issuing-ca": "active", "issuing-meters-1": "active", "root-2": "active",
        "issuing-pumps-1": "active",
    }  # fmt: skip
    assert set(told(service)) == set(x509.load_pem_x509_certificates(service.bundle.read_bytes()))
    assert len(told(service)) == 5

    (plain,) = enrol(service, "plain-1", group="others")
    (meter,) = enrol(service, "meter-1", group="meters")
    pump, other_pump = enrol(service, "pump-1", "pump-2", group="pumps")
    issuers = [issuer_of(each) for each in (meter, pump, other_pump)]
    assert issuers == ["CN=Fleetgate issuing CA meters 1", *(["CN=Fleetgate issuing CA pumps 1"] * 2)]
    assert "meters" not in issuer_of(plain)
    of = {"plain-1": "issuing-ca", "meter-1": "issuing-meters-1", "pump-1": "issuing-pumps-1"}
    for device in (plain, meter, pump):
        assert verified(service, tmp_path, device, of[device.name])
        assert ocsp_status(service, tmp_path, device, of[device.name]) == "good"

    check_what_labels_are_told(service, tmp_path, {"others": plain, "meters": meter, "pumps": pump})

    with BrokerProcess.enrolled(tmp_path / "broker", service) as broker:
        clients = [TlsClient(broker.port, service.bundle, each.credential) for each in (plain, meter, pump)]
        for client, device in zip(clients, (plain, meter, pump), strict=True):
            client.__enter__()
            client.connect(client_id=device.name)

        # One revoked device: its own line's list has it, the feed puts it out, the others stay.
        service.revoke(device="pump-1", reason="keyCompromise")
        assert clients[2].farewell().reason_code is ReasonCode.ADMINISTRATIVE_ACTION
        assert ocsp_status(service, tmp_path, pump, "issuing-pumps-1") == "revoked"
        wait_until(lambda: not verified(service, tmp_path, pump, "issuing-pumps-1"), "the line's CRL has it")
        assert verified(service, tmp_path, other_pump, "issuing-pumps-1")

        # Each line is succeeded on its own; the other lines do not notice.
        ca(service, "rollover", "begin", "--line", "meters")
        wait_for_state(service, "issuing-meters-2", "announced")
        ca(service, "rollover", "activate", "--without-waiting")
        wait_for_state(service, "issuing-meters-2", "active")
        now = states(service)
        assert (now["issuing-meters-1"], now["issuing-ca"], now["issuing-pumps-1"]) == ("retiring", "active", "active")
        renewing = OpensslDevice(tmp_path, "meter-9")
        user = f"meter-9:{service.token(device='meter-9', group='meters')}"
        answer = Curl(service.https, service.bundle).est("simpleenroll", renewing.request(), "--user", user)
        renewing.take(answer.body)
        csr = renewing.renewal("URI:spiffe://fleet.internal/device/meters/meter-9", new_key=True)
        answer = Curl(service.https, service.bundle, renewing.credential).est("simplereenroll", csr)
        assert answer.status == 200, answer.text
        renewing.take(answer.body)
        shown = openssl("x509", "-noout", "-issuer", data=renewing.certificate.read_bytes())
        assert b"Fleetgate issuing CA meters 2" in shown
        clients[1].check_alive()
        (newest,) = enrol(service, "meter-2", group="meters")
        with TlsClient(broker.port, service.bundle, newest.credential) as client:
            client.connect(client_id="meter-2")
            client.leave()

        # The line's first CA is revoked: what it issued is put out, every other line's stays.
        ca(service, "revoke", "issuing-meters-1", "--yes")
        assert clients[1].farewell().reason_code is ReasonCode.ADMINISTRATIVE_ACTION
        clients[0].check_alive()
        with TlsClient(broker.port, service.bundle, other_pump.credential) as client:
            client.connect(client_id="pump-2")
            client.leave()
        for client in clients:
            client.__exit__()

    # A line ends when no group is bound to it.
    bound = ca_attempt(service, "rollover", "end-line", "pumps")
    assert (bound.returncode, "line pumps certifies the devices of pumps: give" in bound.stderr) == (1, True)
    assert group(service, "set", "pumps", "--issuing-line", "default").returncode == 0
    ca(service, "rollover", "end-line", "pumps")
    assert states(service)["issuing-pumps-1"] == "retiring"
    assert "meters" not in issuer_of(enrol(service, "pump-3", group="pumps")[0])
