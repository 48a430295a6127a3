"""Who is refused in the handshake is told the true alert; openssl and Python's ssl are the witnesses."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker.mqtt.codes import ReasonCode
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.tls import client_context
from tests.support.broker_process import PATIENCE, BrokerProcess
from tests.support.pki import DOMAIN, Held, Pki
from tests.support.tls_client import TlsClient, attempt

IDENTITY = Identity(DOMAIN, Role.DEVICE, "bad", "meters")


def outside_the_constraints(pki: Pki) -> Held:
    """Return a device of our domain, certified by a CA of ours that may certify another domain only."""
    constraints = x509.NameConstraints([x509.UniformResourceIdentifier("elsewhere.example")], None)
    constrained = pki.certify(
        IDENTITY, issuer=pki.root, common_name="Constrained CA", uris=[], purposes=None, is_ca=True,
        extensions=[_SIGNS, constraints],
    )  # fmt: skip
    return pki.certify(IDENTITY, issuer=constrained)


_SIGNS = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip

BAD: dict[str, tuple[Callable[[Pki], Held | None], str, str]] = {
    "no certificate": (lambda _: None, "TLSV13_ALERT_CERTIFICATE_REQUIRED", "certificate required"),
    "self-signed": (lambda pki: pki.self_signed(IDENTITY), "TLSV1_ALERT_UNKNOWN_CA", "unknown ca"),
    "another CA": (lambda _: Pki().device("bad"), "TLSV1_ALERT_UNKNOWN_CA", "unknown ca"),
    "the CA's name without its key": (
        lambda pki: Pki().certify(IDENTITY, issuer_name=pki.issuing.certificate.subject),
        "TLSV1_ALERT_UNKNOWN_CA",
        "unknown ca",
    ),
    "expired": (
        lambda pki: pki.certify(IDENTITY, not_after=pki.now - timedelta(seconds=1)),
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "certificate expired",
    ),
    "not yet valid": (
        lambda pki: pki.certify(
            IDENTITY, not_before=pki.now + timedelta(hours=1), not_after=pki.now + timedelta(hours=2)
        ),
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "bad certificate",
    ),
    "a server's purpose": (
        lambda pki: pki.certify(IDENTITY, purposes=[ExtendedKeyUsageOID.SERVER_AUTH]),
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "unsupported certificate",
    ),
    "outside its CA's name constraints": (  # fleet-sim attack cannot play it: 24-name-constraints.
        outside_the_constraints,
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "certificate unknown",
    ),
    "issued by a device": (
        lambda pki: pki.certify(IDENTITY, issuer=pki.device("insider")),
        "TLSV1_ALERT_UNKNOWN_CA",
        "unknown ca",
    ),
}

cases = pytest.mark.parametrize(("make", "alert", "words"), BAD.values(), ids=BAD.keys())


@cases
def test_python_is_told_the_true_alert(
    broker: BrokerProcess, pki: Pki, anchors: Path, make: Callable[[Pki], Held | None], alert: str, words: str
) -> None:
    del words
    held = make(pki)
    assert attempt(broker.port, anchors, held.credential if held is not None else None) == alert


@cases
def test_openssl_is_told_the_true_alert(
    broker: BrokerProcess,
    pki: Pki,
    anchors: Path,
    tmp_path: Path,
    make: Callable[[Pki], Held | None],
    alert: str,
    words: str,
) -> None:
    del alert
    held = make(pki)
    said = s_client(broker.port, anchors, held, tmp_path)
    assert f"alert {words}" in said, said


def test_openssl_verifies_the_broker(broker: BrokerProcess, meter: Held, anchors: Path, tmp_path: Path) -> None:
    said = s_client(broker.port, anchors, meter, tmp_path, "-verify_return_error", "-verify_hostname", "localhost")
    assert "Verify return code: 0 (ok)" in said
    assert "TLSv1.3" in said


def s_client(port: int, anchors: Path, held: Held | None, directory: Path, *options: str) -> str:
    """Return what ``openssl s_client`` says while the connection lives."""
    line = ["openssl", "s_client", "-connect", f"localhost:{port}", "-CAfile", str(anchors), *options]
    if held is not None:
        files = held.write(directory, "client")
        line += ["-cert", str(files.certificate), "-key", str(files.key), "-cert_chain", str(files.certificate)]
    # It reads on for what the server says after the handshake, until the server closes.
    done = subprocess.run([*line, "-ign_eof"], input="", capture_output=True, text=True, check=False, timeout=PATIENCE)
    return done.stdout + done.stderr


def test_older_tls_is_refused_unless_allowed(broker: BrokerProcess, pki: Pki, meter: Held) -> None:
    context = client_context(pki.anchors, meter.credential, allow_tls12=True)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert attempt(broker.port, "", None, context=context) == "TLSV1_ALERT_PROTOCOL_VERSION"


@pytest.mark.parametrize(
    ("make", "reason", "code"),
    [
        (lambda pki: pki.certify(IDENTITY, uris=["spiffe://fleet.internal/device/bad"]), 0x87, "INVALID_IDENTITY"),
        (lambda pki: pki.certify(IDENTITY, common_name="good"), 0x87, "INVALID_IDENTITY"),
        (lambda pki: pki.certify(Identity("elsewhere", Role.DEVICE, "bad", "meters")), 0x87, "WRONG_TRUST_DOMAIN"),
        (lambda pki: pki.broker(), 0x87, "WRONG_ROLE"),
        (lambda pki: pki.device("another"), 0x85, "CLIENT_ID_MISMATCH"),
    ],
)
def test_who_the_chain_lets_through_is_judged_by_admission(
    broker: BrokerProcess, pki: Pki, anchors: Path, make: Callable[[Pki], Held], reason: int, code: str
) -> None:
    with TlsClient(broker.port, anchors, make(pki).credential) as client:
        answer = client.connect(client_id="bad", expect=ReasonCode(reason))
        assert str(answer.properties.reason_string).startswith(f"{code}: ")
        assert client.expect_end() is None


def test_who_shows_a_cas_certificate_that_only_openssl_reads_is_refused_in_words(
    broker: BrokerProcess, pki: Pki, anchors: Path
) -> None:
    garbled = x509.UnrecognizedExtension(x509.AuthorityInformationAccess.oid, b"\x04\x00")
    device = pki.certify(IDENTITY, issuer=pki.authority("Garbled CA", pki.root, extensions=[garbled]))
    before = len(broker.events("INTERNAL_ERROR"))
    with TlsClient(broker.port, anchors, device.credential) as client:
        answer = client.connect(client_id="bad", expect=ReasonCode.NOT_AUTHORIZED)
        assert "UNTRUSTED_ISSUER: the certificate of a CA above" in str(answer.properties.reason_string)
    assert len(broker.events("INTERNAL_ERROR")) == before


def test_another_devices_identifier_takes_neither_a_live_session_nor_a_kept_one(
    broker: BrokerProcess, pki: Pki, anchors: Path, meter: Held, name: str
) -> None:
    commands, thief = f"fleet/meters/{name}/cmd/#", pki.device(f"thief-{name}"[:64])
    with (
        TlsClient(broker.port, anchors, meter.credential) as victim,
        TlsClient(broker.port, anchors, pki.service(f"s-{name}"[:64]).credential) as backend,
    ):
        victim.connect(client_id=name, session_expiry_interval=600)
        victim.subscribe(commands, qos=1)
        backend.connect()
        for clean_start in (True, False):
            with TlsClient(broker.port, anchors, thief.credential) as client:
                client.connect(client_id=name, clean_start=clean_start, expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
        victim.check_alive()
        victim.leave()
        backend.publish(f"fleet/meters/{name}/cmd/go", b"go", qos=1)
        with TlsClient(broker.port, anchors, thief.credential) as client:
            client.connect(client_id=name, clean_start=False, expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
        # The same name in another group passes the identifier check; the session is still not its own.
        with TlsClient(broker.port, anchors, pki.device(name, "thieves").credential) as client:
            client.connect(client_id=name, clean_start=False, expect=ReasonCode.NOT_AUTHORIZED)
        with TlsClient(broker.port, anchors, meter.credential) as back:
            assert back.connect(client_id=name, clean_start=False).session_present
            assert back.next_packet().payload == b"go"  # type: ignore[union-attr]


# Deadlines


def test_a_handshake_that_trickles_in_is_closed_at_its_deadline(broker: BrokerProcess) -> None:
    hello, started, position = _client_hello(), time.monotonic(), 0
    with socket.create_connection(("127.0.0.1", broker.port), timeout=PATIENCE) as loris:
        loris.settimeout(0.1)
        ended = False
        while not ended:
            assert time.monotonic() - started < PATIENCE
            with contextlib.suppress(TimeoutError):
                try:
                    ended = loris.recv(1) == b""
                except ConnectionError:
                    ended = True
            if not ended and position < len(hello) - 1:
                with contextlib.suppress(ConnectionError):
                    loris.send(hello[position : position + 1])
                position += 1
        assert time.monotonic() - started >= 2.9


def test_a_client_that_is_silent_after_tls_is_closed(broker: BrokerProcess, meter: Held, anchors: Path) -> None:
    started = time.monotonic()  # The broker counts from the end of the handshake, which may be before we know of it.
    with TlsClient(broker.port, anchors, meter.credential) as client:
        client.expect_end()
        assert time.monotonic() - started >= 2.5


@pytest.mark.parametrize(
    "greeting", [b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", b"GET / HTTP/1.1\r\n\r\n", bytes(50)]
)
def test_who_does_not_speak_tls_is_closed_at_once(broker: BrokerProcess, greeting: bytes) -> None:
    def took() -> float:
        with socket.create_connection(("127.0.0.1", broker.port), timeout=PATIENCE) as client:
            started = time.monotonic()
            client.sendall(greeting)
            while client.recv(1000):
                pass
            return time.monotonic() - started

    assert any(took() < 2.5 for _ in range(3)), "not by the deadline, which would be each time"


def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()
