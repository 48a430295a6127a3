"""Many revoked in one step: over the API, from the command line, to the feed and the CRL."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from cryptography import x509

from provisioning.client.operator import OperatorClient
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.broker_process import wait_until
from tests.support.curl import Curl
from tests.support.enrolled import enrol
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True


async def test_one_call_revokes_many_and_all_neighbours_hear_of_each(own_service: ProvisioningService) -> None:
    service = own_service
    devices = await asyncio.to_thread(enrol, service, "meter-1", "meter-2", "meter-3")
    async with OperatorClient(service.https, service.bundle, service.operator) as operator:
        revoked = await operator.revoke(
            devices=["meter-1", "meter-2"], serials=[devices[2].serial.upper()], reason=RevocationReason.KEY_COMPROMISE
        )
        assert sorted(each.sequence for each in revoked) == [1, 2, 3]
        assert {each.device for each in revoked} == {"meter-1", "meter-2", "meter-3"}
        again = await operator.revoke(devices=["meter-2"])
        assert [each.reason for each in again] == [RevocationReason.KEY_COMPROMISE]
    wanted = {each.certificate.serial_number for each in devices}
    plain = Curl(service.http)

    def listed() -> set[int]:
        return {each.serial_number for each in x509.load_der_x509_crl(plain.run("/crl/issuing-ca.crl").body)}

    await asyncio.to_thread(wait_until, lambda: wanted <= listed(), "they are listed", pause=0.2)


def test_a_file_of_devices_is_revoked_by_one_command(own_service: ProvisioningService, tmp_path: Path) -> None:
    service = own_service
    devices = enrol(service, *(f"meter-{number}" for number in range(4)))
    where = ("--dir", str(service.dir), "--url", service.https)
    (tmp_path / "stolen").write_text("meter-0\n\nmeter-1\nmeter-0\n")
    done = service.command("revoke", "--devices-file", str(tmp_path / "stolen"), "--json", *where)
    assert done.returncode == 0, done.stderr
    assert [each["device"] for each in json.loads(done.stdout)] == ["meter-0", "meter-1"]
    (tmp_path / "serials").write_text(f"{devices[2].serial}\n")
    done = service.command("revoke", "--serials-file", str(tmp_path / "serials"), "--reason", "superseded", *where)
    assert "meter-2  superseded" in done.stdout
    (tmp_path / "stolen").write_text("\n".join(["meter-3", *(f"nobody-{number}" for number in range(12))]))
    done = service.command("revoke", "--devices-file", str(tmp_path / "stolen"), *where)
    assert (done.returncode, done.stdout) == (1, "")
    assert "DEVICE_UNKNOWN: no device is called 'nobody-0', 'nobody-1', " in done.stderr
    assert "'nobody-9' and 2 others; nothing of this request was revoked" in done.stderr
    with service.api() as api:
        assert api.get("/v1/devices/meter-3").json()["state"] == "active"
        too_many = api.post("/v1/revocations", json={"devices": ["meter-3"] * 1001})
        both = api.post("/v1/revocations", json={"device": "meter-3", "serials": ["1f"]})
    assert (too_many.status_code, too_many.json()["code"]) == (400, "INVALID_REQUEST")
    assert "give either device, or serial, or certificate, or lists" in both.json()["detail"]
    group = ("revoke", "--group", "meters", *where)
    asked = service.command(*group)  # Nobody answers.
    assert (asked.returncode, asked.stdout, "Revoke 2 devices of group" in asked.stderr) == (1, "", True)
    with service.api() as api:
        assert api.get("/v1/devices/meter-3").json()["state"] == "active"
    done = service.command(*group, "--yes", "--json")
    assert sorted(each["device"] for each in json.loads(done.stdout)) == ["meter-2", "meter-3"]
    again = service.command(*group, "--json")  # Nobody is asked whether nothing is to be done.
    nothing = "fleet-provisioning: no device of group meters is left to revoke\n"
    assert (again.returncode, json.loads(again.stdout), again.stderr) == (0, [], nothing)
    misspelled = service.command("revoke", "--group", "metres", "--yes", *where)
    assert (misspelled.returncode, "group 'metres' has no device" in misspelled.stderr) == (1, True)
    done = service.command(*group, "--yes", "--json", "--reason", "keyCompromise")  # Of keys, it is news.
    assert {(each["device"], each["reason"]) for each in json.loads(done.stdout)} == {
        (f"meter-{number}", "keyCompromise") for number in range(4)
    }
    assert "revoked before" not in done.stderr
    (tmp_path / "stolen").write_text("\n")
    done = service.command("revoke", "--devices-file", str(tmp_path / "stolen"), *where)
    assert "names no device: put one on each line" in done.stderr


def test_each_device_that_a_command_names_is_meant_and_not_the_last_alone(own_service: ProvisioningService) -> None:
    service = own_service
    first, second, third, _ = devices = enrol(service, *(f"meter-{number}" for number in range(4)))
    where = ("--dir", str(service.dir), "--url", service.https)

    def done(command: str, *named: str) -> list[str]:
        ended = service.command(command, *named, "--json", *where, check=True)
        return sorted(each["device"] for each in json.loads(ended.stdout))

    both = ("--device", "meter-0", "--device", "meter-1")
    assert done("suspend", *both) == done("resume", *both) == ["meter-0", "meter-1"]
    nothing = service.command("resume", *both, *where, check=True)
    on_hold = "no certificate was on hold for a suspension"
    assert nothing.stderr == f"fleet-provisioning: {on_hold}; the devices are active\n"
    assert done("revoke", *both) == ["meter-0", "meter-1"]
    assert done("revoke", "--serial", second.serial, "--serial", third.serial) == ["meter-1", "meter-2"]
    assert "exactly one of" in service.command("suspend", *both, "--serial", first.serial, *where).stderr
    failed = service.command("decommission", "--device", "meter-3", "--device", "nobody", "--json", *where)
    assert (failed.returncode, "DEVICE_UNKNOWN" in failed.stderr) == (1, True)
    assert [each["device"] for each in json.loads(failed.stdout)] == [devices[3].name]
