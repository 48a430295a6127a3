"""The OCSP responder, asked by openssl, gnutls and curl."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from tests.support.curl import Curl
from tests.support.needed import needed
from tests.support.ocsp import SHA1, SHA256, request_der
from tests.support.openssl import OpensslDevice, certificate_facts, openssl
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True


@pytest.fixture
def plain(service: ProvisioningService) -> Curl:
    return Curl(service.http)


@pytest.fixture(scope="module")
def issuer(service: ProvisioningService) -> x509.Certificate:
    return x509.load_pem_x509_certificate((service.dir / "issuing-ca.crt").read_bytes())


def load(device: OpensslDevice) -> x509.Certificate:
    return x509.load_pem_x509_certificate(device.certificate.read_bytes())


def ask_openssl(service: ProvisioningService, certificate: Path, *options: str) -> str:
    url = certificate_facts(certificate, "-ocsp_uri").strip()
    done = subprocess.run(
        ["openssl", "ocsp", *options, "-issuer", service.dir / "issuing-ca.crt", "-cert", certificate, "-url", url,
         "-CAfile", service.bundle],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("options", [("-sha1",), ("-sha256",), ("-sha256", "-no_nonce"), ("-sha1", "-no_nonce")])
def test_openssl_sees_good_and_after_a_revocation_revoked(
    service: ProvisioningService, enrolled: OpensslDevice, options: tuple[str, ...]
) -> None:
    said = ask_openssl(service, enrolled.certificate, *options)
    assert "Response verify OK" in said
    assert "WARNING: no nonce" not in said
    assert f"{enrolled.certificate}: good" in said
    service.revoke(device=enrolled.name, reason="keyCompromise")
    said = ask_openssl(service, enrolled.certificate, *options)
    assert "Response verify OK" in said
    assert f"{enrolled.certificate}: revoked" in said
    assert "Reason: keyCompromise" in said


def test_who_asks_and_whether_he_signs_makes_no_difference(
    service: ProvisioningService, enrolled: OpensslDevice
) -> None:
    said = ask_openssl(
        service, enrolled.certificate, "-signer", str(enrolled.certificate), "-signkey", str(enrolled.key)
    )
    assert "Response verify OK" in said
    assert f"{enrolled.certificate}: good" in said


def test_gnutls_verifies_a_chain_and_its_lists(
    service: ProvisioningService, plain: Curl, enrolled: OpensslDevice, tmp_path: Path
) -> None:
    certtool = needed("certtool")
    chain, lists = tmp_path / "chain.pem", tmp_path / "lists.pem"
    chain.write_bytes(enrolled.certificate.read_bytes() + (service.dir / "issuing-ca.crt").read_bytes())

    def verify() -> str:
        lists.write_bytes(plain.run("/crl/issuing-ca.pem").body + plain.run("/crl/root-ca.pem").body)
        done = subprocess.run(
            [certtool, "--verify", "--infile", chain, "--load-ca-certificate", service.dir / "root-ca.crt",
             "--load-crl", lists],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        return done.stdout + done.stderr

    assert "The certificate is trusted" in (said := verify()), said
    service.revoke(device=enrolled.name, reason="keyCompromise")
    deadline = time.monotonic() + 60
    while "The certificate chain is revoked" not in (said := verify()):
        assert time.monotonic() < deadline, said


def test_gnutls_sees_the_same(service: ProvisioningService, enrolled: OpensslDevice) -> None:
    ocsptool = needed("ocsptool")

    def ask() -> str:
        done = subprocess.run(
            [ocsptool, f"--ask={service.http}/ocsp", "--load-cert", enrolled.certificate, "--load-issuer",
             service.dir / "issuing-ca.crt", "--load-trust", service.bundle, "--nonce"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        return done.stdout + done.stderr

    assert "Certificate Status: good" in (said := ask()), said
    assert "Verifying OCSP Response: Success" in said
    service.revoke(device=enrolled.name, reason="superseded")
    assert "Certificate Status: revoked" in ask()


def test_a_get_is_cacheable_for_minutes_and_asked_again_only_if_it_changed(
    service: ProvisioningService, plain: Curl, enrolled: OpensslDevice, issuer: x509.Certificate
) -> None:
    encoded = base64.b64encode(request_der(load(enrolled), issuer)).decode()
    first = plain.run(f"/ocsp/{quote(encoded, safe='')}")
    assert (first.status, first.headers["Content-Type"]) == (200, "application/ocsp-response")
    assert first.headers["Cache-Control"] == "max-age=300, public, no-transform, must-revalidate"
    assert int(first.headers["Content-Length"]) == len(first.body)
    assert first.headers["Date"]
    said = ocsp.load_der_ocsp_response(first.body)
    for name, moment in (("Last-Modified", said.this_update_utc), ("Expires", said.next_update_utc)):
        assert parsedate_to_datetime(str(first.headers[name])) == moment
    assert first.headers["ETag"] == f'"{hashlib.sha256(first.body).hexdigest()}"'
    assert plain.run(f"/ocsp/{encoded}").body == first.body, "raw / and +, from the cache"
    assert plain.run(f"/ocsp//{encoded}").body == first.body
    again = plain.run(f"/ocsp/{encoded}", "--header", f"If-None-Match: {first.headers['ETag']}")
    assert (again.status, again.body) == (304, b"")
    condition = ("--header", f"If-None-Match: {first.headers['ETag']}")
    kind = ("--header", "Content-Type: application/ocsp-request")
    posted = plain.run("/ocsp", *kind, *condition, data=base64.b64decode(encoded))
    assert (posted.status, posted.body) == (200, first.body), "a condition is for GET and HEAD (RFC 9110 §13.1.2)"
    head = plain.run(f"/ocsp/{encoded}", "--head")
    assert (head.headers["ETag"], head.body) == (first.headers["ETag"], b"")
    service.revoke(device=enrolled.name)
    changed = plain.run(f"/ocsp/{encoded}", "--header", f"If-None-Match: {first.headers['ETag']}")
    assert changed.status == 200
    assert ocsp.load_der_ocsp_response(changed.body).certificate_status is ocsp.OCSPCertStatus.REVOKED


def post(plain: Curl, body: bytes, content_type: str = "application/ocsp-request") -> tuple[int, bytes, str]:
    answer = plain.run("/ocsp", "--header", f"Content-Type: {content_type}", data=body)
    return answer.status, answer.body, answer.headers["Cache-Control"] or ""


def test_failures_of_the_protocol_have_status_200_and_are_not_kept(
    service: ProvisioningService, plain: Curl, enrolled: OpensslDevice, issuer: x509.Certificate
) -> None:
    root = x509.load_pem_x509_certificate((service.dir / "root-ca.crt").read_bytes())
    certificate = load(enrolled)
    two = openssl("ocsp", "-issuer", service.dir / "issuing-ca.crt", "-cert", enrolled.certificate, "-serial", "0x1234",
                  "-no_nonce", "-reqout", "-")  # fmt: skip
    for body, expected in (
        (b"nonsense", ocsp.OCSPResponseStatus.MALFORMED_REQUEST),
        (b"", ocsp.OCSPResponseStatus.MALFORMED_REQUEST),
        (request_der(certificate, issuer, nonce=bytes(129)), ocsp.OCSPResponseStatus.MALFORMED_REQUEST),
        (request_der(certificate, root), ocsp.OCSPResponseStatus.UNAUTHORIZED),
        (two, ocsp.OCSPResponseStatus.UNAUTHORIZED),
    ):
        status, answer, cache = post(plain, body)
        assert (status, cache) == (200, "no-store")
        assert ocsp.load_der_ocsp_response(answer).response_status is expected
    for path in ("/ocsp", "/ocsp/", "/ocsp/***"):
        malformed = plain.run(path)
        assert malformed.status == 200
        assert ocsp.load_der_ocsp_response(malformed.body).response_status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


def test_what_http_itself_refuses(plain: Curl, enrolled: OpensslDevice, issuer: x509.Certificate) -> None:
    request = request_der(load(enrolled), issuer, SHA1)
    assert post(plain, request, "application/json")[0] == 415
    assert post(plain, request, "Application/OCSP-Request; charset=x")[0] == 200
    assert post(plain, b"x" * 2049)[0] == 413
    assert plain.run("/ocsp/" + "M" * 9000).status == 414
    deleted = plain.run("/ocsp", "--request", "DELETE")
    assert (deleted.status, deleted.headers["Allow"]) == (405, "GET, HEAD, POST")
    assert plain.run("/ocspx").status == 404


def test_no_address_leads_to_where_a_request_says_that_it_is(plain: Curl, operator: Curl) -> None:
    for client, path in ((plain, "/crl/issuing-ca.crl/"), (plain, "/healthz/"), (operator, "/v1/status/")):
        answer = client.run(path, "--header", "Host: elsewhere.example")
        assert (answer.status, answer.headers["Location"]) == (404, None), path


def test_an_answer_with_a_nonce_is_for_one_request(
    plain: Curl, enrolled: OpensslDevice, issuer: x509.Certificate
) -> None:
    status, body, cache = post(plain, request_der(load(enrolled), issuer, SHA256, nonce=bytes(32)))
    assert (status, cache) == (200, "private, max-age=0, no-transform, must-revalidate")
    response = ocsp.load_der_ocsp_response(body)
    assert response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == bytes(32)


def test_openssl_reads_a_delegated_signer(tmp_path: Path) -> None:
    settings = {"ocsp_signer_life": "PT2M", "ocsp_life": "PT1M"}
    with ProvisioningService.copied(tmp_path / "fleet", settings) as service:
        said = openssl("ocsp", "-issuer", service.dir / "issuing-ca.crt", "-cert", service.dir / "operator.crt",
                       "-url", f"{service.http}/ocsp", "-CAfile", service.bundle, "-resp_text")  # fmt: skip
    assert b"OCSP Signing" in said
    assert b"OCSP No Check" in said
