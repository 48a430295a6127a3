"""What an operator does to many devices, or tokens, at once: one request, whole or not at all; and the commands."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import httpx
import pytest

from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.operator import RefusedItem, RequestRefused
from provisioning.pki.tls import client_context
from tests.support.broker_process import wait_until
from tests.support.enrolled import enrol
from tests.support.provisioning import REPOSITORY, ProvisioningService

ON_BOTH_STORES = True

PATHS = {"/v1/suspensions": "suspended", "/v1/resumptions": "resumed", "/v1/decommissions": "revoked"}
HEARS_CTRL_C = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("provisioning", run_name="__main__", alter_sys=True)
"""
"""The program, which Ctrl-C reaches though the tests run in the background of a shell."""
TOO_MANY = [f"meter-{number}" for number in range(1001)]


def keyed(api: httpx.Client, path: str, key: str, **body: object) -> httpx.Response:
    return api.post(path, json=body, headers={"Idempotency-Key": key})


def test_one_request_is_done_whole_or_not_at_all_and_names_who_cannot_be(own_service: ProvisioningService) -> None:
    service, names = own_service, ["meter-2", "meter-1"]
    devices = enrol(service, *names)
    with service.api() as api:
        before = api.get("/v1/status").json()
        for path in PATHS:
            refused = api.post(path, json={"devices": ["nobody", *names]})
            assert (refused.status_code, refused.headers["content-type"]) == (404, "application/problem+json")
            assert refused.json()["detail"].startswith("no device is called 'nobody'; nothing of this request was ")
            unknown = {"device": "nobody", "code": "DEVICE_UNKNOWN", "detail": "no device is called 'nobody'"}
            assert (refused.json()["code"], refused.json()["items"]) == ("DEVICE_UNKNOWN", [unknown])
            bodies: list[dict[str, object]] = [{"devices": []}, {"device": "meter-1", "devices": names}]
            for body in (*bodies, {"devices": TOO_MANY}, {}):
                wrong = api.post(path, json=body)
                assert (wrong.status_code, wrong.json()["code"]) == (400, "INVALID_REQUEST"), (path, body)
            named = api.post(path, json={"devices": ["meter-1", "x" * 65]}).json()["detail"]
            assert named.startswith("devices.1: ")
        assert api.get("/v1/status").json() == before

        both = {"devices": names, "serials": [devices[0].serial.upper()]}
        first = keyed(api, "/v1/suspensions", "one", **both)
        assert first.status_code == 201
        assert [each["device"] for each in first.json()["suspended"]] == names
        replayed = keyed(api, "/v1/suspensions", "one", **both)
        assert (replayed.status_code, replayed.json()) == (201, first.json())
        assert replayed.headers["idempotency-replayed"] == "true"
        again = api.post("/v1/suspensions", json=both)
        assert (again.status_code, again.json()) == (200, first.json())
        assert api.get("/v1/status").json()["devices"]["suspended"] == 2
        resumed = api.post("/v1/resumptions", json=both)
        assert (resumed.status_code, len(resumed.json()["resumed"])) == (201, 2)
        done = api.post("/v1/resumptions", json=both)
        assert (done.status_code, done.json()) == (200, {"resumed": [], "still_suspended": []})
        ended = api.post("/v1/decommissions", json={"devices": names})
        assert [each["device"] for each in ended.json()["revoked"]] == names
        assert api.post("/v1/decommissions", json={"devices": names}).status_code == 200
        final = api.post("/v1/resumptions", json={"devices": names})
        assert (final.status_code, {each["code"] for each in final.json()["items"]}) == (409, {"REVOCATION_FINAL"})


def test_tokens_are_voided_by_one_request(own_service: ProvisioningService) -> None:
    with own_service.api() as api:
        made = api.post("/v1/tokens", json={"group": "north", "count": 3}).json()["tokens"]
        numbers = [each["id"] for each in made]
        refused = api.post("/v1/voidings", json={"tokens": [*numbers, 999_999]})
        assert (refused.status_code, [each["token"] for each in refused.json()["items"]]) == (404, [999_999])
        for tokens in ([], [0], ["1"], [1.5], [2**63], list(range(1, 1002))):
            assert api.post("/v1/voidings", json={"tokens": tokens}).json()["code"] == "INVALID_REQUEST", tokens
        voided = keyed(api, "/v1/voidings", "v", tokens=numbers[::-1])
        assert (voided.status_code, [each["id"] for each in voided.json()["tokens"]]) == (201, numbers[::-1])
        assert {each["state"] for each in voided.json()["tokens"]} == {"void"}
        assert keyed(api, "/v1/voidings", "v", tokens=numbers[::-1]).json() == voided.json()
        again = api.post("/v1/voidings", json={"tokens": numbers[::-1]})
        assert (again.status_code, again.json()) == (200, voided.json())


def test_who_may_not_do_it_to_one_may_not_do_it_to_many(own_service: ProvisioningService) -> None:
    service = own_service
    (anna,) = enrol(service, "anna", role="operator", operator_role="auditor")
    (bert,) = enrol(service, "bert", role="operator", operator_role="enroller")
    with service.api() as api:
        (device,) = api.post("/v1/tokens", json={"device": "meter-1"}).json()["tokens"]
        (broker,) = api.post("/v1/tokens", json={"device": "b", "role": "broker"}).json()["tokens"]
    for who, may_void in ((anna, False), (bert, True)):
        context = client_context(service.bundle, who.credential)
        with httpx.Client(base_url=service.https, verify=context, trust_env=False) as api:
            for path in PATHS:
                refused = api.post(path, json={"devices": ["bert"]})
                assert (refused.status_code, refused.json()["code"]) == (403, "OPERATOR_ROLE")
            refused = api.post("/v1/voidings", json={"tokens": [broker["id"], device["id"]]})
            assert (refused.status_code, refused.json()["code"]) == (403, "OPERATOR_ROLE")
            items = [each["token"] for each in refused.json().get("items", ())]
            assert items == ([broker["id"]] if may_void else [])
            voided = api.post("/v1/voidings", json={"tokens": [device["id"]]})
            assert voided.status_code == (201 if may_void else 403)


async def test_the_client_s_methods_take_many(own_service: ProvisioningService) -> None:
    service, names = own_service, ["meter-1", "meter-2"]
    await asyncio.to_thread(enrol, service, *names)
    async with EnrolmentOperatorClient(service.https, service.bundle, service.operator) as operator:
        with pytest.raises(RequestRefused) as caught:
            await operator.suspend(devices=["meter-1", "nobody"], serials=["1f"])
        assert caught.value.items == [
            RefusedItem("nobody", "DEVICE_UNKNOWN", "no device is called 'nobody'"),
            RefusedItem("1f", "SERIAL_UNKNOWN", "no certificate has the serial number '1f'"),
        ]
        assert [each.device for each in await operator.suspend(devices=names)] == names
        assert [each.device for each in await operator.resume(devices=names)] == names
        assert [each.device for each in await operator.decommission(devices=names)] == names
        tokens = await operator.create_tokens(group="north", count=2)
        numbers = [each.id or 0 for each in tokens]
        assert [each.state for each in await operator.void_tokens(numbers)] == ["void", "void"]


def where(service: ProvisioningService) -> tuple[str, ...]:
    return "--dir", str(service.dir), "--url", service.https


def test_a_group_is_suspended_resumed_and_decommissioned_once_it_is_confirmed(
    own_service: ProvisioningService,
) -> None:
    service = own_service
    enrol(service, "meter-1", "meter-2", "meter-3")
    enrol(service, "other", group="others")

    def run(command: str, *arguments: str, group: str = "meters") -> subprocess.CompletedProcess[str]:
        return service.command(command, "--group", group, *arguments, *where(service))

    def states() -> list[str]:
        with service.api() as api:
            return [each["state"] for each in api.get("/v1/devices?group=meters").json()["items"]]

    ever = {"suspend": "", "resume": "", "decommission": ", for ever"}
    for command, after in (("suspend", "suspended"), ("resume", "active"), ("decommission", "decommissioned")):
        before = states()
        asked = run(command)  # Nobody answers.
        question = f"{command.capitalize()} 3 devices of group meters, meter-1 to meter-3{ever[command]}? [y/N]: "
        assert (asked.returncode, asked.stdout, asked.stderr.startswith(question)) == (1, "", True)
        assert states() == before
        done = run(command, "--yes", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert [each["device"] for each in json.loads(done.stdout)] == ["meter-1", "meter-2", "meter-3"]
        assert states() == [after] * 3
        again = run(command)
        nothing = f"fleet-provisioning: no device of group meters is left to {command}\n"
        assert (again.returncode, again.stdout, again.stderr) == (0, "", nothing)
        misspelled = run(command, "--yes", group="metres")
        assert (misspelled.returncode, "group 'metres' has no device" in misspelled.stderr) == (1, True)
        two = run(command, "--device", "meter-1")
        assert (two.returncode, "give exactly one of --device" in two.stderr) == (2, True)


def test_names_come_from_standard_input_each_once_and_what_is_no_name_is_said(
    own_service: ProvisioningService, tmp_path: Path
) -> None:
    service = own_service
    enrol(service, "meter-1", "meter-2")

    def suspend(names: str) -> subprocess.CompletedProcess[str]:
        arguments = ["suspend", "--devices-file", "-", "--json", *where(service)]
        return subprocess.run(
            [sys.executable, "-m", "provisioning", *arguments],
            input=names, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    done = suspend("device\nmeter-2\nmeter-1\nmeter-2\n")
    assert (done.returncode, [each["device"] for each in json.loads(done.stdout)]) == (0, ["meter-2", "meter-1"])
    assert done.stderr == "fleet-provisioning: standard input: the first line, device, is a header and no device\n"
    nobody = suspend("")
    said = "fleet-provisioning: standard input names no device: put one on each line\n"
    assert (nobody.returncode, nobody.stdout, nobody.stderr) == (1, "", said)
    some = suspend("nobody\nmeter-1\n")
    assert (some.returncode, [each["device"] for each in json.loads(some.stdout)]) == (1, ["meter-1"])
    assert some.stderr.splitlines() == [
        "fleet-provisioning: DEVICE_UNKNOWN: no device is called 'nobody'",
        "fleet-provisioning: 1 of 2 is suspended, but for 1 named above",
    ]
    long = suspend(f"meter-1\n{'x' * 70}\n")
    assert (long.returncode, long.stdout) == (1, "")
    assert "standard input:2 begins with 'xxxx" in long.stderr
    missing = service.command("suspend", "--devices-file", str(tmp_path / "none"), *where(service))
    assert (missing.returncode, "none cannot be read: No such file" in missing.stderr) == (1, True)


def test_a_thousand_and_one_are_more_than_a_request_and_no_more_than_a_command(
    own_service: ProvisioningService, tmp_path: Path
) -> None:
    service = own_service
    (tmp_path / "names").write_text("\n".join(TOO_MANY))
    nobody = service.command("suspend", "--devices-file", str(tmp_path / "names"), *where(service))
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr.count("DEVICE_UNKNOWN") == 1001
    assert nobody.stderr.endswith("none of 1001 is suspended: why is said above\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_is_interrupted_is_told_how_far_it_came_and_runs_it_again(
    own_service: ProvisioningService, number: signal.Signals, code: int
) -> None:
    service = own_service
    with service.api() as api:
        api.post("/v1/tokens", json={"group": "lost", "count": 5000})
    arguments = ["token", "void", "--group", "lost", "--yes", "--json", *where(service)]
    command: Any = subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, *arguments],
        bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    begun = command.stdout.readline()  # More than three steps further it cannot come: nobody reads on.
    command.send_signal(number)
    told, wrong = command.communicate(timeout=60)
    said = wrong.decode()
    assert command.returncode == code, said
    far = re.fullmatch(
        r"fleet-provisioning: the first (\d+) of 5000 are void, and perhaps the 500 that follow: to run it again does "
        r"no harm\nfleet-provisioning: stopped\n",
        said,
    )
    assert far is not None, said
    assert len(json.loads(begun + told)) == int(far[1]), "what is said is in the array, which is whole"
    rest = service.command(*arguments, check=True)
    assert 5000 - int(far[1]) - 500 <= len(json.loads(rest.stdout)) <= 5000 - int(far[1])
    with service.api() as api:
        assert api.get("/v1/status").json()["tokens"]["open"] == 0


def test_a_second_sigterm_ends_a_command_whose_output_nobody_reads(own_service: ProvisioningService) -> None:
    service = own_service
    with service.api() as api:
        api.post("/v1/tokens", json={"group": "lost", "count": 100})
    reader, writer = os.pipe()
    room = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1)
    command = subprocess.Popen(  # Unbuffered: Python 3.14 keeps 128 KiB until the end.
        [sys.executable, "-u", "-m", "provisioning", "token", "list", "--json", *where(service)],
        cwd=REPOSITORY, stdout=writer,
    )  # fmt: skip
    os.close(writer)

    def is_full() -> bool:
        held = int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)
        return held > room / 2  # What follows fits only in part.

    def catches() -> bool:
        (caught,) = re.findall(r"SigCgt:\s+(\w+)", Path(f"/proc/{command.pid}/status").read_text())
        return bool(int(caught, 16) >> signal.SIGTERM - 1 & 1)

    try:
        wait_until(is_full, "the command's output")
        assert catches()
        command.terminate()
        wait_until(lambda: not catches(), "the first signal's arrival")
        assert command.poll() is None
        command.terminate()
        assert command.wait(60) == -signal.SIGTERM
    finally:
        command.kill()
        os.close(reader)


def test_a_token_that_was_used_meanwhile_is_said_and_keeps_none_of_the_others(own_service: ProvisioningService) -> None:
    service = own_service
    enrol(service, "meter-1")
    with service.api() as api:
        (used,) = api.get("/v1/tokens", params={"device": "meter-1"}).json()["items"]
        made = api.post("/v1/tokens", json={"group": "north", "count": 2}).json()["tokens"]
    first, second = (str(each["id"]) for each in made)
    done = service.command("token", "void", first, str(used["id"]), second, "--json", *where(service))
    assert (done.returncode, [str(each["id"]) for each in json.loads(done.stdout)]) == (1, [first, second])
    assert f"TOKEN_SPENT: token {used['id']} was used for certificate {used['serial']}: revoke that" in done.stderr
    assert "2 of 3 are void, but for 1 named above" in done.stderr
