"""Tokens that exist: what operators see of them, and the end of a single one, over REST and by commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from provisioning.pki.tls import client_context
from tests.support.curl import Curl
from tests.support.enrolled import enrol
from tests.support.openssl import OpensslDevice, certificate_facts
from tests.support.provisioning import REPOSITORY, ProvisioningService

ON_BOTH_STORES = True


def made(api: httpx.Client, **order: object) -> str:
    answer = api.post("/v1/tokens", json=order)
    assert answer.status_code == 201, answer.text
    (item,) = answer.json()["tokens"]
    assert api.get(f"/v1/tokens/{item['id']}").json()["device"] == order.get("device")
    token: str = item["token"]
    return token


def listed(api: httpx.Client, after: str = "0", **search: object) -> list[dict[str, object]]:
    """Return every item of every page behind the cursor *after*, two at a time."""
    items = []
    while True:
        answer = api.get("/v1/tokens", params={"limit": "2", "after": after, **search})  # type: ignore[dict-item]
        assert answer.status_code == 200, answer.text
        page = answer.json()
        items += page["items"]
        if page["next"] is None:
            return items
        after = page["next"]


@pytest.fixture
def start(service: ProvisioningService) -> str:
    """The cursor behind every token that the service has made before the test."""
    with service.api() as api:
        return str(api.post("/v1/tokens", json={"group": "tokens-before"}).json()["tokens"][0]["id"])


def test_tokens_are_listed_shown_and_voided(service: ProvisioningService, tmp_path: Path, start: str) -> None:
    device = OpensslDevice(tmp_path, "token-1")
    with service.api() as api:
        used = made(api, device="token-1", group="tokens-north")
        wrong = made(api, device="token-2", group="tokens-north", ttl_seconds=7200)
        for number in range(3):
            made(api, group="tokens-south", ttl_seconds=60 + number)
        stranger = Curl(service.https, service.bundle)
        answer = stranger.est("simpleenroll", device.request(), "--user", f"token-1:{used}")
        assert answer.status == 200, answer.text
        device.take(answer.body)

        everything = listed(api, start)
        assert [each["device"] for each in everything] == ["token-1", "token-2", None, None, None]
        assert [each["state"] for each in everything] == ["used", "open", "open", "open", "open"]
        assert used not in json.dumps(everything)
        assert [each["device"] for each in listed(api, group="tokens-north", state="open")] == ["token-2"]
        assert [each["state"] for each in listed(api, device="token-1")] == ["used"]
        assert len(listed(api, start, expires_before=everything[0]["expires_at"])) == 3
        shown = api.get(f"/v1/tokens/{everything[0]['id']}").json()
        assert shown["serial"] == certificate_facts(device.certificate, "-serial").partition("=")[
            2
        ].strip().lower().lstrip("0")
        for edge in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
            for path in ("/v1/tokens", "/v1/certificates"):
                refused = api.get(path, params={"expires_before": edge})
                assert (refused.status_code, refused.json()["code"]) == (400, "INVALID_REQUEST"), refused.text
        assert api.get("/v1/tokens/999999").json()["code"] == "TOKEN_NUMBER_UNKNOWN"

        voided_number = everything[1]["id"]
        first = api.delete(f"/v1/tokens/{voided_number}")
        assert (first.status_code, first.json()["state"]) == (200, "void")
        assert api.delete(f"/v1/tokens/{voided_number}").json() == first.json()
        spent = api.delete(f"/v1/tokens/{everything[0]['id']}")
        assert (spent.status_code, spent.json()["code"]) == (409, "TOKEN_SPENT")
        assert f"was used for certificate {shown['serial']}: revoke that instead" in spent.json()["detail"]
    other = OpensslDevice(tmp_path, "token-2")
    answer = stranger.est("simpleenroll", other.request(), "--user", f"token-2:{wrong}")
    assert (answer.status, answer.text.partition(":")[0]) == (401, "TOKEN_VOID")
    shown_log = service.command("audit", "show", "--dir", str(service.dir), "--limit", "100000", "--json").stdout
    voided = [each for each in json.loads(shown_log) if each["action"] == "token voided"]
    assert [each["details"]["token"] for each in voided if each["subject"] == "token-2"] == [voided_number]


def test_a_batch_has_its_numbers_in_order(service: ProvisioningService, start: str) -> None:
    names = [f"batched-{number}" for number in range(2000, 0, -1)]
    with service.api() as api:
        items = api.post("/v1/tokens", json={"devices": names}).json()["tokens"]
        by_number = {each["id"]: each["device"] for each in items}
        assert [each["device"] for each in items] == names
        first = api.get("/v1/tokens", params={"limit": "1000", "after": start}).json()["items"]
        assert all(by_number[each["id"]] == each["device"] for each in first)
        device = {"device": names[-1]}
        (last,) = api.get("/v1/tokens", params=device).json()["items"]
        assert by_number[last["id"]] == names[-1]


def test_an_enroller_voids_what_an_enroller_makes(service: ProvisioningService, tmp_path: Path, start: str) -> None:
    with service.api() as api:
        made(api, device="token-broker", role="broker", dns_names=["localhost"])
        made(api, device="token-3")
        token = made(api, device="token-anna", role="operator", operator_role="enroller")
        anna = OpensslDevice(tmp_path, "token-anna")
        answer = Curl(service.https, service.bundle).est(
            "simpleenroll", anna.request(), "--user", f"token-anna:{token}"
        )
        anna.take(answer.body)
        brokers, meters, _ = (each["id"] for each in listed(api, start))
    enroller = Curl(service.https, service.bundle, anna.credential)
    assert enroller.run(f"/v1/tokens/{meters}", "--request", "DELETE").status == 200
    refused = enroller.run(f"/v1/tokens/{brokers}", "--request", "DELETE")
    assert (refused.status, "OPERATOR_ROLE" in refused.text) == (403, True)


def test_the_commands_say_the_same(service: ProvisioningService) -> None:
    def token(*arguments: str) -> str:
        where = ("--dir", str(service.dir), "--url", service.https)
        done = service.command("token", *arguments, *where)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with service.api() as api:
        made(api, device="token-4", group="tokens-east", ttl_seconds=600)
        made(api, group="tokens-west", ttl_seconds=86_400)
    ours = [each for each in json.loads(token("list", "--json")) if each["group"] in ("tokens-east", "tokens-west")]
    assert [each["group"] for each in ours] == ["tokens-east", "tokens-west"]
    for wanted, devices in (("1h", ["token-4"]), ("1m", [])):
        soon = json.loads(token("list", "--expiring-within", wanted, "--group", "tokens-east", "--json"))
        assert [each["device"] for each in soon] == devices
    assert json.loads(token("list", "--expiring-within", "1h", "--group", "tokens-west", "--json")) == []
    assert "any new" in token("list", "--group", "tokens-west")
    number = str(ours[0]["id"])
    assert [each["state"] for each in json.loads(token("void", number, "--json"))] == ["void"]
    assert "void" in token("show", number)
    assert json.loads(token("list", "--state", "open", "--group", "tokens-east", "--json")) == []
    assert [each["state"] for each in json.loads(token("list", "--group", "tokens-west", "--json"))] == ["open"]


def test_a_file_of_tokens_that_got_lost_is_voided_by_its_group(service: ProvisioningService) -> None:
    where = ("--dir", str(service.dir), "--url", service.https)
    with service.api() as api:
        for _ in range(3):
            made(api, group="tokens-lost")
        made(api, device="token-kept", group="tokens-kept")
    (gone,) = enrol(service, "tokens-gone", role="operator", operator_role="admin")
    trust = client_context(service.bundle, gone.credential, allow_tls12=True)
    with httpx.Client(base_url=service.https, verify=trust, trust_env=False) as api:
        made(api, group="tokens-lost", role="broker")
    with service.api() as api:
        made(api, group="tokens-lost")
    service.suspend(device="tokens-gone")
    listed_json = service.command("token", "list", "--group", "tokens-lost", "--json", *where, check=True).stdout
    listed = json.loads(listed_json)
    assert [each["state"] for each in listed] == ["open"] * 3 + ["void", "open"]
    first, second, third, gone_s, last = (each["id"] for each in listed)
    some = service.command("token", "void", str(first), "999999", str(second), *where)
    assert some.returncode == 1
    assert "TOKEN_NUMBER_UNKNOWN: no token has the number 999999" in some.stderr
    assert "2 of 3 are void, but for 1 named above" in some.stderr
    lost = ("token", "void", "--group", "tokens-lost", *where)
    asked = service.command(*lost)  # Nobody answers.
    question = f"Void 3 open tokens of group tokens-lost, {third} to {last}? [y/N]: "
    assert (asked.returncode, asked.stdout, asked.stderr.startswith(question)) == (1, "", True)
    rest = service.command(*lost, "--json", "--yes", check=True)
    assert [(each["id"], each["state"]) for each in json.loads(rest.stdout)] == [
        (each, "void") for each in (third, gone_s, last)
    ]
    nothing = service.command(*lost, check=True)
    assert (nothing.stdout, nothing.stderr) == ("", "fleet-provisioning: no token of group tokens-lost was open\n")
    misspelled = service.command("token", "void", "--group", "tokens-last", "--yes", *where)
    assert (misspelled.returncode, "group 'tokens-last' has neither token" in misspelled.stderr) == (1, True)
    misspelled = service.command("token", "void", "--device", "tokens-nobody", *where)
    assert (misspelled.returncode, "no device is called 'tokens-nobody'" in misspelled.stderr) == (1, True)
    assert "open" in service.command("token", "list", "--group", "tokens-kept", *where, check=True).stdout
    for arguments in ((), ("1", "--group", "tokens-kept")):
        assert service.command("token", "void", *arguments, *where).returncode == 2


def test_a_group_of_which_nothing_is_known_is_said_to_be_new(
    service: ProvisioningService, stranger: Curl, device: OpensslDevice, tmp_path: Path
) -> None:
    where = ("--dir", str(service.dir), "--url", service.https)
    made = service.command("token", "create", "--device", device.name, "--group", device.name, *where, check=True)
    assert f"group {device.name} is new" in made.stderr
    credentials = f"{device.name}:{made.stdout.strip()}"
    assert stranger.est("simpleenroll", device.request(), "--user", credentials).status == 200
    batch = ("token", "batch", "--group", device.name, "--count", "2", "--output", str(tmp_path / "tokens.csv"))
    assert "is new" not in service.command(*batch, *where, check=True).stderr
    service.command("group", "create", f"{device.name}-2", "--way", "token", *where, check=True)
    configured = service.command("token", "create", "--group", f"{device.name}-2", *where, check=True)
    assert "is new" not in configured.stderr


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (("create", "--device", "token-unkept"), "the token was voided again"),
        (("batch", "--group", "tokens-unkept", "--count", "3"), "3 tokens were voided again"),
    ],
    ids=["one", "several"],
)
def test_tokens_that_cannot_be_written_down_are_voided_again(
    service: ProvisioningService, tmp_path: Path, start: str, order: tuple[str, ...], said: str
) -> None:
    output = tmp_path / "tokens"
    # No file may grow: the kernel says so as it says that a disk is full.
    limited = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", sys.executable, "-m", "provisioning", "token", *order]
    where = ["--output", str(output), "--dir", str(service.dir), "--url", service.https]
    done = subprocess.run([*limited, *where], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(f"fleet-provisioning: {output} cannot be written: File too large; {said}\n")
    assert not output.exists()
    with service.api() as api:
        assert {each["state"] for each in listed(api, start)} == {"void"}


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("unwritable", ["full", "closed"])
def test_a_token_that_cannot_be_printed_is_voided_again(
    service: ProvisioningService, start: str, unwritable: str, as_json: bool
) -> None:
    reading, closed = os.pipe()
    os.close(reading)
    order = ["token", "create", "--device", "token-unprinted", *["--json"] * as_json]
    with Path("/dev/full").open("w") as full, os.fdopen(closed, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "provisioning", *order, "--dir", str(service.dir), "--url", service.https],
            cwd=REPOSITORY,
            stdout=full if unwritable == "full" else pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    why = "No space left on device" if unwritable == "full" else "Broken pipe"
    *about, said = done.stderr.splitlines()
    assert (done.returncode, len(about)) == (1, 0 if as_json else 1)
    assert said == f"fleet-provisioning: the output cannot be written: {why}; the token was voided again"
    with service.api() as api:
        assert {each["state"] for each in listed(api, start)} == {"void"}
