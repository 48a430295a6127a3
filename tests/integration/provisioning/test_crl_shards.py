"""Shards and deltas, judged by openssl."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from tests.integration.provisioning.conftest import FAST
from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice, openssl
from tests.support.provisioning import ProvisioningService

SHARDED = FAST | {"crl_shards": 3}


def enrolled(service: ProvisioningService, directory: Path, name: str) -> OpensslDevice:
    device = OpensslDevice(directory, name)
    token = service.token(device=name, group="north")
    stranger = Curl(service.https, service.bundle)
    device.take(stranger.est("simpleenroll", device.request(), "--user", f"{name}:{token}").body)
    return device


def distribution_point(certificate: Path) -> str:
    loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    (point,) = loaded.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name is not None
    return str(point.full_name[0].value)


def fetch(service: ProvisioningService, url: str) -> bytes:
    answer = Curl(service.http).run(url.removeprefix(service.http))
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/pkix-crl")
    return answer.body


def verdict(service: ProvisioningService, directory: Path, certificate: Path, *crls: bytes) -> str:
    pem = b"".join(openssl("crl", "-inform", "DER", data=crl) for crl in crls)
    (directory / "crls.pem").write_bytes(pem)
    said = openssl("verify", "-crl_check", "-x509_strict", "-extended_crl", "-use_deltas", "-CAfile", service.bundle,
                   "-CRLfile", directory / "crls.pem", "-verbose", certificate, check=False)  # fmt: skip
    return said.decode()


def wait_for(service: ProvisioningService, url: str, serial: int) -> bytes:
    for _ in range(2000):
        crl = fetch(service, url)
        if x509.load_der_x509_crl(crl).get_revoked_certificate_by_serial_number(serial):
            return crl
    pytest.fail(f"{url} does not name {serial:x}")


def test_a_certificate_stays_in_its_shard_for_life_and_over_restarts(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet", SHARDED) as service:
        devices: list[OpensslDevice] = []
        points: dict[str, str] = {}
        while len(devices) < 8 or (len(devices) < 40 and len(set(points.values())) == 1):  # Each shard is drawn.
            device = enrolled(service, tmp_path, f"meter-{len(devices)}")
            devices.append(device)
            points[device.name] = distribution_point(device.certificate)
        assert 1 < len(set(points.values())) <= 3
        victim = devices[0]
        point = points[victim.name]
        assert ": OK" in verdict(service, tmp_path, victim.certificate, fetch(service, point))
        service.revoke(device=victim.name, reason="superseded")
        loaded = x509.load_pem_x509_certificate(victim.certificate.read_bytes())
        crl = wait_for(service, point, loaded.serial_number)
        assert ": OK" not in verdict(service, tmp_path, victim.certificate, crl)
        extension = x509.load_der_x509_crl(crl).extensions.get_extension_for_class(x509.IssuingDistributionPoint)
        assert extension.critical
        assert extension.value.full_name == [x509.UniformResourceIdentifier(point)]
        # Another shard's list says nothing about it, and openssl knows that.
        other = next(each for each in points.values() if each != point)
        assert (
            x509.load_der_x509_crl(fetch(service, other)).get_revoked_certificate_by_serial_number(loaded.serial_number)
            is None
        )
        assert ": OK" not in verdict(service, tmp_path, devices[1].certificate, *(
            [fetch(service, other)] if points[devices[1].name] != other else [crl]))  # fmt: skip
        # The complete list is about everybody.
        wait_for(service, f"{service.http}/crl/issuing-ca.crl", loaded.serial_number)
        before = service.http
        service.stop()
        # On another port now: new certificates go to new shards, the old shards are published as they were.
        service.start()
        path = point.removeprefix(before)
        again = Curl(service.http).run(path).body
        extension = x509.load_der_x509_crl(again).extensions.get_extension_for_class(x509.IssuingDistributionPoint)
        assert extension.value.full_name == [x509.UniformResourceIdentifier(point)]
        assert x509.load_der_x509_crl(again).get_revoked_certificate_by_serial_number(loaded.serial_number)


@pytest.mark.parametrize("settings", [FAST, SHARDED], ids=["one list", "shards"])
def test_openssl_takes_a_revocation_from_the_delta(tmp_path: Path, settings: dict[str, object]) -> None:
    with ProvisioningService.copied(tmp_path / "fleet", settings) as service:
        device = enrolled(service, tmp_path, "meter-1")
        base = fetch(service, distribution_point(device.certificate))
        freshest = x509.load_der_x509_crl(base).extensions.get_extension_for_class(x509.FreshestCRL)
        (point,) = freshest.value
        assert point.full_name is not None
        url = str(point.full_name[0].value)
        assert ": OK" in verdict(service, tmp_path, device.certificate, base)
        service.revoke(device=device.name, reason="keyCompromise")
        loaded = x509.load_pem_x509_certificate(device.certificate.read_bytes())
        delta = wait_for(service, url, loaded.serial_number)
        assert ": OK" not in verdict(service, tmp_path, device.certificate, base, delta)
        text = openssl("crl", "-inform", "DER", "-noout", "-text", data=delta).decode()
        assert "X509v3 Delta CRL Indicator: critical" in text
        answer = Curl(service.http).run(url.removeprefix(service.http).replace(".crl", ".pem"))
        assert openssl("crl", "-outform", "DER", data=answer.body) == delta
        assert Curl(service.http).run(url.removeprefix(service.http).replace("delta", "other")).status == 404
