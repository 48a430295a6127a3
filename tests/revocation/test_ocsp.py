"""REV cases of OCSP: a responder that revokes, releases, does not know, lies, and falls silent."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from typer.testing import CliRunner

from broker.cli import app
from broker.mqtt.codes import ReasonCode
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.tls import client_context
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.enrolled import enrol
from tests.support.listed import answer
from tests.support.pki import DOMAIN, Held, Pki, pem_of
from tests.support.provisioning import ProvisioningService
from tests.support.responder import Responder, delegate
from tests.support.tls_client import TlsClient
from tests.support.web import WebServer

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For plain HTTP: else whom the world trusts is read at every question."""
IN = (ReasonCode.SUCCESS, "")
REVOKED = (ReasonCode.NOT_AUTHORIZED, "REVOKED")
SUSPENDED = (ReasonCode.BANNED, "SUSPENDED")
SLOWLY = 0.2
"""Seconds between two questions for the metrics page, which costs more than what it tells of."""
UNAVAILABLE = (ReasonCode.SERVER_UNAVAILABLE, "OCSP_UNAVAILABLE")
UNKNOWN = (ReasonCode.SERVER_UNAVAILABLE, "OCSP_UNKNOWN")


@dataclass
class Asking:
    """A broker that asks a responder, which is the test's to change."""

    broker: BrokerProcess
    pki: Pki
    web: WebServer
    responder: Responder

    def device(self, name: str) -> Held:
        held = self.pki.device(name)
        self.responder.certificates.append(held)
        return held

    def answer(self, held: Held) -> tuple[ReasonCode, str]:
        return answer(self.broker, self.pki.anchors, held)


def asking(directory: Path, pki: Pki, web: WebServer, **settings: Any) -> Asking:
    responder = Responder(pki.issuing, delegate(pki), [])
    web.pages["/ocsp"] = responder
    wanted: dict[str, Any] = {"ocsp_responder": f"{web.url}/ocsp", "ocsp_refresh_seconds": 0.3} | settings
    return Asking(BrokerProcess.with_lists(directory, pki, **wanted), pki, web, responder)


@pytest.fixture
def scene(tmp_path: Path, pki: Pki, web: WebServer) -> Iterator[Asking]:
    made = asking(tmp_path, pki, web)
    with made.broker:
        yield made


def checked(scene: Asking, held: Held, *more: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the answer of ``fleet-broker check``."""
    path = scene.broker.dir / "checked.pem"
    path.write_bytes(pem_of(held.certificate, *held.chain))
    place = more or ("--state-dir", str(scene.broker.dir / "state"))
    done = CliRunner().invoke(app, ["check", str(path), "--json", *place])
    [answer] = json.loads(done.stdout)
    return done.exit_code, answer


def test_check_asks_the_responder_as_the_door_would(scene: Asking, name: str) -> None:
    device = scene.device(name)
    assert checked(scene, device)[0] == 0
    scene.responder.revoked[device.certificate.serial_number] = x509.ReasonFlags.key_compromise
    wait_until(lambda: checked(scene, device)[1]["code"] == "REVOKED", "the answer is asked for again")
    scene.web.pages.clear()
    code, answered = checked(scene, scene.pki.device(f"new-{name}"))
    assert (code, answered["code"]) == (1, "OCSP_UNAVAILABLE")
    steps = {step["step"]: step["passed"] for step in answered["steps"]}
    assert (steps["chain"], steps["revocation"]) == (True, False)
    # Without a broker the status is not known, and no reason.
    offline = ("--offline", "--config", str(scene.broker.dir / "offline.toml"))
    files = scene.pki.broker().write(scene.broker.dir)
    own = f'certfile = "{files.certificate}"\nkeyfile = "{files.key}"\ncafile = "{scene.broker.dir}/anchors.pem"\n'
    (scene.broker.dir / "offline.toml").write_text(f'{own}ocsp_responder = "{scene.web.url}/ocsp"\n')
    assert checked(scene, scene.pki.device(f"off-{name}"), *offline)[0] == 0


def test_an_operator_waits_for_the_answer_about_his_certificate(tmp_path: Path, pki: Pki, web: WebServer) -> None:
    scene = asking(tmp_path, pki, web, admin_port=0)
    operator = pki.certify(Identity(DOMAIN, Role.OPERATOR, "op"))
    scene.responder.certificates.append(operator)
    context = client_context(pki.anchors, operator.credential)
    with scene.broker:
        url = next(each for each in scene.broker.urls if each.startswith("https://"))
        with httpx.Client(base_url=url.replace("127.0.0.1", "localhost"), verify=context) as client:
            first, second = client.get("/v1/status"), client.get("/v1/status")
            scene.responder.revoked[operator.certificate.serial_number] = x509.ReasonFlags.key_compromise
            wait_until(lambda: client.get("/v1/status").status_code == 403, "who is revoked is refused")
        scene.web.pages.clear()
        stranger = client_context(pki.anchors, pki.certify(Identity(DOMAIN, Role.OPERATOR, "op-2")).credential)
        with httpx.Client(base_url=url.replace("127.0.0.1", "localhost"), verify=stranger) as client:
            silent = client.get("/v1/status")
    assert (first.status_code, second.status_code) == (200, 200)
    assert (silent.status_code, silent.json()["code"]) == (503, "OCSP_UNAVAILABLE")


def test_rev_36_a_responder_is_asked_when_a_client_connects_and_again_while_it_stays(scene: Asking, name: str) -> None:
    device, other = scene.device(name), scene.device(f"other-{name}")
    with (
        TlsClient(scene.broker.port, scene.pki.anchors, device.credential) as client,
        TlsClient(scene.broker.port, scene.pki.anchors, other.credential) as neighbour,
    ):
        client.connect(client_id=name)
        neighbour.connect()
        scene.responder.revoked[device.certificate.serial_number] = x509.ReasonFlags.key_compromise
        farewell = client.farewell()
        assert farewell.properties.reason_string == "REVOKED: certificate revoked (keyCompromise)"
        neighbour.check_alive()
    assert scene.answer(device) == REVOKED
    scene.responder.revoked[other.certificate.serial_number] = x509.ReasonFlags.certificate_hold
    wait_until(lambda: scene.answer(other) == SUSPENDED, "a suspension is found out too")
    scene.responder.revoked.clear()
    wait_until(lambda: scene.answer(other) == IN, "who is good again is admitted again")


def test_a_suspension_that_becomes_final_is_final(scene: Asking, name: str) -> None:
    device = scene.device(name)
    scene.responder.revoked[device.certificate.serial_number] = x509.ReasonFlags.certificate_hold
    wait_until(lambda: scene.answer(device) == SUSPENDED, "a suspension is found out")
    scene.responder.revoked[device.certificate.serial_number] = x509.ReasonFlags.key_compromise
    wait_until(lambda: scene.answer(device) == REVOKED, "and that it has become final", 20)
    assert scene.broker.events("REVOKED", reason="keyCompromise", serial=f"{device.certificate.serial_number:x}")


def test_rev_37_an_answer_is_remembered(tmp_path: Path, pki: Pki, name: str, web: WebServer) -> None:
    made = asking(tmp_path, pki, web, ocsp_refresh_seconds=600)
    device = made.device(name)
    with made.broker:
        assert [made.answer(device) for _ in range(3)] == [IN] * 3
    assert web.requests["/ocsp"] == 1


@pytest.mark.parametrize("case", ["silent", "forged", "about another", "unknown", "no responder"])
def test_rev_38_who_does_not_answer_lets_nobody_in(
    tmp_path: Path, pki: Pki, name: str, web: WebServer, case: str
) -> None:
    made = asking(tmp_path, pki, web)
    if case == "no responder":  # The client's certificate names none.
        made.broker = BrokerProcess.with_lists(tmp_path / "b", pki, "--ocsp-from-certificates")
    device = made.device(name)
    made.device("another")
    made.responder.silent = case == "silent"
    made.responder.another = case == "about another"
    made.responder.unknown = case == "unknown"
    made.responder.forged = case == "forged"
    with made.broker:
        assert made.answer(device) == (UNKNOWN if case == "unknown" else UNAVAILABLE)
        if case in {"silent", "forged", "about another"}:
            assert made.broker.events("OCSP_FAILED")


@pytest.mark.parametrize(("policy", "later"), [("grace 1h", IN), ("advisory", IN), ("require", UNAVAILABLE)])
def test_rev_39_a_responder_that_falls_silent_by_policy(
    tmp_path: Path, pki: Pki, name: str, web: WebServer, policy: str, later: tuple[ReasonCode, str]
) -> None:
    made = asking(tmp_path, pki, web, ocsp_policy=policy)
    device = made.device(name)
    with made.broker, TlsClient(made.broker.port, pki.anchors, device.credential) as client:
        made.responder.life = made.responder.age + timedelta(seconds=2)
        client.connect()
        made.responder.silent = True
        wait_until(lambda: made.broker.events("OCSP_FAILED"), "the silence is noticed")
        client.check_alive()
        wait_until(lambda: made.answer(device) == later, "then the policy decides")


def test_rev_40_the_responder_that_certificates_name_is_asked(
    tmp_path: Path, pki: Pki, name: str, service: ProvisioningService
) -> None:
    """With provisioning's own responder, which answers by a delegate and at once after a revocation."""
    (device,) = enrol(service, name)
    broker = BrokerProcess.with_lists(
        tmp_path,
        pki,
        "--ocsp-from-certificates",
        anchors=service.bundle.read_bytes(),
        ocsp_refresh_seconds=0.3,
        trust_domain="fleet.internal",
    )
    with broker, TlsClient(broker.port, pki.anchors, device.credential) as client:
        client.connect(client_id=name)
        service.revoke(device=name, reason="keyCompromise")
        assert str(client.farewell().properties.reason_string).startswith("REVOKED")
        with TlsClient(broker.port, pki.anchors, device.credential) as again:
            again.connect(expect=ReasonCode.NOT_AUTHORIZED)


def gauges(broker: BrokerProcess) -> dict[str, float]:
    """Return what the metrics page says of OCSP."""
    url = next(each for each in broker.urls if each.endswith("/metrics"))
    page = httpx.get(url, trust_env=False, verify=NO_TLS).text
    lines = [line for line in page.splitlines() if "_ocsp_" in line and line[0] != "#"]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_and_audit_log_say_how_old_the_answers_are_that_clients_stand_on(
    tmp_path: Path, pki: Pki, web: WebServer
) -> None:
    log = tmp_path / "audit.jsonl"
    made = asking(tmp_path, pki, web, metrics_port=0, audit_log=log, ocsp_policy="advisory")
    oldest, unanswered = (
        f'fleet_broker_ocsp_{name}{{bundle="cafile"}}' for name in ("oldest_answer_seconds", "unanswered")
    )
    answered, failed = (f'fleet_broker_ocsp_rechecks_total{{code="{code}"}}' for code in ("answered", "failed"))
    device, other = made.device("meter-1"), made.device("meter-2")

    def written(event: str) -> bool:
        whole = log.read_text().rpartition("\n")[0]  # The last line may just be being written.
        return any(json.loads(line)["event"] == event for line in whole.splitlines())

    with contextlib.ExitStack() as stack:
        stack.enter_context(made.broker)
        client = stack.enter_context(TlsClient(made.broker.port, pki.anchors, device.credential))
        client.connect()
        wait_until(
            lambda: gauges(made.broker).get(answered, 0) >= 2, "it is asked again about who is connected", pause=SLOWLY
        )
        before = gauges(made.broker)
        assert before[unanswered] == 0
        made.web.pages.clear()
        stack.enter_context(TlsClient(made.broker.port, pki.anchors, other.credential)).connect()
        wait_until(lambda: gauges(made.broker).get(failed, 0) >= 1, "that nobody answers is counted", pause=SLOWLY)
        wait_until(lambda: gauges(made.broker)[oldest] > before[oldest] + 2, "the answer becomes old", pause=SLOWLY)
        assert gauges(made.broker)[unanswered] == 1
        wait_until(lambda: written("OCSP lost"), "that is in the audit log")
        made.web.pages["/ocsp"] = made.responder
        wait_until(lambda: gauges(made.broker)[unanswered] == 0, "it is asked about the other one too", pause=SLOWLY)
        wait_until(lambda: written("OCSP answers"), "that is in the audit log")
        made.responder.revoked[device.certificate.serial_number] = x509.ReasonFlags.key_compromise
        client.farewell()
        wait_until(lambda: written("revoked"), "and so is what it says")
