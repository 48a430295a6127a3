"""What a TLS context lets through: versions, suites, whose certificate is asked for, and files that are of no use."""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509

from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.tls import (
    ClientCertificate,
    Credential,
    CredentialFiles,
    CredentialPem,
    TlsConfigurationError,
    certificates_in,
    client_context,
    read_once,
    server_context,
)
from tests.support.openssl import openssl
from tests.support.pki import DOMAIN, SERVER, pem_of, shared_device, shared_pki

PKI = shared_pki()
HELD = shared_device("meter-1")
NO_CHECK_TIME = 0x200000
NO_COMPRESSION_OF_CERTIFICATES = 1 << 32 | 1 << 33


def server(**different: object) -> ssl.SSLContext:
    arguments: dict[str, object] = {"client_certificate": ClientCertificate.REQUIRED} | different
    return server_context(HELD.credential, PKI.anchors, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("asked", "mode"), [("REQUIRED", ssl.CERT_REQUIRED), ("OPTIONAL", ssl.CERT_OPTIONAL)])
def test_a_server_asks_for_the_certificate_as_it_is_told(asked: str, mode: ssl.VerifyMode) -> None:
    assert server(client_certificate=ClientCertificate[asked]).verify_mode is mode


def test_a_client_verifies_the_server_and_its_name() -> None:
    context = client_context(PKI.anchors)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert not context.verify_flags & NO_CHECK_TIME


LOOPBACK = "127.0.0.1"


@pytest.mark.parametrize(
    ("called", "names", "host", "passes"),
    [
        ("meter-1", [x509.DNSName("localhost")], "localhost", True),
        ("meter-1", [x509.IPAddress(ip_address(LOOPBACK))], LOOPBACK, True),
        ("meter-1", [x509.DNSName("*.plant.example")], "mqtt.plant.example", True),
        ("meter-1", [x509.DNSName("*.plant.example")], "mqtt.north.plant.example", False),
        ("meter-1", [x509.DNSName("mqtt*.plant.example")], "mqtt1.plant.example", False),
        ("meter-1", [x509.DNSName("*")], "localhost", False),
        ("meter-1", [x509.DNSName("localhost.")], "localhost", False),
        ("meter-1", [x509.DNSName("localhost")], "localhost.", False),
        ("meter-1", [x509.DNSName(LOOPBACK)], LOOPBACK, False),
        ("meter-1", [x509.IPAddress(ip_address("127.0.0.2"))], LOOPBACK, False),
        ("localhost", [], "localhost", False),
        ("LocalHost", [], "localhost", False),
        ("localhost", [x509.IPAddress(ip_address(LOOPBACK))], "localhost", False),
        (LOOPBACK, [], LOOPBACK, False),
    ],
)
def test_a_server_is_whose_alternative_name_it_has_and_not_whose_common_name(
    called: str, names: Sequence[x509.GeneralName], host: str, passes: bool
) -> None:
    """A device may be called as a host is, and have a certificate with which it may serve."""
    held = PKI.certify(Identity(DOMAIN, Role.DEVICE, called, "meters"), purposes=SERVER, names=names)
    towards, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = server_context(held.credential, PKI.anchors, client_certificate=ClientCertificate.OPTIONAL)
    client = client_context(PKI.anchors).wrap_bio(back, towards, server_hostname=host)
    for each in (client, serving.wrap_bio(towards, back, server_side=True)):
        with pytest.raises(ssl.SSLWantReadError):
            each.do_handshake()
    with contextlib.nullcontext() if passes else pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        client.do_handshake()


@pytest.mark.parametrize(
    "make", [server, lambda **flags: client_context(PKI.anchors, **flags)], ids=["server", "client"]
)
def test_versions_and_options(make: object) -> None:
    assert callable(make)
    context: ssl.SSLContext = make()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    for option in (ssl.OP_NO_COMPRESSION, ssl.OP_NO_RENEGOTIATION, NO_COMPRESSION_OF_CERTIFICATES):
        assert context.options & option == option
    assert make(allow_tls12=True).minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_server_takes_of_tls_12_what_encrypts_with_authentication_and_forgets_keys() -> None:
    names = [each["name"] for each in server(allow_tls12=True).get_ciphers() if each["protocol"] == "TLSv1.2"]
    assert names
    for name in names:
        assert name.startswith("ECDHE-")
        assert "GCM" in name or "CHACHA20" in name or "CCM" in name


def test_a_server_chooses_the_suite_that_every_device_has_in_hardware_first() -> None:
    names = [each["name"] for each in server().get_ciphers() if each["protocol"] == "TLSv1.3"]
    assert names == ["TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_256_GCM_SHA384"]


@pytest.mark.parametrize("checks", [False, True])
def test_dates_are_openssls_to_check_unless_the_caller_does(checks: bool) -> None:
    context, of_client = server(caller_checks_dates=checks), client_context(PKI.anchors, caller_checks_dates=checks)
    for each in (context, of_client):
        assert bool(each.verify_flags & NO_CHECK_TIME) is checks
    assert context.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
    assert context.num_tickets == 1


def test_files_that_are_of_no_use_are_named(tmp_path: Path) -> None:
    files = HELD.write(tmp_path)
    other = shared_device("meter-2").write(tmp_path, "other")
    junk = tmp_path / "junk.pem"
    junk.write_text("nothing")
    missing = tmp_path / "missing.pem"
    for credential, words in (
        (CredentialFiles(files.certificate, other.key), "do not belong together"),
        (CredentialFiles(missing, files.key), "missing.pem cannot be read"),
        (CredentialFiles(files.certificate, missing), "missing.pem cannot be read"),
        (CredentialPem(b"nothing"), "is not a PEM certificate with its key"),
    ):
        with pytest.raises(TlsConfigurationError, match=words):
            client_context(PKI.anchors, credential)
    for anchors, words in (
        (junk, "junk.pem holds no PEM certificate"),
        (missing, "missing.pem cannot be read"),
        ("nothing", "the trust anchor text holds no PEM certificate"),
    ):
        with pytest.raises(TlsConfigurationError, match=words):
            client_context(anchors)
    assert client_context(PKI.write_anchors(tmp_path), files).verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("of", [lambda files: files, CredentialPem.of], ids=["files", "memory"])
def test_an_encrypted_key_is_told_from_one_that_does_not_fit(
    tmp_path: Path, of: Callable[[CredentialFiles], Credential]
) -> None:
    files = HELD.write(tmp_path)
    encrypted = tmp_path / "encrypted.key"
    openssl("pkey", "-in", files.key, "-aes256", "-passout", "pass:secret", "-out", encrypted)
    with pytest.raises(TlsConfigurationError, match=r"^\S+encrypted\.key is encrypted, .* decrypt it into a file"):
        client_context(PKI.anchors, of(CredentialFiles(files.certificate, encrypted)))


def test_a_certificate_that_tls_finds_too_weak_is_told_from_a_pair_that_does_not_fit(tmp_path: Path) -> None:
    weak = CredentialFiles(tmp_path / "weak.crt", tmp_path / "weak.key")
    openssl("req", "-x509", "-newkey", "rsa:1024", "-nodes", "-subj", "/CN=old", "-out", weak.certificate,
            "-keyout", weak.key)  # fmt: skip
    with pytest.raises(TlsConfigurationError, match=r"weak.crt is too weak for TLS .*P-256 key") as caught:
        client_context(PKI.anchors, weak)
    assert "belong together" not in str(caught.value)


def test_of_a_credential_in_memory_nothing_stays_open() -> None:
    """`ssl` reads files only: each context has some made for it, of which a service would run out."""
    broken = CredentialPem(HELD.credential.pem[:-40])
    client_context(PKI.anchors, HELD.credential)
    with pytest.raises(TlsConfigurationError):
        client_context(PKI.anchors, broken)
    opened = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # That of the list itself.
            opened.append(str(each.readlink()))
    assert [each for each in opened if "memfd:credential" in each] == []


def test_what_is_read_into_memory_is_what_is_in_the_files(tmp_path: Path) -> None:
    files = HELD.write(tmp_path)
    certificate, key = files.certificate.read_bytes(), files.key.read_bytes()
    both = tmp_path / "both.pem"
    both.write_bytes(certificate + key)
    in_two, in_one = CredentialPem.of(files), CredentialPem.of(CredentialFiles(both, both))
    assert (in_two.pem, in_two.key) == (certificate, key)
    assert (in_one.pem, in_one.key) == (certificate + key, None)
    for each in (in_two, in_one):
        client_context(PKI.anchors, each)


def test_a_pipe_is_read_once_and_files_whenever_they_are_needed(tmp_path: Path) -> None:
    files = HELD.write(tmp_path)
    pem = files.certificate.read_bytes() + files.key.read_bytes()
    in_memory = HELD.credential
    assert read_once(in_memory) is in_memory
    assert read_once(files) is files, "they may be renewed"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(pem,))
    writer.start()
    assert read_once(CredentialFiles(pipe, pipe)) == CredentialPem(pem)
    writer.join()


def test_certificates_are_read_whole_or_not_at_all() -> None:
    one, other = PKI.root.certificate, PKI.issuing.certificate
    both = pem_of(one, other)
    assert certificates_in(both) == [one, other]
    assert certificates_in(PKI.root.der) == [one]
    for cut in (both[: len(pem_of(one)) + 40], both[:-30], b"", b"nothing", PKI.root.der[:-1]):
        with pytest.raises(ValueError, match=r"certificate|no end|parsing|PEM|ASN"):
            certificates_in(cut)
