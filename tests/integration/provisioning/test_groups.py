"""Enrolment groups with the command line, curl and openssl."""

from __future__ import annotations

import json

import pytest

from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True


def run(service: ProvisioningService, *arguments: str) -> tuple[int, str, str]:
    done = service.command("group", *arguments, "--dir", str(service.dir), "--url", service.https)
    return done.returncode, done.stdout, done.stderr


def test_a_group_is_made_listed_changed_and_closed(
    service: ProvisioningService, stranger: Curl, device: OpensslDevice
) -> None:
    name = device.name
    code, shown, said = run(service, "create", name, "--way", "token", "--lifetime", "3600", "--maximum-devices", "1")
    assert code == 0, said
    assert ["ways", "token"] in [line.split() for line in shown.splitlines()]
    token = service.token(device=name, group=name)
    user = ("--user", f"{name}:{token}")
    csr = device.request()
    first = stranger.est(f"{name}/simpleenroll", csr, *user)
    assert first.status == 200, first.text
    # The answer was lost: the same request gets the same certificate.
    assert stranger.est(f"{name}/simpleenroll", csr, *user).body == first.body
    assert stranger.est("simpleenroll", device.request(), *user).text.startswith("TOKEN_USED")
    other = OpensslDevice(device.directory, f"{name}-b")
    token = service.token(device=other.name, group=name)
    full = stranger.est("simpleenroll", other.request(), "--user", f"{other.name}:{token}")
    assert (full.status, full.text.split(":")[0]) == (403, "GROUP_FULL")
    code, listed, _ = run(service, "list", "--json")
    assert (code, [each["maximum_devices"] for each in json.loads(listed) if each["name"] == name]) == (0, [1])
    code, shown, _ = run(service, "set", name, "--webhook-url", "http://127.0.0.1:1/")
    assert (code, shown.splitlines()[-1]) == (
        0,
        "Its webhook is not asked: no way of the group names it, such as token+webhook.",
    )
    assert "not asked" not in run(service, "set", name, "--way", "token+webhook")[1]
    code, shown, _ = run(service, "set", name, "--closed", "--maximum-devices", "0")
    assert (code, shown.splitlines()[-1]) == (0, f"Group {name} is closed: no new device is admitted.")
    assert ["ways", "none"] in [line.split() for line in shown.splitlines()]
    closed = stranger.est("simpleenroll", other.request(), "--user", f"{other.name}:{token}")
    assert (closed.status, closed.text.split(":")[0]) == (403, "WAY_REFUSED")
    assert "maximum devices" not in run(service, "show", name)[1]


def test_a_group_that_goes_too_fast_is_told_when_to_come_back_and_spends_nothing(
    service: ProvisioningService, stranger: Curl, device: OpensslDevice
) -> None:
    name = device.name
    code, shown, said = run(service, "create", name, "--way", "token", "--certificates-per-minute", "1")
    assert code == 0, said
    assert "certificates per minute  1" in shown
    devices = [OpensslDevice(device.directory, f"{name}-{letter}") for letter in "ab"]
    users = [("--user", f"{each.name}:{service.token(device=each.name, group=name)}") for each in devices]
    assert stranger.est("simpleenroll", devices[0].request(), *users[0]).status == 200
    csr = devices[1].request()
    refused = stranger.est("simpleenroll", csr, *users[1])
    assert (refused.status, refused.text.split(":")[0]) == (429, "RATE_LIMITED")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert run(service, "set", name, "--certificates-per-minute", "0")[0] == 0
    assert stranger.est("simpleenroll", csr, *users[1]).status == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "west"), "give --way, or --closed"),
        (("create", "west", "--way", "pigeon"), "INVALID_REQUEST: ways: 'pigeon' is not a way to enrol"),
        (("create", "we st", "--way", "token"), "INVALID_REQUEST: name 'we st'"),
        (("create", "west", "--way", "token", "--closed"), "give --way or --closed, not both"),
        (("show", "nowhere"), "GROUP_UNKNOWN: no group 'nowhere' is configured: "),
        (("show", "nowhere"), "to change that, create it (fleet-provisioning group create)"),
        (("set", "nowhere", "--lifetime", "90"), "GROUP_UNKNOWN"),
        (("set", "nowhere"), "give at least one rule to change"),
    ],
)
def test_what_is_wrong_is_said(service: ProvisioningService, arguments: tuple[str, ...], words: str) -> None:
    code, _, said = run(service, *arguments)
    assert code in {1, 2}
    assert words in " ".join(said.split())


def test_groups_are_the_operators_business(stranger: Curl, operator: Curl) -> None:
    assert stranger.run("/v1/groups").status == 403
    answer = operator.run("/v1/groups", "-H", "Content-Type: application/json", data=b'{"name": "x", "waves": []}')
    assert answer.status == 400
    assert "waves" in answer.text
