"""Requests as other programs make them, for a first certificate and for a renewal: taken, or told what is wrong."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioning.api.request_text import decode_body
from provisioning.ca.csr import verify_csr
from provisioning.ca.same_names import same_alternatives
from provisioning.errors import Refused
from tests.support.needed import needed
from tests.support.openssl import openssl
from tests.support.recorded_requests import BOTAN, KEYTOOL, MBEDTLS, WOLFSSL, WOLFSSL_AS_IT_IS

URI = "spiffe://fleet.internal/device/north/meter-17"
SAN = ("-addext", f"subjectAltName=URI:{URI}")
Make = Callable[[Path], bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with key.pem, and certificate.pem for it."""
    directory = tmp_path_factory.mktemp("makers")
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", directory / "key.pem")
    openssl("req", "-x509", "-new", "-key", directory / "key.pem", "-subj", "/CN=meter-17", *SAN,
            "-out", directory / "certificate.pem")  # fmt: skip
    return directory


def req(*options: str) -> Make:
    return lambda made: openssl("req", "-new", "-key", made / "key.pem", "-subj", "/CN=meter-17", *options)


def from_certificate(*options: str) -> Make:
    return lambda made: openssl("x509", "-x509toreq", "-in", made / "certificate.pem", "-signkey", made / "key.pem",
                                *options)  # fmt: skip


def certtool(*options: str) -> Make:
    def make(made: Path) -> bytes:
        (made / "template").write_text(f'cn = meter-17\nuri = {URI}\nsigning_key\nchallenge_password = "x"\n')
        command = [needed("certtool"), "--generate-request", "--load-privkey", "key.pem", "--template", "template"]
        return subprocess.run([*command, *options], cwd=made, capture_output=True, check=True, timeout=30).stdout

    return make


def cfssl(made: Path) -> bytes:
    asked = {"CN": "meter-17", "hosts": [URI], "key": {"algo": "ecdsa", "size": 256}}
    (made / "asked.json").write_text(json.dumps(asked))
    command = [needed("cfssl"), "genkey", "asked.json"]
    answer = subprocess.run(command, cwd=made, capture_output=True, check=True, timeout=30).stdout
    request: str = json.loads(answer)["csr"]
    return request.encode()


def recorded(request: bytes) -> Make:
    return lambda _made: request


def encoded(make: Make) -> Make:
    return lambda made: base64.encodebytes(make(made))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(req(*SAN), id="openssl req"),
        pytest.param(req("-addext", f"subjectAltName=critical,URI:{URI}"), id="openssl req, critical"),
        pytest.param(req(*SAN, "-newhdr"), id="openssl req -newhdr"),
        pytest.param(req(*SAN, "-text"), id="openssl req -text"),
        pytest.param(encoded(req(*SAN, "-outform", "DER")), id="openssl req -outform DER"),
        pytest.param(from_certificate("-copy_extensions", "copy"), id="openssl x509 -x509toreq"),
        pytest.param(from_certificate("-copy_extensions", "copy", "-text"), id="openssl x509 -x509toreq -text"),
        pytest.param(certtool(), id="certtool"),
        pytest.param(encoded(certtool("--outder")), id="certtool --outder"),
        pytest.param(cfssl, id="cfssl"),
        pytest.param(recorded(KEYTOOL), id="keytool"),
        pytest.param(recorded(MBEDTLS), id="Mbed TLS"),
        pytest.param(recorded(WOLFSSL), id="wolfSSL"),
    ],
)
def test_what_a_program_writes_is_read_with_the_names_of_the_certificate(made: Path, make: Make) -> None:
    request = verify_csr(decode_body(make(made)))
    wanted = verify_csr(decode_body(req(*SAN)(made))).subject_alternative_name
    assert wanted is not None
    assert request.common_name == "meter-17"
    assert same_alternatives(request.subject_alternative_name, wanted)


def test_other_names_are_read_too() -> None:
    request = verify_csr(decode_body(BOTAN))
    assert (request.common_name, request.asked.dns_names) == ("meter-17", ("meter-17.example.org",))


def of_file(*arguments: str) -> Make:
    def make(made: Path) -> bytes:
        return openssl(*(made / each if each.endswith(".pem") else each for each in arguments))

    return make


def two_requests(made: Path) -> bytes:
    return 2 * req()(made)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(encoded(from_certificate("-outform", "DER")), "CSR_MALFORMED: .*as readable text: openssl x509 "
                     "-x509toreq -outform DER", id="text, and a certificate"),
        pytest.param(from_certificate("-outform", "DER"), "BODY_ENCODING: .*omit -outform DER", id="the same, raw"),
        pytest.param(req("-outform", "DER"), "BODY_ENCODING: .*it is binary DER", id="raw DER"),
        pytest.param(encoded(req()), "CSR_MALFORMED: .*send the PEM as it is", id="PEM in base64"),
        pytest.param(of_file("x509", "-in", "certificate.pem"), "CSR_MALFORMED: .*but a certificate", id="certificate"),
        pytest.param(of_file("pkey", "-in", "key.pem", "-pubout"), "CSR_MALFORMED: .*a public key", id="public key"),
        pytest.param(of_file("pkey", "-in", "key.pem"), "BODY_ENCODING: .*a private key, which is exposed",
                     id="private key"),
        pytest.param(encoded(of_file("pkey", "-in", "key.pem")), "CSR_MALFORMED: .*a private key, which is exposed",
                     id="private key, PEM in base64"),
        pytest.param(encoded(of_file("pkey", "-in", "key.pem", "-outform", "DER")),
                     "CSR_MALFORMED: .*a private key, which is exposed", id="private key, PKCS #8"),
        pytest.param(encoded(of_file("ec", "-in", "key.pem", "-outform", "DER")),
                     "CSR_MALFORMED: .*a private key, which is exposed", id="private key, SEC 1"),
        pytest.param(encoded(of_file("pkcs8", "-topk8", "-in", "key.pem", "-outform", "DER", "-passout", "pass:word")),
                     "CSR_MALFORMED: .*a private key, encrypted", id="private key, encrypted"),
        pytest.param(of_file("crl2pkcs7", "-nocrl", "-certfile", "certificate.pem"), "CSR_MALFORMED: .*PKCS #7 or CMS",
                     id="PKCS #7"),
        pytest.param(two_requests, "BODY_ENCODING: .*2 blocks of PEM", id="two requests"),
        pytest.param(recorded(WOLFSSL_AS_IT_IS), "CSR_MALFORMED: .*version is 2, .*: with wolfSSL, set", id="wolfSSL"),
        pytest.param(req("-sha1"), "CSR_SIGNATURE: .*with sha1: sign it with SHA-256", id="SHA-1"),
        pytest.param(req("-sha3-256"), "CSR_SIGNATURE: .*with sha3-256: sign it with SHA-256, ", id="SHA-3"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_the_remedy(made: Path, make: Make, says: str) -> None:
    with pytest.raises(Refused, match=says):
        verify_csr(decode_body(make(made)))
