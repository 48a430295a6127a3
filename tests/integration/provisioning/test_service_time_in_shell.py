"""A device with openssl, a shell and no clock learns from its fleet's CA what time it is, or nothing."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer

import httpx
import pytest
from asn1crypto import core as asn1
from asn1crypto import keys as asn1_keys
from asn1crypto import ocsp as asn1_ocsp
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.faketime import FakeClock
from tests.support.openssl import openssl
from tests.support.pki import Held, Pki, pem_of
from tests.support.provisioning import REPOSITORY, ProvisioningService
from tests.support.responder import Responder, delegate

OCSP = "application/ocsp-request"
NETSCAPE_COMMENT = x509.ObjectIdentifier("2.16.840.1.113730.1.13")
DAY = timedelta(days=1)
NOTHING = (3, "")


@dataclass
class Device:
    """A directory with the fleet's anchors, and a shell that runs what the page says, by a clock of its own."""

    directory: Path
    clock: FakeClock
    monkeypatch: pytest.MonkeyPatch

    @property
    def anchors(self) -> Path:
        return self.directory / "ca-bundle.crt"

    def said(self, port: int, responder: str, *, host: str = "localhost", shell: str = "sh") -> tuple[int, str]:
        """Return the exit code, 3 if the time is unknown, and what is printed."""
        page = (REPOSITORY / "docs" / "device-agent.md").read_text(encoding="utf-8")
        (block,) = re.findall(r"^(service_time\(\) \(.*?^\))$", page, re.MULTILINE | re.DOTALL)
        # In a condition, where `set -e` would be ignored.
        script = f'{block}\nif service_time "$@"; then exit 0; else exit 3; fi'
        with self.monkeypatch.context() as theirs:
            self.clock.enter(theirs)
            ran = subprocess.run(
                [shell, "-c", script, "-", host, str(port), responder],
                cwd=self.directory,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        return ran.returncode, ran.stdout


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    clock = FakeClock.new(tmp_path)
    clock.set(datetime(1971, 1, 2, tzinfo=UTC) - datetime.now(UTC))
    return Device(tmp_path, clock, monkeypatch)


@pytest.fixture
def pki(device: Device) -> Pki:
    """The fleet of *device*."""
    pki = Pki()
    device.anchors.write_text(pki.anchors)
    return pki


@contextmanager
def answering(answer: Callable[[bytes], bytes | None]) -> Iterator[str]:
    """Be a responder that answers each request with *answer* of it; yield its URL."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = answer(self.rfile.read(int(self.headers["Content-Length"]))) or b""
            self.send_response(200)
            self.send_header("Content-Type", "application/ocsp-response")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server, served(server):
        yield f"http://127.0.0.1:{server.server_port}/ocsp"


@contextmanager
def serving(directory: Path, service: Held, key: bytes = b"") -> Iterator[int]:
    """Be *service*, with another *key* in PEM if that is not its own; yield the port."""
    credential = directory / "service.pem"
    credential.write_bytes(key + pem_of(service.certificate, *service.chain) if key else service.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(credential)

    class Service(BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), context.wrap_socket(self.request, server_side=True) as peer:
                peer.read()

    with TCPServer(("127.0.0.1", 0), Service) as server, served(server):
        yield server.server_address[1]


@contextmanager
def served(server: TCPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def is_now(told: tuple[int, str]) -> bool:
    code, now = told
    return code == 0 and abs(datetime.now(UTC) - datetime.fromtimestamp(int(now), UTC)) < timedelta(minutes=5)


def test_it_learns_the_time_or_nothing(device: Device, service: ProvisioningService) -> None:
    shutil.copy(service.bundle, device.anchors)
    port, ocsp = int(service.https.rpartition(":")[2]), f"{service.http}/ocsp"
    for year, shell in ((1971, "sh"), (2071, "bash")):
        device.clock.set(datetime(year, 1, 2, tzinfo=UTC) - datetime.now(UTC))
        assert is_now(device.said(port, ocsp, shell=shell))
    recorded = (device.directory / "answer.der").read_bytes()
    assert device.said(port, ocsp, host="another.localhost") == NOTHING  # Not the service's name.
    assert device.said(port, f"{service.http}/crl/root-ca.crl") == NOTHING  # No responder.
    assert is_now(device.said(port, ocsp))
    asked = device.directory / "asked.der"
    about = ("-issuer", device.directory / "served2.pem", "-cert", device.directory / "served1.pem")
    openssl("ocsp", *about, "-no_nonce", "-reqout", asked)
    without_nonce = httpx.post(ocsp, content=asked.read_bytes(), headers={"Content-Type": OCSP}).content
    for each in (recorded, without_nonce):
        with answering(lambda _asked, each=each: each) as responder:  # type: ignore[misc]
            assert device.said(port, responder) == NOTHING
    device.anchors.write_text(Pki().anchors)  # Not the fleet's.
    assert device.said(port, ocsp) == NOTHING


def test_the_key_of_an_answer_must_not_have_expired_at_the_time_that_it_tells(device: Device, pki: Pki) -> None:
    """openssl says in such a case, too, that the certificate is good; that it is not to be believed, only beside it."""
    fine, expired = delegate(pki), delegate(pki, not_before=pki.now - 9 * DAY, not_after=pki.now - DAY)
    service = pki.broker()
    with serving(device.directory, service) as port:
        for signer, believed in ((fine, True), (expired, False)):
            with answering(Responder(pki.issuing, signer, [service])) as responder:
                told = device.said(port, responder)
            assert is_now(told) if believed else told == NOTHING


def test_the_certificate_of_the_service_must_be_valid_and_good_at_that_time(device: Device, pki: Pki) -> None:
    expired = pki.broker(not_before=pki.now - 9 * DAY, not_after=pki.now - DAY)
    revoked = pki.broker()
    answers = Responder(pki.issuing, pki.issuing, [expired, revoked], {revoked.certificate.serial_number: None})
    for service in (expired, revoked):
        with serving(device.directory, service) as port, answering(answers) as responder:
            assert device.said(port, responder) == NOTHING


def test_what_is_added_to_an_answer_without_a_signature_says_no_time(device: Device, pki: Pki) -> None:
    """The certificates beside an answer are not signed with it, and openssl shows their comments as they are."""
    comment = asn1.IA5String("\n    Produced At: 1 hour").dump()
    added = pki.device("meter-1", extensions=[x509.UnrecognizedExtension(NETSCAPE_COMMENT, comment)]).der
    service = pki.broker()
    genuine = Responder(pki.issuing, delegate(pki), [service])

    def meddled(asked: bytes) -> bytes:
        response = asn1_ocsp.OCSPResponse.load(genuine(asked) or b"")
        signed = response["response_bytes"]["response"].parsed
        signed["certs"] = [*signed["certs"], asn1_x509.Certificate.load(added)]
        response["response_bytes"]["response"] = asn1.ParsableOctetString(signed.dump(force=True))
        return bytes(response.dump(force=True))

    with serving(device.directory, service) as port, answering(meddled) as responder:
        assert is_now(device.said(port, responder))
    assert added in (device.directory / "answer.der").read_bytes()


def test_who_has_the_service_s_certificate_but_not_its_key_says_no_time(device: Device, pki: Pki) -> None:
    """Its certificate everybody can have: with the key of an OCSP signer alone, it would be any time."""
    service = pki.broker()
    point = service.certificate.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    wrong = asn1_keys.ECPrivateKey({
        "version": 1,
        "private_key": 1,
        "parameters": asn1_keys.ECDomainParameters("named", "secp256r1"),
        "public_key": point,
    })  # fmt: skip
    key = ssl.DER_cert_to_PEM_cert(wrong.dump()).replace("CERTIFICATE", "EC PRIVATE KEY").encode()
    with answering(Responder(pki.issuing, delegate(pki), [service])) as responder:
        with serving(device.directory, service) as port:
            assert is_now(device.said(port, responder))
        with serving(device.directory, service, key) as port:
            assert device.said(port, responder) == NOTHING


def test_who_ends_the_handshake_before_it_shows_its_key_says_no_time(device: Device, pki: Pki) -> None:
    """With an orderly end: openssl shows the certificates, and calls that no failure."""
    service = pki.broker()
    with (
        answering(Responder(pki.issuing, delegate(pki), [service])) as responder,
        TCPServer(("127.0.0.1", 0), half_a_handshake(service)) as server,
        served(server),
    ):
        assert device.said(server.server_address[1], responder) == NOTHING
    assert (device.directory / "served.txt").read_text().count("BEGIN CERTIFICATE") == 2


def half_a_handshake(service: Held) -> type[BaseRequestHandler]:
    """Return who speaks TLS 1.2 as far as it needs no key."""

    def record(kind: int, content: bytes) -> bytes:
        return bytes((kind, 3, 3)) + len(content).to_bytes(2) + content

    def message(kind: int, content: bytes) -> bytes:
        return record(22, bytes((kind,)) + len(content).to_bytes(3) + content)

    chain = [service.der, *(each.public_bytes(Encoding.DER) for each in service.chain)]
    certificates = b"".join(len(each).to_bytes(3) + each for each in chain)
    renegotiation = bytes.fromhex("ff01000100")
    hello = bytes((3, 3, *range(32), 0, 0xC0, 0x2B, 0)) + len(renegotiation).to_bytes(2) + renegotiation

    class Half(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(message(2, hello) + message(11, len(certificates).to_bytes(3) + certificates))
            self.request.sendall(record(21, b"\x01\x00"))  # close_notify
            self.request.shutdown(socket.SHUT_WR)
            while self.request.recv(65536):
                pass

    return Half
