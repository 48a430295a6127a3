"""Renewal over the wire: when, and after the end, with curl and openssl."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

from cryptography import x509

from provisioning.client.csr import build_csr
from provisioning.client.est import EstClient, renewal_identifier
from provisioning.pki.keys import generate_key
from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice, certificate_facts, openssl
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True


def identifier_by_openssl(device: OpensslDevice) -> str:
    """Return RFC 9773's name of the certificate, made of what openssl prints."""
    issuer = certificate_facts(device.certificate, "-ext", "authorityKeyIdentifier").split()[-1].replace(":", "")
    serial = certificate_facts(device.certificate, "-serial").strip().removeprefix("serial=")
    parts = (bytes.fromhex(issuer), bytes.fromhex(serial))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def test_anybody_is_told_when_to_renew_and_a_fleet_is_told_to_do_it_now(
    service: ProvisioningService, stranger: Curl, device: OpensslDevice
) -> None:
    name = device.name
    token = service.token(device=name, group=name)
    device.take(stranger.est("simpleenroll", device.request(), "--user", f"{name}:{token}").body)
    path = f"/v1/renewal-info/{identifier_by_openssl(device)}"
    answer = stranger.run(path)
    assert (answer.status, answer.headers.get_content_type(), answer.headers["Retry-After"]) == (
        200,
        "application/json",
        "21600",
    )
    suggested = json.loads(answer.body)["suggestedWindow"]
    days = (datetime.fromisoformat(suggested["start"]) - datetime.now(UTC)).total_seconds() / 86400
    assert 18.5 < days < 21.5
    done = service.command("renewal", "hasten", "--group", name, "--dir", str(service.dir), "--url", service.https)
    assert (done.returncode, done.stdout) == (0, f"1 certificate of group {name}, to be renewed within 0s.\n")
    suggested = json.loads(stranger.run(path).body)["suggestedWindow"]
    assert datetime.fromisoformat(suggested["end"]) < datetime.now(UTC)


def test_what_is_no_certificate_of_ours_is_told_so(service: ProvisioningService, stranger: Curl) -> None:
    for identifier, status, code in (
        ("nonsense", 400, "INVALID_REQUEST"),
        ("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE", 404, "SERIAL_UNKNOWN"),
    ):
        answer = stranger.run(f"/v1/renewal-info/{identifier}")
        assert (answer.status, json.loads(answer.body)["code"]) == (status, code)
    wrong = service.command("renewal", "hasten", "--dir", str(service.dir), "--url", service.https)
    assert wrong.returncode == 2
    assert service.post("/v1/renewals/hasten").status_code == 400
    assert stranger.run("/v1/renewals/hasten", data=b"{}").status == 403


async def test_our_own_client_reads_both(service: ProvisioningService) -> None:
    async with EstClient(service.https, service.bundle) as client:
        name = "renewal-client"
        token = service.token(device=name)
        certificate = await client.enrol(build_csr(generate_key(), name), user=name, token=token)
        info = await client.renewal_info(certificate)
        assert certificate.not_valid_before_utc < info.start < info.end < certificate.not_valid_after_utc
        assert info.retry_after == 21600
        assert (await client.csr_attributes()).startswith(b"\x30")


def test_an_expired_certificate_buys_its_successor_within_the_grace_time_and_nothing_else(
    service: ProvisioningService, stranger: Curl, device: OpensslDevice
) -> None:
    name = device.name
    token = service.token(device=name, group=name, lifetime_seconds=1)
    device.take(stranger.est("simpleenroll", device.request(), "--user", f"{name}:{token}").body)
    mine = Curl(service.https, service.bundle, device.credential)
    while (answer := json.loads(mine.run("/v1/status").body))["code"] == "ROLE":
        pass
    assert answer["code"] == "CERTIFICATE_EXPIRED", "TLS lets it through, and the answer is a sentence"
    names = f"URI:spiffe://fleet.internal/device/{name}/{name}"
    csr = device.renewal(names, new_key=False)
    refused = mine.est("simplereenroll", csr)
    assert (refused.status, refused.text.split(":")[0]) == (403, "CERTIFICATE_EXPIRED")
    group = {"name": name, "ways": ["token"], "renewal_grace_seconds": 3600}
    assert service.post("/v1/groups", **group).status_code == 201
    assert json.loads(mine.run("/v1/status").body)["code"] == "CERTIFICATE_EXPIRED"
    service.revoke(serial=certificate_facts(device.certificate, "-serial").strip().removeprefix("serial="))
    refused = mine.est("simplereenroll", csr)
    assert (refused.status, refused.text.split(":")[0]) == (403, "CERTIFICATE_REVOKED")
    # Another one, not revoked.
    token = service.token(device=name, group=name, lifetime_seconds=1)
    device.take(stranger.est("simpleenroll", csr, "--user", f"{name}:{token}").body)
    while json.loads(mine.run("/v1/status").body)["code"] == "ROLE":
        pass
    renewed = mine.est("simplereenroll", csr)
    assert renewed.status == 200, renewed.text
    device.take(renewed.body)
    openssl("verify", "-purpose", "sslclient", "-CAfile", service.bundle, device.certificate)


def test_an_identifier_made_by_us_is_the_one_made_by_openssl(enrolled: OpensslDevice) -> None:
    certificate = x509.load_pem_x509_certificate(enrolled.certificate.read_bytes())
    assert renewal_identifier(certificate) == identifier_by_openssl(enrolled)
