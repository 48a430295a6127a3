"""EST with curl and openssl: the wire, the tokens, the successors."""

from __future__ import annotations

import base64
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.curl import HOW_IT_IS_SENT, Curl
from tests.support.openssl import P256, OpensslDevice, certificate_facts, openssl
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True

CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
AUTHORITIES = "application/pkcs7-mime"


def renew(device: OpensslDevice, service: ProvisioningService, data: bytes) -> tuple[int, str, bytes]:
    answer = Curl(service.https, service.bundle, device.credential).est("simplereenroll", data)
    return answer.status, answer.body.decode(), answer.body


def san(device: OpensslDevice) -> str:
    return f"URI:spiffe://fleet.internal/device/north/{device.name}"


@pytest.mark.parametrize("path", ["cacerts", "north/cacerts"])
def test_cacerts_tells_root_and_issuing_ca_to_anybody(stranger: Curl, service: ProvisioningService, path: str) -> None:
    answer = stranger.run(f"/.well-known/est/{path}")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == AUTHORITIES
    pem = openssl("pkcs7", "-inform", "DER", "-print_certs", data=base64.b64decode(answer.body)).decode()
    assert "CN=Fleetgate root CA" in pem
    assert "CN=Fleetgate issuing CA" in pem
    for certificate in x509.load_pem_x509_certificates(service.bundle.read_bytes()):
        assert certificate.public_bytes(Encoding.PEM).decode() in pem


@pytest.mark.parametrize("version", ["--tlsv1.2", "--tlsv1.3"])
def test_enrolment_gives_exactly_the_certificate_that_the_server_builds(
    stranger: Curl, service: ProvisioningService, device: OpensslDevice, version: str
) -> None:
    token = service.token(device=device.name, group="north")
    wished = ("-addext", "subjectAltName=DNS:somebody.else", "-addext", "extendedKeyUsage=serverAuth")
    csr = device.request(subject=f"/O=Wished/CN={device.name}", extra=wished)
    answer = stranger.est("simpleenroll", csr, "--user", f"{device.name}:{token}", version, "--tls-max", version[-3:])
    assert answer.status == 200, answer.text
    assert answer.headers["Content-Type"] == CERTS_ONLY
    device.take(answer.body)
    assert device.certificate.read_text().count("BEGIN CERTIFICATE") == 1
    openssl("verify", "-purpose", "sslclient", "-x509_strict", "-CAfile", service.bundle, device.certificate)
    assert certificate_facts(device.certificate, "-subject").strip() == f"subject=CN={device.name}"
    extensions = certificate_facts(device.certificate, "-ext", "subjectAltName,extendedKeyUsage,crlDistributionPoints")
    assert san(device) in extensions
    assert "somebody.else" not in extensions
    assert "TLS Web Client Authentication" in extensions
    assert "TLS Web Server Authentication" not in extensions
    assert f"URI:{service.http}/crl/issuing-ca.crl" in extensions


@pytest.mark.parametrize("options", HOW_IT_IS_SENT.values(), ids=list(HOW_IT_IS_SENT))
def test_a_request_is_taken_however_http_lets_it_be_sent(
    stranger: Curl, service: ProvisioningService, device: OpensslDevice, options: tuple[str, ...]
) -> None:
    token = service.token(device=device.name, group="north")
    answer = stranger.est("simpleenroll", device.request(), "--user", f"{device.name}:{token}", *options)
    assert answer.status == 200, answer.text
    device.take(answer.body)
    openssl("verify", "-purpose", "sslclient", "-CAfile", service.bundle, device.certificate)
    renewal = device.renewal(san(device), new_key=False)
    renewed = Curl(service.https, service.bundle, device.credential).est("simplereenroll", renewal, *options)
    assert renewed.status == 200, renewed.text


@pytest.mark.parametrize(
    "algorithm",
    [
        ("ec", "-pkeyopt", "ec_paramgen_curve:P-384"),
        ("ed25519",),
        ("rsa:2048",),
    ],
    ids=lambda algorithm: algorithm[0] + algorithm[-1][-5:],
)
def test_every_accepted_kind_of_key_enrols(
    stranger: Curl, service: ProvisioningService, device: OpensslDevice, algorithm: tuple[str, ...]
) -> None:
    token = service.token(device=device.name)
    answer = stranger.est("simpleenroll", device.request(algorithm=algorithm), "--user", f"{device.name}:{token}")
    assert answer.status == 200, answer.text
    device.take(answer.body)
    openssl("verify", "-purpose", "sslclient", "-CAfile", service.bundle, device.certificate)
    # Without an explicit group a device is in group "default".
    assert f"/device/default/{device.name}" in certificate_facts(device.certificate, "-ext", "subjectAltName")


def test_a_token_is_worth_one_certificate(stranger: Curl, service: ProvisioningService, device: OpensslDevice) -> None:
    token = service.token(device=device.name)
    csr = device.request()
    user = ("--user", f"{device.name}:{token}")
    first = stranger.est("simpleenroll", csr, *user)
    assert first.status == 200
    assert stranger.est("simpleenroll", csr, *user).body == first.body, "the answer may have been lost"
    again = stranger.est("simpleenroll", device.request(), *user)
    assert again.status == 401
    assert again.text.startswith("TOKEN_USED: this enrolment token was used already")
    assert again.headers["WWW-Authenticate"].startswith("Basic realm=")
    assert again.headers.get_content_type() == "text/plain"


def test_a_device_s_token_is_for_that_device_only(
    stranger: Curl, service: ProvisioningService, device: OpensslDevice
) -> None:
    token = service.token(device=device.name)
    other = stranger.est("simpleenroll", device.request(subject="/CN=other"), "--user", f"{device.name}:{token}")
    assert (other.status, other.text.split(":")[0]) == (403, "TOKEN_DEVICE")
    user = stranger.est("simpleenroll", device.request(), "--user", f"other:{token}")
    assert (user.status, user.text.split(":")[0]) == (403, "TOKEN_DEVICE")
    # Neither attempt has spent it.
    assert stranger.est("simpleenroll", device.request(), "--user", f"{device.name}:{token}").status == 200


def test_a_group_s_token_admits_new_devices_only(
    stranger: Curl, service: ProvisioningService, enrolled: OpensslDevice, tmp_path: Path
) -> None:
    first, second = service.tokens(group="north", count=2)
    taken = stranger.est("simpleenroll", enrolled.request(), "--user", f"x:{first}")
    assert (taken.status, taken.text.split(":")[0]) == (403, "NAME_TAKEN")
    new = OpensslDevice(tmp_path, enrolled.name + "-b")
    wrong_label = stranger.est("south/simpleenroll", new.request(), "--user", f"x:{second}")
    assert (wrong_label.status, wrong_label.text.split(":")[0]) == (403, "TOKEN_GROUP")
    right = stranger.est("north/simpleenroll", new.request(), "--user", f"anything:{second}")
    assert right.status == 200, right.text


def test_a_name_keeps_its_role_and_group(stranger: Curl, service: ProvisioningService, device: OpensslDevice) -> None:
    south = service.token(device=device.name, group="south")  # Of who is here none would be made.
    own = service.token(device=device.name, group="north")
    with pytest.raises(AssertionError, match=r"NAME_TAKEN.*a name has one role for ever"):
        service.token(device=device.name, group="north", role="service")
    assert stranger.est("simpleenroll", device.request(), "--user", f"{device.name}:{own}").status == 200
    answer = stranger.est("simpleenroll", device.request(), "--user", f"{device.name}:{south}")
    assert (answer.status, answer.text.split(":")[0]) == (403, "NAME_TAKEN")


def test_a_broker_gets_the_server_names_of_its_token(
    stranger: Curl, service: ProvisioningService, device: OpensslDevice
) -> None:
    token = service.token(
        device=device.name, role="broker", dns_names=["localhost", "mqtt.example.org"], ip_addresses=["127.0.0.1"]
    )
    answer = stranger.est("simpleenroll", device.request(), "--user", f"{device.name}:{token}")
    assert answer.status == 200, answer.text
    device.take(answer.body)
    openssl("verify", "-purpose", "sslserver", "-verify_hostname", "mqtt.example.org", "-CAfile", service.bundle,
            device.certificate)  # fmt: skip
    openssl("verify", "-purpose", "sslclient", "-verify_ip", "127.0.0.1", "-CAfile", service.bundle, device.certificate)
    # A successor has the same names.
    names = f"URI:spiffe://fleet.internal/broker/{device.name},DNS:localhost,DNS:mqtt.example.org,IP:127.0.0.1"
    status, text, body = renew(device, service, device.renewal(names, new_key=False))
    assert status == 200, text
    device.take(body)
    assert "DNS:mqtt.example.org, IP Address:127.0.0.1" in certificate_facts(
        device.certificate, "-ext", "subjectAltName"
    )


@pytest.mark.parametrize("new_key", [False, True], ids=["renew", "rekey"])
def test_a_certificate_buys_its_successor(
    service: ProvisioningService, enrolled: OpensslDevice, *, new_key: bool
) -> None:
    before = certificate_facts(enrolled.certificate, "-serial", "-pubkey", "-fingerprint", "-sha256")
    status, text, body = renew(enrolled, service, enrolled.renewal(san(enrolled), new_key=new_key))
    assert status == 200, text
    enrolled.take(body)
    openssl("verify", "-purpose", "sslclient", "-CAfile", service.bundle, enrolled.certificate)
    after = certificate_facts(enrolled.certificate, "-serial", "-pubkey", "-fingerprint", "-sha256")
    assert before.splitlines()[0] != after.splitlines()[0]
    public_keys = [
        text[text.index("-----BEGIN PUBLIC KEY") : text.index("-----END PUBLIC KEY")] for text in (before, after)
    ]
    assert (public_keys[0] != public_keys[1]) == new_key
    assert san(enrolled) in certificate_facts(enrolled.certificate, "-ext", "subjectAltName")


def test_a_successor_has_the_same_subject_and_names(service: ProvisioningService, enrolled: OpensslDevice) -> None:
    for wish, field in (
        (san(enrolled) + "x", "Subject Alternative Name"),
        (san(enrolled) + ",DNS:extra.example", "Subject Alternative Name"),
    ):
        status, text, _ = renew(enrolled, service, enrolled.renewal(wish, new_key=True))
        assert (status, text.split(":")[0]) == (400, "CSR_SUBJECT_CHANGED")
        assert field in text
    csr = OpensslDevice(enrolled.directory, "else").renewal(san(enrolled), new_key=True)
    status, text, _ = renew(enrolled, service, csr)
    assert (status, text.split(":")[0]) == (400, "CSR_SUBJECT_CHANGED")
    assert "subject" in text


def test_re_enrolment_needs_a_certificate_of_this_service(
    stranger: Curl, service: ProvisioningService, enrolled: OpensslDevice, tmp_path: Path
) -> None:
    csr = enrolled.renewal(san(enrolled), new_key=False)
    missing = stranger.est("simplereenroll", csr)
    assert (missing.status, missing.text.split(":")[0]) == (403, "CERTIFICATE_MISSING")
    # The same identity and key, signed by nobody: TLS itself ends it.
    foreign = OpensslDevice(tmp_path, "foreign")
    openssl("req", "-x509", "-newkey", *P256, "-nodes", "-keyout", foreign.key, "-subj", f"/CN={enrolled.name}",
            "-addext", f"subjectAltName={san(enrolled)}", "-out", foreign.certificate)  # fmt: skip
    line = Curl(service.https, service.bundle, foreign.credential).arguments("/.well-known/est/cacerts")
    refused = subprocess.run(line, capture_output=True, check=False, timeout=60)
    assert refused.returncode != 0
    assert refused.stdout == b""


def test_a_revoked_device_cannot_re_enrol_and_its_old_tokens_are_void(
    stranger: Curl, service: ProvisioningService, enrolled: OpensslDevice
) -> None:
    spare = service.token(device=enrolled.name, group="north")
    csr = enrolled.renewal(san(enrolled), new_key=True)
    service.revoke(device=enrolled.name, reason="keyCompromise")
    status, text, _ = renew(enrolled, service, csr)
    assert (status, text.split(":")[0]) == (403, "CERTIFICATE_REVOKED")
    assert "keyCompromise" in text
    user = ("--user", f"{enrolled.name}:{spare}")
    assert stranger.est("simpleenroll", csr, *user).text.startswith("TOKEN_VOID")
    # The compromised key is not certified again, a new key with a new token is.
    token = service.token(device=enrolled.name, group="north")
    user = ("--user", f"{enrolled.name}:{token}")
    old_key = enrolled.renewal(san(enrolled), new_key=False)
    assert stranger.est("simpleenroll", old_key, *user).text.startswith("KEY_REUSED")
    assert stranger.est("simpleenroll", enrolled.request(), *user).status == 200


def test_a_key_belongs_to_one_device(
    stranger: Curl, service: ProvisioningService, enrolled: OpensslDevice, tmp_path: Path
) -> None:
    thief = OpensslDevice(tmp_path, enrolled.name + "-b")
    token = service.token(device=thief.name)
    answer = stranger.est("simpleenroll", thief.another(key=enrolled.key), "--user", f"{thief.name}:{token}")
    assert (answer.status, answer.text.split(":")[0]) == (400, "KEY_REUSED")


def test_a_token_expires(stranger: Curl, service: ProvisioningService, device: OpensslDevice) -> None:
    token = service.token(device=device.name, ttl_seconds=1)
    csr, user = device.request(), ("--user", f"{device.name}:{token}")
    # Wrong Common Name: refused without spending it, until the second is over.
    wrong = device.request(subject="/CN=other")
    while (answer := stranger.est("simpleenroll", wrong, *user)).text.startswith("TOKEN_DEVICE"):
        time.sleep(0.2)
    assert (answer.status, answer.text.split(":")[0]) == (401, "TOKEN_EXPIRED")
    assert stranger.est("simpleenroll", csr, *user).text.startswith("TOKEN_EXPIRED")
