"""EST beyond the three operations that everybody has: csrattrs, serverkeygen, linking; with curl, openssl and TLS."""

from __future__ import annotations

import base64
import email
import json
import os
import re
import socket
import ssl
import subprocess
import threading
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import AttributeOID, NameOID

from provisioning.pki.keys import PrivateKey, generate_key, key_identifier, load_key
from provisioning.pki.tls import ClientCertificate, CredentialFiles, client_context, server_context
from tests.support.curl import Curl, CurlAnswer
from tests.support.key_envelope import DECRYPT_KEY_IDENTIFIER, key_request, opened
from tests.support.manufacturer import Manufacturer
from tests.support.openssl import OpensslDevice, openssl
from tests.support.programs import forking_python
from tests.support.provisioning import REPOSITORY, ProvisioningService
from tests.support.slow_keys import rsa_key

ON_BOTH_STORES = True


def group(service: ProvisioningService, name: str, **rules: Any) -> None:
    answer = service.post("/v1/groups", name=name, **({"ways": ["token"]} | rules))
    assert answer.status_code == 201, answer.text


def stored_bytes(service: ProvisioningService) -> bytes:
    """Return what SQLite's files hold, deleted rows included, or each value in each table of another store."""
    if files := sorted(service.dir.glob("fleet.db*")):
        return b"".join(file.read_bytes() for file in files)
    names = service.stored("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    rows = [row for (name,) in names for row in service.stored(f"SELECT * FROM {name}")]
    assert rows
    return b"\n".join(each if isinstance(each, bytes) else str(each).encode() for row in rows for each in row)


def code_of(answer: CurlAnswer) -> tuple[int, str]:
    return answer.status, answer.text.split(":")[0]


def structure(answer: CurlAnswer) -> str:
    """Return the DER in an answer as openssl prints it, without offsets."""
    printed = openssl("asn1parse", "-inform", "DER", data=base64.b64decode(answer.body)).decode()
    return "\n".join(line.partition("d=")[2] for line in printed.splitlines())


@pytest.mark.parametrize("path", ["csrattrs", "north/csrattrs"])
def test_csrattrs_tells_anybody_the_key_and_the_template(stranger: Curl, path: str) -> None:
    answer = stranger.run(f"/.well-known/est/{path}")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/csrattrs")
    shown = structure(answer)
    # RFC 7030 §4.5.2: one kind of key, and its signature algorithm.
    assert shown.count(":id-ecPublicKey") == 2
    assert ":ecdsa-with-SHA256" in shown
    assert "challengePassword" not in shown
    # RFC 9908 §3.4: the template asks for a Common Name without saying which, and for the same kind of key.
    assert ":1.2.840.113549.1.9.16.2.61" in shown
    assert shown.count(":commonName") == 1
    assert shown.count(":prime256v1") == 2
    assert "cont [ 0 ]" in shown
    assert "cont [ 1 ]" in shown


def test_a_group_that_wants_links_says_so_in_the_older_form(
    stranger: Curl, service: ProvisioningService, device: OpensslDevice
) -> None:
    group(service, device.name, tls_unique=True)
    shown = structure(stranger.run(f"/.well-known/est/{device.name}/csrattrs"))
    assert ":challengePassword" in shown
    assert "16.2.61" not in shown


def parts_of(answer: CurlAnswer) -> list[Message]:
    message = email.message_from_bytes(f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode() + answer.body)
    assert message.get_content_type() == "multipart/mixed"
    parts = message.get_payload()
    assert isinstance(parts, list)
    return [part for part in parts if isinstance(part, Message)]


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        (("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), ec.EllipticCurvePrivateKey),
        (("ed25519",), ed25519.Ed25519PrivateKey),
        (("rsa:1024",), rsa.RSAPrivateKey),
        (("ec", "-pkeyopt", "ec_paramgen_curve:P-521"), ec.EllipticCurvePrivateKey),
    ],
    ids=["P-256", "Ed25519", "RSA", "something else"],
)
def test_the_service_makes_a_key_where_the_group_allows_it(
    stranger: Curl, service: ProvisioningService, device: OpensslDevice, algorithm: tuple[str, ...], kind: type
) -> None:
    name = device.name[:60]
    group(service, name, server_keys=True)
    user = ("--user", f"{name}:{service.token(device=name, group=name)}")
    csr = device.request(subject=f"/CN={name}", algorithm=algorithm)
    answer = stranger.est(f"{name}/serverkeygen", csr, *user)
    assert answer.status == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    private, issued = parts_of(answer)
    assert private["Content-Type"] == "application/pkcs8"
    assert issued["Content-Type"] == "application/pkcs7-mime; smime-type=certs-only"
    key = serialization.load_der_private_key(base64.b64decode(str(private.get_payload())), None)
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(str(issued.get_payload())))
    assert isinstance(key, kind)
    assert certificate.public_key() == key.public_key()
    # The key in the request counts for nothing but its kind.
    made_by_device = serialization.load_pem_private_key(device.key.read_bytes(), None)
    assert made_by_device.public_key() != key.public_key()
    pem = key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    der = key.private_bytes(Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    assert der not in stored_bytes(service)
    assert pem.splitlines()[1] not in service.log.encode()


def test_the_commands_for_such_a_key_do_what_the_page_says(
    service: ProvisioningService, device: OpensslDevice, tmp_path: Path
) -> None:
    name = device.name[:50]
    page = (REPOSITORY / "docs" / "enrolment.md").read_text(encoding="utf-8")
    (commands,) = (each for each in re.findall(r"(?ms)^```sh\n(.*?)^```$", page) if "-o answer" in each)
    places = {"https://localhost:8443": service.https, "ca-bundle.crt": service.bundle, "sealed": name, "meter-1": name}
    for told, here in places.items():
        assert told in commands
        commands = commands.replace(told, str(here))
    ours = f'exec {forking_python("provisioning")} -m provisioning "$@" --dir {service.dir} --url {service.https}'
    (tmp_path / "fleet-provisioning").write_text(f"#!/bin/sh\n{ours}\n")
    (tmp_path / "fleet-provisioning").chmod(0o700)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    subprocess.run(["sh", "-ec", commands], cwd=tmp_path, env=environment, check=True, timeout=60)
    certificate = x509.load_pem_x509_certificate((tmp_path / f"{name}.crt").read_bytes())
    assert certificate.public_key() == load_key(tmp_path / f"{name}.key").public_key()


@pytest.mark.parametrize(
    "recipient",
    [generate_key(), ec.generate_private_key(ec.SECP384R1()), rsa_key()],
    ids=["P-256", "P-384", "RSA"],
)
def test_openssl_opens_a_key_that_was_encrypted_for_the_request_s_own(
    stranger: Curl, service: ProvisioningService, device: OpensslDevice, tmp_path: Path, recipient: PrivateKey
) -> None:
    name = device.name[:60]
    group(service, name, server_keys=True)
    user = ("--user", f"{name}:{service.token(device=name, group=name)}")
    wish = key_request(name, recipient, key_identifier(recipient.public_key()))
    answer = stranger.est(f"{name}/serverkeygen", wish, *user)
    assert answer.status == 200, answer.text
    sealed, issued = parts_of(answer)
    assert sealed["Content-Type"] == "application/pkcs7-mime; smime-type=server-generated-key"
    envelope = base64.b64decode(str(sealed.get_payload()))
    key = opened(envelope, recipient, service.bundle, tmp_path)
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(str(issued.get_payload())))
    assert certificate.public_key() == key.public_key()
    assert key.public_key() != recipient.public_key()
    plain = key.private_bytes(Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    assert plain[-40:] not in envelope


@pytest.mark.parametrize("may_decrypt", [True, False])
def test_a_key_is_encrypted_for_the_certificate_that_was_presented_if_it_may_decrypt(
    service: ProvisioningService, device: OpensslDevice, tmp_path: Path, *, may_decrypt: bool
) -> None:
    name, maker = device.name[:50], Manufacturer(f"Maker of {device.name[-8:]}")
    group(service, name, server_keys=True, ways=["manufacturer"])
    registered = service.post("/v1/manufacturers", name=name, group=name, certificate=maker.pem)
    assert registered.status_code == 201, registered.text
    recipient = rsa_key()
    _, pem = maker.idevid(name, key=recipient, usage=key_usage(key_encipherment=may_decrypt))
    (tmp_path / "idevid.pem").write_bytes(pem)
    wish = key_request(name, generate_key(), key_identifier(recipient.public_key()))
    presented = CredentialFiles(tmp_path / "idevid.pem", tmp_path / "idevid.pem")
    answer = Curl(service.https, service.bundle, presented).est(f"{name}/serverkeygen", wish)
    if not may_decrypt:
        assert code_of(answer) == (400, "KEY_ENCRYPTION")
        assert "key usage" in answer.text
        return
    assert answer.status == 200, answer.text
    sealed, issued = parts_of(answer)
    key = opened(base64.b64decode(str(sealed.get_payload())), recipient, service.bundle, tmp_path)
    (certificate,) = pkcs7.load_der_pkcs7_certificates(base64.b64decode(str(issued.get_payload())))
    assert certificate.public_key() == key.public_key()


def key_usage(*, key_encipherment: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def test_a_key_of_the_service_s_is_refused_by_default_and_never_encrypted_half(
    stranger: Curl, service: ProvisioningService, device: OpensslDevice
) -> None:
    name = device.name
    user = ("--user", f"{name}:{service.token(device=name, group=name)}")
    csr = device.request()
    assert code_of(stranger.est("serverkeygen", csr, *user)) == (403, "SERVER_KEYS_REFUSED")
    group(service, name, server_keys=True)
    own, signing_only, weak = (
        generate_key(),
        ed25519.Ed25519PrivateKey.generate(),
        rsa_key(1024),
    )
    forged = bytearray(base64.b64decode(key_request(name, own, key_identifier(own.public_key()))))
    forged[-1] ^= 1
    for wish, reason in (
        (key_request(name, own, b"shared", oid=DECRYPT_KEY_IDENTIFIER), "DecryptKeyIdentifier"),
        (key_request(name, own, b"unknown"), "AsymmetricDecryptKeyIdentifier"),
        (key_request(name, signing_only, key_identifier(signing_only.public_key())), "cannot decrypt"),
        (key_request(name, weak, key_identifier(weak.public_key())), "2048"),
    ):
        refused = stranger.est(f"{name}/serverkeygen", wish, *user)
        assert code_of(refused) == (400, "KEY_ENCRYPTION"), refused.text
        assert reason in refused.text
    refused = stranger.est(f"{name}/serverkeygen", base64.encodebytes(forged), *user)
    assert code_of(refused) == (400, "CSR_SIGNATURE")
    assert code_of(stranger.est(f"{name}/serverkeygen", csr)) == (401, "NOT_ADMITTED")
    assert stranger.est(f"{name}/serverkeygen", csr, *user).status == 200, "nothing was spent before"


def request(name: str, key: PrivateKey, *attributes: tuple[str, bytes]) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    for oid, value in attributes:
        builder = builder.add_attribute(x509.ObjectIdentifier(oid), value)
    signed = builder.sign(key, hashes.SHA256())
    return base64.encodebytes(signed.public_bytes(Encoding.DER))


class Connection:
    """One TLS connection to the service, on which a request can be linked."""

    def __init__(self, service: ProvisioningService, version: ssl.TLSVersion) -> None:
        context = client_context(service.bundle, allow_tls12=True)
        context.maximum_version = version
        plain = socket.create_connection(("127.0.0.1", service.port), timeout=30)
        self._tls = context.wrap_socket(plain, server_hostname="localhost")

    @property
    def unique(self) -> bytes:
        value = self._tls.get_channel_binding("tls-unique")
        assert value is not None
        return base64.b64encode(value)

    def enrol(self, name: str, token: str, *, link: bytes | None, label: str = "") -> tuple[int, str]:
        attributes = [] if link is None else [(AttributeOID.CHALLENGE_PASSWORD.dotted_string, link)]
        body = request(name, generate_key(), *attributes)
        user = base64.b64encode(f"{name}:{token}".encode()).decode()
        head = (
            f"POST /.well-known/est/{label}simpleenroll HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {user}\r\n"
            f"Content-Type: application/pkcs10\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._tls.sendall(head.encode() + body)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.partition(b"\r\n\r\n")[2]) < _length(answer):
            chunk = self._tls.recv(65536)
            assert chunk
            answer += chunk
        return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2].decode()

    def close(self) -> None:
        self._tls.close()


def _length(answer: bytes) -> int:
    head = answer.partition(b"\r\n\r\n")[0].lower()
    return int(head.partition(b"content-length:")[2].split()[0])


def test_a_challenge_password_links_the_request_to_its_connection(
    service: ProvisioningService, device: OpensslDevice
) -> None:
    name = device.name
    token = service.token(device=name, group=name)
    first, second = (Connection(service, ssl.TLSVersion.TLSv1_2) for _ in range(2))
    for wrong in (second.unique, b"secret", base64.b64encode(b"x" * 12), b""):
        status, text = first.enrol(name, token, link=wrong)
        assert (status, text.split(":")[0]) == (400, "CSR_LINK"), wrong
    assert first.enrol(name, token, link=first.unique)[0] == 200
    first.close()
    second.close()


def session_from_before(service: ProvisioningService, device: OpensslDevice, option: str, path: Path) -> None:
    """Have openssl keep at *path* a session of *device* with a server of the service's name that gives tickets."""
    own = CredentialFiles(service.dir / "server.crt", service.dir / "server.key")
    context = server_context(own, service.bundle, client_certificate=ClientCertificate.REQUIRED, allow_tls12=True)

    def serve(listening: socket.socket) -> None:
        with listening.accept()[0] as accepted, context.wrap_socket(accepted, server_side=True) as tls:
            tls.sendall(b"a ticket comes with it")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        serving = threading.Thread(target=serve, args=(listening,))
        serving.start()
        line = s_client(service, listening.getsockname()[1], option)
        openssl(*line, "-cert", device.certificate, "-key", device.key, "-sess_out", path, check=False)
        serving.join()


def s_client(service: ProvisioningService, port: int, option: str) -> list[str | Path]:
    return ["s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", service.bundle, option, "-ign_eof"]


@pytest.mark.parametrize(("option", "version"), [("-tls1_2", b"TLSv1.2"), ("-tls1_3", b"TLSv1.3")])
def test_no_tls_session_is_resumed_and_a_stolen_one_gets_nothing(
    service: ProvisioningService, enrolled: OpensslDevice, tmp_path: Path, option: str, version: bytes
) -> None:
    """Its secret alone would be worth a certificate for the thief's own key."""
    name = f"URI:spiffe://fleet.internal/device/north/{enrolled.name}"
    body = b"".join(enrolled.renewal(name, new_key=True).split())
    request = (
        b"POST /.well-known/est/simplereenroll HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"User-Agent: openssl\r\nContent-Type: application/pkcs10\r\nContent-Length: "
        + str(len(body)).encode()
        + b"\r\n\r\n"
        + body
    )
    before, given = tmp_path / "before.pem", tmp_path / "given.pem"
    session_from_before(service, enrolled, option, before)
    thief = [*s_client(service, service.port, option), "-sess_in", before]
    said = openssl(*thief, data=request, check=False)
    assert b"New, " + version in said
    assert b"CERTIFICATE_MISSING" in said
    # Whoever has the key gets on, and takes nothing along that could be stolen.
    said = openssl(
        *thief, "-cert", enrolled.certificate, "-key", enrolled.key, "-sess_out", given, data=request, check=False
    )
    assert b"New, " + version in said
    assert b"HTTP/1.1 200" in said
    assert not given.exists()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_client_that_resumes_by_itself_gets_every_answer(stranger: Curl, version: str) -> None:
    url = "/.well-known/est/csrattrs"
    options = ("--verbose", "--header", "Connection: close", f"--tlsv{version}", "--tls-max", version)
    line = stranger.arguments(url, *options, stranger.base_url + url)
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=90)
    assert done.stderr.count("< HTTP/1.1 200 OK") == 2
    assert done.stderr.count(f"SSL connection using TLSv{version}") == 2
    assert "reusing session" not in done.stderr


def test_tls_1_3_has_no_link_and_says_so(service: ProvisioningService, device: OpensslDevice) -> None:
    name = device.name
    group(service, name, tls_unique=True)
    token = service.token(device=name, group=name)
    connection = Connection(service, ssl.TLSVersion.TLSv1_3)
    # Python's library gives a value on TLS 1.3 as well; it binds nothing.
    status, text = connection.enrol(name, token, link=connection.unique)
    assert (status, text.split(":")[0]) == (400, "CSR_LINK")
    assert "TLSv1.3 has none" in text
    status, text = connection.enrol(name, token, link=None)
    assert (status, text.split(":")[0]) == (400, "CSR_LINK")
    assert "over TLS 1.2" in text
    connection.close()
    connection = Connection(service, ssl.TLSVersion.TLSv1_2)
    assert connection.enrol(name, token, link=None)[0] == 400
    assert connection.enrol(name, token, link=connection.unique, label=f"{name}/")[0] == 200
    connection.close()


def test_an_answer_says_what_it_is_and_which_method_it_wants(stranger: Curl, service: ProvisioningService) -> None:
    for operation, method in (("csrattrs", "POST"), ("serverkeygen", "GET"), ("simpleenroll", "GET")):
        answer = stranger.run(f"/.well-known/est/{operation}", "--request", method)
        assert code_of(answer) == (405, "METHOD_NOT_ALLOWED")
        assert answer.headers.get_content_type() == "text/plain"
        assert answer.headers["Allow"] == ("GET, HEAD" if method == "POST" else "POST")
        assert (
            answer.text
            == f"METHOD_NOT_ALLOWED: {method} /.well-known/est/{operation}: send {answer.headers['Allow']}\n"
        )
    assert stranger.run("/.well-known/est/simplenroll", data=b"x").text == (
        "NOT_FOUND: POST /.well-known/est/simplenroll: EST has cacerts, csrattrs, simpleenroll, simplereenroll, "
        "serverkeygen, each also below a group's name\n"
    )
    assert stranger.run("/est/simpleenroll", data=b"x").text == (
        "NOT_FOUND: POST /est/simpleenroll: EST is below /.well-known/est\n"
    )
    head = stranger.run("/.well-known/est/cacerts", "--head")
    whole = stranger.run("/.well-known/est/cacerts")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(whole.body)))
    assert stranger.run("/.well-known/est/csrattrs/csrattrs").status == 404
    operator = Curl(service.https, service.bundle, service.operator)
    shown = json.loads(operator.run("/v1/groups?limit=1").body)
    assert set(shown) == {"items", "next"}
