"""CRLs and CA certificates on plain HTTP, judged by openssl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.broker_process import wait_until
from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice, certificate_facts, openssl
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True


def crl_number(der: bytes) -> int:
    text = openssl("crl", "-inform", "DER", "-noout", "-crlnumber", data=der).decode()
    return int(text.strip().removeprefix("crlNumber=").removeprefix("0x"), 16)


def wait_for_crl(plain: Curl, awaited: Callable[[bytes], bool]) -> bytes:
    def found() -> bytes:
        der = plain.run("/crl/issuing-ca.crl").body
        return der if awaited(der) else b""

    crl: bytes = wait_until(found, "the CRL")
    return crl


def text_of(der: bytes) -> str:
    return openssl("crl", "-inform", "DER", "-noout", "-text", data=der).decode()


@pytest.fixture
def plain(service: ProvisioningService) -> Curl:
    return Curl(service.http)


def test_openssl_accepts_a_certificate_until_the_crl_names_it(
    service: ProvisioningService, plain: Curl, enrolled: OpensslDevice, tmp_path: Path
) -> None:
    def verdict() -> bytes:
        crls = b"".join(plain.run(f"/crl/{name}.pem").body for name in ("issuing-ca", "root-ca"))
        (tmp_path / "crls.pem").write_bytes(crls)
        return openssl("verify", "-crl_check_all", "-x509_strict", "-purpose", "sslclient", "-CAfile", service.bundle,
                       "-CRLfile", tmp_path / "crls.pem", enrolled.certificate, check=False)  # fmt: skip

    assert verdict().strip().endswith(b": OK")
    before = plain.run("/crl/issuing-ca.crl")
    assert before.headers["Content-Type"] == "application/pkix-crl"
    service.revoke(device=enrolled.name, reason="superseded")
    serial = certificate_facts(enrolled.certificate, "-serial").strip().removeprefix("serial=")
    named = f"Serial Number: {serial}"
    der = wait_for_crl(plain, lambda der: named in text_of(der))  # The next one may be of another test's revocation.
    assert crl_number(der) > crl_number(before.body)
    assert b": OK" not in verdict()
    text = text_of(der)
    entry = text[text.index(named) :]
    assert "Superseded" in entry[:400]
    # Its address is in the certificate, and works.
    assert f"{service.http}/crl/issuing-ca.crl" in certificate_facts(
        enrolled.certificate, "-ext", "crlDistributionPoints"
    )


def test_a_crl_is_fetched_again_only_when_it_has_changed(plain: Curl) -> None:
    first = plain.run("/crl/root-ca.crl")
    assert first.status == 200
    assert first.headers["Expires"]
    assert "max-age=60" in first.headers["Cache-Control"]
    for condition in (
        f"If-None-Match: {first.headers['ETag']}",
        f"If-Modified-Since: {first.headers['Last-Modified']}",
    ):
        again = plain.run("/crl/root-ca.crl", "--header", condition)
        assert (again.status, again.body) == (304, b"")
    for condition in ('If-None-Match: "other"', "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
                      "If-Modified-Since: yesterday"):  # fmt: skip
        assert plain.run("/crl/root-ca.crl", "--header", condition).status == 200
    assert plain.run("/crl/root-ca.crl", "--head").headers["Content-Length"] == str(len(first.body))


def test_ca_certificates_are_served_for_path_building(plain: Curl, service: ProvisioningService) -> None:
    issuing = plain.run("/ca/issuing-ca.crt")
    assert issuing.headers["Content-Type"] == "application/pkix-cert"
    assert b"pathlen:0" in openssl("x509", "-inform", "DER", "-noout", "-text", data=issuing.body)
    root = openssl("x509", "-inform", "DER", "-noout", "-text", data=plain.run("/ca/root-ca.crt").body)
    assert b"pathlen" not in root
    assert b"Certificate Sign, CRL Sign" in root
    assert plain.run("/ca/bundle.pem").body == service.bundle.read_bytes()


def test_the_plain_port_says_what_it_does_not_have(plain: Curl) -> None:
    for path in ("/crl/other.crl", "/ca/other.crt", "/v1/status", "/.well-known/est/cacerts", "/v1/openapi.json"):
        assert plain.run(path).status == 404
    assert plain.run("/healthz").text == '{"status":"ok"}'


def test_a_crl_is_renewed_at_half_of_its_life_although_nothing_happens(tmp_path: Path) -> None:
    with ProvisioningService.copied(tmp_path / "fleet", {"crl_life": "PT4S"}) as service:
        plain = Curl(service.http)
        first = crl_number(plain.run("/crl/issuing-ca.crl").body)
        wait_for_crl(plain, lambda der: crl_number(der) > first)


def test_the_crl_number_rises_across_restarts(own_service: ProvisioningService) -> None:
    before = crl_number(Curl(own_service.http).run("/crl/issuing-ca.crl").body)
    own_service.stop()
    own_service.start()
    wait_for_crl(Curl(own_service.http), lambda der: crl_number(der) > before)
