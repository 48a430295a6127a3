"""Why somebody is not in, from a running broker: the true code in the log, in the history, and from the file alone."""

from __future__ import annotations

import functools
import json
import socket
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from broker.cli import app
from broker.mqtt.codes import ReasonCode
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.tls import client_context
from tests.support.broker_process import PATIENCE, BrokerProcess, wait_until
from tests.support.enrolled import enrol
from tests.support.pki import DOMAIN, Held, Pki, pem_of
from tests.support.provisioning import ProvisioningService
from tests.support.tls_client import TlsClient, attempt


def command(broker: BrokerProcess, *arguments: str) -> tuple[int, str]:
    """Run a command against *broker*; return its exit code and everything it says."""
    done = CliRunner().invoke(app, [*arguments, "--state-dir", str(broker.dir / "state")])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def known_of(broker: BrokerProcess, about: str) -> dict[str, Any]:
    document = json.loads(command(broker, "why", about, "--json")[1])
    assert isinstance(document, dict)
    return document


REFUSED: dict[str, tuple[Callable[[Pki, Identity], Held | None], str]] = {
    "no certificate": (lambda _pki, _who: None, "NO_CERTIFICATE"),
    "self-signed": (lambda pki, who: pki.self_signed(who), "UNTRUSTED_ISSUER"),
    "another CA": (lambda _, who: Pki().certify(who), "UNTRUSTED_ISSUER"),
    "issued by a device": (lambda pki, who: pki.certify(who, issuer=pki.device("insider")), "UNTRUSTED_ISSUER"),
    "expired": (lambda pki, who: pki.certify(who, not_after=pki.now - timedelta(seconds=1)), "EXPIRED"),
    "not yet valid": (
        lambda pki, who: pki.certify(
            who, not_before=pki.now + timedelta(hours=1), not_after=pki.now + timedelta(hours=2)
        ),
        "NOT_YET_VALID",
    ),
    "a server's": (lambda pki, who: pki.certify(who, purposes=[ExtendedKeyUsageOID.SERVER_AUTH]), "WRONG_PURPOSE"),
}


@pytest.mark.parametrize(("make", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_what_tls_refuses_has_its_true_code_everywhere(
    broker: BrokerProcess,
    pki: Pki,
    anchors: Path,
    name: str,
    tmp_path: Path,
    make: Callable[[Pki, Identity], Held | None],
    code: str,
) -> None:
    held = make(pki, Identity(DOMAIN, Role.DEVICE, name[:64], "meters"))
    before = len(broker.events(code))
    attempt(broker.port, anchors, held.credential if held is not None else None)
    wait_until(lambda: len(broker.events(code)) > before, "a line in the log")
    assert code in {event["code"] for event in known_of(broker, "127.0.0.1")["events"]}
    assert json.loads(command(broker, "status", "--json")[1])["refused"][code] >= 1
    if held is not None:
        file = tmp_path / "client.crt"
        file.write_bytes(pem_of(held.certificate, *held.chain))
        exit_code, said = command(broker, "check", str(file))
        assert exit_code == 1
        assert f"refused: {code}: TLS alert: " in said


def test_older_tls_no_tls_and_a_client_that_does_not_trust_the_broker_are_told_apart(
    broker: BrokerProcess, pki: Pki, meter: Held
) -> None:
    context = client_context(pki.anchors, meter.credential, allow_tls12=True)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    attempt(broker.port, "", None, context=context)
    with socket.create_connection(("127.0.0.1", broker.port), timeout=PATIENCE) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while plain.recv(1000):
            pass
    with pytest.raises(ssl.SSLCertVerificationError):
        TlsClient(broker.port, Pki().anchors, meter.credential)
    for code in ("UNSUPPORTED_TLS_VERSION", "NOT_TLS", "BROKER_NOT_TRUSTED"):
        wait_until(functools.partial(broker.events, code), code)


def test_why_tells_what_happened_to_a_device_and_what_to_do(
    broker: BrokerProcess, anchors: Path, meter: Held, name: str
) -> None:
    for _ in range(2):
        with TlsClient(broker.port, anchors, meter.credential) as client:
            client.connect(client_id="wrong", expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
            client.expect_end()
    with TlsClient(broker.port, anchors, meter.credential) as client:
        client.connect(client_id=name)
        code, said = command(broker, "why", name)
        assert code == 0
        assert f"{name} is connected from 127.0.0.1:" in said
        assert "refused   CLIENT_ID_MISMATCH x2 since " in said
        assert "what to do: set the client identifier to the name in the certificate" in said
        serial = f"{meter.certificate.serial_number:X}"
        assert [event["event"] for event in known_of(broker, serial)["events"][:2]] == ["refused", "admitted"]
    code, said = command(broker, "why", "wrong")
    assert code == 0
    assert f"  wrong, asked for by spiffe://{DOMAIN}/device/meters/{name}, from 127.0.0.1:" in said
    code, said = command(broker, "why", "nobody-at-all")
    assert code == 1
    assert "a client that TLS refuses" in said, "its device may be at the door under no name"


def test_why_guesses_a_name_that_it_does_not_know(broker: BrokerProcess, anchors: Path, meter: Held, name: str) -> None:
    slip = f"{name}q"
    with TlsClient(broker.port, anchors, meter.credential) as client:
        client.connect(client_id=name)
        code, said = command(broker, "why", slip)
        assert (code, f"\ndid you mean {name}?\n" in said) == (1, True), said
        assert known_of(broker, slip)["near"] == [name]
        assert known_of(broker, f"{DOMAIN}/{slip}")["near"] == [f"{DOMAIN}/{name}"]
        assert known_of(broker, f"spiffe://{DOMAIN}/device/meters/{slip}")["near"] == [
            f"spiffe://{DOMAIN}/device/meters/{name}"
        ]
        assert known_of(broker, name)["near"] == []
        code, said = command(broker, "kick", slip)
        assert (code, f"no client {slip!r} is connected; did you mean {name}?" in said) == (1, True), said
    assert f"did you mean {name}?" in command(broker, "why", slip)[1], "it was here"
    assert "did you mean" not in command(broker, "kick", slip)[1], "it is gone"


def test_kick_suggests_no_other_for_a_device_that_is_known_and_away(
    broker: BrokerProcess, pki: Pki, anchors: Path, meter: Held, name: str
) -> None:
    with TlsClient(broker.port, anchors, meter.credential) as client:
        client.connect(client_id=name)
    wait_until(lambda: any(each["event"] == "closed" for each in known_of(broker, name)["events"]), "it is gone")
    like = f"{name}0"  # meter-10 for meter-1: one character more.
    with TlsClient(broker.port, anchors, pki.device(like).credential) as client:
        client.connect(client_id=like)
        code, said = command(broker, "kick", name)
        assert (code, f"no client {name!r} is connected; it was at this broker before: fleet-broker why" in said) == (
            1,
            True,
        ), said
        assert "did you mean" not in said


def test_why_finds_who_asked_for_a_name_and_proved_none(broker: BrokerProcess, pki: Pki, anchors: Path) -> None:
    """Its certificate names nobody: it is remembered by its address alone, which its operator may not know."""
    nobody = pki.certify(Identity(DOMAIN, Role.DEVICE, "x", "meters"), uris=[], common_name="Pump Room 3")
    with TlsClient(broker.port, anchors, nobody.credential) as client:
        client.connect(client_id="Pump Room 3", expect=ReasonCode.NOT_AUTHORIZED)
        client.expect_end()
    code, said = command(broker, "why", "Pump Room 3")
    assert (code, "nothing else is known" in said) == (0, False), said
    assert "refused when it asked for this client identifier, before anybody was named; it may be somebody" in said
    assert "refused   INVALID_IDENTITY  Pump Room 3 from 127.0.0.1:" in said
    known = known_of(broker, "Pump Room 3")
    assert ([event["code"] for event in known["claimed"]], known["events"]) == (["INVALID_IDENTITY"], [])
    assert known_of(broker, "Pump Room 4")["claimed"] == []
    assert known_of(broker, "127.0.0.1")["claimed"] == [], "it is among the events of that address"


def test_a_revoked_device_is_explained_from_its_name_and_from_its_certificate(
    fleet_broker: BrokerProcess, service: ProvisioningService, tmp_path: Path, name: str
) -> None:
    broker = fleet_broker
    (device,) = enrol(service, name)
    file = device.write(tmp_path).certificate
    code, said = command(broker, "check", str(file))
    assert (code, "admitted as spiffe://" in said) == (0, True), said
    with TlsClient(broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=name)
        service.revoke(device=name)
        client.farewell()
    events = known_of(broker, name)["events"]
    assert [(event["event"], event["code"]) for event in events[:2]] == [("admitted", ""), ("closed", "REVOKED")]
    with TlsClient(broker.port, service.bundle, device.credential) as client:
        client.connect(client_id=name, expect=ReasonCode.NOT_AUTHORIZED)
    said = command(broker, "why", name)[1]
    assert f"refused   REVOKED  {name} from 127.0.0.1:" in said, "it has asked for what is its own"
    code, said = command(broker, "check", str(file))
    assert code == 1
    assert "NO  revocation  REVOKED: revoked on " in said


def test_a_certificate_is_checked_without_a_broker(pki: Pki, meter_files: Any, anchors: Path, tmp_path: Path) -> None:
    del pki
    line = ["check", str(meter_files.certificate), "--offline"]
    done = CliRunner().invoke(app, [*line, "--cafile", str(anchors)])
    assert done.exit_code == 0, done.output
    assert "?   revocation  not known without a running broker" in done.output
    assert done.output.endswith(", unless it is revoked\n")
    settings = tmp_path / "broker.toml"
    settings.write_text(f'cafile = "{anchors}"\nunsafe_no_revocation = true\ntrust_domain = "elsewhere"\n')
    with settings.open("a") as file:
        file.write(f'certfile = "{meter_files.certificate}"\nkeyfile = "{meter_files.key}"\n')
    done = CliRunner().invoke(app, [*line, "--config", str(settings)])
    assert "refused: WRONG_TRUST_DOMAIN" in done.output
    for arguments, words, exit_code in (
        (line, "--offline needs --cafile, or --config", 2),
        ([*line, "--cafile", str(meter_files.key)], "holds no certificate", 2),
        (["check", str(meter_files.key)], "no PEM certificate", 1),
        (["check", str(tmp_path / "none")], "cannot be read: No such file", 1),
    ):
        done = CliRunner().invoke(app, arguments)
        assert (done.exit_code, words in done.output) == (exit_code, True), done.output
