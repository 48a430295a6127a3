"""Suspended and resumed: REST, command line, CRL, OCSP and feed say the same."""

from __future__ import annotations

import json
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from provisioning.client.feed_reader import Current, ReleaseEvent, RevocationEvent
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.broker_process import PATIENCE
from tests.support.curl import Curl
from tests.support.feed_events import follow
from tests.support.openssl import OpensslDevice, certificate_facts, openssl
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True


def in_crl(service: ProvisioningService, device: OpensslDevice, reason: str | None) -> None:
    """Wait until the CRL names the device's certificate for *reason*, or does not name it."""
    number = certificate_facts(device.certificate, "-serial").strip().removeprefix("serial=")
    deadline = time.monotonic() + PATIENCE
    while True:
        der = Curl(service.http).run("/crl/issuing-ca.crl").body
        text = openssl("crl", "-inform", "DER", "-noout", "-text", data=der).decode()
        _, found, entry = text.partition(f"Serial Number: {number}")
        if bool(found) == (reason is not None) and (reason is None or reason in entry[:300]):
            return
        assert time.monotonic() < deadline, text[-2000:]
        time.sleep(0.02)


def ocsp_says(service: ProvisioningService, device: OpensslDevice) -> str:
    said = openssl("ocsp", "-issuer", service.dir / "issuing-ca.crt", "-cert", device.certificate, "-no_nonce",
                   "-url", f"{service.http}/ocsp", "-CAfile", service.bundle)  # fmt: skip
    return said.decode()


async def test_a_suspension_and_its_end_are_seen_everywhere(
    service: ProvisioningService, enrolled: OpensslDevice
) -> None:
    with service.api() as api:
        after = api.get("/v1/status").json()["feed"]["sequence"]
    suspended = service.post("/v1/suspensions", device=enrolled.name)
    assert suspended.status_code == 201
    (fact,) = suspended.json()["suspended"]
    assert (fact["reason"], fact["sequence"]) == ("certificateHold", after + 1)
    assert service.post("/v1/suspensions", device=enrolled.name).status_code == 200
    assert "Reason: certificateHold" in ocsp_says(service, enrolled)
    in_crl(service, enrolled, "Certificate Hold")
    with service.api() as api:
        assert api.get(f"/v1/devices/{enrolled.name}").json()["state"] == "suspended"
        (item,) = api.get("/v1/certificates", params={"device": enrolled.name, "state": "suspended"}).json()["items"]
        assert item["serial"] == fact["serial"]
    resumed = service.post("/v1/resumptions", device=enrolled.name)
    assert resumed.status_code == 201
    assert service.post("/v1/resumptions", device=enrolled.name).status_code == 200
    assert ": good" in ocsp_says(service, enrolled)
    in_crl(service, enrolled, None)
    events = []
    async with aclosing(follow(service.https, service.bundle, service.operator, after)) as feed:
        async for event in feed:
            if isinstance(event, Current):
                break
            events.append(event)
    hold, release = events
    assert isinstance(hold, RevocationEvent)
    assert hold.revocation.reason is RevocationReason.CERTIFICATE_HOLD
    assert release == ReleaseEvent(after + 2, hold.revocation.key, enrolled.name)


def test_the_command_line_suspends_resumes_and_decommissions(
    service: ProvisioningService, enrolled: OpensslDevice
) -> None:
    common = ("--dir", str(service.dir), "--url", service.https, "--json")
    done = service.command("suspend", "--device", enrolled.name, *common, check=True)
    (fact,) = json.loads(done.stdout)
    refused = service.command("resume", "--serial", fact["serial"], *common)
    assert refused.returncode == 1
    assert "DEVICE_SUSPENDED" in refused.stderr
    serial = ("--serial", fact["serial"])
    service.command("suspend", *serial, *common, check=True)
    resumed = service.command("resume", "--device", enrolled.name, *common, check=True)
    assert json.loads(resumed.stdout) == []
    assert resumed.stderr == (
        f"fleet-provisioning: certificate {fact['serial']} of {enrolled.name} stays suspended, as it was suspended by "
        f"itself; if that is over: resume --serial {fact['serial']}\n"
    )
    assert '"suspended_by_itself": true' in service.command("certificate", "show", fact["serial"], *common).stdout
    (released,) = json.loads(service.command("resume", *serial, *common, check=True).stdout)
    assert released["sequence"] == fact["sequence"] + 1
    table = service.command("decommission", "--device", enrolled.name, *common[:-1], check=True).stdout
    assert "cessationOfOperation" in table
    refused = service.command("resume", "--device", enrolled.name, *common)
    assert "REVOCATION_FINAL" in refused.stderr
    in_crl(service, enrolled, "Cessation Of Operation")


def test_who_of_a_file_is_refused_is_named_and_the_others_are_done(
    service: ProvisioningService, enrolled: OpensslDevice, tmp_path: Path
) -> None:
    common = ("--devices-file", str(tmp_path / "names"), "--dir", str(service.dir), "--url", service.https)
    (tmp_path / "names").write_text(f"nobody-1\nadmin\n{enrolled.name}\nnobody-2\n")
    for command, reason in (("suspend", "certificateHold"), ("resume", None), ("decommission", "cessationOfOperation")):
        done = service.command(command, *common, "--json")
        assert done.returncode == 1
        facts = json.loads(done.stdout)
        assert {(each["device"], each.get("reason")) for each in facts if each["device"] != "admin"} == {
            (enrolled.name, reason)
        }
        named = [line for line in done.stderr.splitlines() if "DEVICE_UNKNOWN" in line or "LAST_ADMIN" in line]
        assert len(named) == (2 if command == "resume" else 3), done.stderr
        assert f"but for {len(named)} named above" in done.stderr.splitlines()[-1]
    table = service.command("resume", *common)
    assert (table.returncode, table.stdout) == (1, "")
    assert f"REVOCATION_FINAL: {enrolled.name} is decommissioned" in table.stderr
    assert "1 of 4 is resumed, but for 3 named above" in table.stderr


@pytest.mark.parametrize("path", ["/v1/suspensions", "/v1/resumptions"])
def test_a_wrong_request_is_named(service: ProvisioningService, path: str) -> None:
    assert service.post(path).json()["code"] == "INVALID_REQUEST"
    assert service.post(path, device="a", serial="1").status_code == 400
    assert service.post(path, device="nobody").json()["code"] == "DEVICE_UNKNOWN"
    assert service.post(path, serial="1f").json()["code"] == "SERIAL_UNKNOWN"


def test_a_suspended_certificate_opens_nothing(
    service: ProvisioningService, enrolled: OpensslDevice, tmp_path: Path
) -> None:
    del tmp_path
    service.post("/v1/suspensions", device=enrolled.name)
    names = certificate_facts(enrolled.certificate, "-ext", "subjectAltName").split()[-1]
    client = Curl(service.https, service.bundle, enrolled.credential)
    answer = client.est("simplereenroll", enrolled.renewal(names, new_key=False))
    assert (answer.status, answer.text.split(":")[0]) == (403, "CERTIFICATE_SUSPENDED")
